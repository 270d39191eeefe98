"""Text to tokens in MB/s: our preparation of a file, from reading to the store, against tiktoken in one thread.

`python -m benchmarks.speed.tokenizing [--megabytes N]` prints one line of JSON.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.speed.cases import read_text

from trainwell.config.tree import DataConfig
from trainwell.data.prepare import prepare
from trainwell.data.tokenizer import Gpt2Tokenizer

_WORDS = ["the", "tide", "turns", "and", "every", "boat", "knows", "its", "way", "home", "if", "it", "has", "one"]
_WORDS_OF_A_TEXT = 200_000


def text_of(megabytes: float) -> tuple[str, str]:
    """So much text, and what it is: Tiny Shakespeare again and again, or words in random order."""
    shakespeare = read_text()
    dice = random.Random(5)
    once = shakespeare or " ".join(dice.choices(_WORDS, k=_WORDS_OF_A_TEXT))
    times = int(megabytes * 1e6 / len(once.encode())) + 1
    return once * times, "Tiny Shakespeare, repeated" if shakespeare else "random words, repeated"


def megabytes_per_s(size: int, call: Callable[[], object]) -> float:
    """The rate of one call over `size` bytes."""
    begin = time.perf_counter()
    call()
    return size / (time.perf_counter() - begin) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="text to tokens")
    parser.add_argument("--megabytes", type=float, default=20)
    asked = parser.parse_args()
    text, source = text_of(asked.megabytes)
    size, rates = len(text.encode()), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text, encoding="utf-8")
        for name in ("gpt2", "bytes"):
            data = DataConfig(corpus=None, path=str(path), tokenizer=name, seq_len=256)
            rates[f"ours, {name}"] = megabytes_per_s(size, partial(prepare, data, cache=Path(folder) / "cache"))
    encoding = Gpt2Tokenizer().encoding
    rates["tiktoken, one thread"] = megabytes_per_s(size, lambda: encoding.encode_ordinary(text))
    print(json.dumps({"megabytes": size / 1e6, "source": source, "mb_per_s": rates}))


if __name__ == "__main__":
    main()
