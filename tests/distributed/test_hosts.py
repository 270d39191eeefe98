"""Two hosts: network namespaces of one machine with a link between them, torchrun on both, and the link cut.

Only the network is theirs: the folder is one, and so are the clock and the processes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from trainwell.checkpoint.layout import saved_steps
from trainwell.runs.exits import read_exit

pytestmark = pytest.mark.slow

TIMEOUT_S = 6
TRAINWELL = [sys.executable, "-m", "trainwell"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
KEYS = {
    "duration": 400,
    "data.seq-len": 32,
    "model.width": 32,
    "checkpoint.every": 25,
    "eval.every": "none",
    "sample.every": "none",
    "log.every": 1,
    "log.plots": "false",
}


def ip(*arguments: str) -> None:
    """Change the network; an error has what `ip` says."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Hosts:
    """Two network namespaces, a link, and what runs in each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = [f"trainwell-{os.getpid()}-{number}" for number in range(2)]
        self._running: list[subprocess.Popen[bytes]] = []

    def link(self) -> None:
        """Make the namespaces and the link between them."""
        for name in self._names:
            ip("netns", "add", name)
        first, second = self._names
        ip("link", "add", "wire", "netns", first, "type", "veth", "peer", "name", "wire", "netns", second)
        for number, name in enumerate(self._names):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "wire")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "wire", "up")

    def cut(self, down: bool = True) -> None:
        """Cut the link, or mend it."""
        ip("-n", self._names[0], "link", "set", "wire", "down" if down else "up")

    def start(self, number: int, *command: str) -> "subprocess.Popen[bytes]":
        """Start a command on a host; what it says is in the folder, in out-NUMBER."""
        own = {"GLOO_SOCKET_IFNAME": "wire", "TRAINWELL_TIMEOUT_S": str(TIMEOUT_S), "OMP_NUM_THREADS": "1"}
        with (self.folder / f"out-{number}").open("wb") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._names[number], *command],
                cwd=self.folder,
                env=os.environ | own | {"TRAINWELL_CACHE_DIR": str(self.folder / "cache")},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def said(self) -> str:
        """What both hosts said so far."""
        return "\n".join(file.read_text(errors="replace") for file in sorted(self.folder.glob("out-*")))

    def leave(self) -> None:
        """End what still runs, and remove the namespaces, the link with them."""
        for process in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for name in self._names:
            with suppress(OSError):
                ip("netns", "del", name)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts that reach each other."""
    made = Hosts(tmp_path)
    try:
        try:
            made.link()
        except OSError as error:
            pytest.skip(f"needs network namespaces, which root on Linux can make with iproute2: {error}")
        yield made
    finally:
        made.leave()


def wait_until(what: Callable[[], bool], hosts: Hosts, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, hosts.said()
        time.sleep(0.02)


def train(*launcher: str) -> list[str]:
    """A short run, started in some way, that saves and says every so many steps."""
    return [*launcher, "train", "demo", *(f"--{key}={value}" for key, value in KEYS.items())]


def weights(run: Path) -> dict[str, bytes]:
    last = run / "checkpoints" / f"step-{saved_steps(run / 'checkpoints')[-1]}"
    return {file.name: file.read_bytes() for file in last.glob("*.safetensors")}


def test_two_hosts_that_lose_each_other_say_so_and_go_on_bit_for_bit_once_the_link_is_back(hosts: Hosts) -> None:
    launchers = [
        hosts.start(
            number,
            *train(
                *TORCHRUN,
                *("--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=run"),
                *("--rdzv-endpoint=10.77.0.1:29500", f"--local-addr=10.77.0.{number + 1}"),
                *(f"--rdzv-conf=is_host={1 - number}", "-m", "--", "trainwell"),
            ),
            "--run=run",
        )
        for number in range(2)
    ]
    run = hosts.folder / "run"
    wait_until(lambda: "step   60 |" in hosts.said(), hosts)
    hosts.cut()
    wait_until(lambda: read_exit(run) is not None, hosts)
    end = read_exit(run)
    assert end is not None
    assert end.code == 3
    assert "lost the other ranks (" in end.message
    assert hosts.said().count("lost the other ranks") == 1
    assert "step  399 |" not in hosts.said()

    hosts.cut(down=False)
    assert [launcher.wait(120) for launcher in launchers] == [0, 0], hosts.said()
    assert "step  399 |" in hosts.said()
    assert read_exit(run) is None
    alone = subprocess.run(
        [*train(*TRAINWELL), "--nproc=2", "--run=alone"],
        cwd=hosts.folder,
        env=os.environ | {"TRAINWELL_CACHE_DIR": str(hosts.folder / "cache")},
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    assert weights(run) == weights(hosts.folder / "alone")
