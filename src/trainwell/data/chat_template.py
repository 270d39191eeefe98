"""A tokenizer's own chat template: jinja that came with a tokenizer.json, rendered as transformers renders it.

Knows no other template, no files of records and no model. jinja2 is imported when it is needed.
"""

import datetime
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwell.data.records import Message, content_of
from trainwell.data.tokenizer import FileTokenizer, Tokenizer, end_of_answers
from trainwell.errors import ConfigError, DataError

if TYPE_CHECKING:
    import jinja2

_TODAY = datetime.date(2024, 7, 26)
_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's own chat template, in jinja, with the special tokens that it may name.

    An answer is what the template writes after the prompt, up to the token that closes a turn. Special tokens in the
    rendered text are special, as in transformers. A template that asks for today's date is told 26 July 2024, the date
    that Llama 3's falls back to: a run must not change overnight.
    """

    source: str
    tokens: Mapping[str, str]
    _closings: dict[str, int | None] = field(default_factory=dict, compare=False, repr=False)

    name = "tokenizer"

    def ids(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Return the ids up to where the answer begins; see `Template.ids`."""
        return self.example(messages, tokenizer)[0]

    def example(self, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Return all ids, and which are answers; see `Template.example`. DataError for what it cannot render."""
        reader, end = _file_tokenizer(tokenizer), self.end_of_answer(tokenizer)
        ids: list[int] = []
        answers: list[bool] = []
        rest: list[int] = []
        for text, is_answer in self._pieces(messages):
            piece = rest + reader.encode_with_specials(text).tolist()
            rest = []
            if is_answer:
                piece, rest = _close(piece, end)
            ids += piece
            answers += [is_answer] * len(piece)
        return ids, answers

    def end_of_answer(self, tokenizer: Tokenizer) -> int:
        """Return the special token that the template writes after an answer; if none, the tokenizer's end of text."""
        reader = _file_tokenizer(tokenizer)
        if reader.identity not in self._closings:
            self._closings[reader.identity] = self._closing(reader)
        closing = self._closings[reader.identity]
        return end_of_answers(tokenizer) if closing is None else closing

    def _closing(self, reader: FileTokenizer) -> int | None:
        probe: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "An answer."}]
        try:
            _, (answer, _) = self._pieces(probe)
        except DataError as error:
            raise ConfigError(f"data.template: the chat template of {reader.name} cannot be used: {error}") from error
        after = reader.encode_with_specials(answer.rpartition(probe[1]["content"])[2])
        return next((index for index in after.tolist() if index in reader.special_ids), None)

    def state(self) -> dict[str, str]:
        """Return the source and the tokens; see `Template.state`."""
        return {"kind": "chat", "source": self.source, **self.tokens}

    def jinja(self) -> str:
        """Return the source."""
        return self.source

    def _pieces(self, messages: Sequence[Message]) -> Iterator[tuple[str, bool]]:
        """Take the rendered text apart into prompts and answers, in turn."""
        done = ""
        for place in range(1, len(messages)):
            if messages[place]["role"] == "assistant":
                prompt = self._render(messages[:place], asking=True)
                whole = self._render(messages[: place + 1], asking=False)
                yield _beyond(prompt, done), False
                yield _beyond(whole, prompt), True
                done = whole
        if messages[-1]["role"] == "user":
            yield _beyond(self._render(messages, asking=True), done), False

    def _render(self, messages: Sequence[Message], *, asking: bool) -> str:
        turns = [{"role": message["role"], "content": content_of(message)} for message in messages]
        try:
            return self._compiled.render(
                messages=turns, add_generation_prompt=asking, tools=None, documents=None, **self.tokens
            )
        except Exception as error:
            raise DataError(f"the tokenizer's chat template cannot write this conversation: {error}.") from error

    @cached_property
    def _compiled(self) -> "jinja2.Template":
        return _environment().from_string(self.source)


def _close(answer: list[int], end: int) -> tuple[list[int], list[int]]:
    """Cut an answer after the token that closes it, or add that; and give what comes after."""
    if end not in answer:
        return [*answer, end], []
    length = len(answer) - answer[::-1].index(end)
    return answer[:length], answer[length:]


def _beyond(whole: str, start: str) -> str:
    """Give what `whole` says after `start`."""
    if not whole.startswith(start):
        raise DataError(
            "the tokenizer's chat template does not go on from what it wrote before: it rewrites earlier turns, or its "
            "prompt does not end as an answer begins; so it is not certain what is learned. Give conversations of one "
            "question and one answer, or use another data.template."
        )
    return whole[len(start) :]


def _file_tokenizer(tokenizer: Tokenizer) -> FileTokenizer:
    if isinstance(tokenizer, FileTokenizer):
        return tokenizer
    raise ConfigError(
        f"data.template tokenizer: {tokenizer.name} has no chat template of its own. Use alpaca, phi3 or a template of "
        "yours, or a data.tokenizer that is a Hugging Face tokenizer.json."
    )


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """Read the chat template beside a tokenizer.json: chat_template.jinja, or what tokenizer_config.json says.

    Raises ConfigError for a tokenizer without one, or one that cannot be read or used.
    """
    folder = Path(_file_tokenizer(tokenizer).name).expanduser().parent
    try:
        config_file, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        config = json.loads(config_file.read_bytes()) if config_file.is_file() else {}
        source = file.read_text(encoding="utf-8") if file.is_file() else _source_in(config)
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.template tokenizer: a file in {folder} cannot be read: {error}.") from error
    if source is None:
        raise ConfigError(
            f"data.template tokenizer: {tokenizer.name} has no chat template (looked for chat_template.jinja and for "
            f"chat_template in tokenizer_config.json, in {folder}). Use alpaca, phi3 or a template of yours."
        )
    tokens = {name: _token(config[name]) for name in _TOKEN_NAMES if config.get(name) is not None}
    return ChatTemplate(source, tokens)


def _source_in(config: Any) -> str | None:
    """The template in tokenizer_config.json: a text, or of several named ones the default."""
    given = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(given, list):
        given = {each.get("name"): each.get("template") for each in given}.get("default")
    return given if isinstance(given, str) else None


def _token(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)


@functools.cache
def _environment() -> "jinja2.Environment":
    """Make the sandbox in which transformers renders chat templates, with the same names; but for the date."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}, around answers: here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 - so it is declared in jinja2

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)  # jinja's own escapes for HTML

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = as_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": _TODAY.strftime}
    return environment
