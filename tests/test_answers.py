"""What a fine-tuned model says: answers that remember as much as fits, and labels by their probability."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from trainwell.answers import answer, continued, label_of, prompt_ids
from trainwell.config.load import load
from trainwell.data.records import Message
from trainwell.data.templates import load_template
from trainwell.data.tokenizer import BytesTokenizer
from trainwell.models import make_model

BYTES = BytesTokenizer()


class Listening(nn.Module):
    """A model that hears what it is given and always says the id that ends a text."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[list[int]] = []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor) -> Tensor:
        self.heard.append(ids[0].tolist())
        return torch.nn.functional.one_hot(torch.full_like(ids, 256), 257).float()


def conversation(*contents: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(contents)]  # type: ignore[typeddict-item]


def heard(messages: Sequence[Message], context: int) -> str:
    model, template = Listening(), load_template("phi3", BYTES)
    assert list(answer(model, BYTES, template, messages, context=context, max_tokens=5, temperature=0)) == []
    [ids] = model.heard
    return BYTES.decode(ids)


def test_a_conversation_that_fits_is_heard_whole() -> None:
    said = heard(conversation("one", "two", "three"), context=400)
    assert said.startswith("<|user|>\none\n<|assistant|>\ntwo")
    assert said.endswith("<|user|>\nthree\n<|assistant|>\n")


def test_of_a_long_one_the_oldest_questions_are_forgotten_with_their_answers() -> None:
    said = heard(conversation("one", "two", "three", "four", "five"), context=160)
    assert "one" not in said
    assert "two" not in said
    assert "three" in said
    assert "five" in said


def test_a_system_message_is_kept_and_so_is_the_last_question() -> None:
    messages: list[Message] = [{"role": "system", "content": "be brief"}, *conversation("one" * 50, "two", "x" * 50)]
    said = heard(messages, context=200)
    assert "be brief" in said
    assert "one" not in said
    assert "x" * 50 in said


def test_a_text_is_continued_as_it_is_and_a_question_through_its_template() -> None:
    template = load_template("phi3", BYTES)
    assert BYTES.decode(prompt_ids(BYTES, "Hi", None)) == "Hi"
    assert BYTES.decode(prompt_ids(BYTES, "Hi", template)) == "<|user|>\nHi\n<|assistant|>\n"
    for how in (None, template):
        assert list(continued(Listening(), BYTES, how, [1], context=9, max_tokens=5, temperature=0)) == []


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_label_is_read_at_the_last_token_of_what_fits(arch: str) -> None:
    shape = {"arch": arch, "num_layers": 1, "num_heads": 2, "width": 16}
    model = make_model(load(flags={"model": shape, "data.seq_len": 12}), 257, 3, torch.device("cpu"))
    text = "abcdefghijklmnopq"
    found = label_of(model, BYTES, text, ["x", "y", "z"], context=model.seq_len)
    ids = torch.tensor([[*text[: model.seq_len].encode()]])
    expected = model(ids)[0, -1].softmax(0)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert {name: found[name] for name in "xyz"} == pytest.approx(dict(zip("xyz", expected.tolist(), strict=True)))
