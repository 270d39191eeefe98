"""From a configuration and given parts to a run: every form of override, and what is said when parts do not fit."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainwell.build import build, open_run
from trainwell.config.load import load
from trainwell.data.batches import Batches, from_loader
from trainwell.errors import ConfigError, DataError, StorageError
from trainwell.fit import fit, steps
from trainwell.model.loss import token_loss
from trainwell.optim.together import Together
from trainwell.planning.model_size import count_parameters
from trainwell.planning.target import find_start
from trainwell.run import Run
from trainwell.trainer import Trainer

Build = Callable[..., Run]
Advance = Callable[[Run, int], None]
BitsOf = Callable[[Any], Any]


class Bigram(nn.Module):
    """The smallest language model: a row of logits for every id."""

    def __init__(self, vocab_size: int = 257) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.table(ids)
        return logits


class WithLogits(Bigram):
    """Gives an object that has the logits, as models of transformers do."""

    def forward(self, ids: Tensor) -> Any:
        return type("Output", (), {"logits": self.table(ids)})()


class Counting:
    """Examples that count upwards from their number."""

    def __init__(self, count: int, length: int = 8) -> None:
        self.count = count
        self.length = length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        ids = [(index + place) % 257 for place in range(self.length + 1)]
        return ids[:-1], ids[1:]


def first_steps(run: Run, count: int = 2) -> list[float]:
    """The losses of the first steps, taken with all that a run does."""
    found = []
    with run:
        for result in steps(run):
            found.append(float(result.loss))
            if len(found) == count:
                break
    return found


def test_a_recipe_is_built_as_its_config_says(own_folders: Path) -> None:
    run, config = build("demo"), load("demo")
    assert (run.plan.batch.size(0), run.plan.seq_len) == (config.batch_size, config.data.seq_len)
    assert run.config.duration == config.duration
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    assert parameters == count_parameters(config.model, 257, config.data.seq_len).total
    assert run.config == config
    assert run.run_dir.path == Path("runs/demo")


def test_building_touches_no_folder(build_tiny: Build, own_folders: Path) -> None:
    build_tiny()
    assert not (own_folders / "runs").exists()


def test_plain_keys_sections_and_config_files_say_the_same(build_tiny: Build, own_folders: Path) -> None:
    by_section = build_tiny(optim={"lr": 2e-3, "betas": [0.8, 0.9]}, seed=5)
    by_text = build_tiny(optim={"lr": "2e-3", "betas": "0.8 0.9"}, seed="5")
    file = own_folders / "demo.yaml"
    file.write_text("seed: 5\noptim: {betas: [0.8, 0.9]}\n")
    by_file = build_tiny(str(file), optim={"lr": 2e-3})
    assert by_section.config == by_text.config == by_file.config
    assert by_section.config.optim.lr == 2e-3
    assert by_section.trainer.optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_mistakes_are_reported_together_and_name_the_call(build_tiny: Build) -> None:
    with pytest.raises(ConfigError) as refused:
        build_tiny(duraton=5, optim={"lr": -1}, model={"wdth": 3})
    text = str(refused.value)
    assert "build(...): duraton: there is no such key; did you mean duration?" in text
    assert "build(...): optim.lr: -1 is not allowed" in text
    assert "did you mean model.width?" in text


def test_the_same_seed_gives_the_same_weights_and_another_one_others(build_tiny: Build, bits_of: BitsOf) -> None:
    weights = [bits_of(build_tiny(seed=seed).model.state_dict()) for seed in (1, 1, 2)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_own_keys_are_recorded_and_reach_the_parts(build_tiny: Build) -> None:
    seen: list[Any] = []

    def make(config: Any) -> nn.Module:
        seen.append(config.extra)
        return Bigram()

    run = build_tiny(model=make, extra={"conv": 4, "deep": {"er": [1, 2]}})
    assert seen == [{"conv": 4, "deep": {"er": [1, 2]}}]
    assert run.config.extra == seen[0]


@pytest.mark.parametrize("make", [Bigram, WithLogits])
def test_a_given_model_is_the_one_that_learns(build_tiny: Build, make: type[Bigram]) -> None:
    model = make()
    before = model.table.weight.detach().clone()
    run = build_tiny(model=model, optim={"lr": 0.1})
    losses = first_steps(run, 8)
    assert run.model is model
    assert not torch.equal(model.table.weight, before)
    assert losses[-1] < losses[0]


def test_what_is_no_model_is_refused(build_tiny: Build) -> None:
    with pytest.raises(ConfigError, match=r"model: str was given; allowed are an nn\.Module, or a function"):
        build_tiny(model=lambda config: "gpt")


def test_a_given_loss_is_what_is_minimised_and_its_parts_are_logged(build_tiny: Build) -> None:
    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        ce = token_loss(model, batch)
        return 2 * ce, {"ce": ce, "twice": 2 * ce}

    plain = first_steps(build_tiny(run_dir="runs/plain"), 1)
    run = build_tiny(run_dir="runs/own", loss=loss)
    doubled = first_steps(run, 2)
    assert doubled[0] == pytest.approx(2 * plain[0])
    line = run.run_dir.metrics_jsonl.read_text().splitlines()[0]
    assert f'"train/twice": {doubled[0]}' in line
    assert '"train/ce": ' in line


def test_a_given_optimizer_takes_the_steps(build_tiny: Build) -> None:
    model = Bigram()
    sgd = torch.optim.SGD(model.parameters(), lr=3e-3)
    run = build_tiny(model=model, optimizer=sgd, optim={"lr": 3e-3})
    assert run.trainer.optimizer is sgd
    assert len(first_steps(run)) == 2


def test_a_function_makes_the_optimizer_of_the_model(build_tiny: Build) -> None:
    run = build_tiny(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=3e-3))
    assert isinstance(run.trainer.optimizer, torch.optim.SGD)
    assert run.trainer.parameters == list(run.model.parameters())


def test_an_optimizer_whose_rate_differs_from_the_schedule_is_refused_naming_both(build_tiny: Build) -> None:
    with pytest.raises(ConfigError, match=r"schedule's peak is 0\.003, but the given optimizer was made with 0\.1"):
        build_tiny(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_given_schedule_of_the_rate_overrules_optimizer_and_config(build_tiny: Build) -> None:
    run = build_tiny(
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        schedules={"lr": lambda step: 0.1 / (step + 1)},
    )
    rates = []
    with run:
        for result in steps(run):
            rates.append(result.lr)
            assert run.trainer.optimizer.param_groups[0]["lr"] == result.lr
            if result.step == 2:
                break
    assert rates == [0.1, 0.1 / 2, 0.1 / 3]


def test_muon_has_the_hidden_matrices_and_adamw_the_rest(build_tiny: Build) -> None:
    run = build_tiny(optim={"name": "muon"})
    both = run.trainer.optimizer
    assert isinstance(both, Together)
    muon, adamw = both.optimizers
    assert {tensor.dim() for group in muon.param_groups for tensor in group["params"]} == {2}
    held = [tensor for group in both.param_groups for tensor in group["params"]]
    assert {id(tensor) for tensor in held} == {id(tensor) for tensor in run.model.parameters()}
    assert len(held) == len(list(run.model.parameters()))
    assert sum(len(group["params"]) for group in muon.param_groups) == 4
    assert len(adamw.param_groups) == 2


def test_given_examples_decide_the_length_and_need_no_text(build_tiny: Build) -> None:
    run = build_tiny(data=Counting(20), val=Counting(6))
    assert run.plan.seq_len == 8
    assert run.plan.num_windows == 20
    assert run.tokenizer is None
    assert run.config.data.corpus is None
    assert run.config.data.path is None
    assert run.evaluate().targets == 6 * 8
    assert len(first_steps(run)) == 2


def test_what_given_data_switches_off_is_said(build_tiny: Build) -> None:
    said = "\n".join(build_tiny(data=Counting(20)).summary)
    assert "off, because data was given: corpus look-up, text samples, bits per byte" in said
    assert "off, because no val was given: evaluation" in said
    assert "evaluation" not in "\n".join(build_tiny(data=Counting(20), val=Counting(3)).summary)


def test_given_validation_alone_keeps_the_text_and_loses_bits_per_byte(build_tiny: Build) -> None:
    run = build_tiny(val=Counting(6, length=16))
    assert run.tokenizer is not None
    assert run.evaluate().targets == 6 * 16
    assert run.evaluate().bits_per_byte is None
    assert "off, because val was given: bits per byte" in "\n".join(run.summary)


def test_a_loader_gives_its_own_batches_and_says_what_is_not_promised(build_tiny: Build) -> None:
    rows = [(torch.full((3, 5), number), torch.full((3, 5), number)) for number in range(4)]
    run = build_tiny(data=from_loader(rows))
    assert (run.plan.batch.size(0), run.plan.seq_len) == (3, 5)
    assert "not promised, because the data only runs forward" in "\n".join(run.summary)
    with run:
        for result in steps(run):
            assert int(result.targets) == 15
            if result.step == 5:
                break


def test_a_run_on_given_data_goes_on_when_the_same_call_is_made_again(build_tiny: Build, advance: Advance) -> None:
    rows = [(torch.full((3, 5), number), torch.full((3, 5), number)) for number in range(4)]
    kinds: dict[str, Callable[[], Any]] = {"examples": lambda: Counting(20), "loader": lambda: from_loader(rows)}
    for kind, data in kinds.items():
        folder = f"runs/{kind}"
        advance(build_tiny(run_dir=folder, data=data()), 5)
        again = build_tiny(run_dir=folder, data=data())
        with again:
            assert next(iter(steps(again))).step == 4


def test_other_examples_than_before_are_refused(build_tiny: Build, advance: Advance) -> None:
    advance(build_tiny(run_dir="runs/a", data=Counting(20)), 5)
    run = build_tiny(run_dir="runs/a", data=Counting(21))
    with run, pytest.raises(DataError, match="examples: 20 then, 21 now"):
        run.restore()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("data", 5, "data: int was given; allowed are examples"),
        ("val", 5, "val: int was given; allowed are examples"),
        ("data", Counting(0), "data: it has no examples"),
    ],
)
def test_what_is_no_data_is_refused(build_tiny: Build, part: str, value: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        build_tiny(**{part: value})


def test_an_example_with_fewer_targets_than_inputs_is_named(build_tiny: Build) -> None:
    with pytest.raises(DataError, match=r"example 0 has 3 inputs and 2 targets"):
        build_tiny(data=[([1, 2, 3], [2, 3])])


def test_a_run_on_given_data_opens_in_the_script_that_has_it_alone(build_tiny: Build) -> None:
    path = fit(build_tiny(data=[([1, 2, 3], [2, 3, 4])] * 9, model={"pad_vocab_to": 9})).run_dir.path
    with pytest.raises(ConfigError, match="was made with parts given in Python: data"):
        open_run(path)


def test_hellaswag_is_refused_where_nothing_could_read_it(build_tiny: Build) -> None:
    with pytest.raises(ConfigError, match=r"eval\.hellaswag: x\.jsonl is text, and data given as ids has no tokenizer"):
        build_tiny(data=[([1, 2, 3], [2, 3, 4])] * 9, model={"pad_vocab_to": 9}, eval={"hellaswag": "x.jsonl"})


def test_what_only_our_models_do_is_refused_of_a_given_one(build_tiny: Build) -> None:
    with pytest.raises(ConfigError, match=r"optim\.train: last-block is for trainwell's own models"):
        build_tiny(model=Bigram(), optim={"train": "last-block"})


def test_given_parts_are_recorded_with_the_run(build_tiny: Build) -> None:
    run = build_tiny(model=Bigram(), data=Counting(20), loss=token_loss)
    custom = run.config.custom
    assert custom["model"].endswith("test_build:Bigram")
    assert custom["data"].endswith("test_build:Counting")
    assert custom["loss"] == "trainwell.model.loss:token_loss"
    assert custom["parameters"] == 257 * 257
    assert len(custom["source_sha256"]) == 16
    assert f"given in Python: model, {custom['model']}" in run.summary
    first_steps(run, 1)
    assert load(str(run.run_dir.config_yaml)).custom == custom


def test_the_source_of_a_model_made_on_the_spot_is_not_needed(build_tiny: Build) -> None:
    found: dict[str, Any] = {"nn": nn, "Bigram": Bigram}
    exec("class Typed(Bigram): pass", found)
    assert build_tiny(model=found["Typed"]()).config.custom["source_sha256"] is None


def test_nothing_is_recorded_as_given_when_nothing_was(build_tiny: Build) -> None:
    assert build_tiny().config.custom == {}


def test_minutes_become_steps_and_leave_no_trace_in_the_weights(build_tiny: Build, bits_of: BitsOf) -> None:
    timed = build_tiny(run_dir="runs/timed", duration="0.05 minutes", model={"dropout": 0.1})
    assert timed.config.duration.unit == "steps"
    assert timed.num_steps == timed.config.duration.amount > 1
    counted = build_tiny(run_dir="runs/counted", duration=timed.num_steps, model={"dropout": 0.1})
    assert bits_of(timed.trainer.state_dict()) == bits_of(counted.trainer.state_dict())
    assert first_steps(timed) == first_steps(counted)
    assert '"duration": "0.05 minutes"' in timed.run_dir.env_json.read_text()


def test_minutes_leave_no_trace_in_given_parts(build_tiny: Build, bits_of: BitsOf) -> None:
    model = Bigram()
    sgd = torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9)
    before = bits_of([model.state_dict(), sgd.state_dict()["state"]])
    build_tiny(duration="0.02 minutes", model=model, optimizer=sgd)
    assert bits_of([model.state_dict(), sgd.state_dict()["state"]]) == before


def test_the_length_of_a_timed_run_is_kept_when_it_continues(build_tiny: Build, advance: Advance) -> None:
    first = build_tiny(run_dir="runs/a", duration="0.05 minutes")
    advance(first, 0)
    assert build_tiny(run_dir="runs/a", duration="0.05 minutes").num_steps == first.num_steps
    assert build_tiny(run_dir="runs/a", duration="3 minutes").num_steps == first.num_steps


def test_a_run_can_start_from_the_weights_of_another(build_tiny: Build, advance: Advance, bits_of: BitsOf) -> None:
    source = build_tiny(run_dir="runs/source")
    advance(source, 8)
    for spelled, step in {"runs/source": 8, "runs/source@last": 8, "runs/source@4": 4}.items():
        run = build_tiny(run_dir="runs/new", init_from=spelled, seed=2)
        state, _ = source.store.load(step)
        assert bits_of(run.model.state_dict()) == bits_of(state["trainer"]["model"])
        assert run.trainer.step == 0


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("runs/missing", {}, "init_from: runs/missing: the folder is not there"),
        ("runs/source@5", {}, "runs/source has no checkpoint of step 5; it has 4"),
        ("runs/source", {"model": {"width": 32}}, "model.width: 32, but the weights of runs/source have 16"),
        ("runs/source", {"model": {"num_layers": 2}}, "model.num_layers: 2, but the weights of runs/source have 1"),
        ("runs/source", {"data": {"seq_len": 32}}, "data.seq_len: 32, but the weights of runs/source have learned 16"),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit_are_a_message(
    build_tiny: Build, advance: Advance, source: str, changes: dict[str, Any], message: str
) -> None:
    advance(build_tiny(run_dir="runs/source"), 4)
    with pytest.raises(ConfigError, match=message):
        build_tiny(run_dir="runs/new", init_from=source, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_opening_a_run_restores_its_weights_and_writes_nothing(
    build_tiny: Build, advance: Advance, bits_of: BitsOf
) -> None:
    run = build_tiny(run_dir="runs/a", eval={"every": 2})
    advance(run, 8)
    before = contents(run.run_dir.path)
    for spelled, step in {"runs/a": 8, "runs/a@last": 8, "runs/a@4": 4}.items():
        opened = open_run(spelled)
        assert opened.trainer.step == step
        assert bits_of(opened.trainer.state_dict()) == bits_of(run.store.load(step)[0]["trainer"])
    assert open_run("runs/a@best").trainer.step in {2, 4, 6, 8}
    assert contents(run.run_dir.path) == before


def test_a_run_made_with_given_parts_is_opened_with_them(build_tiny: Build, advance: Advance, bits_of: BitsOf) -> None:
    run = build_tiny(run_dir="runs/a", model=Bigram())
    advance(run, 4)
    opened = open_run("runs/a", model=Bigram())
    assert bits_of(opened.model.state_dict()) == bits_of(run.store.load(4)[0]["trainer"]["model"])


def test_a_run_whose_given_parts_are_missing_says_which_script_has_them(build_tiny: Build, advance: Advance) -> None:
    advance(build_tiny(run_dir="runs/a", model=Bigram()), 4)
    with pytest.raises(ConfigError, match=r"model.*Bigram"):
        open_run("runs/a")


def test_what_is_no_run_cannot_be_opened(build_tiny: Build, own_folders: Path, advance: Advance) -> None:
    with pytest.raises(ConfigError, match="demo is not a run"):
        open_run("demo")
    advance(build_tiny(run_dir="runs/a"), 1)
    with pytest.raises(StorageError, match="runs/a has no checkpoint yet; train it first"):
        open_run("runs/a")


def test_a_run_without_validation_says_so_when_asked(build_tiny: Build) -> None:
    with pytest.raises(ConfigError, match=r"no validation data; give some with build\(val=\.\.\.\)"):
        build_tiny(data=Counting(20)).evaluate()


def test_a_loader_has_lost_no_batch_to_the_timing(build_tiny: Build) -> None:
    def numbered() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(100):
            yield torch.full((2, 4), number), torch.full((2, 4), number)

    class Anew:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return numbered()

    run = build_tiny(data=from_loader(Anew()), duration="0.01 minutes")
    assert int(run.batches(0).micro_batches[0].inputs[0, 0]) == 0


def test_the_trainer_of_a_run_is_the_public_one(build_tiny: Build) -> None:
    assert isinstance(build_tiny().trainer, Trainer)


def test_a_run_whose_text_is_gone_still_generates_but_has_nothing_to_evaluate_on(
    build_tiny: Callable[..., Run], text: Path
) -> None:
    trained = fit(build_tiny())
    text.unlink()
    opened = open_run(trained.run_dir.path)
    assert opened.val is None
    assert opened.tokenizer is not None
    assert opened.tokenizer.decode(opened.tokenizer.encode("tide").tolist()) == "tide"
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, opened.model.state_dict()[name])


def test_weights_to_start_from_are_not_needed_to_continue(build_tiny: Callable[..., Run], own_folders: Path) -> None:
    source = fit(build_tiny(run_dir="runs/source"))
    first = build_tiny(run_dir="runs/next", init_from="runs/source")
    fit(first)
    shutil.rmtree(source.run_dir.path)
    assert build_tiny(run_dir="runs/next", init_from="runs/source").num_steps == first.num_steps


def test_a_run_opens_with_other_keys_than_it_was_trained_with(build_tiny: Callable[..., Run]) -> None:
    trained = fit(build_tiny())
    assert open_run(trained.run_dir.path, device="cpu").config.device == "cpu"
    assert trained.config.device == "auto"


RAMP: dict[str, Any] = {"from_tokens": 32, "over": "600 tokens"}
"""From 2 to 8 sequences of 16 tokens."""


def test_the_micro_batch_changes_nothing_of_a_ramp(build_tiny: Build) -> None:
    runs = [build_tiny(batch_size=8, micro_batch=size, device="cpu", batch_ramp=RAMP) for size in (1, 3, 8, "auto")]
    sizes = [[run.plan.batch.size(step) for step in range(12)] for run in runs]
    assert sizes[0][0] == 2
    assert sizes[0][-1] == 8
    assert sizes == [sizes[0]] * 4


def range_of(count: int) -> list[tuple[list[int], list[int]]]:
    return [([number], [number]) for number in range(count)]


def test_a_ramp_sees_every_window_once_an_epoch(build_tiny: Build) -> None:
    run = build_tiny(batch_size=8, micro_batch=4, batch_ramp=RAMP, duration="3 epochs")
    count = run.plan.num_windows
    source = Batches(range_of(count), run.plan.batch, micro_batch=4, seed=1337, device=torch.device("cpu"))
    seen = [int(index) for step in range(run.num_steps) for index in source.indices(step)]
    assert len(seen) >= 3 * count
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_a_ramp_cannot_cut_a_loaders_batches() -> None:
    rows = torch.zeros(8, 4, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"batch_ramp.from_tokens: 128, but from_loader's batches are as they come"):
        build("demo", data=from_loader([(rows, rows)]), batch_ramp={"from_tokens": 128, "over": "600 tokens"})


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"lr": 3}, "schedules: lr is 3; give a function of the step, as lambda step: 3"),
        ({"lrr": lambda step: 1.0}, "schedules: no parameter group has 'lrr'; allowed are .*; did you mean lr?"),
    ],
)
def test_a_schedule_that_sets_nothing_is_refused(build_tiny: Build, schedules: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tiny(schedules=schedules)


def test_a_momentum_may_be_scheduled_where_there_are_betas(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", duration=2, schedules={"momentum": lambda step: 0.5})
    fit(run)
    assert {group["betas"][0] for group in run.trainer.optimizer.param_groups} == {0.5}


def test_a_branch_that_is_asked_for_again_goes_on_as_itself_whatever_its_source_has_become(build_tiny: Build) -> None:
    fit(build_tiny(run_dir="runs/a", schedule={"horizon": 40}))
    fit(build("runs/a@8", run_dir="runs/b"))
    assert fit(build("runs/a", duration=20)).num_steps == 20
    again = build("runs/a@8", run_dir="runs/b")
    assert again.num_steps == 12
    allowed = find_start("runs/a@8", run=Path("runs/b"), flags={"optim.lr": 0.002}, allow=("optim.lr",))
    assert allowed.config.optim.lr == 0.002
