"""Loops written out by hand: a plain compiled GPT, and our own model without a trainer."""

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.gpu.ours import AS_IS, CLIP, Case, adamw, loss_of, make_model, rate
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.timing import Contender
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from trainwell.data.batches import MicroBatch

RAW = "raw loop, our model"


class PlainBlock(nn.Module):
    """Pre-norm attention and MLP; its names are GPT-2's, so that weights are the same as ours."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        batch, length, width = x.shape
        parts = self.attn["c_attn"](self.ln_1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](mixed.transpose(1, 2).reshape(batch, length, width))
        wide = functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](wide)  # type: ignore[no-any-return]


class PlainGPT(nn.Module):
    """Ids and targets (B, T) to the mean loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(shape.vocab, shape.width), nn.Embedding(shape.seq_len, shape.width)
        self.h = nn.ModuleList(PlainBlock(shape.width, shape.heads) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        self.lm_head = nn.Linear(shape.width, shape.vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy in nats."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return functional.cross_entropy(self.lm_head(self.ln_f(x)).flatten(0, 1), targets.flatten())


def plain_model(case: Case) -> PlainGPT:
    """With the weights that ours begins with."""
    with torch.device(case.device):
        model = PlainGPT(case.shape)
    model.load_state_dict(make_model(case.shape, case.device).state_dict())
    return model


def plain_gpt(case: Case) -> Contender:
    """The plain model in the plain loop."""
    model = plain_model(case)
    forward = torch.compile(model, dynamic=False) if case.compiled else model
    return Contender("plain GPT, compiled", _loop(case, model, forward), case.tokens_per_step)


def raw_loop(case: Case) -> Contender:
    """Our model and loss in the plain loop: what ours takes beyond it is the trainer's own."""
    model = make_model(case.shape, case.device)
    model.narrow = AS_IS.narrow
    total = loss_of(model, case, AS_IS)

    def mean(ids: Tensor, targets: Tensor) -> Tensor:
        return total(model, MicroBatch(ids, targets, 0)) / targets.numel()  # type: ignore[no-any-return]

    return Contender(RAW, _loop(case, model, mean), case.tokens_per_step)


def decayed_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay and the rest does not."""
    weights = list(model.parameters())
    return [
        {"params": [weight for weight in weights if weight.dim() >= 2], "weight_decay": 0.1},
        {"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0},
    ]


def _loop(case: Case, model: nn.Module, forward: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
    optimizer, rows, taken = adamw(decayed_groups(model)), case.rows(), 0

    def on_device(array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(case.device, non_blocking=True) if case.device.type == "cuda" else tensor

    def step() -> Tensor:
        nonlocal taken
        ids, targets = map(on_device, next(rows))
        for group in optimizer.param_groups:
            group["lr"] = rate(taken)
        with torch.autocast(case.device.type, torch.bfloat16):
            loss = forward(ids, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        taken += 1
        return loss.detach()

    return step
