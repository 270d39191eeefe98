"""Who owns a run in a store that has no locks: an object `owner.json`, rewritten again and again while the owner lives.

Whether an owner lives is judged by watching whether it writes, on the watcher's own clock: clocks are never compared.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trainwell.errors import RunBusyError, StorageError
from trainwell.runs.objects import Objects

OWNER = "owner.json"
_MINE = ".owner"
"""In the mirror: the nonce of the last owner that worked in it."""
_BEATS = 2.5
_LONGEST_S = 60.0
_READS = 3


class Ownership:
    """The run is ours while this lives; a thread says so every `heartbeat_s` seconds."""

    def __init__(self, objects: Objects, mirror: Path, heartbeat_s: float) -> None:
        self.trouble: str | None = None
        """Why the last heartbeat could not be written; None when it was. Training may go on."""
        self.lost: str | None = None
        """Who has taken the run over; None while it is ours."""
        self._objects = objects
        self._mine = mirror / _MINE
        self._heartbeat_s = heartbeat_s
        self._nonce = secrets.token_hex(8)
        self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="trainwell-heartbeat", daemon=True)

    def begin(self) -> None:
        """Write the owner, wait a moment, and read it back: of two who begin at once, the later one owns the run."""
        try:
            self._mine.write_text(self._nonce)
        except OSError as error:
            raise StorageError(f"cannot write {self._mine}: {error.strerror}") from None
        self._write()
        self._ended.wait(self._heartbeat_s / 20)
        found = read_owner(self._objects)
        if found is not None and found.get("nonce") != self._nonce:
            raise _busy(self._objects.url, found)
        self._thread.start()

    def end(self) -> None:
        """Stop the heartbeat and remove the owner, if it is still this one."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(StorageError, OSError):  # a dead owner is noticed by its silence
            found = read_owner(self._objects)
            if found is not None and found.get("nonce") == self._nonce:
                self._objects.remove(OWNER)
            self._mine.unlink(missing_ok=True)

    def _keep(self) -> None:
        while self.lost is None and not self._ended.wait(self._heartbeat_s):
            try:
                found = read_owner(self._objects)
                if found and found.get("nonce") != self._nonce:
                    self.lost = name_of(found)
                else:
                    self._write()
                self.trouble = None
            except StorageError as error:
                self.trouble = str(error)

    def _write(self) -> None:
        self._beat += 1
        about = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "nonce": self._nonce,
            "beat": self._beat,
            "heartbeat_s": self._heartbeat_s,
        }
        self._objects.write(OWNER, json.dumps(about).encode())


@contextmanager
def own(objects: Objects, mirror: Path, heartbeat_s: float, say: Callable[[str], None]) -> Iterator[Ownership]:
    """Own the folder while the block lasts; raise RunBusyError, naming the process, where another owner lives.

    The caller holds the kernel's lock of the mirror: the last owner that worked in it is then known to be dead.
    """
    _wait_for_silence(objects, mirror, heartbeat_s, say)
    ownership = Ownership(objects, mirror, heartbeat_s)
    try:
        ownership.begin()
        yield ownership
    finally:
        ownership.end()


def refuse_another(objects: Objects, mirror: Path) -> None:
    """Raise RunBusyError where this mirror's owner was replaced: one that slept too long must write no more."""
    mine = _last_nonce(mirror)
    found = read_owner(objects) if mine is not None else None
    if found and found.get("nonce") != mine:
        raise _busy(objects.url, found)


def read_owner(objects: Objects) -> dict[str, Any] | None:
    """What owner.json says; empty where it cannot be read as JSON, None where there is none."""
    for _ in range(_READS):  # where a write is not atomic, it may be half there
        content = objects.read(OWNER)
        if content is None:
            return None
        with suppress(ValueError):
            found = json.loads(content)
            if isinstance(found, dict):
                return found
        time.sleep(0.02)
    return {}


def name_of(found: dict[str, Any]) -> str:
    """The owner in words, as `process 4711 on host`."""
    return f"process {found.get('process', 'unknown')} on {found.get('host', 'an unknown host')}"


def _wait_for_silence(objects: Objects, mirror: Path, heartbeat_s: float, say: Callable[[str], None]) -> None:
    """Come back once there is no owner, or it has been silent for two and a half of its beats."""
    first = read_owner(objects)
    if first is None or (first.get("nonce") is not None and first.get("nonce") == _last_nonce(mirror)):
        return
    theirs = first.get("heartbeat_s")
    known = isinstance(theirs, int | float) and 0 < theirs <= _LONGEST_S
    wait_s = _BEATS * (float(theirs) if known and theirs is not None else heartbeat_s)
    say(f"{objects.url} was last used by {name_of(first)}; watching for {wait_s:.3g} s whether it still is")
    begin = time.monotonic()
    while time.monotonic() - begin < wait_s:
        time.sleep(wait_s / 20)
        now = read_owner(objects)
        if now is None:
            return
        if now != first and now:
            raise _busy(objects.url, now)


def _last_nonce(mirror: Path) -> str | None:
    try:
        return (mirror / _MINE).read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _busy(url: str, found: dict[str, Any]) -> RunBusyError:
    return RunBusyError(
        f"{url} is in use by {name_of(found)}; wait until it ends, stop it, or train into another folder with --run"
    )
