"""samples.txt: text that the model wrote in between, a block for each, appended, rewound on resume, read back.

Knows blocks and steps, not how a text came about.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from trainwell.errors import StorageError

_HEADING = re.compile(r"^=== step (\d+) \| (.*) ===$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """Text that the model of state `step` wrote; `about` is the heading's rest."""

    step: int
    about: str
    text: str


@dataclass(frozen=True)
class SamplesFile:
    """A file of samples by its path; it is open only during a call."""

    path: Path

    def append(self, sample: Sample) -> None:
        """Write a sample; raise StorageError when that fails."""
        self._write(self.path, [sample], "a")

    def read(self) -> tuple[Sample, ...]:
        """All samples in the order of the file; none where there is no file."""
        if not self.path.is_file():
            return ()
        parts = _HEADING.split(self.path.read_text(encoding="utf-8", errors="replace"))[1:]
        blocks = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        return tuple(Sample(int(step), about, text.strip("\n")) for step, about, text in blocks)

    def rewind(self, step: int, attempts: Path) -> None:
        """Move the samples of states past `step` to the end of a file of the same name in `attempts`."""
        samples = self.read()
        past = [sample for sample in samples if sample.step > step]
        if not past:
            return
        attempts.mkdir(exist_ok=True)
        self._write(attempts / self.path.name, past, "a")
        unfinished = self.path.with_suffix(".tmp")
        self._write(unfinished, [sample for sample in samples if sample.step <= step], "w")
        unfinished.replace(self.path)

    def _write(self, path: Path, samples: list[Sample], mode: str) -> None:
        text = "".join(f"=== step {sample.step} | {sample.about} ===\n{sample.text}\n" for sample in samples)
        try:
            with path.open(mode, encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}; free space there") from None
