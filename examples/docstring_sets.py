"""Text to fine-tune on without a download: questions about Python's standard library, and docstrings with their module.

python examples/docstring_sets.py docstrings

For instruct it writes instructions.jsonl, with "What does textwrap.dedent do?" and the beginning of its docstring as
the answer; template.txt, which puts the two into few words because demo reads 128 bytes at once; and questions.jsonl,
a few that the instructions leave out. For classify it writes labelled.csv: docstrings, and the package that each is
from. The sources are read and never run, and one Python gives the same files each time.
"""

import ast
import csv
import hashlib
import json
import sys
import sysconfig
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TEMPLATE = "Q: {instruction}\nA: {output}"
MOST_BYTES = 128  # of question and answer in the template: demo's context, with end of text as the last target
NUM_QUESTIONS = 20
NUM_LABELS = 8
MOST_OF_A_LABEL = 250
TEXT_WIDTH = 120
NOT_FOR_USE = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "distutils"}

GO_ON = """
trainwell train demo
trainwell train instruct --init-from runs/demo --data.path {0}/instructions.jsonl --data.template {0}/template.txt
trainwell sample runs/instruct --chat
trainwell sample runs/instruct --file {0}/questions.jsonl -o {0}/answers.jsonl
trainwell train classify --init-from runs/demo --data.path {0}/labelled.csv
trainwell sample runs/classify --label "Return the widget that has the focus."
"""


@dataclass(frozen=True)
class Entry:
    """A function or class of the library."""

    name: str
    """In full: textwrap.dedent."""
    is_class: bool
    doc: str
    """Its docstring, never empty, without the indentation."""

    @property
    def question(self) -> str:
        return f"What is {self.name}?" if self.is_class else f"What does {self.name} do?"

    @property
    def answer(self) -> str:
        """The first paragraph, on one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @property
    def is_public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))


def read_library(folder: Path) -> list[Entry]:
    """Find everything that has a docstring in the sources under `folder`, the shortest names first."""
    entries = [entry for file in sorted(folder.rglob("*.py")) for entry in entries_of(file, folder)]
    return sorted(entries, key=lambda entry: (entry.name.count("."), entry.name))


def entries_of(file: Path, folder: Path) -> Iterator[Entry]:
    parts = list(file.relative_to(folder).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    package = parts[0] if parts else ""
    if package in sys.stdlib_module_names and not package.startswith("_") and NOT_FOR_USE.isdisjoint(parts):
        yield from defined_in(ast.parse(file.read_bytes()), ".".join(parts))


def defined_in(node: ast.Module | ast.ClassDef, name: str) -> Iterator[Entry]:
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        full = f"{name}.{child.name}"
        if doc := (ast.get_docstring(child) or "").strip():
            yield Entry(full, isinstance(child, ast.ClassDef), doc)
        if isinstance(child, ast.ClassDef):
            yield from defined_in(child, full)


def dice(text: str) -> str:
    """Draw for `text`, the same each time: what is sorted by this is in random order."""
    return hashlib.sha256(text.encode()).hexdigest()


def instructions_of(entries: list[Entry]) -> list[dict[str, str]]:
    """Ask about what is public, and give each answer once, so that no answer held out is one that was trained on."""
    examples: list[dict[str, str]] = []
    seen: set[str] = set()
    for entry in (entry for entry in entries if entry.is_public):
        example = {"instruction": entry.question, "input": "", "output": entry.answer}
        fits = len(TEMPLATE.format(**example).encode()) <= MOST_BYTES
        if fits and len(entry.answer.split()) > 2 and seen.isdisjoint({entry.question, entry.answer}):
            seen |= {entry.question, entry.answer}
            examples.append(example)
    return examples


def labelled_of(entries: list[Entry]) -> list[tuple[str, str]]:
    """Pair docstrings with their package, for the packages with the most; a text that several packages have is out."""
    packages_of: dict[str, set[str]] = {}
    for entry in entries:
        packages_of.setdefault(textwrap.shorten(entry.doc, TEXT_WIDTH, placeholder=""), set()).add(entry.package)
    pairs = [(text, min(packages)) for text, packages in packages_of.items() if text and len(packages) == 1]
    labels = sorted(name for name, _ in Counter(name for _, name in sorted(pairs)).most_common(NUM_LABELS))
    return [pair for label in labels for pair in drawn_from(pairs, label)]


def drawn_from(pairs: list[tuple[str, str]], label: str) -> list[tuple[str, str]]:
    return sorted((pair for pair in pairs if pair[1] == label), key=lambda pair: dice(pair[0]))[:MOST_OF_A_LABEL]


def write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8", newline="\n")
    print(f"{path}: {len(records):,} examples, such as {json.dumps(records[0])}")


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    counts = ", ".join(f"{label} {count}" for label, count in sorted(Counter(label for _, label in rows).items()))
    print(f"{path}: {len(rows):,} texts: {counts}")


def main(folder: Path) -> None:
    entries = read_library(Path(sysconfig.get_path("stdlib")))
    examples = instructions_of(entries)
    apart = sorted(examples, key=lambda example: dice(example["instruction"]))[:NUM_QUESTIONS]
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "instructions.jsonl", [example for example in examples if example not in apart])
    write_lines(folder / "questions.jsonl", apart)
    (folder / "template.txt").write_text(TEMPLATE, encoding="utf-8", newline="\n")
    write_table(folder / "labelled.csv", labelled_of(entries))
    print(GO_ON.format(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docstrings"))
