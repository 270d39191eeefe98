"""Where the files of a run lie, who owns them, and how a run or a step of it is named on the command line.

Knows paths and the lock, not what the files say.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, Literal, NamedTuple

from trainwell.errors import ConfigError, RunBusyError, StorageError
from trainwell.runs.lock import take
from trainwell.runs.objects import is_url
from trainwell.runs.owner import Ownership
from trainwell.runs.remote import HEARTBEAT_S, Remote

Step = int | Literal["best", "last"]


@dataclass(frozen=True)
class RunDir:
    """The folder of one run; every path in it has its name here and nowhere else."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the folder, which is the name of the run."""
        return self.path.resolve().name

    @property
    def config_yaml(self) -> Path:
        """The resolved configuration; what makes a folder a run."""
        return self.path / "config.yaml"

    @property
    def env_json(self) -> Path:
        """Versions, device and everything that `auto` decided."""
        return self.path / "env.json"

    @property
    def starts_jsonl(self) -> Path:
        """One JSON line for each time that training began or went on."""
        return self.path / "starts.jsonl"

    @property
    def metrics_jsonl(self) -> Path:
        """One JSON line for each step and each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, `step-N` each."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """Folder of the PNG files."""
        return self.path / "plots"

    @property
    def report_html(self) -> Path:
        """The report, one file to look at and to send."""
        return self.path / "report.html"

    @property
    def samples_txt(self) -> Path:
        """Text that the model generated during training."""
        return self.path / "samples.txt"

    @property
    def template_json(self) -> Path:
        """How a question becomes text, for task instruct."""
        return self.path / "template.json"

    @property
    def attempts(self) -> Path:
        """Folder of metrics that a resume left behind: evidence, kept."""
        return self.path / "attempts"

    @property
    def incidents(self) -> Path:
        """Folder of what is known of steps that leapt out or were not finite, `step-N.json` each."""
        return self.path / "incidents"

    @property
    def remote(self) -> Remote | None:
        """What is kept equal to this folder behind a URL; None for a run that lives here alone."""
        return Remote.of(self.path)

    @property
    def shown(self) -> str:
        """How the run is named to its user: by its URL where it has one, by its path elsewhere."""
        remote = self.remote
        return str(self.path) if remote is None else remote.url

    def create(self) -> None:
        """Make the folder; raise StorageError when that fails."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot make the run folder {self.path}: {error.strerror}; name another with --run"
            ) from None

    @contextmanager
    def lock(
        self, *, heartbeat_s: float = HEARTBEAT_S, say: Callable[[str], None] = lambda line: None
    ) -> Iterator[Ownership | None]:
        """Own the run while the block lasts; raise RunBusyError when another process owns it.

        The kernel holds the lock and drops it when the owner dies, so a killed run never blocks the next. Behind a URL
        there is no such lock: an owner that says every `heartbeat_s` seconds that it lives is given, and `say` hears
        when another, which may be dead, is watched.
        """
        self.create()
        try:
            file = (self.path / ".lock").open("a+b")
        except OSError as error:
            raise StorageError(f"cannot write to the run folder {self.path}: {error.strerror}") from None
        with file:
            if not any(_taken_within(file)):
                raise RunBusyError(
                    f"{self.path} is in use by {_owner(file)}; wait until it ends, stop it, or train into another "
                    "folder with --run"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
            remote = self.remote
            if remote is None:
                yield None
            else:
                with remote.own(heartbeat_s, say) as ownership:
                    yield ownership

    def owner(self) -> str | None:
        """Who owns the run now, as `process 4711 on host`; None when nobody does."""
        try:
            file = (self.path / ".lock").open("r+b")
        except OSError:
            return None
        with file:
            return None if take(file) else _owner(file)


def _taken_within(file: BinaryIO) -> Iterator[bool]:
    """Try to lock a file, a few times: whoever asks for the owner of a run holds it for a moment."""
    for wait_s in (0.0, 0.05, 0.1):
        time.sleep(wait_s)
        yield take(file)


def _owner(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace") or "another process"


def next_free(name: str, root: Path = Path("runs")) -> RunDir:
    """The first of root/name, root/name-2, root/name-3, ... that does not exist; nothing is created."""
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return RunDir(path)
        number += 1


def is_run(path: Path) -> bool:
    """Whether a run lives in this folder."""
    return RunDir(path).config_yaml.is_file()


class Target(NamedTuple):
    """What a command is about: a name or path, and the step of it if one was given."""

    path: str
    step: Step | None


def parse_target(text: str) -> Target:
    """Split `runs/demo@1200`, `runs/demo@best` or `demo`; raise ConfigError for a step that is none of these.

    A URL becomes the path of its mirror, with what is behind it pulled.
    """
    target = split_target(text)
    if not is_url(target.path):
        return target
    folder = local_folder(target.path)
    if not is_run(folder):
        raise ConfigError(
            f"there is no run at {target.path}; to start one there: trainwell train demo --run {target.path}"
        )
    return target._replace(path=str(folder))


def split_target(text: str) -> Target:
    """What parse_target does without looking behind a URL, which stays as it is."""
    path, at, step = text.rpartition("@")
    if not at or (is_url(text) and "/" in step) or Path(text).exists():
        return Target(text, None)
    if not path:
        raise ConfigError(f"{text!r} names a step of nothing; put a run before it, as in runs/demo{text}")
    if step == "best":
        return Target(path, "best")
    if step == "last":
        return Target(path, "last")
    if step.isascii() and step.isdigit():
        return Target(path, int(step))
    raise ConfigError(f"{text}: {step!r} is not a step; write {path}@1200, {path}@best or {path}@last")


def local_folder(name: str | PurePath) -> Path:
    """The folder to work in: that of a path is itself; that of a URL is its mirror, with what is behind it pulled.

    A mirror that a run on this machine works in is ahead, and is left alone. Takes a URL whose slashes a Path has
    collapsed, too. Raises StorageError for a store that cannot be reached, ConfigError for a URL of no known kind.
    """
    if not is_url(name):
        return Path(name)
    remote = Remote(name)
    run = RunDir(remote.mirror)
    if run.owner() is None:
        remote.pull(unless=lambda: run.owner() is not None)
    return remote.mirror
