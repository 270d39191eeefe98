"""Our tokenizers as the files that transformers opens: tokenizer.json and tokenizer_config.json, with the same ids.

Knows the tokenizers and no model. One thing differs by custom: there, text that spells the end-of-text token is that
token, unless `split_special_tokens=True` is given when it is opened.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwell.data.tokenizer import (
    END_OF_TEXT,
    BytesTokenizer,
    CharsTokenizer,
    FileTokenizer,
    Gpt2Tokenizer,
    Tokenizer,
)
from trainwell.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def hf_tokenizer(
    tokenizer: Tokenizer, *, seq_len: int, chat_template: str | None = None, tokens: Mapping[str, str] | None = None
) -> dict[str, bytes]:
    """The files of a tokenizer by name, for AutoTokenizer: the same ids for the same text, and back.

    Args:
        tokenizer: one of ours; of a tokenizer.json its own content, without what would add, cut or fill up ids.
        seq_len: the longest text that the model reads, in tokens.
        chat_template: how messages become text, in Jinja, where the model has learned one.
        tokens: special tokens by the names under which that asks for them, as `bos_token`; the others are end of text.

    Raises ConfigError for a tokenizer that is not one of ours.
    """
    for kind, content in _CONTENT.items():
        if isinstance(tokenizer, kind):
            document = content(tokenizer)
            break
    else:
        raise ConfigError(
            f"{type(tokenizer).__name__} is a tokenizer of your own, which cannot be written as tokenizer.json; export "
            "with --format safetensors, which is the weights alone"
        )
    raw = document if isinstance(document, bytes) else _as_json(document)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is, whatever the model
        "model_max_length": seq_len,
        "clean_up_tokenization_spaces": False,
        **_ends(tokenizer, raw),
        **(tokens or {}),
        **({} if chat_template is None else {"chat_template": chat_template}),
    }
    return {TOKENIZER: raw, TOKENIZER_CONFIG: _as_json(settings)}


def _ends(tokenizer: Tokenizer, raw: bytes) -> dict[str, str]:
    """The end of text as the token that begins and ends texts and fills up rows."""
    end = None if tokenizer.end_of_text is None else _opened(raw).id_to_token(tokenizer.end_of_text)
    return {} if end is None else dict.fromkeys(("bos_token", "eos_token", "pad_token"), end)


def _opened(raw: bytes) -> "tokenizers.Tokenizer":
    import tokenizers

    return tokenizers.Tokenizer.from_buffer(raw)


def _bytes(tokenizer: BytesTokenizer) -> dict[str, Any]:
    """Byte-level BPE without merges: each byte of UTF-8 is its own id."""
    vocabulary = {character: byte for byte, character in _characters().items()}
    return _document(_bpe(vocabulary, []), tokenizer, splits=False)


def _chars(tokenizer: CharsTokenizer) -> dict[str, Any]:
    """BPE of characters without merges. A character that is not in the alphabet, an error here, is left out there."""
    end = tokenizer.end_of_text
    vocabulary = {tokenizer.decode([number]): number for number in range(tokenizer.vocab_size) if number != end}
    return _document(_bpe(vocabulary, []), tokenizer, splits=None)


def _gpt2(tokenizer: Gpt2Tokenizer) -> dict[str, Any]:
    """GPT-2's BPE, its merges found again from the ranks of its tokens."""
    piece = tokenizer.encoding.decode_single_token_bytes
    ranks = {piece(number): number for number in range(tokenizer.vocab_size) if number != tokenizer.end_of_text}
    characters = _characters()

    def spelled(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    merges = [f"{spelled(left)} {spelled(right)}" for left, right in _merges(ranks)]
    return _document(_bpe({spelled(token): rank for token, rank in ranks.items()}, merges), tokenizer, splits=True)


def _file(tokenizer: FileTokenizer) -> bytes:
    """The file's own content, byte for byte, unless something in it adds ids to a text, cuts it or fills it up."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        raw = (Path(folder) / TOKENIZER).read_bytes()
    document = json.loads(raw)
    silenced = {key: None for key in ("truncation", "padding") if document.get(key) is not None}
    if _opened(raw).num_special_tokens_to_add(is_pair=False):  # as Llama's adds one before, which training never did
        silenced["post_processor"] = None
    return _as_json(document | silenced) if silenced else raw


def normalizes_as_qwen2(tokenizer: FileTokenizer) -> bool:
    """Whether a file brings text into composed form (NFC), as Qwen2's does and hardly any other."""
    normalizer: object = json.loads(_file(tokenizer)).get("normalizer")
    return normalizer == {"type": "NFC"}


_CONTENT: Mapping[type, Callable[[Any], dict[str, Any] | bytes]] = {
    BytesTokenizer: _bytes,
    CharsTokenizer: _chars,
    Gpt2Tokenizer: _gpt2,
    FileTokenizer: _file,
}


def _document(model: dict[str, Any], tokenizer: Tokenizer, *, splits: bool | None) -> dict[str, Any]:
    """A whole tokenizer.json; `splits` as GPT-2 does before merging, or not, or None where ids are no bytes."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": bool(splits)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [] if tokenizer.end_of_text is None else [_end(tokenizer.end_of_text)],
        "normalizer": None,
        "pre_tokenizer": None if splits is None else level,
        "post_processor": None,
        "decoder": {"type": "Fuse"} if splits is None else level,
        "model": model,
    }


def _end(number: int) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": END_OF_TEXT, **plain, "special": True}


def _bpe(vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }


def _merges(ranks: dict[bytes, int]) -> Iterable[tuple[bytes, bytes]]:
    """The pair that each token of several bytes was made from, in the order of their ranks.

    A token is what merging made of its bytes before its own rank was there: two parts, which are then its merge.
    """
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            place = min(range(len(parts) - 1), key=lambda at: ranks.get(parts[at] + parts[at + 1], rank))
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        yield from pairwise(parts)


def _characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    As `bytes_to_unicode` of openai/gpt-2 has it: a byte that prints stands for itself, the others for the characters
    from U+0100 on, both in ascending order.
    """
    from tokenizers import pre_tokenizers

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(character) for character in characters if ord(character) < 256]
    others = sorted(set(range(256)) - set(printable))
    return dict(zip([*printable, *others], characters, strict=True))


def _as_json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()
