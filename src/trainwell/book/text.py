"""Text in and text out as chapters 2, 4 and 5 of the book have it: encoding, windows, loaders, greedy samples.

Iterating one of these loaders draws from torch's global generator, as any DataLoader does: that is part of the book's
numbers. trainwell's own data (`trainwell.data`) draws from nothing.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trainwell.data.tokenizer import END_OF_TEXT, Gpt2Tokenizer
from trainwell.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tiktoken import Encoding

SAMPLE_TOKENS = 50
"""Tokens that a sample is long."""

Pair = tuple[Tensor, Tensor]


@cache
def get_encoding(encoding_name: str) -> "Encoding":
    """Give tiktoken's own encoding of that name, without a network: its vocabulary comes with an installed package."""
    if encoding_name != "gpt2":
        raise ConfigError(f"get_encoding: {encoding_name!r} does not come with trainwell; the one that does is gpt2")
    return Gpt2Tokenizer().encoding


class GPTDatasetV1(Dataset[Pair]):
    """Windows of `max_length` ids over the text, one every `stride` ids, each with its targets one id later."""

    def __init__(self, txt: str, tokenizer: Any, max_length: int, stride: int) -> None:
        ids = torch.tensor(tokenizer.encode(txt, allowed_special={END_OF_TEXT}), dtype=torch.int64)
        starts = range(0, len(ids) - max_length, stride)
        self.tokenizer = tokenizer
        self.input_ids = [ids[start : start + max_length] for start in starts]
        self.target_ids = [ids[start + 1 : start + 1 + max_length] for start in starts]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, idx: int) -> Pair:
        return self.input_ids[idx], self.target_ids[idx]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader[Pair]:
    """Cut `txt` into windows of GPT-2 tokens and give a loader of (inputs, targets), each (B, max_length) int64.

    Raises DataError for a text too short for one window.
    """
    windows = GPTDatasetV1(txt, get_encoding("gpt2"), max_length, stride)
    if not len(windows):
        raise DataError(
            f"txt: {len(txt):,} characters are too few tokens for a window of max_length {max_length} and its targets; "
            f"give a longer text or a smaller max_length"
        )
    return DataLoader(windows, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


def text_to_token_ids(text: str, tokenizer: Any) -> Tensor:
    """Ids of `text` as a batch of one, (1, T)."""
    return torch.tensor(tokenizer.encode(text, allowed_special={END_OF_TEXT})).unsqueeze(0)


def token_ids_to_text(token_ids: Tensor, tokenizer: Any) -> str:
    """Text of a batch of one, (1, T)."""
    return tokenizer.decode(token_ids.squeeze(0).tolist())  # type: ignore[no-any-return]


def generate_text_simple(model: nn.Module, idx: Tensor, max_new_tokens: int, context_size: int) -> Tensor:
    """Append the likeliest token, `max_new_tokens` times, to `idx` (B, T); the model sees the last `context_size`."""
    for _ in range(max_new_tokens):
        with torch.no_grad():
            likeliest = model(idx[:, -context_size:])[:, -1].argmax(-1, keepdim=True)
        idx = torch.cat((idx, likeliest), dim=1)
    return idx


def generate_and_print_sample(model: nn.Module, tokenizer: Any, device: torch.device | str, start_context: str) -> None:
    """Print `start_context` and what the model makes of it, on one line; leaves the model in training mode."""
    print_sample(sample_text(model, tokenizer, device, start_context))


def sample_text(model: nn.Module, tokenizer: Any, device: torch.device | str, start_context: str) -> str:
    """`start_context` and SAMPLE_TOKENS greedy tokens; leaves the model in training mode."""
    model.eval()
    prompt = text_to_token_ids(start_context, tokenizer).to(device)
    ids = generate_text_simple(model, prompt, SAMPLE_TOKENS, _context_size(model))
    model.train()
    return token_ids_to_text(ids, tokenizer)


def print_sample(text: str) -> None:
    """Print a sample on one line."""
    print(text.replace("\n", " "))


def _context_size(model: Any) -> int:
    """Positions that a model knows: the book's by its table of them, trainwell's by its name for it."""
    return model.pos_emb.weight.shape[0] if hasattr(model, "pos_emb") else model.seq_len  # type: ignore[no-any-return]
