"""What is trained in every comparison: the model, its first weights, the tokens, and which of them a step reads.

Everybody gets the same of each, so that losses can be compared and times mean the same work. Knows no contestant.
`python -m benchmarks.speed.cases --case C --folder F` writes it all and says in a line of JSON what the tokens are: in
a process of its own, since on Linux a process begins with the peak of memory of the one that started it.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from benchmarks.speed.names import to_hf
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0
_STD = 0.02
_SEED = 1234
_RANDOM_TOKENS = 400_000
_TEXT = "tinyshakespeare.txt"
_CORNERS = {"bos_token_id": None, "eos_token_id": None}


@dataclass(frozen=True)
class Case:
    """One model and one batch; `steps` are those of one process, `warm_up` of them at its start not timed."""

    name: str
    num_layers: int
    num_heads: int
    width: int
    vocab_size: int
    batch_size: int
    seq_len: int
    lr: float
    steps: int
    warm_up: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.seq_len

    @property
    def parameters(self) -> int:
        """Weights of the model; the head is the embedding and counts once."""
        block = 12 * self.width**2 + 13 * self.width
        return (self.vocab_size + self.seq_len) * self.width + self.num_layers * block + 2 * self.width

    @property
    def flops_per_token(self) -> int:
        """Forward and backward: 6 N + 12 L H Q T (PaLM, appendix B), N without the positions, which only are added."""
        attention = 12 * self.num_layers * self.width * self.seq_len
        return 6 * (self.parameters - self.seq_len * self.width) + attention


_GPT2 = {"num_layers": 12, "num_heads": 12, "width": 768, "vocab_size": 50257}
_TINY = {"num_layers": 4, "num_heads": 4, "width": 128, "vocab_size": 65}
CASES = {
    case.name: case
    for case in (
        Case("124m-2x256", **_GPT2, batch_size=2, seq_len=256, lr=1e-4, steps=20, warm_up=2),
        Case("124m-4x1024", **_GPT2, batch_size=4, seq_len=1024, lr=1e-4, steps=12, warm_up=2),
        Case("tiny", **_TINY, batch_size=12, seq_len=64, lr=1e-3, steps=220, warm_up=20),
        Case("smallest", 2, 2, 32, 65, batch_size=2, seq_len=16, lr=1e-3, steps=3, warm_up=1),
    )
}
"""By name; `smallest` is for tests. The models are GPT-2's: biases, a tied head, GELU in its tanh form, no dropout."""


class Examples:
    """Rows of the token file in order, as many as are asked for; they begin again where the tokens end."""

    def __init__(self, tokens: NDArray[np.int64], seq_len: int, count: int) -> None:
        self._tokens = tokens
        self._seq_len = seq_len
        self._count = count
        self._rows = (len(tokens) - 1) // seq_len

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= self._count:
            raise IndexError(index)
        start = index % self._rows * self._seq_len
        row = torch.from_numpy(self._tokens[start : start + self._seq_len + 1])
        return row[:-1], row[1:]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets (B, T) of one step after the other."""
        for first in range(0, self._count, batch_size):
            rows = [self[index] for index in range(first, first + batch_size)]
            yield torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


def read_text() -> str | None:
    """Tiny Shakespeare from the folder of texts; None where there is none."""
    folder = os.environ.get("TRAINWELL_DATA_DIR")
    path = Path(folder or ".") / _TEXT
    return path.read_text(encoding="utf-8") if folder and path.exists() else None


def tokens_of(case: Case) -> tuple[NDArray[np.int64], str]:
    """The ids that a case trains on, and where they are from: the text by GPT-2's tokens or by characters, or dice."""
    text = read_text()
    if text is None:
        dice = np.random.default_rng(_SEED)
        return dice.integers(0, case.vocab_size, _RANDOM_TOKENS), f"random ids, seed {_SEED}"
    if case.vocab_size < 256:
        letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
        return np.array([letters[letter] for letter in text], np.int64), "Tiny Shakespeare, characters"
    from trainwell.data.tokenizer import load_tokenizer

    ids = load_tokenizer("gpt2").encode(text)
    return np.asarray(ids, np.int64), "Tiny Shakespeare, gpt2 tokenizer"


def draw_weights(case: Case) -> dict[str, Tensor]:
    """First weights under GPT-2's names, matrices as torch's Linear has them: N(0, 0.02), smaller into the residual."""
    width, generator = case.width, torch.Generator().manual_seed(_SEED)
    shapes = {"wte.weight": (case.vocab_size, width), "wpe.weight": (case.seq_len, width)}
    for layer in range(case.num_layers):
        for name, rows, columns in (
            ("attn.c_attn", 3 * width, width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", 4 * width, width),
            ("mlp.c_proj", width, 4 * width),
        ):
            shapes[f"h.{layer}.{name}.weight"] = (rows, columns)
    residual = _STD * (2 * case.num_layers) ** -0.5
    drawn = {}
    for name, shape in shapes.items():
        std = residual if "c_proj" in name else _STD
        drawn[name] = torch.randn(shape, generator=generator) * std
        if name.startswith("h."):
            drawn[name.replace("weight", "bias")] = torch.zeros(shape[0])
    for norm in ("ln_f", *(f"h.{layer}.ln_{part}" for layer in range(case.num_layers) for part in (1, 2))):
        drawn[f"{norm}.weight"], drawn[f"{norm}.bias"] = torch.ones(width), torch.zeros(width)
    return drawn


def prepare(case: Case, folder: Path) -> str:
    """Write what all contestants read: tokens, weights, and these as a Hugging Face folder; say what the tokens are."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens, source = tokens_of(case)
    np.save(folder / "tokens.npy", tokens)
    weights = draw_weights(case)
    save_file(weights, folder / "weights.safetensors")
    hf = folder / "gpt2"
    hf.mkdir(exist_ok=True)
    save_file(to_hf(weights), hf / "model.safetensors", metadata={"format": "pt"})
    (hf / "config.json").write_text(json.dumps(hf_config(case)), encoding="utf-8")
    return source


def hf_config(case: Case) -> dict[str, object]:
    """The model in the words of transformers."""
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    shape = {"n_layer": case.num_layers, "n_head": case.num_heads, "n_embd": case.width, "n_positions": case.seq_len}
    kind = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": case.vocab_size}
    return {**kind, **shape, **off, **_CORNERS}


def open_tokens(folder: Path) -> NDArray[np.int64]:
    """The tokens that `prepare` wrote."""
    return np.load(folder / "tokens.npy")  # type: ignore[no-any-return]


def open_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that `prepare` wrote."""
    return load_file(folder / "weights.safetensors")


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description="tokens and weights of a case")
    parser.add_argument("--case", choices=sorted(CASES), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    print(json.dumps({"tokens": prepare(CASES[asked.case], asked.folder)}))


if __name__ == "__main__":
    main()
