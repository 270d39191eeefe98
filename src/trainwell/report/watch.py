"""A report that follows its run: written anew when there is something new, at a cost that training does not notice."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainwell.report.html import write
from trainwell.report.load import load_run
from trainwell.report.run_page import report
from trainwell.runs import processors
from trainwell.runs.rundir import RunDir

SHORTEST_S = 5.0
_SHARE = 200
"""Where no core is idle, a page that took a second of one is made again after 200: half a percent, at low priority."""
_GLANCE_S = 0.5
_AGAIN = ", again every {:.0f} s, or less often while no core is idle"


def watch(
    path: Path,
    publish: Callable[[bytes], None],
    say: Callable[[str], None],
    *,
    every_s: float = SHORTEST_S,
    share: float = _SHARE,
) -> None:
    """Write the report of the run in `path` whenever there is news; return when the run has taken all its steps.

    `publish` gets each page as well. The page loads itself again until the run is over.
    """
    seen: object = None
    while True:
        found = _stamp(RunDir(path))
        wait_s = every_s
        if found != seen:
            began = time.process_time()
            over = _write(path, publish, every_s)
            if not processors.one_is_idle():
                wait_s = max(every_s, share * (time.process_time() - began))
            if seen is None or over:
                say(f"{RunDir(path).report_html}: written{'' if over else _AGAIN.format(every_s)}")
            if over:
                return
            seen = found
        _sleep(wait_s, path, seen)


def write_once(path: Path, publish: Callable[[bytes], None]) -> Path:
    """Write the report of the run in `path` as it stands, and say where; `publish` gets it as well."""
    page = report(load_run(path))
    publish(page.encode("utf-8", "backslashreplace"))
    return write(page, RunDir(path).report_html)


def _write(path: Path, publish: Callable[[bytes], None], every_s: float) -> bool:
    """Make the page once; whether the run is over."""
    run = load_run(path)
    over = run.owner is None and run.num_steps is not None and run.steps_done >= run.num_steps
    page = report(run, 0 if over else every_s)
    publish(page.encode("utf-8", "backslashreplace"))
    write(page, run.dir.report_html)
    return over


def _sleep(wait_s: float, path: Path, seen: object) -> None:
    """Wait, but not past the end of the run: its last page should not come late."""
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(_GLANCE_S, left))
        if _owned(seen) and RunDir(path).owner() is None:
            return


def _owned(stamp: object) -> bool:
    return isinstance(stamp, tuple) and stamp[-1] is not None


def _stamp(run: RunDir) -> tuple[object, ...]:
    """What changes when there is news: sizes and times of the files that a report is about, and who owns the run."""
    files = (
        run.config_yaml,
        run.env_json,
        run.metrics_jsonl,
        run.samples_txt,
        run.starts_jsonl,
        run.path / "exit.json",
    )
    known: list[object] = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            known.append((file.name, status.st_size, status.st_mtime_ns))
    return (*known, run.owner())
