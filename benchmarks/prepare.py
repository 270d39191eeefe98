"""`trainwell data prepare` against tiktoken in one thread, on the same text: in two files and in many.

    python benchmarks/prepare.py [MB of text, 200 by default] [files, 2000]

Prints megabytes of text a second, their ratio, and the most memory that the preparation took.
"""

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from trainwell.data.tokenizer import Gpt2Tokenizer

_SAMPLE = 15_000_000


def documents(size: int) -> Iterator[str]:
    """Stretches of the Python reference, of 50 to 600 words, until they come to `size` characters."""
    words, chance = " ".join(topics.values()).split(" "), random.Random(0)
    while size > 0:
        count = chance.randint(50, 600)
        start = chance.randrange(len(words) - count)
        text = " ".join(words[start : start + count])
        size -= len(text)
        yield text


def two_files(folder: Path, size: int) -> list[str]:
    """JSON lines."""
    for number in range(2):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents(size // 2))
    return [str(folder / f"{number}.jsonl") for number in range(2)]


def many_files(folder: Path, size: int, count: int) -> list[str]:
    """A document each."""
    (folder / "many").mkdir()
    texts = iter(documents(size))
    for number in range(count):
        text, wanted = "", size // count
        while len(text) < wanted and (more := next(texts, None)) is not None:
            text += more
        (folder / "many" / f"{number:06}.txt").write_text(text or "x", encoding="utf-8")
    return [str(folder / "many")]


def one_thread() -> float:
    """Megabytes a second of tiktoken, a document at a time."""
    encoding, texts = Gpt2Tokenizer().encoding, [*documents(_SAMPLE)]
    began = time.perf_counter()
    for text in texts:
        encoding.encode_ordinary(text)
    return sum(map(len, texts)) / 1e6 / (time.perf_counter() - began)


def prepared(inputs: list[str], out: Path) -> float:
    """Megabytes a second of `trainwell data prepare`, its start and end included."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    words = [sys.executable, "-m", "trainwell", "data", "prepare", *inputs, "--out", str(out)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    took = time.perf_counter() - began
    if said.startswith("tokenised by"):
        print(said.splitlines()[0])
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return float(sum(manifest[part]["bytes"] for part in ("train", "val"))) / 1e6 / took


def main(megabytes: int = 200, files: int = 2000) -> None:
    """Measure each three times, in turn."""
    with tempfile.TemporaryDirectory() as place:
        folder, size = Path(place), megabytes * 1_000_000
        cases = {"2 files": two_files(folder, size), f"{files:,} files": many_files(folder, size, files)}
        for _ in range(3):
            alone = one_thread()
            speeds = {name: prepared(inputs, folder / "store") for name, inputs in cases.items()}
            said = ", ".join(f"{name} {speed:.1f} ({speed / alone:.2f} x)" for name, speed in speeds.items())
            print(f"tiktoken in one thread {alone:.1f} MB/s; trainwell data prepare: {said}", flush=True)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"most memory of a preparation: {memory:,.0f} MB, for {megabytes:,} MB of text")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
