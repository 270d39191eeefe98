"""What a fine-tuned model says: the answer to a question, the class of a text.

Knows models, tokenizers and templates; no run, no screen.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainwell.data.records import Message
from trainwell.data.templates import Template
from trainwell.data.tokenizer import Tokenizer
from trainwell.evaluate import evaluating
from trainwell.generate import generate


def prompt_ids(tokenizer: Tokenizer, prompt: str, template: Template | None) -> list[int]:
    """The ids that a model continues: the text itself, or the question that a template makes of it."""
    if template is not None:
        return template.ids([{"role": "user", "content": prompt}], tokenizer)
    return [int(token) for token in tokenizer.encode(prompt)]


def continued(
    model: nn.Module,
    tokenizer: Tokenizer,
    template: Template | None,
    ids: Sequence[int],
    *,
    context: int,
    max_tokens: int,
    **how: Any,
) -> Iterator[int]:
    """Yield the ids that continue `ids`, up to the end of the text or, with a template, of the answer.

    `how` are the ways to draw of `generate`.
    """
    return generate(
        model,
        ids,
        max_tokens,
        stop=tokenizer.end_of_text if template is None else template.end_of_answer(tokenizer),
        vocab_size=tokenizer.vocab_size,
        context=context,
        **how,
    )


def answer(
    model: nn.Module,
    tokenizer: Tokenizer,
    template: Template,
    messages: Sequence[Message],
    *,
    context: int,
    **how: Any,
) -> Iterator[int]:
    """Yield the ids of the assistant's answer to `messages`; `how` as in `continued`.

    Where a conversation is longer than half of the context, its oldest turns are left out, two by two: question and
    answer; so at least the last question is seen.
    """
    kept = list(messages)
    while len(ids := template.ids(kept, tokenizer)) > context // 2 and len(_turns(kept)) > 1:
        oldest = _turns(kept)[0]
        kept = [message for number, message in enumerate(kept) if number not in oldest]
    return continued(model, tokenizer, template, ids, context=context, **how)


def _turns(messages: Sequence[Message]) -> list[range]:
    """Places of each question with what follows it, up to the next one; a system message belongs to none."""
    starts = [number for number, message in enumerate(messages) if message["role"] == "user"]
    return [range(begin, end) for begin, end in zip(starts, [*starts[1:], len(messages)], strict=True)]


def label_of(
    model: nn.Module, tokenizer: Tokenizer, text: str, labels: Sequence[str], *, context: int
) -> Mapping[str, float]:
    """The probability of each label for `text`, likeliest first; what is past the context is not read."""
    ids = [int(token) for token in tokenizer.encode(text)][:context]
    device = next(model.parameters()).device
    with evaluating(model):
        output: Any = model(torch.tensor([ids], device=device))
    logits: Tensor = getattr(output, "logits", output)
    found = logits[0, -1].float().softmax(0).tolist()
    return dict(sorted(zip(labels, found, strict=True), key=lambda pair: -pair[1]))
