"""The plain loop: one file, torch and numpy alone, nothing of trainwell. The same run, step for step and bit for bit.

Change the settings and run it. On the same machine and number of threads it prints the losses of `kernels: reference`.
"""

import math
import os
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# --- settings ---
NAME = "demo"
CORPUS, TOKENIZER, VAL_FRACTION = "python-docs", "bytes", 0.1  # or a file of UTF-8 text; "chars"
SEED, NUM_STEPS, BATCH, MICRO_BATCH = 1337, 1500, 8, 8
SEQ_LEN, STRIDE, SHUFFLED = 128, 128, True
LAYERS, HEADS, WIDTH, QKV_BIAS, TIE_HEAD, PAD_VOCAB_TO = 3, 4, 128, True, True, None
PEAK, MIN_LR, WARMUP, HORIZON, DIALECT = 0.003, 0.0003, 75, 1500, None  # or "nanogpt", "build-nanogpt"
BETAS, EPS, WEIGHT_DECAY, MAX_GRAD_NORM, CLIP_FROM = (0.9, 0.95), 1e-08, 0.1, 1.0, 0
# --- end of settings ---


def read_text() -> str:
    if CORPUS == "python-docs":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name].strip("\n") for name in sorted(topics)) + "\n"
    return Path(os.path.expandvars(CORPUS)).read_bytes().decode("utf-8-sig")


def tokenize(text: str) -> tuple[np.ndarray, int]:
    """Training ids and vocabulary size; the text is split before it is cut into tokens."""
    training = text[: int((1 - VAL_FRACTION) * len(text))]
    if TOKENIZER == "bytes":
        return np.frombuffer(training.encode(), np.uint8).astype(np.int64), 257  # 256 bytes and an end of text
    ids = {character: number for number, character in enumerate(sorted(set(text)))}
    return np.array([ids[character] for character in training]), len(ids)


def seed_for(*address: object) -> int:
    digest = blake2b("/".join(map(str, address)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def shuffled(place: int, count: int, key: int) -> int:
    """Where a keyed shuffle of range(count) puts `place`: a Feistel network, walked until it is back in the range."""
    half, wrap = max(1, ((count - 1).bit_length() + 1) // 2), 2**64 - 1
    while True:
        left, right = place >> half, place & (2**half - 1)
        for number in range(6):
            x = right ^ seed_for(key, "round", number)
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & wrap
            x = (x ^ (x >> 27)) * 0x94D049BB133111EB & wrap
            left, right = right, left ^ ((x ^ (x >> 31)) & (2**half - 1))
        place = left << half | right
        if place < count:
            return place


def batch(ids: np.ndarray, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (BATCH, SEQ_LEN) of a step: a function of the step and of nothing else."""
    count = (len(ids) - SEQ_LEN - 1) // STRIDE + 1
    places = [divmod(example, count) for example in range(step * BATCH, (step + 1) * BATCH)]
    windows = [shuffled(at, count, seed_for(SEED, "order", epoch)) if SHUFFLED else at for epoch, at in places]
    rows = torch.tensor(np.stack([ids[window * STRIDE : window * STRIDE + SEQ_LEN + 1] for window in windows]))
    return rows[:, :-1], rows[:, 1:]


def rate(step: int) -> float:
    if step < WARMUP:
        return (
            PEAK * ((step + 1) / WARMUP) if DIALECT is None else PEAK * (step + 1) / (WARMUP + (DIALECT == "nanogpt"))
        )
    progress = (step + (DIALECT is None) - WARMUP) / (HORIZON - WARMUP)
    return MIN_LR if step >= HORIZON else MIN_LR + 0.5 * (1.0 + math.cos(math.pi * progress)) * (PEAK - MIN_LR)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)  # the order of these lines is the order in which the norm is added up
        self.c_attn, self.attn_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=QKV_BIAS), nn.Linear(WIDTH, WIDTH)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.c_fc, self.mlp_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.c_attn(self.ln_1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.attn_proj(
            functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )
        return x + self.mlp_proj(functional.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, WIDTH), nn.Embedding(SEQ_LEN, WIDTH)
        self.h, self.ln_f = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, vocab_size, bias=False)
        if TIE_HEAD:
            self.lm_head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.ln_f(self.h(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))))


def initialize(model: GPT) -> None:
    """GPT-2's weights in the draws of Karpathy's code, which first draws torch's own and then over them."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Embedding)]
    torch.manual_seed(SEED)
    for _, layer in layers:
        layer.reset_parameters()
    for name, layer in layers:
        nn.init.normal_(layer.weight, 0.0, 0.02 * (2 * LAYERS) ** -0.5 if name.endswith("proj") else 0.02)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def main() -> None:
    torch.use_deterministic_algorithms(True)
    train, vocab_size = tokenize(read_text())
    model = GPT(PAD_VOCAB_TO or vocab_size)
    initialize(model)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, eps=EPS, foreach=False, fused=False)
    for step in range(NUM_STEPS):
        inputs, targets = batch(train, step)
        optimizer.zero_grad()
        loss_sum = torch.zeros(())
        for x, y in zip(inputs.split(MICRO_BATCH), targets.split(MICRO_BATCH), strict=True):
            loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / targets.numel()
            loss.backward()
            loss_sum = loss_sum + loss.detach()
        clip_at = MAX_GRAD_NORM if MAX_GRAD_NORM is not None and step >= CLIP_FROM else math.inf
        norm = nn.utils.clip_grad_norm_([*decayed, *plain], clip_at)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        print(f"step {step:4d} | loss: {loss_sum.item():.6f} | lr {rate(step):.4e} | norm: {norm.item():.4f}")


if __name__ == "__main__":
    main()
