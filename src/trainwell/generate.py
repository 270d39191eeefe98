"""Generation: one token after another from any model, with a key-value cache where the model has one."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from trainwell.evaluate import evaluating


def generate(
    model: nn.Module,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: int | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    cache: bool = True,
) -> Iterator[int]:
    """Yield up to `max_tokens` token ids that continue `prompt` (at least one id).

    Args:
        model: ids (1, T) to logits (1, T, V), or an object with `.logits`; its `new_cache()` is used when it has one.
        prompt: ids to continue.
        max_tokens: how many ids at most.
        temperature: logits are divided by it; 0 takes the likeliest id.
        top_k: draw only from the k likeliest ids.
        top_p: draw only from the fewest ids whose probabilities reach this sum (nucleus, Holtzman et al. 2020).
        seed: of a generator of its own; the global one is not touched.
        stop: end before yielding this id.
        vocab_size: ids from here on (padding) are never drawn.
        context: how many ids the model can see; older ones are forgotten. Default: `model.seq_len`.
        cache: False recomputes every token from scratch, with the same result.
    """
    context = context or getattr(model, "seq_len", None)
    device = next(model.parameters()).device
    generator = Generator(device="cpu").manual_seed(seed)
    ids = list(prompt)
    new_cache: Any = getattr(model, "new_cache", None) if cache else None
    held = None if new_cache is None else new_cache()
    for _ in range(max_tokens):
        seen = ids if context is None else ids[-context:]
        if len(seen) < len(ids):
            held = None  # positions of all visible tokens have moved: what was cached no longer holds
        new = seen if held is None else seen[held.length :]
        with evaluating(model):  # not around the loop: whoever takes the tokens may train between two of them
            logits = _last_logits(model, torch.tensor([new], device=device), held)
        token = draw(logits[:vocab_size], generator, temperature=temperature, top_k=top_k, top_p=top_p)
        if token == stop:
            return
        ids.append(token)
        yield token


def _last_logits(model: nn.Module, ids: Tensor, held: object | None) -> Tensor:
    output = model(ids) if held is None else model(ids, held)
    logits: Tensor = getattr(output, "logits", output)
    return logits[0, -1].float().cpu()


def draw(
    logits: Tensor,
    generator: Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """Draw one id from logits (V,) on the CPU: temperature first, then top-k, then top-p."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits / temperature).softmax(0)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    if top_k is not None:
        ordered[top_k:] = 0
    if top_p is not None:
        ordered /= ordered.sum()
        ordered[ordered.cumsum(0) - ordered >= top_p] = 0
    return int(ids[torch.multinomial(ordered, 1, generator=generator)])
