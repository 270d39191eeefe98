"""`trainwell check TARGET --prove`: what each proof found, as it is found, and together at the end.

Torch is imported once nothing in the command line can be wrong.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainwell.cli import parts
from trainwell.cli.output import print_json, print_rich
from trainwell.errors import CheckError, ConfigError
from trainwell.planning.target import find_start
from trainwell.prove.verdict import Verdict, plain, summary, totals
from trainwell.runs.console import safe
from trainwell.runs.rundir import parse_target

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {"PASS": "bold green", "FAIL": "bold red", "SKIP": "bright_black"}
_FAINT = "bright_black"


def show_proof(
    target: str, config_file: Path | None, flags: Mapping[str, object], *, small: bool, as_json: bool
) -> None:
    """Run the twins of TARGET and print a verdict for each promise; CheckError when one does not hold."""
    name, step = parse_target(target)
    if step is not None:
        raise ConfigError(
            f"{target}: a proof is of a whole configuration, not of a step; write `trainwell check {name} --prove`"
        )
    given = parts.current()
    start = find_start(target, file=config_file, flags=flags, data=given.get("data"))
    command = _command(target, config_file, flags, small=small)

    from trainwell.given import Given
    from trainwell.prove.checks import prove

    heard: list[str] = []

    def say(line: str) -> None:
        heard.append(line)
        if not as_json:
            sys.stdout.write(safe(line) + "\n")
            sys.stdout.flush()

    verdicts = prove(start, Given(**given), small=small, say=say, command=command)
    if as_json:
        said = heard[: -len(verdicts)]
        print_json(
            {
                "target": target,
                "command": command,
                "settings": said[0],
                "notes": said[1:],
                "totals": totals(verdicts),
                "verdicts": [plain(verdict) for verdict in verdicts],
            }
        )
    else:
        from rich.console import Group

        print_rich(Group(*_drawn(target, verdicts)))
    if not all(verdict.passed for verdict in verdicts):
        raise CheckError(f"{target}: {summary(verdicts)}")


def _command(target: str, config_file: Path | None, flags: Mapping[str, object], *, small: bool) -> str:
    """The line that runs the same proofs again."""
    words = ["trainwell", "check", target, "--prove"]
    words += ["--small"] if small else []
    words += [] if config_file is None else ["--config", str(config_file)]
    for key, value in flags.items():
        words += [f"--{key.replace('_', '-')}", "none" if value is None else str(value)]
    return shlex.join(words)


def _drawn(target: str, verdicts: Sequence[Verdict]) -> "list[RenderableType]":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("promise, and how it was put to the test", overflow="fold")
    table.add_column("seconds", justify="right", no_wrap=True)
    for each in verdicts:
        how = ": ".join(filter(None, (each.level, each.detail)))
        promise = Text.assemble((each.title, "bold"), "\n", (safe(how), _FAINT))
        table.add_row(Text(each.word, _STYLES[each.word]), promise, f"{each.seconds:.1f}")
    failed = [_why(each) for each in verdicts if not each.passed]
    counted = totals(verdicts)
    return [table, *failed, Text(f"{safe(target)}: {summary(verdicts)}, {counted['seconds']:.1f} s", "bold")]


def _why(verdict: Verdict) -> "RenderableType":
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style=_FAINT, no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("first at", Text(safe(verdict.where) or "no step was compared"))
    facts.add_row("seen", Text(safe(verdict.detail)))
    facts.add_row("look at", Text(verdict.look))
    heading = Text.assemble(("FAIL", _STYLES["FAIL"]), f"  {verdict.title}")
    return Group(heading, Padding.indent(facts, 2), Text())
