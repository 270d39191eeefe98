"""Starts trainings and ends them by force: in children of a server that has imported torch, or in real processes.

A process that imports torch takes seconds, a fork of one that has imported it takes milliseconds, and is a process all
the same: with files, locks and signals of its own, killed by the kernel. The server takes no step and starts no thread,
so that what it forks is clean. Both ways run the command line itself.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, Self, TypeVar

from benchmarks.soak.operations import Operations

from trainwell import faults
from trainwell.cli import app

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
_LOOK_EVERY_S = 0.001
_TOO_LONG_S = 240.0


@dataclass(frozen=True)
class Strike:
    """A signal to send, `after_s` seconds after the start, or after the file `once` is there."""

    number: int
    after_s: float
    once: str | None = None


@dataclass(frozen=True)
class Shortage:
    """At the fault point `at` the disk runs full: files end at `limit` bytes, or `ballast` takes all that is free."""

    at: str
    """Empty: from the beginning."""
    limit: int | None = None
    ballast: str | None = None
    until: str = ""
    """The fault point at which there is room again; empty: not while this process lives."""

    @contextmanager
    def running_out(self) -> Iterator[None]:
        """The block during which it happens."""
        with ExitStack() as stack:
            if self.until:
                stack.enter_context(faults.at(self.until, self._make_room))
            if self.at:
                stack.enter_context(faults.at(self.at, self._fill))
            else:
                self._fill()
            yield

    def _fill(self) -> None:
        if self.limit is not None:
            self._limit(self.limit)
        if self.ballast is not None:
            with suppress(OSError), Path(self.ballast).open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    def _make_room(self) -> None:
        self._limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        if self.ballast is not None:
            Path(self.ballast).unlink(missing_ok=True)

    def _limit(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@dataclass(frozen=True)
class Job:
    """One command line of trainwell, run in `folder`; its output is added to the file `log` there."""

    arguments: list[str]
    folder: str
    log: str = "log.txt"
    fault: str = ""
    strike: Strike | None = None
    shortage: Shortage | None = None
    operation: int | None = None
    """Kill it before its n-th change to a file of a run, from 0."""
    emptied: bool = False
    """Kill it when that file is opened and still empty."""


@dataclass(frozen=True)
class Ended:
    """How it ended: the exit code, or the signal's number below zero; when; and how long after the strike."""

    code: int
    seconds: float
    struck: bool = False
    seconds_after: float = 0.0
    operations: tuple[str, ...] = ()
    """What it did to the files of a run, of a fork that ended by itself: `open w run/env.json`."""
    said: str = field(default="", compare=False)


class Launcher(Protocol):
    """Something that runs a job to its end."""

    def run(self, job: Job) -> Ended:
        """Run it, strike it when it says so, and wait for its end."""


Answer = TypeVar("Answer")


def spread(task: Callable[[Launcher, int], Answer], numbers: Iterable[int], processes: int) -> list[Answer]:
    """`task` of every number, in their order, shared among so many fork servers."""
    with ExitStack() as stack:
        servers: SimpleQueue[Forks] = SimpleQueue()
        for _ in range(processes):
            servers.put(stack.enter_context(Forks()))

        def take(number: int) -> Answer:
            server = servers.get()
            try:
                return task(server, number)
            finally:
                servers.put(server)

        with ThreadPoolExecutor(processes) as pool:
            return list(pool.map(take, numbers))


def watch(pid: int, poll: Callable[[], int | None], strike: Strike | None) -> Ended:
    """Wait for a process and strike it in time; one that takes minutes is killed and counts as code -9."""
    begin = time.perf_counter()
    since = begin if strike is None or strike.once is None else None
    struck: float | None = None
    while (code := poll()) is None:
        now = time.perf_counter()
        if since is None and strike is not None and Path(strike.once or "").exists():
            since = now
        if strike is not None and struck is None and since is not None and now - since >= strike.after_s:
            with suppress(ProcessLookupError):
                os.kill(pid, strike.number)
            struck = time.perf_counter()
        if now - begin > _TOO_LONG_S:
            os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_EVERY_S)
    end = time.perf_counter()
    return Ended(code, end - begin, struck is not None, 0.0 if struck is None else end - struck)


def _environment(job: Job) -> dict[str, str]:
    faulty = {"TRAINWELL_FAULT": job.fault} if job.fault else {}
    cache = str(Path(job.folder) / "cache")
    return ONE_THREAD | {"TRAINWELL_CACHE_DIR": cache, "COLUMNS": "100"} | faulty


@dataclass(frozen=True)
class Processes:
    """Runs each job as `python -m trainwell`, a process of its own."""

    def run(self, job: Job) -> Ended:
        """Start it, wait and strike."""
        log = Path(job.folder) / job.log
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "trainwell", *job.arguments],
                cwd=job.folder,
                env=os.environ | _environment(job),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
            ended = watch(process.pid, process.poll, job.strike)
        return replace(ended, said=_since(log, before))


class Forks:
    """Runs each job in a fork of a server; a context manager, which ends the server."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak.forks"],
            cwd=ROOT,
            env=os.environ | ONE_THREAD | {"TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(self, job: Job) -> Ended:
        """Have the server fork, watch and strike; RuntimeError when the server itself is gone."""
        server_in, server_out = self._server.stdin, self._server.stdout
        assert server_in is not None
        assert server_out is not None
        log = Path(job.folder) / job.log
        before = log.stat().st_size if log.exists() else 0
        server_in.write(json.dumps(asdict(job)) + "\n")
        server_in.flush()
        answer = server_out.readline()
        if not answer:
            raise RuntimeError(f"the fork server ended with {self._server.wait()}")
        return Ended(**json.loads(answer) | {"said": _since(log, before)})


def _since(log: Path, place: int) -> str:
    with log.open("rb") as file:
        file.seek(place)
        return file.read().decode(errors="replace")


def serve() -> None:
    """Answer each job on stdin with how its child ended, one JSON line each, until stdin ends."""
    import torch

    torch.set_num_threads(1)  # before any operation, so that there is no pool of threads to lose in a fork
    for name in (
        "torch._dynamo",
        "trainwell.build",
        "trainwell.fit",
        "trainwell.cli.train",
    ):  # imported here so that no child has to
        import_module(name)
    for line in sys.stdin:
        given = json.loads(line)
        job = Job(**given | {"strike": _made(Strike, given["strike"]), "shortage": _made(Shortage, given["shortage"])})
        print(json.dumps(asdict(_forked(job))), flush=True)


def _made(kind: Callable[..., Any], content: dict[str, Any] | None) -> Any:
    return None if content is None else kind(**content)


def _forked(job: Job) -> Ended:
    count = Path(job.folder) / f".operations-{os.getpid()}"
    count.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _child(job, count)

    def poll() -> int | None:
        done, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None

    ended = watch(pid, poll, job.strike)
    return replace(ended, operations=tuple(count.read_text().split("\n")) if count.exists() else ())


def _child(job: Job, count: Path) -> None:
    """Become the command line that the job names, and never return."""
    code = 3
    try:
        os.chdir(job.folder)
        os.environ.update(_environment(job))
        log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for place, source in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
            os.dup2(source, place)
        faults.arm_from_environment()
        operations = Operations(Path(job.folder, "runs"), job.operation, emptied=job.emptied)
        operations.begin()
        with job.shortage.running_out() if job.shortage is not None else nullcontext():
            code = app.run(job.arguments)
        operations.end()
        count.write_text("\n".join(operations.done))
    except BaseException:  # noqa: BLE001  whatever it is, the server's loop is not to go on in its child
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
