"""Templates: the book's prompts, the user's own and tokenizers' own; a question has the ids that training saw."""

import functools
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainwell.data.records import Message, messages_of
from trainwell.data.templates import TEMPLATES, Template, load_template, template_of
from trainwell.data.tokenizer import BytesTokenizer, Gpt2Tokenizer, Tokenizer, load_tokenizer
from trainwell.errors import ConfigError, StorageError

BYTES = BytesTokenizer()
SANDBOX = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
"""Where transformers renders chat templates."""
END = 256
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
OWN = "{} {instruction}\nAbout: {input}\nA: {output}\n--\n"


def question(content: str, about: str = "") -> Message:
    return {"role": "user", "content": content, "input": about} if about else {"role": "user", "content": content}


def reply(content: str) -> Message:
    return {"role": "assistant", "content": content}


@st.composite
def conversations(draw: st.DrawFn, words: st.SearchStrategy[str] = WORDS) -> list[Message]:
    """Conversations that end with an answer."""
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(words)})
    for _ in range(draw(st.integers(1, 3))):
        messages += [question(draw(words), draw(st.one_of(st.just(""), words))), reply(draw(words))]
    return messages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a template of the user's is, own.txt."""
    made = tmp_path_factory.mktemp("templates")
    (made / "own.txt").write_text(OWN)
    return made


@pytest.fixture(scope="module", params=["alpaca", "phi3", "own.txt"])
def template(request: pytest.FixtureRequest, folder: Path) -> Template:
    name = request.param
    return load_template(str(folder / name) if name == "own.txt" else name, BYTES)


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chapter 7 of the package that accompanies the book, which imports psutil for a function of no interest here."""
    if find_spec("psutil") is None:
        monkeypatch.setitem(sys.modules, "psutil", ModuleType("psutil"))
    return import_module("llms_from_scratch.ch07")


@functools.cache
def compiled(source: str) -> jinja2.Template:
    return SANDBOX.from_string(source)


def told(ids: Sequence[int], tokenizer: Tokenizer = BYTES) -> str:
    return tokenizer.decode(ids).replace("<|endoftext|>", "<end>")


def answers_of(template: Template, messages: Sequence[Message], tokenizer: Tokenizer = BYTES) -> str:
    ids, learned = template.example(messages, tokenizer)
    return told([index for index, answer in zip(ids, learned, strict=True) if answer], tokenizer)


def test_alpaca_is_the_prompt_of_the_book_to_the_id(book: Any) -> None:
    gpt2 = Gpt2Tokenizer()
    alpaca = load_template("alpaca", gpt2)
    for about in ("", "A short text,\nwith two lines."):
        record = {"instruction": "Name a color.", "input": about, "output": "Blue, for one."}
        messages = messages_of(record, "here")
        asked = gpt2.encoding.encode(f"{book.format_input(record)}\n\n### Response:\n")
        whole = gpt2.encoding.encode(f"{book.format_input(record)}\n\n### Response:\n{record['output']}")
        assert alpaca.ids(messages[:1], gpt2) == asked
        ids, learned = alpaca.example(messages, gpt2)
        assert ids == [*whole, 50256]
        assert learned == [False] * len(asked) + [True] * (len(whole) - len(asked) + 1)


def test_phi3_is_the_prompt_that_the_book_shows() -> None:
    phi3 = load_template("phi3", BYTES)
    messages = [question("Identify the word.", "Ocasion"), reply("Occasion")]
    assert told(phi3.example(messages, BYTES)[0]) == (
        "<|user|>\nIdentify the word.\nOcasion\n<|assistant|>\nOccasion<end>"
    )
    assert told(phi3.ids([question("Hello")], BYTES)) == "<|user|>\nHello\n<|assistant|>\n"


def test_a_template_of_the_users_is_text_with_places(folder: Path) -> None:
    own = load_template(str(folder / "own.txt"), BYTES)
    turns = [question("Why?", "the {output}"), reply("So."), question("Sure?"), reply("Yes.")]
    assert told(own.example(turns, BYTES)[0]) == ("{} Why?\nAbout: the {output}\nA: So.<end>\n--{} Sure?\nA: Yes.<end>")
    assert answers_of(own, turns) == "So.<end>Yes.<end>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{instruction}{output}", "Why?\nthis<end>"),
        ("\ufeffQ: {instruction}\r\nA: {output}\r\n", "Q: Why?\nthis\nA: <end>"),
        ("{instruction} ({input}): {output}", "Why? (this): <end>"),
        ('{"q": "{instruction}", "a": "{output}"}', '{"q": "Why?\nthis", "a": "<end>'),
        ("About {input}:\n{instruction}\n{}{output}", "About this:\nWhy?\n{}<end>"),
    ],
)
def test_an_input_has_its_place_or_a_line_of_its_own(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "t.txt").write_bytes(text.encode())
    own = load_template(str(tmp_path / "t.txt"), BYTES)
    assert told(own.example([question("Why?", "this"), reply("")], BYTES)[0]) == expected
    without = {"Why? (this): <end>": "Why? (): <end>", "About this:\nWhy?\n{}<end>": "Why?\n{}<end>"}
    expected = without.get(expected, expected.replace("\nthis", ""))
    assert told(own.example([question("Why?"), reply("")], BYTES)[0]) == expected


def test_a_system_message_goes_before_the_first_question() -> None:
    turns: list[Message] = [{"role": "system", "content": "Be short."}, question("Hi"), reply("Ho"), question("Hi")]
    alpaca, phi3 = (told(load_template(name, BYTES).ids(turns, BYTES)) for name in ("alpaca", "phi3"))
    assert alpaca.startswith("Be short.\n\nBelow is an instruction")
    assert alpaca.count("Be short.") == 1
    assert phi3 == ("<|system|>\nBe short.\n<|user|>\nHi\n<|assistant|>\nHo<end>\n<|user|>\nHi\n<|assistant|>\n")


@given(messages=conversations())
def test_a_question_is_asked_with_the_ids_that_training_saw(template: Template, messages: list[Message]) -> None:
    ids, learned = template.example(messages, BYTES)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = template.ids(messages[:place], BYTES)
            said = [*BYTES.encode(message["content"]).tolist(), END]
            assert ids[: len(asked) + len(said)] == asked + said
            assert not learned[len(asked) - 1]
            assert all(learned[len(asked) : len(asked) + len(said)])
    assert sum(learned) == sum(len(m["content"].encode()) + 1 for m in messages if m["role"] == "assistant")


@given(messages=conversations())
def test_the_exported_template_renders_the_same_text(template: Template, messages: list[Message]) -> None:
    rendering = compiled(template.jinja() or "")
    rendered = rendering.render(messages=messages, eos_token="<|endoftext|>")
    assert rendered == BYTES.decode(template.example(messages, BYTES)[0])
    asked = rendering.render(messages=messages[:-1], eos_token="<|endoftext|>")
    assert asked == BYTES.decode(template.ids(messages[:-1], BYTES))


@given(messages=conversations())
def test_a_template_comes_back_from_its_state(template: Template, messages: list[Message]) -> None:
    again = template_of(json.loads(json.dumps(template.state())))
    assert again == template
    assert again.example(messages, BYTES) == template.example(messages, BYTES)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"kind": "jinja"}, r"its kind is 'jinja'; allowed: text, chat"),
        ({"kind": "text", "name": "alpaca"}, r"missing 3 required positional arguments"),
        ({"kind": "chat"}, r"damaged: 'source'"),
    ],
)
def test_a_damaged_state_is_a_message(state: dict[str, str], message: str) -> None:
    with pytest.raises(StorageError, match=message):
        template_of(state)


MISTAKES = {
    "Q: {question}\nA: {output}": r"unknown placeholder '\{question\}'\. Allowed: \{instruction\}",
    "Q: {instructon}\nA: {output}": r"Did you mean \{instruction\}\?",
    "A: {output}": r"has no \{instruction\}",
    "Q: {instruction}": r"has no \{output\}",
    "": r"has no \{instruction\}",
    "{output} {instruction}": r"has \{output\}, \{instruction\}\. Each may stand once, and \{output\} must be the last",
    "{instruction} {output} {output}": r"Each may stand once",
    "Q: {{instruction}} A: {{output}}": r"has \{\{instruction\}\}\. Placeholders stand in single braces",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_template_with_a_wrong_placeholder_is_a_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"data\.template: .*t\.txt has .*" + MISTAKES[text].removeprefix("has ")):
        load_template(str(tmp_path / "t.txt"), BYTES)


def test_a_template_that_is_not_there_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no template 'alpacca'\. Did you mean alpaca\? Allowed: alpaca, phi3, token"
    ):
        load_template("alpacca", BYTES)
    with pytest.raises(ConfigError, match=r"there is no file mine\.txt \(looked in"):
        load_template("mine.txt", BYTES)
    (tmp_path / "latin.txt").write_bytes(b"\xff{instruction}{output}")
    with pytest.raises(ConfigError, match=r"latin\.txt cannot be read: 'utf-8' codec"):
        load_template(str(tmp_path / "latin.txt"), BYTES)


@pytest.mark.parametrize("name", ["alpaca", "phi3"])
def test_a_tokenizer_without_an_end_of_text_is_a_message(name: str) -> None:
    with pytest.raises(ConfigError, match=r"chars has no end of text, which must end each answer\. Use bytes or gpt2"):
        load_template(name, load_tokenizer("chars", texts=["abc"]))


def test_all_names_are_allowed() -> None:
    assert TEMPLATES == ("alpaca", "phi3", "tokenizer")
