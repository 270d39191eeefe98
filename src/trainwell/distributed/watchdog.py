"""A thread in every rank that finds the rank which hangs, was stopped or died, and ends the job with its name.

Ranks share every step, so while this rank gets on all others live, whatever their files say. Only a rank that gets
nowhere looks around, and so a file system that is slow or full raises no alarm. Signs of life are files in the run's
folder: they are read by whether they change, no two clocks are compared, and only time in which this process really
ran is counted, so a machine that slept raises none either. Knows files, processes and stacks, nothing of training.
"""

import faulthandler
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

from trainwell.distributed.heartbeat import HEARTBEATS, Sign, State, read, state_of, whereabouts, write
from trainwell.errors import ConfigError, TrainwellError
from trainwell.runs.exits import Exit, write_exit

TIMEOUT_S = 60.0
VARIABLE = "TRAINWELL_WATCHDOG_S"
"""Sets the timeout, in seconds; 0 turns the watchdog off."""
STACKS = "stacks"
_EXIT_CODE = TrainwellError.exit_code
_SLOWER = 10.0
"""A step may take so many times as long as the slowest before it, and the timeout on top."""
_FIRST = 10.0
_BUSY = 30.0
"""So many timeouts are given to what comes before the end of the first step, which may compile, and to what is busy."""
_GLANCES = 5.0
"""A rank that got nowhere for so many intervals looks around: a process that is gone is named then."""
_GRACE_S = 10.0
"""So long the others have to write their stacks."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a rank by one that gets nowhere."""

    rank: int
    sign: Sign | None
    """Its last sign of life; None where there was none since this rank began."""
    state: State = "unknown"
    silent: bool = False
    """Whether its sign has not changed for so long that it would have, had it run."""


class Verdict(NamedTuple):
    """The rank that holds up the others, and why it is thought so."""

    rank: int
    message: str


@dataclass
class _Seen:
    """The file of another rank, as it was seen last."""

    content: bytes | None = None
    changed_s: float = 0.0
    sign: Sign | None = None
    """None as long as the file may be of an earlier attempt: it is what it was when this rank began, and the process
    was not seen to live."""


class Watchdog:
    """Watches over the ranks of a run while the block lasts; ends the process with code 3 when they hang.

    Every rank has one, on the same folder. `beat` is called after every step, and may be called in between; what takes
    longer and is no step stands in `busy`. A rank that got nowhere for `limit_s` seconds raises the alarm, unless any
    other says that it gets on: after `timeout_s` and ten times the slowest step so far; after ten timeouts before the
    end of the first step; after thirty while any rank is busy and does not wait for others, or was never heard of, as
    where the folder is not shared; after a sixth of one where a process is gone. Then every live rank writes the stacks
    of its threads to RUN/stacks/rank-R.txt, and RUN/exit.json has the name. A rank inside of code that never lets go of
    the interpreter is named by the others, without stacks. With one rank, or a timeout of 0, nothing is done at all.

    Raises ConfigError where TRAINWELL_WATCHDOG_S, which is used where no `timeout_s` is given, is no number of seconds.
    """

    def __init__(self, run: Path, rank: int, size: int, *, timeout_s: float | None = None) -> None:
        self._timeout_s = _timeout_from_environment() if timeout_s is None else timeout_s
        self._interval_s = min(2.0, self._timeout_s / 30)
        self._run = run
        self._folder = run / HEARTBEATS
        self._on = size > 1 and self._timeout_s > 0
        self._sign = Sign.of(rank)
        self._others = {number: _Seen() for number in range(size) if number != rank}
        self._old_alarm: bytes | None = None
        self._written = True
        self._watched_s = 0.0
        self._beat_s = 0.0
        self._stirred_s = 0.0
        self._patient_s = 0.0
        self._beat_at = 0.0
        self._slowest_s = 0.0
        self._loop = 0
        self._wake = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="trainwell-watchdog", daemon=True)

    @property
    def limit_s(self) -> float:
        """After so many seconds without progress in the steps the alarm is raised."""
        return self._timeout_s + _SLOWER * self._slowest_s

    def beat(self, step: int | None = None) -> None:
        """Say that the loop gets on: it finished `step`, or a part of something that is no step."""
        now, watched_s = time.monotonic(), self._watched_s
        if self._beat_at and not self._sign.busy:
            took_s = min(now - self._beat_at, watched_s - self._beat_s + 2 * self._interval_s)
            self._slowest_s = max(self._slowest_s, took_s)
        self._beat_at, self._beat_s = now, watched_s
        self._sign = replace(self._sign, moves=self._sign.moves + 1, step=self._sign.step if step is None else step)

    @contextmanager
    def busy(self, what: str, *, every_step: bool = False) -> Iterator[None]:
        """Something that is no step and may take long, as "saving": nobody calls for help in it for a good while.

        The others hear of it at once, before the disk is busy too; a moment later, of what comes with `every_step`.
        """
        before = self._sign.busy
        self._begin_phase(what)
        if not every_step:
            self._wake.set()
        try:
            yield
        finally:
            self._begin_phase(before)

    def _begin_phase(self, busy: str) -> None:
        self.beat()
        self._sign = replace(self._sign, busy=busy)

    def __enter__(self) -> Self:
        if self._on:
            self._loop = threading.get_ident()
            for rank, seen in self._others.items():
                seen.content = read(self._folder / f"rank-{rank}")
                sign = Sign.read(seen.content or b"")
                if sign is not None and sign.left is None and state_of(sign) in {"runs", "stopped"}:
                    seen.sign = sign
            self._old_alarm = read(self._folder / "alarm")
            self.beat()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._on:
            return
        self._over.set()
        self._wake.set()
        self._thread.join(_GRACE_S)
        if not self._thread.is_alive():  # else it is stuck in a file system, as this thread would be
            failed = isinstance(error, Exception)
            self._say(replace(self._sign, left=f"{type(error).__name__}: {error}" if failed else ""))

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            self._say(self._sign)
            self._wake.wait(self._interval_s)
            self._wake.clear()
            now = time.monotonic()
            self._watched_s += min(now - last, 2 * self._interval_s)  # no more: the machine slept, or we were stopped
            last = now
            verdict = None if self._over.is_set() else self._raised() or self._judge()
            if verdict is not None:
                self._end(verdict)

    def _say(self, sign: Sign) -> None:
        """Write a sign of life; where that fails the others see silence, which alone proves nothing."""
        at, waits = whereabouts(sys._current_frames().get(self._loop))
        sign = replace(sign, beat=time.monotonic_ns(), at=at, waits=waits)
        self._written = sign.write(self._folder)

    def _judge(self) -> Verdict | None:
        """Who holds up the others, once nobody got on for too long; looks only while this rank does not."""
        glance_s = _GLANCES * self._interval_s
        if self._watched_s - self._beat_s < glance_s:
            return None
        at, waits = whereabouts(sys._current_frames().get(self._loop))
        mine = Evidence(self._sign.rank, replace(self._sign, at=at, waits=waits), "runs")
        evidence = [mine, *self._evidence()]
        calm = not any(_may_be_busy(each) for each in evidence)
        if not calm:
            self._patient_s = self._watched_s
        stalled_s = self._watched_s - max(self._beat_s, self._stirred_s)
        calm_s = min(stalled_s, self._watched_s - self._patient_s)
        limit_s = self.limit_s if self._sign.step is not None else max(self.limit_s, _FIRST * self._timeout_s)
        if any(_died(each) for each in evidence):
            limit_s = glance_s
        if calm_s < limit_s and stalled_s < max(self.limit_s, _BUSY * self._timeout_s):
            return None
        return judge(evidence, stalled_s)

    def _evidence(self) -> list[Evidence]:
        """Look at the files of all other ranks."""
        for rank, seen in self._others.items():
            content = read(self._folder / f"rank-{rank}")
            if content is not None and content != seen.content:
                sign = Sign.read(content) or seen.sign
                if seen.sign is None or (sign and sign.moves != seen.sign.moves):
                    self._stirred_s = self._watched_s
                seen.content, seen.changed_s, seen.sign = content, self._watched_s, sign
        silence_s = max(_GLANCES * self._interval_s, self._timeout_s / 2)
        return [
            Evidence(
                rank,
                seen.sign,
                "unknown" if seen.sign is None else state_of(seen.sign),
                silent=self._written and self._watched_s - max(seen.changed_s, self._beat_s) >= silence_s,
            )
            for rank, seen in self._others.items()
        ]

    def _raised(self) -> Verdict | None:
        """The alarm that another rank has raised since this one began."""
        content = read(self._folder / "alarm")
        if content is None or content == self._old_alarm:
            return None
        with suppress(ValueError, TypeError, KeyError):
            found = json.loads(content)
            return Verdict(found["rank"], found["message"])
        return None

    def _end(self, verdict: Verdict) -> NoReturn:
        """Raise the alarm, write stacks, wait until every live rank has written its own, and end the process."""
        if self._raised() is None:
            write(
                self._folder / "alarm",
                json.dumps({**verdict._asdict(), "alarm": secrets.token_hex(8)}),
                self._sign.rank,
            )
        message = f"{verdict.message}; what every live rank was doing is in {self._run / STACKS}"
        with suppress(TrainwellError, OSError):
            if write_exit(self._run, Exit(_EXIT_CODE, verdict.rank, message)):
                os.write(2, f"trainwell: {message}\n".encode())
        self._write_stacks(message)
        self._say(replace(self._sign, stacks=True))
        until = time.monotonic() + _GRACE_S
        while time.monotonic() < until and any(_owes_stacks(each) for each in self._evidence()):
            time.sleep(self._interval_s)
        os._exit(_EXIT_CODE)  # the loop cannot be told: it waits for a rank that will not come

    def _write_stacks(self, why: str) -> None:
        about = f"rank {self._sign.rank}, {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}: {why}"
        with suppress(OSError):
            (self._run / STACKS).mkdir(exist_ok=True)
            with (self._run / STACKS / f"rank-{self._sign.rank}.txt").open("a", encoding="utf-8") as file:
                file.write(f"{about}\nThe loop is thread 0x{self._loop:016x}.\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)


def judge(evidence: Sequence[Evidence], stalled_s: float) -> Verdict:
    """The rank that holds up the others, by the strongest evidence there is: first who ended, then who hangs.

    `evidence` is of all ranks, the judging one included, none of which got on for `stalled_s` seconds.
    """
    for_s = f"{stalled_s:.3g} s"
    known = [each.sign for each in evidence if each.sign is not None]
    found = _absent(evidence, for_s) or _behind(known) or _elsewhere(known)
    if not found:
        at = "; ".join(f"rank {sign.rank} is at {sign.at}{_while(sign)}" for sign in known)
        told = f"no rank got on for {for_s} after {_after(known[0])}, and which one hangs cannot be told: {at}"
        return Verdict(known[0].rank, told)
    rest = "" if len(found) == 1 else f"; so it is with rank {', '.join(str(rank) for rank in list(found)[1:])}"
    rank, words = next(iter(found.items()))
    return Verdict(rank, f"{words}{rest}; the job got nowhere for {for_s}")


def _absent(evidence: Sequence[Evidence], for_s: str) -> dict[int, str]:
    """The ranks that run no more, by the first of these kinds that there is one of."""
    signs = {each.rank: each.sign for each in evidence if each.sign is not None}
    inside = [each for each in evidence if each.sign is None or each.sign.left is None]
    kinds = [
        ([each.rank for each in evidence if each.sign and each.sign.left], "left with an error, {left}"),
        ([each.rank for each in inside if each.state == "gone"], "is gone; it was last heard of after {step}"),
        (
            [each.rank for each in inside if each.state == "stopped"],
            "is stopped, as by SIGSTOP; it was last heard of after {step}",
        ),
        (
            [each.rank for each in inside if each.sign and each.silent],
            f"gave no sign of life for {for_s}; it was last heard of after {{step}}",
        ),
        ([each.rank for each in inside if not each.sign], "gave no sign of life since this one began"),
    ]
    ranks, words = next(((ranks, words) for ranks, words in kinds if ranks), ([], ""))
    return {
        rank: f"{signs[rank]} {words.format(left=signs[rank].left, step=_after(signs[rank]))}"
        if rank in signs
        else f"rank {rank} {words}"
        for rank in ranks
    }


def _behind(signs: Sequence[Sign]) -> dict[int, str]:
    """The ranks that took fewer steps than others."""
    steps = [-1 if sign.step is None else sign.step for sign in signs]
    late = [sign for sign, step in zip(signs, steps, strict=True) if step < max(steps) and sign.left is None]
    return _hanging(late, f", while others are past step {max(steps)}")


def _elsewhere(signs: Sequence[Sign]) -> dict[int, str]:
    """The ranks that are somewhere else while others wait for them; those that have left, where all others wait."""
    inside = [sign for sign in signs if sign.left is None]
    left = [sign for sign in signs if sign.left is not None]
    late = [sign for sign in inside if not sign.waits]
    if not late:
        return {sign.rank: f"{sign} has left the loop after {_after(sign)}, and others wait for it" for sign in left}
    if len(late) == len(inside) and not left:
        return {}
    return _hanging(late, ", while others wait for it" if len(late) < len(inside) else "")


def _hanging(signs: Sequence[Sign], words: str) -> dict[int, str]:
    return {sign.rank: f"{sign} hangs after {_after(sign)}{words}: it is at {sign.at}{_while(sign)}" for sign in signs}


def _after(sign: Sign) -> str:
    return "the beginning" if sign.step is None else f"step {sign.step}"


def _while(sign: Sign) -> str:
    return f", busy with {sign.busy}" if sign.busy else ""


def _may_be_busy(evidence: Evidence) -> bool:
    """Whether there is cause to be patient: a rank that is busy, was never heard of, or has come to the end.

    One that waits for others, whatever it is busy with, gives none.
    """
    sign = evidence.sign
    if sign is None or sign.left == "":
        return True
    return bool(sign.busy) and not sign.waits and sign.left is None and evidence.state not in {"gone", "stopped"}


def _died(evidence: Evidence) -> bool:
    return evidence.sign is not None and evidence.sign.left is None and evidence.state == "gone"


def _owes_stacks(evidence: Evidence) -> bool:
    """Whether a rank will write its stacks, and has not yet."""
    sign = evidence.sign
    running = evidence.state in {"runs", "unknown"}
    return sign is not None and running and not evidence.silent and sign.left is None and not sign.stacks


def _timeout_from_environment() -> float:
    text = os.environ.get(VARIABLE, "")
    try:
        found = float(text or TIMEOUT_S)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigError(f"{VARIABLE}: {text!r} is no number of seconds; write one such as 60, or 0 for no watchdog")
    return found
