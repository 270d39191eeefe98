"""A tokenizer learned from raw text: byte-level BPE as GPT-2's (Sennrich et al., 2016; Radford et al., 2019).

Hugging Face's `tokenizers` learns it; here is decided what it learns from and what it is measured on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from trainwell.data.held_out import is_held_out, key_of
from trainwell.data.inputs import find_sources
from trainwell.data.manifest import write_whole
from trainwell.data.readers import read_documents
from trainwell.data.reading import Document, Reading
from trainwell.data.tokenizer import END_OF_TEXT, Tokenizer
from trainwell.errors import ConfigError, DataError, StorageError

FEWEST = 257
"""The bytes, and the end of a text."""
_HELD_OUT = 0.05
_MOST_HELD_OUT = 10_000_000


@dataclass
class Learned:
    """What a tokenizer was learned from, and the text that was kept from it."""

    size: int = 0
    """UTF-8 bytes that it was learned from."""
    held_out: list[str] = field(default_factory=list)

    def bytes_a_token(self, tokenizer: Tokenizer) -> float:
        """Of a tokenizer, on the text that was kept aside; which must be some."""
        return sum(len(text.encode()) for text in self.held_out) / sum(map(len, map(tokenizer.encode, self.held_out)))


def learn(inputs: Sequence[str], out: Path, vocab_size: int, reading: Reading, *, show_progress: bool) -> Learned:
    """Learn `vocab_size` tokens from the documents of `inputs` and write them to `out` as a tokenizer.json.

    A twentieth of the documents, by their hash, is kept aside; of a single document its last twentieth. Raises
    ConfigError or DataError for what cannot be, StorageError where the file cannot be written.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < FEWEST:
        raise ConfigError(f"--vocab-size {vocab_size}: {FEWEST} at least, the bytes and the end of a text")
    if out.exists():
        raise ConfigError(f"--out {out}: there is a file already. Name another, or remove it.")
    learned = Learned()
    sources = find_sources(inputs, reading.care)
    documents = (document for source in sources for document in read_documents(source, reading))
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    inner.train_from_iterator(_texts(documents, learned), trainer)
    if not learned.size:
        raise DataError(f"there is no text to learn from in {', '.join(inputs)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, (inner.to_str(pretty=True) + "\n").encode())
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}. Name another file with --out.") from error
    return learned


def _texts(documents: Iterable[Document], learned: Learned) -> Iterator[str]:
    """The texts to learn from; a few are put aside."""
    documents = iter(documents)
    first = [*islice(documents, 2)]
    if len(first) == 1:
        cut = int((1 - _HELD_OUT) * len(first[0].text))
        learned.held_out = [first[0].text[cut:]]
        yield from _counted([first[0].text[:cut]], learned)
        return
    yield from _counted(_learned_from(first, learned), learned)
    yield from _counted(_learned_from(documents, learned), learned)


def _learned_from(documents: Iterable[Document], learned: Learned) -> Iterator[str]:
    kept = sum(map(len, learned.held_out))
    for document in documents:
        key = document.key or key_of(document.text)
        if kept < _MOST_HELD_OUT and is_held_out(key, _HELD_OUT):
            learned.held_out.append(document.text)
            kept += len(document.text)
        else:
            yield document.text


def _counted(texts: Iterable[str], learned: Learned) -> Iterator[str]:
    for text in texts:
        learned.size += len(text) if text.isascii() else len(text.encode())
        yield text
