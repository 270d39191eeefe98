"""What reports cost: a page of 100,000 lines, and what watching and serving take from a run that trains.

    python -m benchmarks.report page      seconds to write it, its size, and milliseconds until it can be used
    python -m benchmarks.report serve     the step time of a run with and without --watch --serve under 200 slow clients

The second trains the demo, and stops the server and lets it go on in turn, every two seconds, so that the machine's own
drift falls out; it prints the mean ratio of the mean step times of neighbouring phases, with its standard error, and
what the server took of a processor. The clients send as much while the server is stopped: their own cost falls out too.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import fmean, quantiles, stdev

from benchmarks.browser import chromium, installed, wait_ready

from trainwell.report.load import load_run
from trainwell.report.run_page import write_report

LINES = 100_000
CLIENTS, PAIRS, PHASE_S = 200, 160, 2.0


def page() -> None:
    """Train a little, repeat its rows up to 100,000, and write and open the report."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        _train(run, "200").wait()
        _lengthen(run / "metrics.jsonl")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "trainwell", "show", str(run)], check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        file = write_report(load_run(run))
        print(f"{LINES:,} lines: `trainwell show` {whole:.1f} s, of which reading and writing the report "
              f"{time.perf_counter() - began:.1f} s; {file.stat().st_size / 1e6:.2f} MB")  # fmt: skip
        print(f"in the browser: {_ready_ms(file)} ms until every control works")


def _lengthen(file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    steps = max(row["step"] for row in rows if "train/loss" in row) + 1
    with file.open("w", encoding="utf-8") as out:
        for number in range(LINES // len(rows) + 1):
            out.writelines(json.dumps(row | {"step": row["step"] + number * steps}) + "\n" for row in rows)


def _ready_ms(file: Path) -> str:
    if installed() is None:
        return "unknown, for want of a browser,"
    with chromium() as browser:
        found = []
        for _ in range(3):
            tab = browser.new_page()
            tab.goto(file.as_uri())
            wait_ready(tab)
            found.append(int(tab.get_attribute("html", "data-ready") or 0))
            tab.close()
    return " ".join(map(str, found))


def serve() -> None:
    """Train, and let --watch --serve with slow clients run every other phase."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        training = _train(run, "1000000")
        try:
            while not (run / "metrics.jsonl").exists():
                time.sleep(0.5)
            time.sleep(10)
            edges, used = _alternated(run)
        finally:
            training.terminate()
            training.wait()
        ratios = _ratios(_rows(run), edges)
    error = stdev(ratios) / len(ratios) ** 0.5
    print(f"step time with --watch --serve and {CLIENTS} slow clients / without: {fmean(ratios):.4f} +- {error:.4f}")
    middle = ", ".join(f"{each:.4f}" for each in quantiles(ratios))
    print(f"{len(ratios)} pairs of {PHASE_S:.0f} s; quartiles {middle}; the server took {used:.2%} of one processor")


def _alternated(run: Path) -> tuple[list[int], float]:
    """The number of lines in metrics.jsonl at the edges of the phases: without, with, without, ...; and what share of
    a processor the server took in its phases.
    """
    words = [sys.executable, "-m", "trainwell", "show", str(run), "--watch", "--serve"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
        clients = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(CLIENTS)]
        server.stdout.readline()  # the first page is written: what is measured is a server at work
        edges, before = [_lines(run)], _processor_s(server.pid)
        for phase in range(2 * PAIRS):
            served = phase % 2 == 1
            server.send_signal(signal.SIGCONT if served else signal.SIGSTOP)
            clients = _phase(clients, port if served else None)
            edges.append(_lines(run))
        used = (_processor_s(server.pid) - before) / (PAIRS * PHASE_S)
        server.terminate()
    return edges, used


def _processor_s(pid: int) -> float:
    """What Linux says that a process has taken of processors, in its own code and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _phase(clients: list[socket.socket], port: int | None) -> list[socket.socket]:
    """Wait a phase, in which each client sends a letter a second; one that was closed comes again, where it can."""
    for _ in range(round(PHASE_S)):
        time.sleep(1)
        clients = [_tickled(client, port) for client in clients]
    return clients


def _ratios(rows: list[dict[str, float]], edges: list[int]) -> list[float]:
    """Of each pair of phases: the mean step time of the later over that of the earlier."""
    means = [fmean(row["train/step_ms"] for row in rows[start:end]) for start, end in pairwise(edges)]
    return [served / alone for alone, served in zip(means[::2], means[1::2], strict=True)]


def _tickled(client: socket.socket, port: int | None) -> socket.socket:
    with suppress(OSError):
        client.sendall(b"G")
        return client
    if port is None:
        return client
    client.close()
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def _rows(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[:-1]
    return [json.loads(line) for line in lines]


def _lines(run: Path) -> int:
    return (run / "metrics.jsonl").read_bytes().count(b"\n")


def _train(run: Path, steps: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "trainwell", "train", "demo", "--run", str(run), "--duration", steps]
    quiet = ["--eval.every", "none", "--sample.every", "none", "--checkpoint.every", "none", "--log.plots", "false"]
    return subprocess.Popen([*words, *quiet], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["page", "serve"]
    for name in chosen:
        {"page": page, "serve": serve}[name]()
