"""Templates: how a conversation becomes ids, and which of them are the assistant's.

Prompt and answer are tokenised apart. A question asked later then has the very ids that training saw, whatever the
answer begins with; tokenised together, a token could span the two. Knows no files of records, no rows and no model.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainwell.data.chat_template import ChatTemplate, chat_template
from trainwell.data.records import Message, content_of, shown
from trainwell.data.tokenizer import Tokenizer, end_of_answers
from trainwell.errors import ConfigError, StorageError

TEMPLATES = ("alpaca", "phi3", "tokenizer")

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_DOUBLED = re.compile(r"\{\{(?:instruction|input|output)\}\}")
_NAMES = ("instruction", "input", "output")


class Template(Protocol):
    """How a conversation becomes ids."""

    @property
    def name(self) -> str:
        """As the configuration calls it."""

    def ids(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Return the ids of a conversation that ends with a question, up to where its answer begins."""

    def example(self, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation that ends with an answer, and which of them are to be learned as answers.

        Each answer ends with the id of `end_of_answer`, which is learned with it.
        """

    def end_of_answer(self, tokenizer: Tokenizer) -> int:
        """Return the id after which an answer is over; ConfigError if the tokenizer has none."""

    def state(self) -> dict[str, str]:
        """Return what `template_of` makes this template from."""

    def jinja(self) -> str | None:
        """Return the same as a chat template of Hugging Face tokenizers."""


def load_template(name: str, tokenizer: Tokenizer) -> Template:
    """Make the template `name`: alpaca, phi3, tokenizer (its own chat template), or the path of the user's.

    Raises ConfigError for a template that cannot be used, with this tokenizer or at all.
    """
    template = chat_template(tokenizer) if name == "tokenizer" else named_template(name)
    template.end_of_answer(tokenizer)
    return template


def named_template(name: str) -> Template:
    """Make a template that needs no tokenizer: alpaca, phi3, a path of the user's or of a run's own template.json."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    path = Path(name).expanduser()
    if path.is_file():
        return _saved(path) if path.suffix == ".json" else _read(name, path)
    if path.suffix or path.name != name:
        raise ConfigError(f"data.template: there is no file {name} (looked in {Path.cwd()}).")
    near = difflib.get_close_matches(name, TEMPLATES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"data.template: there is no template {name!r}.{hint} Allowed: {', '.join(TEMPLATES)}, or the path of a text "
        "file with {instruction} and {output}."
    )


def _saved(path: Path) -> Template:
    """Open the template that a run has kept."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.template: {path} cannot be read ({error}).") from error
    if not isinstance(state, dict):
        raise ConfigError(f"data.template: {path} is no template of a run; give a text file, or a run's template.json.")
    return template_of(state)


def template_of(state: Mapping[str, str]) -> Template:
    """Make a template again from its `state`; StorageError if that is damaged."""
    content = dict(state)
    kind = content.pop("kind", None)
    try:
        if kind == "text":
            return TextTemplate(**content)
        if kind == "chat":
            return ChatTemplate(content.pop("source"), content)
    except (KeyError, TypeError) as error:
        raise StorageError(f"the template of the run is damaged: {error}.") from error
    raise StorageError(f"the template of the run is damaged: its kind is {kind!r}; allowed: text, chat.")


@dataclass(frozen=True)
class TextTemplate:
    """A template of plain text, repeated each turn; end of text follows each answer."""

    name: str
    prompt: str
    """Text up to the answer, with {instruction} and maybe {input}."""
    without_input: str
    """The same where there is no input, with {instruction}."""
    between: str
    """Text between the end of an answer and the next prompt."""
    system: str = "{system}\n\n"
    """Text before the first prompt where there is a system message."""

    def ids(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Return the ids up to where the answer begins; see `Template.ids`."""
        return self.example(messages, tokenizer)[0]

    def example(self, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Return all ids, and which are answers; see `Template.example`."""
        end = self.end_of_answer(tokenizer)
        ids: list[int] = []
        answers: list[bool] = []
        for text, is_answer in self._pieces(messages):
            piece = tokenizer.encode(text).tolist()
            if is_answer:
                piece.append(end)
            ids += piece
            answers += [is_answer] * len(piece)
        return ids, answers

    def end_of_answer(self, tokenizer: Tokenizer) -> int:
        """Return the tokenizer's end of text."""
        return end_of_answers(tokenizer)

    def state(self) -> dict[str, str]:
        """Return the fields; see `Template.state`."""
        return {"kind": "text", **vars(self)}

    def jinja(self) -> str:
        """Return a chat template whose rendering has the same text, and eos_token after each answer."""
        turn = f"{{% if not loop.first and loop.previtem['role'] == 'assistant' %}}{_expression(self.between)}"
        question = _expression(self.without_input, self._joined)
        if "{input}" in self.prompt:
            question = f"{{% if message['input'] %}}{_expression(self.prompt)}{{% else %}}{question}{{% endif %}}"
        return (
            "{% for message in messages %}"
            f"{{% if message['role'] == 'system' %}}{_expression(self.system)}"
            f"{{% elif message['role'] == 'user' %}}{turn}{{% endif %}}{question}"
            "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}"
            "{% endfor %}"
        )

    @property
    def _joined(self) -> bool:
        """Whether an input goes to the instruction, for want of a place of its own."""
        return "{input}" not in self.prompt

    def _pieces(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """Take a conversation apart into prompts and answers, in turn."""
        before = ""
        for message in messages:
            if message["role"] == "assistant":
                yield message["content"], True
                before = self.between
            elif message["role"] == "system":
                before = _fill(self.system, system=message["content"])
            else:
                yield before + self._question(message), False

    def _question(self, message: Message) -> str:
        if message.get("input") and not self._joined:
            return _fill(self.prompt, instruction=message["content"], input=message["input"])
        return _fill(self.without_input, instruction=content_of(message))


def _fill(text: str, **values: str) -> str:
    """Put values in place of their placeholders, once: braces in a value are text."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def _expression(text: str, joined: bool = False) -> str:
    """Write a text with placeholders as an expression of jinja."""
    names = {
        "instruction": "message['content']",
        "input": "message['input']",
        "system": "message['content']",
    }
    if joined:
        names["instruction"] = "(message['content'] ~ ('\\n' ~ message['input'] if message['input'] else ''))"
    parts = _PLACEHOLDER.split(text)  # literal, name, literal, ...
    terms = [
        json.dumps(part, ensure_ascii=False) if place % 2 == 0 else names[part] for place, part in enumerate(parts)
    ]
    return f"{{{{ {' ~ '.join(terms)} }}}}"


_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}"
)
_BUILT_IN = {
    # Chapter 7 of the book; Stanford Alpaca itself words it otherwise where there is an input.
    "alpaca": TextTemplate(
        "alpaca",
        prompt=_ALPACA + "\n\n### Input:\n{input}\n\n### Response:\n",
        without_input=_ALPACA + "\n\n### Response:\n",
        between="\n\n",
    ),
    # As the book's chapter 7 shows it; the code of its exercise 7.1 has a colon after <|assistant|>.
    "phi3": TextTemplate(
        "phi3",
        prompt="<|user|>\n{instruction}\n{input}\n<|assistant|>\n",
        without_input="<|user|>\n{instruction}\n<|assistant|>\n",
        between="\n",
        system="<|system|>\n{system}\n",
    ),
}


def _read(name: str, path: Path) -> TextTemplate:
    """Read a template of the user's: text with {instruction}, maybe {input}, and {output} after them.

    A single word in braces is a placeholder, other braces are text. What follows {output} stands between the turns of a
    longer conversation; the line end of the file's last line does not count.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.template: {name} cannot be read: {error}.") from error
    if doubled := _DOUBLED.search(text):
        raise ConfigError(
            f"data.template: {name} has {doubled[0]}. Placeholders stand in single braces: {doubled[0][1:-1]}."
        )
    _check_placeholders(name, _PLACEHOLDER.findall(text))
    prompt, between = text.split("{output}")
    return TextTemplate(name, prompt, _drop_input(prompt), between)


def _check_placeholders(name: str, found: Sequence[str]) -> None:
    for word in found:
        if word not in _NAMES:
            near = difflib.get_close_matches(word, _NAMES, n=1)
            hint = f" Did you mean {{{near[0]}}}?" if near else ""
            raise ConfigError(
                f"data.template: {name} has an unknown placeholder {shown('{' + word + '}')}.{hint} Allowed: "
                "{instruction}, {output} and, if you like, {input}; a single word in braces is always a placeholder."
            )
    for word in ("instruction", "output"):
        if word not in found:
            raise ConfigError(
                f"data.template: {name} has no {{{word}}}. It must say where the question goes, {{instruction}}, and "
                "after it the answer, {output}; for example: Q: {instruction} A: {output}"
            )
    if len(set(found)) < len(found) or found[-1] != "output":
        raise ConfigError(
            f"data.template: {name} has {', '.join('{' + word + '}' for word in found)}. Each may stand once, and "
            "{output} must be the last."
        )


def _drop_input(prompt: str) -> str:
    """Leave out the line with {input}, unless more than {input} is asked for on it: then only the placeholder."""
    lines = prompt.splitlines(keepends=True)
    kept = [line for line in lines if _PLACEHOLDER.findall(line) != ["input"]]
    return "".join(kept).replace("{input}", "")
