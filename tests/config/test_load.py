"""Layers, spellings and mistakes: what a user writes, and what is said back."""

import re
from pathlib import Path

import pytest

from trainwell.config.load import load, read_recipe, recipe_names
from trainwell.config.values import Duration
from trainwell.errors import ConfigError


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(target: str | None = None, *, file: Path | None = None, flags: dict[str, object] | None = None) -> str:
    """The message of a configuration that is not accepted."""
    with pytest.raises(ConfigError) as caught:
        load(target, file=file, flags=flags)
    return str(caught.value)


def test_every_recipe_is_valid_and_says_what_it_is() -> None:
    sizes = ["1.3b", "125m", "13b", "175b", "2.7b", "350m", "6.7b", "760m"]
    gpt3 = [f"gpt3-{size}" for size in sizes]
    llama = ["llama-1b", "llama-tiny"]
    assert recipe_names() == sorted(
        ["book", "classify", "demo", "gpt2-124m", *gpt3, "instruct", "karpathy-50", *llama, "shakespeare-char"]
    )
    for name in recipe_names():
        recipe = read_recipe(name)
        assert len(recipe.about) > 80
        assert load(name).name == name
        for sha256, bands in recipe.bands.items():
            assert re.fullmatch("[0-9a-f]{64}", sha256)
            assert all(band.keys() == {"tokens", "low", "high"} and band["low"] < band["high"] for band in bands)


def test_a_recipe_says_which_findings_it_accepts_and_why() -> None:
    accepted = read_recipe("gpt2-124m").accepts
    assert accepted.keys() == {"peak-twice"}
    assert "Karpathy" in accepted["peak-twice"]
    assert read_recipe("demo").accepts == {}
    for name in recipe_names():
        assert all(len(reason) > 20 for reason in read_recipe(name).accepts.values())


def test_without_a_target_the_recipe_is_demo() -> None:
    assert load() == load("demo")


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\nduration: 7\noptim: {lr: 1e-4, eps: 1e-7}\n")
    config = load("shakespeare-char", file=file, flags={"optim.lr": "2e-4", "duration": "9"})
    assert (config.seed, config.duration.plain(), config.optim.lr, config.optim.eps) == (1, 9, 2e-4, 1e-7)
    assert config.data.seq_len == 64
    assert config.optim.betas == (0.9, 0.99)


def test_a_file_stands_on_demo_and_gives_the_run_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\n", "my run (2).yaml")
    by_target, by_option = load(str(file)), load(file=file)
    assert by_target == by_option
    assert by_target == load(flags={"seed": 1, "name": "my-run-2"})
    assert load(str(write(tmp_path, "name: other\n"))).name == "other"


def test_a_recipe_of_ones_own_may_say_what_it_is(tmp_path: Path) -> None:
    file = write(tmp_path, "about: mine\nbands: {}\naccepts: {peak-twice: I like it}\nseed: 3\n")
    assert load(str(file)).seed == 3


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("optim.lr", "3e-4", 3e-4),
        ("optim.max_grad_norm", "none", None),
        ("optim.max-grad-norm", "null", None),
        ("optim.betas", "0.9,0.999", (0.9, 0.999)),
        ("optim.betas", "[0.9, 0.999]", (0.9, 0.999)),
        ("optim.betas", [0.9, 0.999], (0.9, 0.999)),
        ("optim.clip_from", "warmup", "warmup"),
        ("optim.clip_from", "100 steps", Duration.parse(100)),
        ("eval.every", "None", None),
        ("compile", "true", True),
        ("compile", "auto", "auto"),
        ("deterministic", "true", True),
        ("micro_batch", "4", 4),
        ("parallel", "none", "none"),
        ("name", "123", "123"),
        ("sample.prompt", "none", "none"),
        ("sample.prompt", "a: b, [c", "a: b, [c"),
        ("extra.alpha", "0.5", {"alpha": 0.5}),
        ("extra.a.b-c", "[1, 2]", {"a": {"b-c": [1, 2]}}),
        ("model.n_layer", "2", 2),
    ],
)
def test_a_flag_is_read_for_what_its_key_takes(flag: str, text: object, value: object) -> None:
    config = load(flags={flag: text})
    section, _, name = flag.replace("-", "_").rpartition(".")
    if flag.startswith("extra"):
        assert config.extra == value
    elif flag == "model.n_layer":
        assert config.model.num_layers == value
    else:
        assert getattr(getattr(config, section) if section else config, name) == value


def test_python_passes_sections_paths_and_values(tmp_path: Path) -> None:
    config = load("demo", flags={"optim": {"lr": 3e-4}, "data": {"path": tmp_path}, "duration": Duration.parse(40)})
    assert (config.optim.lr, config.data.path, config.data.corpus) == (3e-4, str(tmp_path), None)
    with pytest.raises(ConfigError, match=r"^build\(\): optim\.lrs: there is no such key; did you mean optim\.lr\?$"):
        load("demo", flags={"optim": {"lrs": 3e-4}}, source="build()")


def test_the_spellings_of_other_projects_are_read(tmp_path: Path) -> None:
    theirs = "model: {n_layers: 2, n_heads: 2, emb_dim: 64, drop_rate: 0.1, context_length: 32}\n"
    ours = "model: {num_layers: 2, num_heads: 2, width: 64, dropout: 0.1}\ndata: {seq_len: 32}\n"
    assert load(file=write(tmp_path, theirs)) == load(file=write(tmp_path, ours))
    both = refused(file=write(tmp_path, "model: {n_layer: 2, num_layers: 3}\n"))
    assert "this is model.num_layers again" in both


@pytest.mark.parametrize(
    ("flags", "size", "tokens"),
    [
        ({}, 16, None),
        ({"batch_tokens": "4096"}, None, 4096),
        ({"batch_tokens": "none"}, 16, None),
        ({"batch_size": "32"}, 32, None),
    ],
)
def test_of_batch_size_and_batch_tokens_the_higher_level_clears_the_lower(
    tmp_path: Path, flags: dict[str, object], size: int | None, tokens: int | None
) -> None:
    config = load("demo", file=write(tmp_path, "batch_size: 16\ndata: {seq_len: 128}\n"), flags=flags)
    assert (config.batch_size, config.batch_tokens) == (size, tokens)


def test_a_path_on_the_command_line_clears_the_corpus_of_the_recipe() -> None:
    config = load("shakespeare-char", flags={"data.path": "mine.txt"})
    assert (config.data.corpus, config.data.path) == (None, "mine.txt")


def test_two_that_exclude_each_other_at_one_level_are_a_mistake(tmp_path: Path) -> None:
    file = write(tmp_path, "data: {corpus: verdict, path: a.txt}\n")
    assert f"file {file}: data.corpus, data.path: 'verdict' and 'a.txt' exclude each other" in refused(file=file)
    assert refused(flags={"batch_size": "4", "batch_tokens": "512"}).startswith(
        "command line: batch_size, batch_tokens: 4 and 512"
    )


def test_a_typo_names_the_file_and_the_nearest_key(tmp_path: Path) -> None:
    file = write(tmp_path, "optim: {lrr: 3e-4}\n")
    assert refused(str(file)) == f"file {file}: optim.lrr: there is no such key; did you mean optim.lr?"


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("lr", "did you mean optim.lr?"),
        ("warmup", "did you mean schedule.warmup?"),
        ("n_layer", "did you mean model.num_layers?"),
        ("dura_tion", "did you mean duration?"),
        ("modle", "did you mean model?"),
        ("data.seq.len", "did you mean data.seq_len?"),
        ("optim.foo", "optim has name, lr, betas, eps, weight_decay"),
        ("zzz", "`trainwell show demo --yaml` prints every key"),
    ],
)
def test_an_unknown_flag_is_met_with_advice(flag: str, advice: str) -> None:
    message = refused(flags={flag: "5"})
    assert message.startswith(f"command line: {flag}: there is no such key; ")
    assert advice in message


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("optim.lr", "fast", "'fast' is not allowed; give a number (above 0)"),
        ("optim.lr", "-1", "-1 is not allowed; give a number (above 0)"),
        ("optim.lr", ".inf", ".inf is not allowed; give a number (above 0)"),
        ("optim.lr", "true", "true is not allowed; give a number (above 0)"),
        ("optim.lr", "none", "'none' is not allowed; give a number (above 0)"),
        ("model.num_layers", "true", "true is not allowed; give a whole number (at least 1)"),
        ("model.num_layers", "2.5", "2.5 is not allowed; give a whole number (at least 1)"),
        ("model.dropout", "1", "1 is not allowed; give a number (at least 0 and below 1)"),
        ("optim.betas", "0.9", "[0.9] is not allowed; give two numbers (each at least 0 and below 1)"),
        ("precision", "fp23", "'fp23' is not allowed; give auto, fp32, bf16, fp16; did you mean fp32?"),
        ("micro_batch", "0", "0 is not allowed; give auto, or a whole number (at least 1)"),
        ("compile", "maybe", "'maybe' is not allowed; give auto, blocks, max-autotune, or true or false"),
        (
            "duration",
            "10 parsecs",
            "'10 parsecs' has the unit 'parsecs'; allowed are steps, tokens, %, epochs, minutes",
        ),
        ("duration", "1.5", "1.5 is not a whole number of steps"),
        ("schedule.min_lr", "low", "'low' is not a rate; write 6e-5, or a share of the peak such as \"10%\""),
        ("schedule.horizon", "x", '\'x\' is not a duration; write 500, "375M tokens", "10%", "2 epochs" or'),
        ("optim.clip_from", "later", "or warmup"),
        ("optim", "5", "'5' is not allowed; it is a section, with name, lr, betas"),
        ("extra", "5", "5 is not allowed; give keys of your own, such as extra.alpha"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(flag: str, value: str, message: str) -> None:
    said = refused(flags={flag: value})
    assert said.startswith(f"command line: {flag}: ")
    assert message in said
    assert "\n" not in said


def test_a_number_where_text_belongs_is_shown_how_to_quote(tmp_path: Path) -> None:
    assert 'name: 123 is not allowed; give text (in quotes: "123")' in refused(file=write(tmp_path, "name: 123\n"))


def test_all_mistakes_of_all_layers_come_together(tmp_path: Path) -> None:
    file = write(tmp_path, "optim: {lrr: 1}\nmodel: {dropout: 2}\ndata:\n")
    lines = refused(file=file, flags={"precision": "fp23", "seed": "-1"}).splitlines()
    assert lines[0] == "4 mistakes in the configuration:"
    assert [line.split(": ")[:2] for line in lines[1:]] == [
        [f"  file {file}", "optim.lrr"],
        ["  command line", "seed"],
        ["  command line", "precision"],
        [f"  file {file}", "model.dropout"],
    ]


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    assert refused("shakespear").endswith("did you mean shakespeare-char?")
    assert refused("zzz").startswith(
        "there is no recipe 'zzz'; recipes are book, classify, demo, gpt2-124m, gpt3-1.3b, "
    )


def test_one_config_file_is_enough(tmp_path: Path) -> None:
    assert "both config files" in refused("a.yaml", file=tmp_path / "b.yaml")
