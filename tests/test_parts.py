"""Parts as they are given or configured, and what is refused because it does not go together."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from trainwell.config.load import load
from trainwell.config.tree import RunConfig
from trainwell.errors import ConfigError
from trainwell.given import Data, Given, data_from
from trainwell.model.gpt2 import GPT2
from trainwell.model.loss import head_loss, token_loss, with_parts
from trainwell.parts import check_schedules, loss_of, model_of, optimizer_of, questions_of
from trainwell.planning.resolve import Plan, resolve
from trainwell.settings import Settings, decide

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = {"model.num_layers": 2, "model.num_heads": 2, "model.width": 8, "data.seq_len": 8, "device": "cpu"}
IDS = [([1, 2, 3, 4], [2, 3, 4, 5])] * 20


def configured(**keys: object) -> RunConfig:
    return load("demo", flags={**SMALL, **{key.replace("__", "."): value for key, value in keys.items()}})


def planned(config: RunConfig) -> Plan:
    return resolve(config)


def of_ids(config: RunConfig) -> Data:
    """Data that is given as ids, without a tokenizer."""
    return data_from(config, Given(data=IDS))


def settings_of(config: RunConfig, parallel: str = "none") -> Settings:
    made = decide(config, planned(config), None, lambda line: None)
    return made if parallel == "none" else Settings(**{**vars(made), "parallel": parallel})


def one_batch() -> Any:
    class Batch:
        inputs = torch.tensor([[1, 2, 3, 4]])
        targets = torch.tensor([[2, 3, -100, 5]])

    return Batch()


def test_a_given_model_is_taken_as_it_is_and_a_function_is_called_with_the_configuration() -> None:
    config, model, seen = configured(), nn.Linear(2, 2), list[RunConfig]()

    def make(config: RunConfig) -> nn.Module:
        seen.append(config)
        return model

    assert model_of(config, Given(model=model), planned(config), None, CPU) is model
    assert model_of(config, Given(model=make), planned(config), None, CPU) is model
    assert seen == [config]


def test_a_function_that_makes_no_model_is_refused_with_what_it_made() -> None:
    config = configured()
    with pytest.raises(ConfigError, match=r"^model: list was given; allowed are an nn\.Module, or a function"):
        model_of(config, Given(model=lambda config: [1]), planned(config), None, CPU)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fast__attention", "products"),
        ("fast__dropout", "bits"),
        ("fast__residual", "bf16"),
        ("recompute", True),
        ("optim__train", "last-block"),
    ],
)
def test_what_only_our_own_models_do_is_refused_of_a_given_one_by_its_key(key: str, value: object) -> None:
    config = configured(**{key: value})
    with pytest.raises(ConfigError, match=rf"^{key.replace('__', '[.]')}: "):
        model_of(config, Given(model=nn.Linear(2, 2)), planned(configured()), None, CPU)


def test_the_configured_model_has_the_configured_shape_and_learns_where_it_is_told_to() -> None:
    config = configured()
    model = model_of(config, Given(), planned(config), None, CPU)
    assert isinstance(model, GPT2)
    assert all(weight.requires_grad for weight in model.parameters())
    last = model_of(configured(optim__train="last-block", model__tie_head=False), Given(), planned(config), None, CPU)
    assert isinstance(last, GPT2)
    learns = {name.split(".")[0] for name, weight in last.named_parameters() if weight.requires_grad}
    assert learns == {"h", "ln_f", "lm_head"}
    assert not any(weight.requires_grad for weight in last.blocks[0].parameters())


def test_ids_of_an_unknown_vocabulary_need_a_number_of_them() -> None:
    config = configured()
    plan = Plan(**{**vars(planned(config)), "vocab_size": None})
    with pytest.raises(ConfigError, match=r"^model\.pad_vocab_to: "):
        model_of(config, Given(), plan, None, CPU)


def test_the_loss_is_the_given_one_else_that_of_the_configuration() -> None:
    config = configured()
    data = of_ids(config)
    assert loss_of(config, Given(loss=token_loss), data, chunk=64) is token_loss
    assert loss_of(config, Given(), data, chunk=None) is token_loss
    chunked = loss_of(config, Given(), data, chunk=64)
    assert isinstance(chunked, partial)
    assert (chunked.func, chunked.keywords) == (head_loss, {"chunk": 64})


def test_every_configured_loss_is_a_sum_over_the_same_targets() -> None:
    config = configured(optim__z_loss=1e-2)
    model = model_of(config, Given(), planned(config), None, CPU)
    data, batch = of_ids(config), one_batch()
    plain = token_loss(model, batch).item()
    for chunk in (None, 64):
        total, parts = with_parts(loss_of(config, Given(), data, chunk)(model.train(), batch))
        assert float(parts["ce"]) == pytest.approx(plain, rel=1e-5)
        assert total.item() == pytest.approx(float(parts["ce"] + parts["z"]), rel=1e-6)


def test_a_z_loss_beside_a_loss_of_ones_own_is_refused() -> None:
    config = configured(optim__z_loss=1e-4)
    with pytest.raises(ConfigError, match=r"^optim\.z_loss: 0\.0001 has no effect on a loss of your own"):
        loss_of(config, Given(loss=token_loss), of_ids(config), None)


def test_schedules_are_functions_of_settings_that_some_group_has() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    check_schedules({"lr": lambda step: 0.1, "momentum": lambda step: 0.9, "weight_decay": lambda step: 0.1}, optimizer)
    with pytest.raises(ConfigError, match=r"^schedules: lr is 0\.1; give a function of the step"):
        check_schedules({"lr": 0.1}, optimizer)  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"^schedules: no parameter group has 'wight_decay'; .*weight_decay"):
        check_schedules({"wight_decay": lambda step: 0.1}, optimizer)
    with pytest.raises(ConfigError, match=r"'betas2'"):
        check_schedules({"betas2": lambda step: 0.1}, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))


def test_an_optimizer_that_needs_whole_matrices_does_not_go_with_ranks_that_have_parts_of_them() -> None:
    config = configured(optim__name="muon")
    model = model_of(config, Given(), planned(config), None, CPU)
    with pytest.raises(ConfigError, match=r"^optim\.name: muon .*parallel ddp, or adamw"):
        optimizer_of(config, Given(), model, 257, settings_of(config, "fsdp"))
    assert optimizer_of(config, Given(), model, 257, settings_of(config, "ddp")).param_groups


def test_a_given_optimizer_has_the_rate_of_the_schedule_or_a_schedule_of_its_own() -> None:
    config, model = configured(), nn.Linear(2, 2)
    settings = settings_of(config)

    def make(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.5)

    with pytest.raises(
        ConfigError, match=r"^optim\.lr: the schedule's peak is 0\.003, .* made with 0\.5; .*'lr': 0\.5"
    ):
        optimizer_of(config, Given(optimizer=make), model, 257, settings)
    own = Given(optimizer=make, schedules={"lr": lambda step: 0.5})
    assert optimizer_of(config, own, model, 257, settings).param_groups[0]["lr"] == 0.5
    given = torch.optim.SGD(model.parameters(), lr=config.optim.lr)
    assert optimizer_of(config, Given(optimizer=given), model, 257, settings) is given


def test_questions_that_nothing_could_read_are_refused() -> None:
    config = configured()
    assert questions_of(config, of_ids(config)) == ()
    asked = configured(eval__hellaswag="questions.jsonl")
    with pytest.raises(ConfigError, match=r"^eval\.hellaswag: questions\.jsonl is text, .*leave it out"):
        questions_of(asked, of_ids(config))
