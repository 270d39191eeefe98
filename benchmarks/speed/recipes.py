"""Whole runs of peers as their own pages tell them: `python -m benchmarks.speed.recipes book|nanogpt` prints JSON.

book: the run of its appendix D, with the model, loader and loop of the package llms-from-scratch. nanogpt: the loop of
its train.py with the command of its README for a laptop. Both name their texts by TRAINWELL_DATA_DIR.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.cases import read_text
from benchmarks.speed.figures import spread
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from trainwell.machine import keep_freed_memory, use_huge_pages

_BOOK: dict[str, Any] = {"vocab_size": 50257, "context_length": 256, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
_BOOK |= {"drop_rate": 0.1, "qkv_bias": False}
_NANOGPT: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "bias": False}
_ROWS, _LENGTH = 12, 64
_EVERY, _LOOKS = 250, 20
_PEAK, _LOWEST, _WARM_UP, _UNTIL = 1e-3, 1e-4, 100, 2000


def book(*, ours: bool, bf16: bool, epochs: int) -> dict[str, Any]:
    """Its appendix D: 15 epochs of 9 steps, an evaluation every 5 steps, a sample after each epoch."""
    from trainwell.data.tokenizer import Gpt2Tokenizer

    tiktoken: Any = importlib.import_module("tiktoken")
    encoding = Gpt2Tokenizer().encoding  # the same, without fetching its vocabulary
    tiktoken.get_encoding = lambda _name: encoding
    chapter = "llms_from_scratch"
    load = importlib.import_module(f"{chapter}.ch02").create_dataloader_v1
    text = (Path(os.environ["TRAINWELL_DATA_DIR"]) / "the-verdict.txt").read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    shared = {"batch_size": 2, "max_length": 256, "stride": 256, "num_workers": 0}
    torch.manual_seed(123)
    train = load(text[:cut], drop_last=True, shuffle=True, **shared)
    val = load(text[cut:], drop_last=False, shuffle=False, **shared)
    model = importlib.import_module(f"{chapter}.ch04").GPTModel(_BOOK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK, weight_decay=0.1, fused=True if ours else None)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        trained, validated, _, rates = importlib.import_module(f"{chapter}.appendix_d").train_model(
            model,
            train,
            val,
            optimizer,
            torch.device("cpu"),
            n_epochs=epochs,
            eval_freq=5,
            eval_iter=1,
            start_context="Every effort moves you",
            tokenizer=encoding,
            warmup_steps=int(0.2 * len(train) * epochs),
            initial_lr=1e-5,
            min_lr=1e-5,
        )
    counts = {"steps": len(rates), "evaluations": len(validated), "samples": epochs}
    return {**counts, "train_losses": trained, "val_losses": validated}


def nanogpt(path: Path, *, ours: bool, bf16: bool, steps: int) -> dict[str, Any]:
    """2,000 steps of 12 x 64 characters; `seconds` of its course are those of training alone.

    Beside its own estimates the whole held-out text is evaluated, so that losses can be compared.
    """
    sys.path.insert(0, str(path))
    theirs = importlib.import_module("model")
    text = read_text()
    if text is None:
        return {"left_out": "TRAINWELL_DATA_DIR names no folder with tinyshakespeare.txt"}
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[letter] for letter in text])
    cut = int(0.9 * len(ids))
    train, val = ids[:cut], ids[cut:]
    torch.manual_seed(1337)
    model = theirs.GPT(theirs.GPTConfig(**_NANOGPT, vocab_size=len(letters)))
    optimizer = model.configure_optimizers(0.1, _PEAK, (0.9, 0.99), "cpu")
    if ours:
        optimizer = torch.optim.AdamW(optimizer.param_groups, lr=_PEAK, betas=(0.9, 0.99), fused=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    ends: list[float | None] = []
    begin, outside, course = time.perf_counter(), 0.0, []
    batch = _draw(train)
    for step in range(steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        if step % _EVERY == 0:
            paused = time.perf_counter()
            with autocast:
                _estimate(model, train, val)
                course.append({"step": step, "seconds": paused - begin - outside, "val_loss": _whole(model, val)})
            outside += time.perf_counter() - paused
            ends.append(None)
        if step == steps:
            break
        with autocast:
            _, loss = model(*batch)
        batch = _draw(train)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(time.perf_counter())
    between = [b - a for a, b in pairwise(ends) if a is not None and b is not None]
    return {"steps": steps, "step_s": vars(spread(between[20:])), "course": course}


def rate(step: int) -> float:
    """Its learning rate: a line up over 100 steps, then a cosine down to a tenth until step 2,000."""
    if step < _WARM_UP:
        return _PEAK * (step + 1) / (_WARM_UP + 1)
    share = min((step - _WARM_UP) / (_UNTIL - _WARM_UP), 1.0)
    return _LOWEST + 0.5 * (1 + math.cos(math.pi * share)) * (_PEAK - _LOWEST)


def _draw(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows at random places, as it draws them."""
    places = torch.randint(len(ids) - _LENGTH, (_ROWS,))
    inputs = torch.stack([ids[place : place + _LENGTH] for place in places])
    return inputs, torch.stack([ids[place + 1 : place + 1 + _LENGTH] for place in places])


@torch.no_grad()
def _estimate(model: Any, train: Tensor, val: Tensor) -> None:
    """What it evaluates itself: 20 random batches of either part."""
    model.eval()
    for part in (train, val):
        for _ in range(_LOOKS):
            model(*_draw(part))[1].item()
    model.train()


@torch.no_grad()
def _whole(model: Any, ids: Tensor) -> float:
    """Mean loss over the whole text in rows that do not overlap, in nats."""
    model.eval()
    rows = (len(ids) - 1) // _LENGTH
    inputs, targets = (part[: rows * _LENGTH].view(rows, _LENGTH) for part in (ids[:-1], ids[1:]))
    total = 0.0
    for first in range(0, rows, 100):
        here = slice(first, first + 100)
        total += model(inputs[here], targets[here])[1].item() * len(inputs[here])
    model.train()
    return total / rows


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="a whole run of a peer")
    parser.add_argument("name", choices=("book", "nanogpt"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--settings", choices=("documented", "ours"), default="documented")
    parser.add_argument("--matmul", choices=("highest", "high", "medium"), default="highest")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=_UNTIL)
    parser.add_argument("--nanogpt", type=Path, default=Path())
    asked = parser.parse_args()
    ours, bf16 = asked.settings == "ours", asked.precision == "bf16"
    if ours:
        keep_freed_memory()
        use_huge_pages()
        torch.set_float32_matmul_precision(asked.matmul)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            if asked.name == "book":
                found = book(ours=ours, bf16=bf16, epochs=asked.epochs)
            else:
                found = nanogpt(asked.nanogpt, ours=ours, bf16=bf16, steps=asked.steps)
        except ModuleNotFoundError as error:
            found = {"left_out": f"not installed ({error.name}): pip install '.[bench]'"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
