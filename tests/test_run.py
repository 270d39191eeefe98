"""A run and its folder: what is due when, what is kept, and what it refuses to continue with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwell import faults
from trainwell.checkpoint.layout import saved_steps
from trainwell.config.load import load
from trainwell.data.prepare import prepare
from trainwell.errors import ConfigError, DataError, RunBusyError, StorageError
from trainwell.evaluate import Evaluation
from trainwell.fit import fit, steps
from trainwell.planning.due import Due
from trainwell.run import Run
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.samples import SamplesFile

Build = Callable[..., Run]
Advance = Callable[[Run, int], None]

EVERY = {"eval": {"every": 3}, "sample": {"every": 4}, "checkpoint": {"every": 5}}


class Counter:
    """The smallest thing that can be kept."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


@pytest.mark.parametrize(
    ("step", "due"),
    [
        (0, Due(save=False, evaluate=False, sample=False)),
        (2, Due(save=False, evaluate=True, sample=False)),
        (3, Due(save=False, evaluate=False, sample=True)),
        (4, Due(save=True, evaluate=False, sample=False)),
        (11, Due(save=True, evaluate=True, sample=True)),
    ],
)
def test_what_is_due_after_a_step_depends_on_the_state_it_leads_to(build_tiny: Build, step: int, due: Due) -> None:
    assert build_tiny(**EVERY).due(step) == due


@pytest.mark.parametrize(
    ("keys", "missing"),
    [
        ({"eval": {"every": None}}, set()),
        ({"sample": {"every": None}}, {"sample"}),
        ({"checkpoint": {"every": None}}, set()),
    ],
)
def test_what_is_never_due_in_between_is_due_at_the_end_but_for_samples(
    build_tiny: Build, keys: dict[str, Any], missing: set[str]
) -> None:
    run = build_tiny(**EVERY | keys)
    (section,) = keys
    name = {"eval": "evaluate", "sample": "sample", "checkpoint": "save"}[section]
    assert not any(getattr(run.due(step), name) for step in range(11))
    assert getattr(run.due(11), name) is (name not in missing)


@pytest.mark.parametrize("point", ["before", "eval.mid", "sample.mid"])
def test_an_evaluation_or_sample_is_given_up_when_a_stop_is_asked_for(
    build_tiny: Build, advance: Advance, point: str
) -> None:
    keys = {"eval": {"every": 3}, "sample": {"every": 3}}
    run = build_tiny(run_dir="runs/a", **keys)
    with run, faults.at(f"{'eval.mid' if point == 'before' else point}@3", run.stop):
        for result in steps(run):
            if result.step == 2 and point == "before":
                run.stop()
    assert saved_steps(run.run_dir.checkpoints) == [3]
    evaluated = [row["step"] for row in MetricsFile(run.run_dir.metrics_jsonl).read().val]
    sampled = [sample.step for sample in SamplesFile(run.run_dir.samples_txt).read()]
    assert evaluated == ([0, 3] if point == "sample.mid" else [0])
    assert sampled == []
    fit(build_tiny(run_dir="runs/a", **keys))
    straight = fit(build_tiny(run_dir="runs/b", **keys))
    for read in (
        lambda folder: MetricsFile(folder.metrics_jsonl).read().val,
        lambda f: SamplesFile(f.samples_txt).read(),
    ):
        drop = [
            [
                {k: v for k, v in row.items() if k != "time"} if isinstance(row, dict) else row
                for row in read(each.run_dir)
            ]
            for each in (run, straight)
        ]
        assert drop[0] == drop[1]


def test_a_stop_in_the_last_step_leaves_the_last_evaluation_to_the_next_start(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", eval={"every": 3})
    with run:
        for result in steps(run):
            if result.step == 11:
                run.stop()
    assert run.trainer.step == run.num_steps
    assert not run.finished
    again = fit(build_tiny(run_dir="runs/a", eval={"every": 3}))
    assert again.finished
    assert [row["step"] for row in MetricsFile(run.run_dir.metrics_jsonl).read().val] == [0, 3, 6, 9, 12]


def test_kept_state_is_saved_and_restored_with_the_run(build_tiny: Build) -> None:
    run, counter = build_tiny(run_dir="runs/a"), Counter()
    run.keep("counter", counter)
    with run:
        for result in steps(run):
            counter.count += 10
            if result.step == 9:
                break
    again, restored = build_tiny(run_dir="runs/a"), Counter(-1)
    again.keep("counter", restored)
    with again:
        again.restore()
        assert restored.count == 80
        assert again.trainer.step == 8


def test_a_save_in_the_body_of_the_loop_leaves_no_hole_in_the_metrics(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", checkpoint={"every": None})
    with run:
        for result in steps(run):
            run.log(mine=result.step)
            if result.step == 5:
                run.save()
            if result.step == 7:
                break
    again = fit(build_tiny(run_dir="runs/a", checkpoint={"every": None}))
    rows = MetricsFile(again.run_dir.metrics_jsonl).read().train
    assert [row["step"] for row in rows] == list(range(12))
    assert [row.get("mine") for row in rows[:7]] == [0, 1, 2, 3, 4, 5, None]


def test_keeping_comes_before_the_first_step(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a")
    with run:
        run.restore()
        with pytest.raises(ConfigError, match=r"keep\('late'\) comes after the run was restored"):
            run.keep("late", Counter())


def test_a_part_that_was_not_kept_before_cannot_be_restored(build_tiny: Build, advance: Advance) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    again = build_tiny(run_dir="runs/a")
    again.keep("counter", Counter())
    with again, pytest.raises(ConfigError, match="holds no state of counter; it was not kept when it was saved"):
        again.restore()


def test_kept_state_that_nobody_asks_for_is_left_alone_and_said(
    build_tiny: Build, advance: Advance, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build_tiny(run_dir="runs/a")
    first.keep("counter", Counter(3))
    advance(first, 5)
    capsys.readouterr()
    with build_tiny(run_dir="runs/a") as again:
        again.restore()
    assert "state of counter in the checkpoint is left alone" in capsys.readouterr().out


def test_state_that_no_checkpoint_can_hold_is_refused_by_its_path(build_tiny: Build) -> None:
    class Lambda(Counter):
        def state_dict(self) -> dict[str, Any]:
            return {"schedule": lambda step: step}

    run = build_tiny(run_dir="runs/a", checkpoint={"every": 1})
    run.keep("mine", Lambda())
    with run, pytest.raises(ConfigError, match=r"kept\.mine\.schedule is a function"):
        for _ in steps(run):
            pass


def evaluated(run: Run, step: int, loss: float) -> None:
    run.trainer.step = step
    run.record(Evaluation(loss, 10))


def test_the_best_checkpoint_is_kept_whatever_comes_after(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", checkpoint={"keep": 2, "every": None})
    with run:
        run.restore()
        for step, loss in {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 6.0}.items():
            run.trainer.step = step
            run.save()
            evaluated(run, step, loss)
        run.finish()
        assert saved_steps(run.run_dir.checkpoints) == [2, 4, 5]
        evaluated(run, 6, 2.0)
        run.trainer.step = 7
        run.save()
        run.finish()
        assert saved_steps(run.run_dir.checkpoints) == [6, 7]


def test_the_best_so_far_is_known_to_a_run_that_continues(build_tiny: Build) -> None:
    first = build_tiny(run_dir="runs/a", checkpoint={"keep": 2, "every": None})
    with first:
        first.restore()
        evaluated(first, 1, 2.0)
        for step in (2, 3):
            first.trainer.step = step
            first.save()
    again = build_tiny(run_dir="runs/a", checkpoint={"keep": 2, "every": None})
    with again:
        again.restore()
        evaluated(again, 4, 3.0)
        again.trainer.step = 5
        again.save()
    assert saved_steps(again.run_dir.checkpoints) == [1, 3, 5]


def test_an_evaluation_alone_keeps_no_checkpoint_when_best_is_off(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", checkpoint={"best": False, "every": None})
    with run:
        run.restore()
        evaluated(run, 3, 1.0)
    assert saved_steps(run.run_dir.checkpoints) == []


def test_a_nan_is_never_the_best(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", checkpoint={"every": None})
    with run:
        run.restore()
        evaluated(run, 3, float("nan"))
    assert saved_steps(run.run_dir.checkpoints) == []


def test_a_second_process_is_told_who_owns_the_run(build_tiny: Build) -> None:
    with build_tiny(run_dir="runs/a") as owner:
        owner.restore()
        with build_tiny(run_dir="runs/a") as second, pytest.raises(RunBusyError, match="runs/a is in use by process"):
            second.restore()
    with build_tiny(run_dir="runs/a") as third:
        third.restore()


def test_changed_data_is_refused_naming_what_changed(build_tiny: Build, advance: Advance, text: Path) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    text.write_text(text.read_text()[:-1] + "!")
    run = build_tiny(run_dir="runs/a")
    with (
        run,
        pytest.raises(DataError, match=r"not what runs/a was trained on: fingerprint: .* then, .* now") as refused,
    ):
        run.restore()
    assert "trainwell train runs/a@4 --run NEW" in str(refused.value)
    assert refused.value.exit_code == 65


def test_a_branch_may_go_on_with_other_data(build_tiny: Build, advance: Advance, text: Path) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    text.write_text(text.read_text()[:-1] + "!")
    branch = build_tiny("runs/a@4", run_dir="runs/b")
    with branch:
        assert next(iter(steps(branch))).step == 4


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optim": {"lr": 1e-4}}, "optim.lr: 0.003 there, 0.0001 wanted"),
        ({"seed": 2}, "seed: 1337 there, 2 wanted"),
        ({"model": {"width": 32}}, "model.width: 16 there, 32 wanted"),
        ({"duration": 20}, "duration: 12 there, 20 wanted"),
        ({"extra": {"a": 1}}, "extra"),
    ],
)
def test_another_configuration_is_refused_naming_the_keys(
    build_tiny: Build, advance: Advance, changes: dict[str, Any], key: str
) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    with pytest.raises(ConfigError) as refused:
        build_tiny(run_dir="runs/a", **changes)
    assert "runs/a already holds a run with other settings" in str(refused.value)
    assert key in str(refused.value)


def test_keys_that_change_no_step_are_free(build_tiny: Build, advance: Advance) -> None:
    free: dict[str, Any] = {
        "name": "other",
        "eval": {"every": 3, "batches": 1},
        "sample": {"every": 2, "tokens": 3},
        "checkpoint": {"every": 2, "keep": 5},
        "log": {"every": 1},
    }
    advance(build_tiny(run_dir="runs/a"), 5)
    run = build_tiny(run_dir="runs/a", **free)
    advance(run, 7)
    written = load(str(run.run_dir.config_yaml))
    assert (written.name, written.log.every, run.plan.eval_every, run.plan.save_every) == ("other", 1, 3, 2)
    assert saved_steps(run.run_dir.checkpoints) == [4, 6]


def test_the_call_that_started_a_run_continues_it_though_its_micro_batch_was_more_than_the_batch(
    build_tiny: Build, advance: Advance
) -> None:
    advance(build_tiny(run_dir="runs/a", micro_batch=64), 5)
    again = build_tiny(run_dir="runs/a", micro_batch=64)
    assert again.settings.micro_batch == again.config.micro_batch == 4
    assert build_tiny(run_dir="runs/a", micro_batch=1).settings.micro_batch == 1


def test_the_duration_is_free_where_the_horizon_is_set(build_tiny: Build, advance: Advance) -> None:
    schedule = {"horizon": 40}
    advance(build_tiny(run_dir="runs/a", schedule=schedule), 5)
    longer = build_tiny(run_dir="runs/a", schedule=schedule, duration=30)
    assert longer.num_steps == 30
    assert longer.plan.lr(7) == build_tiny(run_dir="runs/new", schedule=schedule).plan.lr(7)


def test_a_fresh_run_writes_what_it_is_before_its_first_step(build_tiny: Build, text: Path) -> None:
    run = build_tiny(run_dir="runs/a", duration="1 epochs")
    with run:
        next(iter(steps(run)))
        written = load(str(run.run_dir.config_yaml))
        env = json.loads(run.run_dir.env_json.read_text())
    assert written == run.config
    assert env["data"]["corpus"] == str(text)
    assert env["settings"]["precision"] == "fp32"
    assert env["duration"] == "1 epochs"
    assert env["parent"] is None


def test_a_run_evaluates_before_its_first_step_and_not_when_it_continues(build_tiny: Build, advance: Advance) -> None:
    run = build_tiny(run_dir="runs/a", eval={"every": 100})
    advance(run, 5)
    advance(build_tiny(run_dir="runs/a", eval={"every": 100}), 6)
    assert [row["step"] for row in MetricsFile(run.run_dir.metrics_jsonl).read().val] == [0]


def test_a_branch_trains_with_its_own_settings_of_the_optimizer(build_tiny: Build, advance: Advance) -> None:
    advance(build_tiny(run_dir="runs/a"), 5)
    changed = {"lr": 1e-4, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 0.5}
    branch = build_tiny("runs/a@4", run_dir="runs/b", optim=changed)
    with branch:
        result = next(iter(steps(branch)))
    decayed, plain = branch.trainer.optimizer.param_groups
    assert (decayed["betas"], decayed["eps"], decayed["weight_decay"]) == ((0.8, 0.99), 1e-6, 0.5)
    assert plain["weight_decay"] == 0.0
    assert decayed["lr"] == result.lr == branch.plan.lr(4) < 1e-4


class BrokenLater:
    """Validation examples, the first of which is as it should be."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[list[int], list[int]]:
        if index:
            raise DataError("validation example 1 is damaged")
        return [1] * 16, [1] * 16


def test_a_fault_of_the_evaluation_shows_before_the_first_step(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", val=BrokenLater(), eval={"every": 100})
    with run, pytest.raises(DataError, match="validation example 1"):
        next(iter(steps(run)))
    assert run.trainer.step == 0


def test_a_folder_that_cannot_be_written_is_a_message(build_tiny: Build, own_folders: Path) -> None:
    (own_folders / "file").write_text("")
    run = build_tiny(run_dir="file/a")
    with run, pytest.raises(StorageError, match=r"cannot make the run folder file/a.*--run"):
        run.restore()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_file_that_cannot_be_written_is_met_before_the_first_step(
    build_tiny: Build, own_folders: Path, name: str
) -> None:
    run = build_tiny(run_dir="runs/a")
    (own_folders / "runs" / "a" / name).mkdir(parents=True)
    with run, pytest.raises(StorageError, match="runs/a"):
        next(iter(steps(run)))


def test_samples_are_appended_with_step_and_prompt(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", sample={"every": 1, "tokens": 3, "prompt": "the \u00e9"})
    with run:
        run.restore()
        run.sample()
        run.trainer.step = 1
        run.sample()
    text = run.run_dir.samples_txt.read_text()
    assert '=== step 0 | prompt "the \\u00e9" ===\nthe \u00e9' in text
    assert '=== step 1 | prompt "the \\u00e9" ===\n' in text


def test_sampling_leaves_the_random_state_as_it_was(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a", sample={"every": 1, "tokens": 3})
    before = torch.get_rng_state()
    with run:
        run.restore()
        run.sample()
        run.record(run.evaluate())
    assert torch.equal(torch.get_rng_state(), before)


def test_closing_twice_does_no_harm_and_gives_the_folder_back_once(build_tiny: Build) -> None:
    run = build_tiny(run_dir="runs/a")
    run.restore()
    assert run.run_dir.owner() is not None
    run.close()
    run.close()
    assert run.run_dir.owner() is None


def test_the_tokenizer_is_saved_with_the_run(build_tiny: Build, own_folders: Path) -> None:
    run = build_tiny(run_dir="runs/a", data={"tokenizer": "chars"})
    with run:
        run.restore()
    assert run.tokenizer is not None
    assert prepare(run.config.data).tokenizer.identity == run.tokenizer.identity
    assert any("tokenizer" in path.name for path in (own_folders / "runs" / "a").iterdir())


def test_what_is_logged_stands_in_the_step_s_line(build_tiny: Build) -> None:
    with build_tiny() as run:
        for result in steps(run):
            run.log(noise=torch.tensor(0.5), phase="early" if result.step < 6 else "late")
    rows = MetricsFile(run.run_dir.metrics_jsonl).read().train
    assert {row["noise"] for row in rows} == {0.5}
    assert [row["phase"] for row in rows] == ["early"] * 6 + ["late"] * 6


@pytest.mark.parametrize(
    ("values", "said"),
    [({"tokens": 3}, "tokens is trainwell's own"), ({"many": torch.zeros(3)}, "a tensor of 3 elements")],
)
def test_what_a_line_cannot_hold_is_refused(build_tiny: Build, values: dict[str, Any], said: str) -> None:
    run = build_tiny()
    with pytest.raises(ConfigError, match=said):
        run.log(**values)


def test_a_closed_run_takes_no_more_steps(build_tiny: Build) -> None:
    with build_tiny() as run:
        pass
    with pytest.raises(ConfigError, match="is closed; build it again"):
        next(steps(run))
