"""Configurations and command lines nobody would write: `python benchmarks/fuzz.py [--count N] [--seed S] [--case N]`.

Each case is drawn from (seed, number) alone, so that `--case N` repeats it. It is run through the command line itself,
in this process or as one of its own, and may end in three ways: done, bad usage, bad data. Nothing here trains.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainwell.cli import app
from trainwell.config.keys import Key, keys
from trainwell.config.load import recipe_names

ROOT = Path(__file__).parents[1]
ALLOWED = {0, 2, 65}
SLOW_S = 5.0
_GIVEN_UP_S = 30.0
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=0")
_IN_TEXT = "\t\n"
_SHOWN = 20

_TEXT = "the tide turns and every boat knows its way home, if it has one.\n" * 60
_QUESTIONS = [{"instruction": f"say {number}", "input": "", "output": f"it is {number}"} for number in range(40)]
_LABELS = "text,label\n" + "\n".join(f"message {number},{'spam' if number % 3 else 'ham'}" for number in range(60))
DATA = {
    "text.txt": _TEXT.encode(),
    "questions.json": json.dumps(_QUESTIONS).encode(),
    "labels.csv": _LABELS.encode(),
    "empty.txt": b"",
    "short.txt": b"too short",
    "bytes.txt": bytes(range(256)) * 8,
    "folder/one.md": b"a text of its own\n" * 50,
    "folder/two.txt": b"and another, with \x1b[31mred\x1b[0m in it\n" * 50,
    "broken.json": b'[{"instruction": "say", ',
    "broken.csv": b'text,label\n"never closed,ham\n',
    "tokenizer.json": b'{"model": {"type": "BPE"}}',
}
"""The files that lie in the folder of every case."""

_WORDS = r"""
- -- --- . .. / ~ none null true false yes off 0 -0 1 -1 2 3 7 64 1000 0.5 -0.5 1.0 1e3 1e-3 1e18 1e400 -1e400 nan NaN
inf -inf .nan .inf 1e-320 1e999999999 1e-999999999 0x10 0b1 010 1_000 1,000 1__0 1. .5 +5 [ ] [] {} [1 {a:1} &a *a !x
!!python/name:os.system ' " % 10% 100% 101% -10% 1e9% # \ \x00 1200+200 5+0 + 1+1,1+1 0.9,0.95 0.9 (0.9,0.9) ${HOME}
$(id) `id` ../x a/b CON runs/x demo gpt2 llama
"""
_PHRASES = r"""
 \x20|5 5|[1, 2]|{a: 1}|a: b|- 1|!x y|# no|7+7, 3+1|0.9 0.95|1 1|0.1 0.2 0.3|a b|2M tokens|5 minutes|1 epochs|0 epochs
3 parsecs|1e30 tokens|0.5 steps|1e9 epochs|1 hour|\xe9|\u65e5\u672c|\U0001f6a2|\u202egnp|\u2028|\ufeff|\xbd|\uff11\uff12
\x07|\x1b[31m|\x1b]0;x\x07|\r|\n|\t|\x85|\udcff||1.5k|10 %
"""
_STRANGE = (
    *_WORDS.split(),
    *(each.encode("latin-1").decode("unicode_escape") for line in _PHRASES.split("\n") for each in line.split("|")),
    *("a" * 3000, "[" * 3000, "{" * 3000, "9" * 19, "9" * 400, "9" * 5000),
)
"""Values for any key: typed, mistyped, pasted, or made to break a reader."""
_TEXT_OF_BROKEN = r"""
\xff\xfe
\x00
\x1b[31m: 5
duration: [
duration: 5\nduration: 6
a: &a [*a]
<<: 5
<<: {duration: 5}
- 1\n- 2
just text
12
? [1, 2]\n: 3
{1: 2}: 3
1: 2
null: 5
true: 5
!!python/object/apply:os.system ['echo no']
!!set {a, b}
!!binary aGk=
duration: !!timestamp 2001-01-01
\tduration: 5
--- 1\n--- 2
duration: 5 # \xe9
{"duration": 5, "duration": 6}
{"duration": NaN}
{"duration": 1e999}
{"duration": "\\ud800"}
duration = 5\nduration = 6
duration = 2001-01-01
[optim]\nlr = inf
duration: 12345678901234567890123456789012345678901234567890
a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: &d [*c,*c,*c]\noptim: {lr: [*d,*d,*d]}
"""
_BROKEN = (
    *(line.encode().decode("unicode_escape").encode("latin-1") for line in _TEXT_OF_BROKEN.split("\n")),
    *(b"[" * 3000, b"a: " * 3000, b'{"a":' * 3000, b"x: " + b"y" * 100_000, b"duration: " + b"9" * 5000),
)
"""Config files that are none, or nearly."""
_SWITCHES = {
    "train": ["--restarts", "--allow-change", "--skip", "--steps", "--run", "--config"],
    "show": ["--yaml", "--code", "--json", "--config"],
    "check": ["--json", "--limit", "--small", "--config"],
    "compare": ["--json", "--left", "--right"],
}
"""Switches of each verb, without those that write a file and --strict, whose exit code 1 is an answer."""
_OTHER_SPELLINGS = (
    "--lr",
    "--max-iters",
    "--model.n_layer",
    "-x",
    "--optim",
    "--data",
    "--extra.x",
    "--extra",
    "--x.y",
)


@dataclass(frozen=True)
class Case:
    """One command line, and the files that it finds beside those of `DATA`."""

    number: int
    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """As it would be typed."""
        return shlex.join(["trainwell", *self.arguments])


@dataclass(frozen=True)
class Ended:
    """How a case ended: exit code, seconds, and what it printed; `raised` is the traceback of an unexpected error."""

    code: int
    seconds: float
    out: str
    err: str
    raised: str = ""


def draw(seed: int, number: int) -> Case:
    """The case of this number: its verb, its target, its flags and its files."""
    dice = random.Random(f"{seed}/{number}")
    files: dict[str, bytes] = {}
    verb = dice.choices(["train", "show", "check", "compare"], weights=[14, 3, 3, 2])[0]
    if dice.random() < 0.02:
        return Case(number, [_typed(dice) for _ in range(dice.randint(0, 4))])
    first = ["train", "--dry-run"] if verb == "train" else [verb]  # at once, so that nothing can take it for a value
    if dice.random() < 0.3:
        return Case(number, [*first, *_mild(dice, verb)])
    words = [_target(dice, number, files) for _ in range(2 if verb == "compare" else 1)]
    if verb != "compare" and dice.random() < 0.8:
        words += _data(dice)
    for _ in range(dice.choices([0, 1, 2, 3, 6, 12], weights=[3, 9, 6, 3, 1, 1])[0]):
        words += _flag(dice, verb)
    if verb != "compare" and dice.random() < 0.2:
        words += ["--config", _file(dice, number, files)]
    return Case(number, [*first, *_mistyped(dice, words)], files)


def _mistyped(dice: random.Random, words: list[str]) -> list[str]:
    """Mostly as they are; at times in any order, with one more or without the last."""
    if dice.random() < 0.05:
        dice.shuffle(words)
    if dice.random() < 0.05:
        words.insert(dice.randrange(len(words) + 1), _typed(dice))
    return words[:-1] if dice.random() < 0.03 else words


def _mild(dice: random.Random, verb: str) -> list[str]:
    """What could be meant: a recipe, a text, and values of the right kind, which may still not go together."""
    words = [dice.choice(recipe_names()) for _ in range(2 if verb == "compare" else 1)]
    if verb == "compare":
        return words
    words += ["--data.path", "text.txt", "--data.tokenizer", "bytes", "--data.seq-len", dice.choice(["8", "16", "64"])]
    said = {key.name for key in keys() if key.name.startswith("data.")} | {"custom", "extra", "task", "init_from"}
    for key in dice.sample([key for key in keys() if key.name not in said], dice.randint(1, 4)):
        words += [f"--{key.name}", _sensible(dice, key)]
    return words


def _target(dice: random.Random, number: int, files: dict[str, bytes]) -> str:
    kind = dice.random()
    if kind < 0.45:
        return "demo"
    if kind < 0.75:
        return dice.choice(recipe_names())
    if kind < 0.87:
        return _file(dice, number, files)
    step = dice.choice(["0", "5", "1199", "1200", "-1", "9" * 30, "last", "best", "", "x", "1.5", "@"])
    return dice.choice([f"demo@{step}", f"gpt2-124m@{step}", f"runs/x@{step}", _typed(dice), *DATA])


def _data(dice: random.Random) -> list[str]:
    """A text that is quick to prepare; sometimes one that is none, and sometimes examples."""
    kind = dice.random()
    if kind < 0.7:
        return ["--data.path", "text.txt", "--data.tokenizer", dice.choice(["bytes", "bytes", "chars"])]
    if kind < 0.8:
        return ["--task", "instruct", "--data.path", "questions.json", "--data.tokenizer", "bytes"]
    if kind < 0.9:
        return ["--task", "classify", "--data.path", "labels.csv", "--data.tokenizer", "bytes"]
    return ["--data.path", dice.choice([*DATA, "folder"]), "--data.tokenizer", dice.choice(["bytes", "tokenizer.json"])]


def _flag(dice: random.Random, verb: str) -> list[str]:
    kind = dice.random()
    if kind < 0.1:
        return [dice.choice(_SWITCHES[verb]), *([_typed(dice)] if dice.random() < 0.6 else [])]
    if kind < 0.15:
        return [dice.choice(_OTHER_SPELLINGS), _typed(dice)]
    key = dice.choice([key for key in keys() if key.name != "custom"])
    name = f"--{key.name.replace('_', '-') if dice.random() < 0.8 else key.name}"
    value = _typed(dice) if dice.random() < 0.3 else _sensible(dice, key)
    return [f"{name}={value}"] if dice.random() < 0.2 else [name, value]


def _typed(dice: random.Random) -> str:
    """Anything that can be typed; sometimes two things run together."""
    first = dice.choice(_STRANGE)
    return first + dice.choice(_STRANGE) if dice.random() < 0.1 else first


def _sensible(dice: random.Random, key: Key) -> str:
    """A value of the kind that the key takes: mostly allowed, often at the edge of it, and sometimes far too large."""
    if key.choices and (key.kind == "choice" or dice.random() < 0.5):
        return dice.choice(key.choices)
    if key.optional and dice.random() < 0.2:
        return "null"
    whole = dice.choice([1, 2, 3, 4, 8, 12, 16, 24, 64, 100, 1024, 10**6, 10**9, 2**31, 2**63 - 1, 10**12 + 39, 10**17])
    part = dice.choice(["0", "1e-8", "0.1", "0.5", "0.9", "0.999", "1", "1.5", "10", "1e6"])
    unit = dice.choice(["", "", " tokens", "k tokens", "M tokens", "%", " epochs", " minutes"])
    number = whole if dice.random() < 0.5 else dice.randint(0, 40)
    made: dict[str, Callable[[], str]] = {
        "flag": lambda: dice.choice(["true", "false"]),
        "integer": lambda: str(number),
        "number": lambda: part,
        "duration": lambda: f"{number}{unit}",
        "rate": lambda: dice.choice([part, f"{part}%", "10%", "1e-5"]),
        "pair": lambda: f"{part} {dice.choice(['0.9', '0.95', part])}",
    }
    return made.get(key.kind, lambda: dice.choice([*DATA, "gpt2", "alpaca", "phi3", "a,b", "3+2"]))()


def _file(dice: random.Random, number: int, files: dict[str, bytes]) -> str:
    """Write a config file and give its name; sometimes one that is broken, has another's ending, or is not there."""
    ending = dice.choice(["yaml", "yml", "json", "toml"])
    name = f"case-{number}-{len(files)}.{ending}"
    kind = dice.random()
    if kind < 0.05:
        return f"no-such.{ending}"
    if kind < 0.3:
        files[name] = dice.choice(_BROKEN)
        return name
    said = _settings(dice)
    text = _toml(said) if ending == "toml" else json.dumps(said, ensure_ascii=dice.random() < 0.5, indent=1)
    content = text.encode(errors="surrogateescape")
    if kind < 0.4:
        content = content[: dice.randrange(len(content) + 1)]
    elif kind < 0.5 and content:
        place = dice.randrange(len(content))
        content = content[:place] + bytes([dice.randrange(256)]) + content[place + 1 :]
    files[name] = content
    return name


def _settings(dice: random.Random) -> dict[str, Any]:
    """Keys in sections, with values of all types that a file can hold."""
    said: dict[str, Any] = {"data": {"path": "text.txt"}} if dice.random() < 0.7 else {}
    for _ in range(dice.randint(0, 6)):
        key = dice.choice(keys())
        section, _, name = key.name.rpartition(".")
        inside = said.setdefault(section, {}) if section else said
        if isinstance(inside, dict):
            inside[name if dice.random() < 0.95 else _typed(dice)] = _written(dice, key)
    if dice.random() < 0.1:
        said[dice.choice(["optim", "data", "batch_ramp", "model", "extra", "about", "bands"])] = _anything(dice)
    return said


def _written(dice: random.Random, key: Key) -> Any:
    value = _sensible(dice, key) if dice.random() < 0.6 else _anything(dice)
    if isinstance(value, str) and dice.random() < 0.7:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _anything(dice: random.Random) -> Any:
    numbers = (0, -1, 10**30, 0.5, -1.5, float("nan"), float("inf"))
    others: tuple[Any, ...] = (None, True, False, [], [1, 2], [0.9, "x"], {}, {"a": {"b": [None]}})
    return dice.choice((*numbers, *others, dice.choice(_STRANGE)))


def _toml(said: dict[str, Any]) -> str:
    """As TOML: what it has no word for is left as JSON has it, and is one mistake more."""
    plain = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in said.items() if not isinstance(value, dict)]
    sections = [
        "\n".join(
            [f"[{json.dumps(name)}]", *(f"{json.dumps(key)} = {json.dumps(inner)}" for key, inner in part.items())]
        )
        for name, part in said.items()
        if isinstance(part, dict)
    ]
    return "\n".join([*plain, *sections, ""])


class _GivenUpError(BaseException):
    """A case took so long that waiting for it makes no sense; no `except Exception` may take it for one of ours."""


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise _GivenUpError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def playground() -> Iterator[Path]:
    """Work in a folder with the files of `DATA` and a cache of its own, which is gone afterwards."""
    before, variables = Path.cwd(), dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="trainwell-fuzz-") as made:
        folder = Path(made)
        for name, content in DATA.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        os.chdir(folder)
        os.environ |= {"TRAINWELL_CACHE_DIR": str(folder / "cache"), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        try:
            yield folder
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(variables)


@contextlib.contextmanager
def _with_files(case: Case) -> Iterator[None]:
    for name, content in case.files.items():
        Path(name).write_bytes(content)
    try:
        yield
    finally:
        for name in case.files:
            Path(name).unlink(missing_ok=True)


def in_process(case: Case) -> Ended:
    """Run it here, with streams that are as strict as those of a process."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    raised, code, before = "", 3, os.environ.get("TRAINWELL_TRACEBACK")
    os.environ["TRAINWELL_TRACEBACK"] = "1"
    begin = time.perf_counter()
    with _with_files(case), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with _no_longer_than(_GIVEN_UP_S):
                code = app.run(case.arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 3
        except (Exception, _GivenUpError):  # noqa: BLE001  whatever it is, it is the finding
            raised = traceback.format_exc()
    seconds = time.perf_counter() - begin
    os.environ.pop("TRAINWELL_TRACEBACK") if before is None else os.environ.update(TRAINWELL_TRACEBACK=before)
    return Ended(code, seconds, _said(out), _said(err), raised)


def _said(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "replace")


def as_process(case: Case) -> Ended:
    """Run it as `python -m trainwell`, a process of its own; starting one is not counted against it."""
    begin = time.perf_counter()
    with _with_files(case):
        try:
            done = subprocess.run(
                [sys.executable, "-m", "trainwell", *case.arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_GIVEN_UP_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Ended(3, _GIVEN_UP_S, "", "", "it was given up")
    seconds = time.perf_counter() - begin
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    return Ended(done.returncode, seconds, out, err)


def problem(ended: Ended) -> str:
    """What is wrong with how a case ended, in a line; empty where nothing is."""
    if ended.raised:
        return _kind_of(ended.raised)
    if ended.code not in ALLOWED:
        return f"exit code {ended.code}: {ended.err.strip()[:160]!r}"
    if "Traceback" in ended.err:
        return "a traceback is printed"
    if ended.code and not ended.err.startswith("trainwell: "):
        return f"exit code {ended.code} without a message"
    strange = sorted({letter for letter in ended.out + ended.err if not letter.isprintable() and _is_control(letter)})
    if strange:
        return f"control characters are printed: {strange}"
    return f"it took {ended.seconds:.1f} s" if ended.seconds > SLOW_S else ""


def _is_control(letter: str) -> bool:
    return letter not in _IN_TEXT and (ord(letter) < 32 or 127 <= ord(letter) < 160)


def _kind_of(raised: str) -> str:
    """The error and the place in trainwell where it came from: what makes two failures the same one."""
    lines = raised.strip().splitlines()
    places = [
        line.strip() for line in lines if line.strip().startswith("File ") and f"{os.sep}trainwell{os.sep}" in line
    ]
    return f"{lines[-1][:160]}, from {places[-1] if places else 'elsewhere'}"


@dataclass
class Findings:
    """What a number of cases came to."""

    codes: Counter[int] = field(default_factory=Counter)
    failures: dict[str, list[Case]] = field(default_factory=dict)
    slowest: float = 0.0
    slowest_case: Case | None = None

    def take(self, case: Case, ended: Ended) -> None:
        """Count one."""
        self.codes[ended.code] += 1
        if ended.seconds > self.slowest:
            self.slowest, self.slowest_case = ended.seconds, case
        if wrong := problem(ended):
            self.failures.setdefault(wrong, []).append(case)

    @property
    def failed(self) -> int:
        """Cases with a problem."""
        return sum(map(len, self.failures.values()))

    def lines(self) -> list[str]:
        """Each distinct failure with how often it was seen and the shortest command that shows it."""
        found = []
        for wrong, cases in self.failures.items():
            shortest = min(cases, key=lambda case: (len(case.files), len(case.command)))
            found.append(f"{wrong[:300]} ({len(cases)} times; case {shortest.number}): {shortest.command[:300]!a}")
        return found

    def row(self, promise: str) -> dict[str, Any]:
        """As a line of the scoreboard."""
        done = self.codes.total()
        ways = ", ".join(f"{number} with {code}" for code, number in sorted(self.codes.items()))
        figure = f"{done - self.failed} of {done}: {ways}; the slowest {self.slowest:.1f} s"
        return {
            "promise": promise,
            "figure": figure,
            "held": done > 0 and not self.failed,
            "problems": self.lines()[:_SHOWN],
        }


def explore(numbers: Iterable[int], seed: int, way: Callable[[Case], Ended] = in_process) -> Findings:
    """Run the cases of these numbers; needs a `playground`."""
    found = Findings()
    for number in numbers:
        case = draw(seed, number)
        found.take(case, way(case))
    if Path("runs").exists():
        found.failures["a folder of runs was written"] = [draw(seed, next(iter(numbers)))]
    return found


def run(
    seed: int = 0, count: int = 10_000, processes: int | None = None, examples: int | None = None
) -> dict[str, Any]:
    """Try `count` command lines here, `processes` of them as processes, and so many sequences of the state machine.

    Of the last two, a fiftieth of the count where nothing is said. Gives the rows of the scoreboard.
    """
    more = max(1, count // 50)
    with playground():
        found = explore(range(count), seed)
        real = explore(range(more if processes is None else processes), seed, as_process)
    rows = [
        found.row("a command line ends with 0, 2 or 65, without a traceback, within 5 s"),
        real.row("so it does as a process"),
    ]
    sequences = more if examples is None else examples
    return {"rows": rows + ([_state_machine(seed, sequences)] if sequences else [])}


def _state_machine(seed: int, examples: int) -> dict[str, Any]:
    """A row for the sequences of commands against a model, which the tests have."""
    outcome = subprocess.run(
        [*_PYTEST, f"--hypothesis-seed={seed}", "tests/invariants/test_state_machine.py"],
        cwd=ROOT,
        env=os.environ | {"TRAINWELL_EXAMPLES": str(examples), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    held = outcome.returncode == 0
    return {
        "promise": "train, save, kill, corrupt, resume and branch in any sequence do as a model says",
        "figure": f"{examples if held else 0} of {examples} sequences{'' if held else ', until the first that failed'}",
        "held": held,
        "problems": [] if held else [outcome.stdout[-1500:]],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Explore, or repeat one case; print every distinct failure with its command, and give 1 where there is one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="repeat this one and print what it says")
    parser.add_argument("--processes", action="store_true", help="as processes of their own")
    asked = parser.parse_args(arguments)
    way = as_process if asked.processes else in_process
    with playground():
        if asked.case is not None:
            return _repeat(draw(asked.seed, asked.case), way)
        found = explore(range(asked.first, asked.first + asked.count), asked.seed, way)
    for line in found.lines():
        print(line)
    slowest = found.slowest_case
    print(found.row("")["figure"], f"(case {slowest.number})" if slowest else "")
    return 1 if found.failed else 0


def _repeat(case: Case, way: Callable[[Case], Ended]) -> int:
    ended = way(case)
    for name, content in case.files.items():
        print(f"{name}: {content[:2000]!r}")
    print(ascii(case.command), f"\nexit code {ended.code}, {ended.seconds:.2f} s")
    print(ended.out[-2000:], ended.err[-2000:], ended.raised, sep="\n")
    wrong = problem(ended)
    print(wrong or "nothing is wrong with it")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
