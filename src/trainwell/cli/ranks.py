"""`train` as one of several ranks, or as the one that starts them: each error is said once, and ends all of them.

Knows torchrun's variables, exit.json and who speaks; what ranks tell each other is `distributed.world`'s business.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trainwell.cli.failures import explained, of_several
from trainwell.cli.restarts import program
from trainwell.distributed.launch import launch
from trainwell.errors import ConfigError, DataError, DivergedError, RunBusyError, StoppedError, TrainwellError
from trainwell.planning.target import Start
from trainwell.runs.console import safe
from trainwell.runs.exits import Exit, forget_exit, read_exit, write_exit
from trainwell.runs.rundir import RunDir, is_run, split_target
from trainwell.supervise import SUPERVISED, on_stop_signals

if TYPE_CHECKING:
    from trainwell.distributed.world import World

_FINAL = {error.exit_code: error for error in (ConfigError, DataError, DivergedError)}
"""What exit.json says after which the same command would end in the same way, whoever starts it again."""
_AFTER_MAIN_S = 3.0
"""So long a rank that fails lets the first one speak, which often fails with the same words."""
_AFTER_LOST_S = 10.0
"""So long a rank that lost another waits for what is known of that one."""
_MOST = 1024
"""More processes than that no one machine has cores or devices for."""


def number(given: str | None) -> int:
    """The processes that --nproc asks for, 1 without it; ConfigError for what is no number of them."""
    if given is None:
        return 1
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:6]) <= _MOST):
        raise ConfigError(
            f"--nproc: {given!r} is no number of processes; give one from 1 to {_MOST}, such as --nproc 2, at most one "
            "for each GPU or core"
        )
    if int(given) > 1 and of_several():
        raise ConfigError(
            f"--nproc {given}: this process is rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} already, "
            "started by torchrun or --nproc; leave --nproc out, or start trainwell without torchrun"
        )
    return int(given)


def refuse(target: str, run: Path | None, processes: int, switches: Mapping[str, object]) -> None:
    """Raise ConfigError for what several processes cannot do: one of the switches that are on, a folder for each.

    Args:
        target: what is to be trained.
        run: the folder that was named.
        processes: how many this one is to start.
        switches: `restarts`, `profile`, `dry-run`, `steps`, on or not.
    """
    if processes > 1 and switches["profile"]:
        raise ConfigError(f"--profile looks at one process, and --nproc {processes} starts several; leave one out")
    if not of_several():
        return
    named = [f"--{name}" for name, value in switches.items() if value]
    if named and os.environ["WORLD_SIZE"] != "1":
        raise ConfigError(
            f"{' and '.join(named)}: this is one of {os.environ['WORLD_SIZE']} processes that torchrun started; "
            + ("trainwell train --nproc N --restarts K starts them again" if switches["restarts"] else "start one")
        )
    again = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if again != "0" and run is None and not is_run(Path(split_target(target).path)):
        raise ConfigError(
            f"torchrun starts this command again, up to {again} times, and each time it would train into a folder of "
            "its own; name one: --run runs/NAME"
        )


def start_ranks(arguments: Sequence[str], run: RunDir, processes: int) -> int:
    """Train into the folder of `run` with these arguments, as so many processes here; return their exit code."""
    if run.owner() is None:
        forget_exit(run.path)  # of an earlier attempt
    return launch(
        [*program("--nproc"), "train", *arguments, "--run", run.shown],
        processes,
        run.path,
        say=_say,
        on_signals=on_stop_signals,
        echoes=SUPERVISED in os.environ,
    )


def take_part(start: Start, work: "Callable[[Start, World], None]", stopped: Callable[[], bool]) -> int:
    """Join the other ranks and `work` as one of them; return the exit code, every error said by one rank.

    All work with what rank 0 takes the target for. What ends a rank is in exit.json before others can notice it, so
    the first error stays. A rank that torchrun starts again after an end that would be the same ends with that.

    Args:
        start: what the target means here.
        work: trains; collective.
        stopped: whether this process was asked to stop.
    """
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        _refuse_another(read_exit(start.run_dir.path))
    from trainwell.distributed.world import joined

    with joined(start.config.device) as world:
        try:
            start = world.from_main(lambda: _begun(start))
            work(start, world)
        except Exception as error:
            if os.environ.get("TRAINWELL_TRACEBACK") and not isinstance(error, TrainwellError):
                raise
            return _end(error, start.run_dir.path, world.rank, stopped)
    return 0


def _begun(start: Start) -> Start:
    if start.run_dir.owner() is None:
        forget_exit(start.run_dir.path)
    return start


def _refuse_another(end: Exit | None) -> None:
    if end is not None and end.code in _FINAL:
        raise _FINAL[end.code](f"{end.message} (so the attempt before ended, and this one would end alike)")


def _end(error: Exception, run: Path, rank: int, stopped: Callable[[], bool]) -> int:
    """Say how this rank ends, unless another has said how all do; its exit code."""
    message, code = explained(error)
    lost = _lost_another(error)
    if lost:
        message = (
            f"lost the other ranks ({_reason(error)}): a process, its machine or the network between them is gone; "
            "the same command goes on from the newest checkpoint"
        )
    with suppress(KeyboardInterrupt):  # asked to end before there was anything to save, which it is about to
        if lost:
            _wait_for_exit(run, _AFTER_LOST_S, stopped)
        elif rank:
            _wait_for_exit(run, _AFTER_MAIN_S, lambda: False)
    if lost and stopped():
        return StoppedError.exit_code
    if rank and not message.startswith("rank "):
        message = f"rank {rank}: {message}"
    if _is_mine_to_say(error, run, Exit(code, rank, message)):
        _say(message)
    return code


def _is_mine_to_say(error: Exception, run: Path, end: Exit) -> bool:
    """Whether nobody has said how the ranks end; exit.json then says it, unless the folder is another's or not there.

    Where there is none all ranks have the same error of ours, or one of its own.
    """
    if isinstance(error, RunBusyError) or not run.is_dir():
        return end.rank == 0 or not isinstance(error, TrainwellError)
    try:
        return write_exit(run, end)
    except TrainwellError:
        return True


def _lost_another(error: Exception) -> bool:
    """Whether an error says no more than that another rank is gone: gloo's, and those of torch.distributed."""
    if isinstance(error, TrainwellError) or not isinstance(error, RuntimeError):
        return False
    return "gloo" in str(error) or type(error).__name__.startswith("Dist")


def _reason(error: Exception) -> str:
    """What gloo or torch says, without the place in its source: the last line that says where it was."""
    lines = str(error).splitlines() or [type(error).__name__]
    said = [line.partition("] ")[2] for line in lines if "gloo" in line]
    return next(filter(None, reversed(said)), lines[0])


def _wait_for_exit(run: Path, seconds: float, stopped: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while read_exit(run) is None and not stopped() and time.monotonic() < until:
        time.sleep(0.02)


def _say(text: str) -> None:
    sys.stderr.write(f"trainwell: {safe(text)}\n")
    sys.stderr.flush()
