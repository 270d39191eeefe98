"""What was measured, as lines on the screen while it goes on, and as dated markdown and JSON afterwards."""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

Cell = str | int | float | None


def shown(cell: Cell) -> str:
    """A cell of a table: four digits of a number, a dash for what is not known."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Lines of a markdown table, padded so that it reads on a screen too."""
    cells = [[*header], *([shown(cell).replace("|", "/") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


def facts(device: torch.device) -> dict[str, Any]:
    """What a figure is worth nothing without: device, versions, commit, command."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    found: dict[str, Any] = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": _commit(),
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }
    for package in ("triton", "transformers", "accelerate", "lightning"):
        found[package] = _version(package)
    if device.type == "cuda":
        found["memory"] = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass
class Report:
    """Collects sections; `write` may be called after each, so that a run that is cut short leaves what it has."""

    facts: dict[str, Any]
    folder: Path
    lines: list[str] = field(default_factory=list)
    figures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _section: str = ""

    def section(self, title: str) -> None:
        """Begin a section."""
        self._section = title
        self.figures[title] = []
        self._put("", f"## {title}", "")

    def say(self, line: str) -> None:
        """A line of text."""
        self.figures[self._section].append({"note": line})
        self._put(f"- {line}")

    def rows(self, header: Sequence[str], rows: Sequence[Sequence[Cell]], title: str = "") -> None:
        """A table, each row an object in the JSON."""
        named = [dict(zip(header, row, strict=True)) for row in rows]
        self.figures[self._section] += [{"table": title} | row if title else row for row in named]
        self._put("", *([f"**{title}**", ""] if title else []), *table(header, rows), "")

    def _put(self, *lines: str) -> None:
        self.lines += lines
        for line in lines:
            print(line, flush=True)

    def markdown(self) -> str:
        """The page."""
        about = table(("", ""), [(name, value) for name, value in self.facts.items() if value is not None])
        return "\n".join(["# Training speed on one GPU", "", *about, *self.lines, ""])

    def write(self) -> Path:
        """Write both files; their name is the date, the minute and the device."""
        self.folder.mkdir(parents=True, exist_ok=True)
        day = datetime.fromisoformat(self.facts["date"]).strftime("%Y-%m-%d-%H%M")
        device = re.sub(r"[^a-z0-9]+", "-", str(self.facts["device"]).lower()).strip("-")
        path = self.folder / f"{day}-gpu-{device}.md"
        path.write_text(self.markdown(), encoding="utf-8")
        content = json.dumps(self.facts | {"sections": self.figures}, indent=1)
        path.with_suffix(".json").write_text(content + "\n", encoding="utf-8")
        return path
