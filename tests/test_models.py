"""The model of a configuration: its shape, where its weights come from, and which of them learn."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwell.build import build
from trainwell.config.load import load
from trainwell.errors import ConfigError
from trainwell.fit import fit
from trainwell.model.decoder import Decoder
from trainwell.model.gpt2 import GPT2
from trainwell.model.llama import Llama
from trainwell.models import freeze, load_weights, make_model
from trainwell.planning.model_size import count_parameters
from trainwell.run import Run

CPU = torch.device("cpu")
Build = Callable[..., Run]
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"arch": "gpt2"},
    "gpt2-book": {"arch": "gpt2", "tie_head": False, "qkv_bias": False, "init": "torch"},
    "gpt2-normed": {"arch": "gpt2", "qk_norm": True},
    "llama": {"arch": "llama", "num_kv_heads": 2, "rope_theta": 5e5},
    "qwen3": {"arch": "llama", "head_dim": 16, "qk_norm": True, "mlp_width": 80, "tie_head": False},
    "long": {"arch": "llama", "rope_scaling": "llama3", "rope_factor": 8, "rope_original_context": 64},
}


def configured(num_labels: int | None = None, **model: Any) -> Decoder:
    shape = {"num_layers": 2, "num_heads": 4, "width": 32} | model
    return make_model(load(flags={"model": shape, "data.seq_len": 16}), 257, num_labels, CPU)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_model_is_made_as_it_is_configured(shape: dict[str, Any]) -> None:
    model = configured(**shape)
    config = load(flags={"model": {"num_layers": 2, "num_heads": 4, "width": 32} | shape, "data.seq_len": 16})
    assert isinstance(model, Llama if config.model.arch == "llama" else GPT2)
    total = sum(tensor.numel() for tensor in model.parameters())
    assert total == count_parameters(config.model, 257, 16).total
    assert torch.equal(next(model.parameters()), next(configured(**shape).parameters())), "the same seed"
    assert any("q_norm" in name for name in model.state_dict()) == config.model.qk_norm
    assert model(torch.zeros(1, 16, dtype=torch.int64)).shape == (1, 16, 257)


def test_a_norms_epsilon_and_a_stretch_of_positions_reach_the_model() -> None:
    ids = torch.arange(16)[None]
    plain = configured(arch="llama")
    for change in ({"norm_eps": 1.0}, {"rope_theta": 99.0}, {"rope_scaling": "linear", "rope_factor": 4}):
        other = configured(arch="llama", **change)
        other.load_state_dict(plain.state_dict())
        assert not torch.allclose(other(ids), plain(ids)), change


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_frozen_all_but_the_last_block_the_last_norm_and_the_head(arch: str) -> None:
    model = configured(num_labels=3, arch=arch, tie_head=False)
    freeze(model)
    learning = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    last = {"gpt2": ("h.1.", "ln_f.", "lm_head."), "llama": ("layers.1.", "norm.", "lm_head.")}[arch]
    assert learning == {name for name, _ in model.named_parameters() if name.startswith(last)}
    assert len(learning) == {"gpt2": 12 + 2 + 1, "llama": 9 + 1 + 1}[arch]


@pytest.fixture
def trained(build_tiny: Build) -> str:
    """A finished run of two layers, each 16 wide, with a context of 16."""
    fit(build_tiny(run_dir="runs/first", duration=2, model={"num_layers": 2}))
    return "runs/first"


def tiny(seq_len: int = 16, num_labels: int | None = None, **model: Any) -> Decoder:
    shape = {"num_layers": 2, "num_heads": 2, "width": 16} | model
    return make_model(load(flags={"model": shape, "data.seq_len": seq_len, "seed": 5}), 257, num_labels, CPU)


def test_weights_come_from_a_run_or_a_step_of_it(trained: str) -> None:
    one, other = tiny(), tiny()
    load_weights(one, trained)
    load_weights(other, f"{trained}@2")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, tiny().lm_head.weight)


def test_a_shorter_context_keeps_the_first_positions(trained: str) -> None:
    whole, short = tiny(), tiny(seq_len=9)
    load_weights(whole, trained)
    load_weights(short, trained)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(short(ids), whole(ids))


def test_a_classifier_takes_everything_but_the_head(trained: str) -> None:
    model = tiny(num_labels=3)
    before = model.lm_head.weight.clone()
    load_weights(model, trained, labels=["x", "y", "z"])
    whole = tiny()
    load_weights(whole, trained)
    ids = torch.arange(9)[None]
    assert torch.equal(model.hidden(ids), whole.hidden(ids))
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("changes", [{"num_layers": 3}, {"width": 32}, {"arch": "llama"}])
def test_weights_of_another_shape_are_refused_with_what_does_not_fit(trained: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"init_from: the weights of {trained} do not fit this model") as caught:
        load_weights(tiny(**changes), trained)
    assert "\n" not in str(caught.value)
    assert ".weight" in str(caught.value)


def test_a_run_starts_from_another_one_and_learns_further_from_there(
    build_tiny: Build, trained: str, tmp_path: Path
) -> None:
    own_shape: dict[str, Any] = {"model": {"num_layers": 2}}
    with build_tiny(run_dir="runs/next", init_from=trained, **own_shape) as run:
        start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        source = tiny()
        load_weights(source, trained)
        assert all(torch.equal(tensor, start[name]) for name, tensor in source.state_dict().items())


def test_a_branch_of_a_run_needs_the_weights_of_its_source_alone(build_tiny: Build, trained: str) -> None:
    own_shape: dict[str, Any] = {"model": {"num_layers": 2}}
    fit(build_tiny(run_dir="runs/next", duration=2, init_from=trained, **own_shape))
    shutil.rmtree(trained)
    with build("runs/next@2", run_dir="runs/branch", duration=3) as run:
        run.restore()
        assert run.trainer.step == 2


def test_norms_of_queries_and_keys_go_along_to_a_run_that_starts_there_and_are_not_added_later(
    build_tiny: Build, trained: str
) -> None:
    shape = {"num_layers": 2, "qk_norm": True}
    fit(build_tiny(run_dir="runs/normed", duration=2, model=shape, optim={"lr": 0.1, "weight_decay": 0.5}))
    with build_tiny(run_dir="runs/next", init_from="runs/normed", model={"num_layers": 2}) as run:
        assert run.config.model.qk_norm
        weight = run.model.get_parameter("h.0.attn.q_norm.weight")
        assert not torch.equal(weight, torch.ones(8)), "they learn"
        decays = {id(tensor) for group in run.trainer.optimizer.param_groups[:1] for tensor in group["params"]}
        assert id(weight) not in decays
    with pytest.raises(ConfigError, match=r"model\.qk_norm: True, but the weights of runs/first have False"):
        build_tiny(run_dir="runs/other", init_from=trained, model=shape)


@pytest.mark.parametrize(
    "change", [{"task": "classify"}, {"optim": {"train": "last-block"}}, {"init_from": "runs/first"}]
)
def test_a_branch_that_would_be_another_training_says_how_to_start_one(
    build_tiny: Build, trained: str, change: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"--init-from {trained}@2 --run NEW"):
        build(f"{trained}@2", run_dir="runs/branch", **change)


def test_a_classifier_goes_on_with_its_head_for_the_same_labels_only(own_folders: Path, one_thread: None) -> None:
    rows = [f"{word} {n},{word}" for n in range(30) for word in ("cat", "dog")]
    Path("animals.csv").write_text("\n".join(["text,label", *rows]))
    keys: dict[str, Any] = {
        "task": "classify",
        "duration": 2,
        "batch_size": 4,
        "micro_batch": 4,
        "eval": {"every": None},
    }
    keys |= {"data": {"path": "animals.csv", "seq_len": 16}, "model": {"num_layers": 2, "num_heads": 2, "width": 16}}
    first: Any = fit(build("demo", run_dir="runs/first", **keys)).model
    for labels, kept in (("cat,dog", True), ("dog,cat", False), ("ham,spam", False)):
        model = tiny(num_labels=2)
        load_weights(model, "runs/first", labels=labels.split(","))
        assert torch.equal(model.lm_head.weight, first.lm_head.weight) == kept
