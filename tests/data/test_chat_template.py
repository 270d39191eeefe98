"""Chat templates of tokenizers: what transformers renders, which of it is an answer, and what cannot be used."""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from trainwell.data.records import Message
from trainwell.data.templates import Template, load_template, template_of
from trainwell.data.tokenizer import BytesTokenizer, FileTokenizer, Tokenizer, load_tokenizer
from trainwell.errors import ConfigError, DataError

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system message here') }}{% endif %}{% endfor %}"
)
OPEN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' and loop.last %}{{ '<think>' }}"
    "{% endif %}{{ m['content'] + '</s>' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def question(content: str) -> Message:
    return {"role": "user", "content": content}


def reply(content: str) -> Message:
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tokenizer.json of a chat model is: bytes with special tokens."""
    made = tmp_path_factory.mktemp("chat")
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["the effort that moves you"] * 9, trainer)
    inner.save(str(made / "tokenizer.json"))
    return made


@pytest.fixture
def chat_model(folder: Path, tmp_path: Path) -> Callable[..., Tokenizer]:
    """The tokenizer in a folder of its own, with this chat template and configuration."""

    def make(template: Any = None, **config: Any) -> Tokenizer:
        config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}} | config
        content = config if template is None else config | {"chat_template": template}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        return load_tokenizer(str(tmp_path / "tokenizer.json"))

    return make


def answers_of(template: Template, messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    ids, learned = template.example(messages, tokenizer)
    return tokenizer.decode([index for index, answer in zip(ids, learned, strict=True) if answer])


def test_a_chat_template_says_what_is_special(chat_model: Callable[..., Tokenizer]) -> None:
    tokenizer = chat_model(CHATML)
    template = load_template("tokenizer", tokenizer)
    turns: list[Message] = [
        {"role": "user", "content": "Hi", "input": "you"},
        reply(" Ho "),
        question("Hi"),
        reply("Hey"),
    ]
    text = (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi\nyou<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHey<|im_end|>"
    )
    ids, _ = template.example(turns, tokenizer)
    assert tokenizer.decode(ids) == text
    assert ids.count(2) == ids.count(3) == 5
    assert answers_of(template, turns, tokenizer) == "Ho<|im_end|>Hey<|im_end|>"
    assert template.end_of_answer(tokenizer) == 3
    assert template.ids(turns[:1], tokenizer) == ids[: len(template.ids(turns[:1], tokenizer))]
    assert template.ids(turns[:3], tokenizer) == ids[:-4]
    assert template.jinja() == CHATML


def test_a_chat_template_may_close_with_the_end_of_text_or_not_at_all(chat_model: Callable[..., Tokenizer]) -> None:
    turns = [question("Hi"), reply("Ho"), question("Hi"), reply("Hey")]
    tokenizer = chat_model(LLAMA2)
    template = load_template("tokenizer", tokenizer)
    assert tokenizer.decode(template.example(turns, tokenizer)[0]) == (
        "<s>[INST] Hi [/INST] Ho </s><s>[INST] Hi [/INST] Hey </s>"
    )
    assert answers_of(template, turns, tokenizer) == " Ho </s> Hey </s>"
    tokenizer = chat_model(OPEN)
    template = load_template("tokenizer", tokenizer)
    assert answers_of(template, turns, tokenizer) == "Ho\n</s>Hey\n</s>"
    assert template.end_of_answer(tokenizer) == tokenizer.end_of_text == 1


def test_the_file_chat_template_jinja_goes_first(chat_model: Callable[..., Tokenizer], tmp_path: Path) -> None:
    tokenizer = chat_model([{"name": "rag", "template": ""}, {"name": "default", "template": CHATML}])
    assert load_template("tokenizer", tokenizer).jinja() == CHATML
    (tmp_path / "chat_template.jinja").write_text(LLAMA2)
    assert load_template("tokenizer", tokenizer).jinja() == LLAMA2


def test_a_chat_template_comes_back_from_its_state(chat_model: Callable[..., Tokenizer]) -> None:
    tokenizer = chat_model(LLAMA2)
    template = load_template("tokenizer", tokenizer)
    again = template_of(json.loads(json.dumps(template.state())))
    turns = [question("Hi"), reply("Ho")]
    assert again == template
    assert again.example(turns, tokenizer) == template.example(turns, tokenizer)


def test_there_are_no_tools_and_today_is_always_the_same_day(chat_model: Callable[..., Tokenizer]) -> None:
    tokenizer = chat_model(
        "{% if tools is none %}{{ strftime_now('%d %b %Y') }}{% endif %}" + OPEN.replace("m['content']", "(m | tojson)")
    )
    text = tokenizer.decode(load_template("tokenizer", tokenizer).ids([question("<é>")], tokenizer))
    assert text == '26 Jul 2024user: {"role": "user", "content": "<é>"}\nassistant: '


def test_a_chat_template_that_cannot_be_used_is_a_message(chat_model: Callable[..., Tokenizer], tmp_path: Path) -> None:
    for source in (
        "{% for %}",
        "{{ messages[9].content }}",
        "{{ raise_exception('never') }}",
        "{{ ''.__class__.mro() }}",
    ):
        with pytest.raises(ConfigError, match=r"the chat template of .*tokenizer\.json cannot be used"):
            load_template("tokenizer", chat_model(source))
    with pytest.raises(ConfigError, match=r"has no chat template \(looked for chat_template\.jinja"):
        load_template("tokenizer", chat_model())
    with pytest.raises(ConfigError, match=r"bytes has no chat template of its own\. Use alpaca"):
        load_template("tokenizer", BytesTokenizer())
    tokenizer = chat_model()
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a file in .* cannot be read: Expecting"):
        load_template("tokenizer", tokenizer)


def test_a_conversation_that_a_chat_template_refuses_is_a_message(chat_model: Callable[..., Tokenizer]) -> None:
    tokenizer = chat_model(LLAMA2)
    template = load_template("tokenizer", tokenizer)
    with pytest.raises(DataError, match=r"cannot write this conversation: no system message here"):
        template.ids([{"role": "system", "content": "Be kind."}, question("Hi")], tokenizer)


def test_a_chat_template_that_rewrites_earlier_turns_is_a_message(chat_model: Callable[..., Tokenizer]) -> None:
    tokenizer = chat_model(FORGETFUL)
    template = load_template("tokenizer", tokenizer)
    turns = [question("Hi"), reply("Ho"), question("Hi"), reply("Hey")]
    assert answers_of(template, turns[:2], tokenizer) == "<think>Ho</s>"
    with pytest.raises(DataError, match=r"does not go on from what it wrote before"):
        template.example(turns, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("source", [CHATML, LLAMA2])
def test_the_ids_of_a_chat_are_those_of_transformers(source: str, chat_model: Callable[..., Tokenizer]) -> None:
    transformers = import_module("transformers")
    tokenizer = chat_model(source)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=tokenizer.name, chat_template=source, bos_token="<s>", eos_token="</s>"
    )
    template = load_template("tokenizer", tokenizer)
    turns = [question("What moves the effort?"), reply("You do."), question("And who <moves> you?"), reply("Nobody.")]
    asked = theirs.apply_chat_template(turns[:3], add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
    ids = template.example(turns, tokenizer)[0]
    assert template.ids(turns[:3], tokenizer) == asked
    assert whole[: len(ids)] == ids
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""


def test_special_tokens_are_read_only_where_they_are_asked_for(chat_model: Callable[..., Tokenizer]) -> None:
    tokenizer = chat_model()
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.special_ids == {0, 1, 2, 3}
    assert tokenizer.encode_with_specials("<s>you</s>").tolist() == [0, *tokenizer.encode("you").tolist(), 1]
    assert not tokenizer.special_ids & set(tokenizer.encode("<s>you</s>").tolist())
