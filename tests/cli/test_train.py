"""`trainwell train`, from the command line to the run folder: what is refused before any work, and what goes on."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwell.checkpoint.layout import saved_steps
from trainwell.cli import parts
from trainwell.config.load import load
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

Command = Callable[..., Any]
Refused = Callable[..., str]
Flags = Callable[..., list[str]]


def rows(run: str | Path) -> list[int]:
    return [row["step"] for row in MetricsFile(Path(run) / "metrics.jsonl").read().train]


def test_a_run_ends_by_saying_where_everything_is_and_what_to_try(command: Command, tiny_flags: Flags) -> None:
    said = command("train", "demo", *tiny_flags(sample__every="6", sample__tokens="3", log__plots="true"))
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0].startswith("demo: 7,680 parameters, 12 steps of 4 x 16 = 64 tokens")
    assert "num decayed parameter tensors: 6, with 7,440 parameters" in lines
    assert re.search(r"^step    0 \| loss: 5\.\d{6} \| lr 3\.0000e-03 \| norm: ", said.out, re.MULTILINE)
    assert "step   12 | val loss: " in said.out
    assert "runs/demo/checkpoints/step-12" in said.out
    assert "runs/demo/plots/loss.png" in said.out
    assert "trainwell sample runs/demo --prompt" in said.out
    assert {path.name for path in Path("runs/demo").iterdir() if not path.name.startswith(".")} == {
        "config.yaml", "env.json", "metrics.jsonl", "checkpoints", "plots", "report.html", "samples.txt",
        "starts.jsonl", "tokenizer.json"
    }  # fmt: skip


def test_profile_says_where_the_time_of_a_few_steps_goes_and_changes_no_number(
    command: Command, tiny_flags: Flags, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINETO_LOG_LEVEL", "6")  # what is set for the process is unset again
    said = command("train", "demo", "--run", "runs/seen", "--profile", *tiny_flags(data__path="text.txt"))
    assert (said.code, said.err) == (0, "")
    assert "profile of runs/seen: steps 5 to 7, " in said.out
    assert (
        "profile: runs/seen/profile/summary.txt, trace-step-5.json.gz (open it at https://ui.perfetto.dev)" in said.out
    )
    assert "trainwell sample runs/seen --prompt" in said.out
    ends = [run / "checkpoints" / "step-12" / "tensors.safetensors" for run in (finished, Path("runs/seen"))]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_profile_takes_no_steps_a_second_time(refused: Refused, finished: Path) -> None:
    said = refused(2, "train", f"{finished}@8", "--steps", "1", "--profile")
    assert "--steps 1 takes steps of RUN@STEP again and writes nothing; --profile would have no effect" in said


def test_dry_run_prints_what_it_comes_to_and_writes_nothing(
    command: Command, tiny_flags: Flags, own_folders: Path
) -> None:
    said = command("train", "demo", "--dry-run", *tiny_flags())
    assert said.code == 0
    assert said.out.startswith("demo: 7,680 parameters, 12 steps of 4 x 16 = 64 tokens, 768 in all\n")
    assert "folder: runs/demo (nothing was written)" in said.out
    assert not (own_folders / "runs").exists()


def test_a_warning_is_printed_before_step_0_with_the_line_to_change(command: Command, tiny_flags: Flags) -> None:
    said = command("train", "demo", *tiny_flags(schedule__dialect="build-nanogpt", schedule__warmup="2"))
    assert said.code == 0
    warning = (
        "warning: the peak 3e-3 comes twice: on the last step of the warmup and on the one after it; "
        "`schedule.dialect: nanogpt` changes that\n"
    )
    assert warning in said.out
    assert said.out.index(warning) < said.out.index("step    0 |")


def test_strict_refuses_a_plan_with_warnings_before_any_work(
    refused: Refused, tiny_flags: Flags, own_folders: Path
) -> None:
    flags = tiny_flags(schedule__dialect="build-nanogpt", schedule__warmup="2", optim__clip_from="warmup")
    for tokens in ([], ["--dry-run"]):
        said = refused(1, "train", "demo", "--strict", *tokens, *flags).splitlines()
        assert said[0] == "--strict: the plan has 3 warnings, so nothing was started:"
        assert "  the first 2 steps are not clipped, during the warmup; `optim.clip_from: 0` changes that" in said
        assert said[-1] == "Change them, or start without --strict"
    assert not (own_folders / "runs").exists()
    assert "the plan has one warning" in refused(1, "train", "demo", "--strict", *tiny_flags(optim__clip_from="warmup"))


def test_strict_starts_a_plan_without_warnings(command: Command, tiny_flags: Flags) -> None:
    said = command("train", "demo", "--strict", "--dry-run", *tiny_flags())
    assert (said.code, said.err) == (0, "")


def test_strict_needs_a_length_that_can_be_counted(refused: Refused, tiny_flags: Flags) -> None:
    said = refused(2, "train", "demo", "--strict", *tiny_flags(duration="5 minutes"))
    assert "the duration of 5 minutes becomes steps only then; give --duration in steps, tokens or epochs" in said


def test_strict_refuses_data_that_a_script_gives(refused: Refused) -> None:
    with parts.given({"data": [1, 2, 3]}):
        said = refused(2, "train", "demo", "--strict")
    assert said == "--strict checks a plan of configured data; this script gives its own\n"


def test_a_finished_run_says_so_and_what_to_do_next(command: Command, finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    said = command("train", str(finished))
    assert said.code == 0
    assert "runs/tiny is finished: 12 of 12 steps" in said.out
    assert f"trainwell train {finished}@last --run" in said.out
    assert (finished / "metrics.jsonl").read_bytes() == before


def without_last_steps(run: Path) -> None:
    """As it was when it had only reached step 8."""
    for step in saved_steps(run / "checkpoints"):
        if step > 8:
            shutil.rmtree(run / "checkpoints" / f"step-{step}")


def test_a_run_continues_by_its_name_to_the_same_end(command: Command, finished: Path) -> None:
    end = (finished / "checkpoints" / "step-12" / "tensors.safetensors").read_bytes()
    losses = [row["train/loss"] for row in MetricsFile(finished / "metrics.jsonl").read().train]
    without_last_steps(finished)
    said = command("train", str(finished))
    assert said.code == 0
    assert "continuing runs/tiny from step 8 of 12" in said.out
    assert (finished / "checkpoints" / "step-12" / "tensors.safetensors").read_bytes() == end
    assert [row["train/loss"] for row in MetricsFile(finished / "metrics.jsonl").read().train] == losses
    assert [path.name for path in (finished / "attempts").iterdir()] == ["001.jsonl"]


def test_a_step_is_branched_from_into_a_folder_of_its_own(command: Command, finished: Path) -> None:
    said = command("train", f"{finished}@8", "--run", "runs/branch", "--optim.lr", "1e-4", "--duration", "10")
    assert said.code == 0
    assert "branching from runs/tiny at step 8 into runs/branch" in said.out
    assert rows("runs/branch") == [8, 9]
    assert load("runs/branch/config.yaml").optim.lr == 1e-4
    assert '"parent": "runs/tiny@8"' in RunDir(Path("runs/branch")).env_json.read_text()
    assert rows(finished) == list(range(12))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["runs/tiny@8"], r"a branch needs a folder of its own; name it with --run NEW"),
        (["runs/tiny@7", "--run", "runs/b"], r"runs/tiny has no checkpoint of step 7; it has .*8.*12"),
        (["runs/tiny@soon", "--run", "runs/b"], r"'soon' is not a step"),
        (["runs/none@8", "--run", "runs/b"], r"there is no run in runs/none"),
        (["runs/tiny", "--run", "runs/b"], r"continues in its own folder; to branch from it write runs/tiny@last"),
        (["runs/tiny", "--optim.lr", "1"], r"optim\.lr: 0\.003 there, 1\.0 wanted"),
        (["runs/tiny", "--duration", "20"], r"duration: 12 there, 20 wanted"),
        (["demo", "--run", "runs/tiny"], r"already holds a run with other settings"),
        (["runs/tiny@8", "--run", "runs/b", "--model.width", "32"], r"do not fit"),
        (["runs/tiny@8", "--run", "runs/b", "--optim.name", "muon"], r"do not fit"),
    ],
)
def test_what_does_not_fit_a_run_is_refused(
    refused_late: Refused, finished: Path, tokens: list[str], message: str
) -> None:
    assert re.search(message, refused_late(2, "train", *tokens))
    assert not Path("runs/b/checkpoints").exists()


@pytest.fixture
def refused_late(command: Command) -> Refused:
    """As `refused`, for what is only seen when the weights are read: the summary may have been printed."""

    def call(code: int, *tokens: str) -> str:
        said = command(*tokens)
        assert said.code == code
        assert "unexpected error" not in said.err
        return str(said.err)

    return call


def test_a_busy_run_is_refused_naming_the_process(refused_late: Refused, finished: Path) -> None:
    with RunDir(finished).lock():
        said = refused_late(73, "train", str(finished))
    assert f"runs/tiny is in use by process {os.getpid()} on " in said


def test_the_command_that_started_a_run_continues_it_passing_over_a_damaged_checkpoint(
    command: Command, finished: Path, tiny_flags: Flags
) -> None:
    (finished / "checkpoints" / "step-12" / "tensors.safetensors").write_bytes(b"gone")
    said = command("train", "demo", "--run", str(finished), *tiny_flags(data__path="text.txt"))
    assert said.code == 0
    assert "passed over runs/tiny/checkpoints/step-12: tensors.safetensors has 4 bytes instead of" in said.out
    assert "continuing runs/tiny from step 8 of 12" in said.out
    assert rows(finished) == list(range(12))


def test_changed_text_is_refused_with_65(refused_late: Refused, finished: Path) -> None:
    Path("text.txt").write_text(Path("text.txt").read_text()[:-1] + "!")
    assert "the data is not what runs/tiny was trained on: fingerprint: " in refused_late(65, "train", str(finished))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--optim.lrr", "1"], "unknown option: --optim.lrr. Did you mean --optim.lr?"),
        (["--optim.lr"], "--optim.lr requires an argument"),
        (["--optim.lr", "abc"], "command line: optim.lr: 'abc' is not allowed; give a number (above 0)"),
        (["--optim.lr", "-1"], "command line: optim.lr: -1 is not allowed; give a number (above 0)"),
        (["--batch-size", "2.5"], "command line: batch_size: 2.5 is not allowed; give a whole number (at least 1)"),
        (["--duration", "5x"], "command line: duration: '5x' has the unit 'x'; allowed are steps, tokens"),
        (["--precision", "fp8"], "command line: precision: 'fp8' is not allowed; give auto, fp32, bf16, fp16"),
        (["--data.corpus", "verdikt"], "there is no corpus 'verdikt'"),
        (["--name", "a/b"], "name: 'a/b' cannot name the run's folder"),
        (["--schedule.dialect", "nanogtp"], "did you mean nanogpt?"),
        (["--init-from", "runs/none"], "init_from: runs/none: the folder is not there; give a run"),
        (["--batch-size", "4", "--batch-tokens", "64"], "batch_size, batch_tokens: 4 and 64 exclude each other"),
        (["--data.corpus", "python-docs", "--data.path", "x"], "data.corpus, data.path: "),
        (["surplus"], "surplus"),
    ],
)
def test_bad_usage_is_one_message_with_the_name_and_what_is_allowed(
    refused: Refused, own_folders: Path, tokens: list[str], message: str
) -> None:
    said = refused(2, "train", "demo", *tokens)
    assert message in said
    assert said.count("\n") == 1
    assert not (own_folders / "runs").exists()


def test_an_unknown_recipe_suggests_the_nearest(refused: Refused) -> None:
    said = refused(2, "train", "demoo")
    assert "there is no recipe 'demoo'; recipes are book, classify, demo, gpt2-124m, " in said
    assert said.endswith("did you mean demo?\n")


def test_a_missing_config_file_says_how_to_write_one(refused: Refused) -> None:
    said = refused(2, "train", "my.yaml")
    assert "there is no config file my.yaml; `trainwell show demo --yaml > my.yaml` writes one" in said


def test_a_typo_in_a_file_names_the_file_and_the_nearest_key(refused: Refused, own_folders: Path) -> None:
    (own_folders / "my.yaml").write_text("seed: 3\noptim: {lrr: 1e-3}\n")
    for tokens in (["my.yaml"], ["--config", "my.yaml"], ["demo", "--config", "my.yaml"]):
        assert refused(2, "train", *tokens) == "file my.yaml: optim.lrr: there is no such key; did you mean optim.lr?\n"


def test_several_mistakes_are_reported_at_once_each_with_its_source(refused: Refused, own_folders: Path) -> None:
    (own_folders / "my.yaml").write_text("model: {depth: 3, dropout: 2}\n")
    said = refused(2, "train", "my.yaml", "--duration", "5x", "--optim.betas", "1,2").splitlines()
    assert said[0] == "4 mistakes in the configuration:"
    assert sorted(line.split(": ")[0].strip() for line in said[1:]) == ["command line"] * 2 + ["file my.yaml"] * 2
    assert {line.split(": ")[1] for line in said[1:]} == {"model.depth", "model.dropout", "duration", "optim.betas"}


def test_mistakes_between_keys_are_reported_at_once(refused: Refused) -> None:
    said = refused(2, "train", "demo", "--schedule.warmup", "200%", "--model.num-heads", "3", "--schedule.min-lr", "1")
    assert said.startswith("3 mistakes in the configuration:")
    assert all(key in said for key in ("schedule.warmup", "model.num_heads", "schedule.min_lr"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"data\.path: .*mine\.txt does not exist"),
        (b"", r"data\.path: .*mine\.txt is empty"),
        (b"abc" * 100 + b"\xff" + b"abc" * 100, r"mine\.txt is not UTF-8: byte 0xff at offset 300"),
        (b"hello there", r"9 .* 2 tokens, fewer than one window: data\.seq_len 128"),
    ],
)
def test_bad_text_is_65_and_says_what_is_wrong_with_it(
    refused: Refused, own_folders: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (own_folders / "mine.txt").write_bytes(content)
    assert re.search(message, refused(65, "train", "demo", "--data.path", "mine.txt"))
    assert not (own_folders / "runs").exists()


def test_a_recipe_without_text_asks_for_one(refused: Refused) -> None:
    assert "give one with --data.path FILE_OR_FOLDER" in refused(2, "train", "gpt2-124m")


def test_a_folder_of_something_else_is_not_trained_into(refused: Refused, own_folders: Path) -> None:
    (own_folders / "thesis").mkdir()
    (own_folders / "thesis" / "chapter-1.txt").write_text("mine")
    assert "--run thesis: it exists and holds no run" in refused(2, "train", "demo", "--run", "thesis")
    assert [path.name for path in (own_folders / "thesis").iterdir()] == ["chapter-1.txt"]


def test_a_run_that_diverges_ends_with_70(refused_late: Refused, tiny_flags: Flags) -> None:
    said = refused_late(70, "train", "demo", *tiny_flags(optim__lr="1e38", optim__max_grad_norm="none"))
    assert "steps in a row up to step" in said
    assert "Lower optim.lr" in said


def test_a_flag_of_ones_own_is_recorded(command: Command, tiny_flags: Flags) -> None:
    said = command("train", "demo", "--dry-run", "--extra.alpha", "0.5", *tiny_flags())
    assert said.code == 0


def test_the_yaml_that_show_prints_trains_the_same_run(command: Command, tiny_flags: Flags, own_folders: Path) -> None:
    (own_folders / "mine.yaml").write_text(command("show", "demo", "--yaml", *tiny_flags(seed="4")).out)
    by_file = command("train", "mine.yaml", "--dry-run", "--name", "demo")
    by_flags = command("train", "demo", "--dry-run", *tiny_flags(seed="4"))
    assert by_file.code == 0
    assert by_file.out == by_flags.out


def test_a_dry_run_of_a_duration_in_minutes_says_that_its_steps_are_measured(
    command: Command, tiny_flags: Flags, own_folders: Path
) -> None:
    said = command("train", "demo", "--dry-run", *tiny_flags(duration="5 minutes"))
    assert said.code == 0
    assert "duration: 5 minutes is a time" in said.out
    assert not (own_folders / "runs").exists()


def test_a_key_may_change_on_resume_when_that_is_allowed_by_name(command: Command, finished: Path) -> None:
    without_last_steps(finished)
    refused = command("train", str(finished), "--optim.max-grad-norm", "0.5")
    assert refused.code == 2
    said = command("train", str(finished), "--optim.max-grad-norm", "0.5", "--allow-change", "optim.max_grad_norm")
    assert (said.code, said.err) == (0, "")
    noted = next(line for line in said.out.splitlines() if "optim.max_grad_norm" in line)
    assert said.out.index(noted) < said.out.index("step   11 |")
    assert rows(finished) == list(range(12))


def test_a_branch_leaves_out_the_data_of_steps(command: Command, finished: Path) -> None:
    said = command("train", f"{finished}@8", "--run", "runs/branch", "--skip", "2")
    assert (said.code, said.err) == (0, "")
    assert load("runs/branch/config.yaml").data.skip == "8+2"
    assert rows("runs/branch") == [8, 9, 10, 11]
    losses = [
        [row["train/loss"] for row in MetricsFile(Path(run) / "metrics.jsonl").read().train[-4:]]
        for run in (finished, "runs/branch")
    ]
    assert losses[0] != losses[1]


def test_a_step_is_taken_again_and_nothing_is_written(command: Command, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    said = command("train", f"{finished}@8", "--steps", "1")
    assert (said.code, said.err) == (0, "")
    assert "step    8 | loss: " in said.out
    assert "equal to the record, bit for bit" in said.out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["demo", "--steps", "3"], "demo names no step of one; write trainwell train runs/NAME@STEP --steps 1"),
        (["runs/tiny", "--steps", "3"], "How long a run is, is its --duration"),
        (["runs/none@3", "--steps", "3"], "runs/none@3 names no step of one"),
        (["runs/tiny@8", "--steps", "1", "--run", "runs/b"], "writes nothing; --run would have no effect"),
        (["runs/tiny@8", "--steps", "1", "--skip", "1", "--strict"], "--strict and --skip would have no effect"),
        (["runs/tiny@8", "--steps", "0"], "--steps"),
        (["runs/tiny@8", "--run", "runs/b", "--skip", "0"], "--skip"),
        (["runs/tiny", "--skip", "2"], "train runs/tiny@STEP --run NEW --skip 2"),
        (["demo", "--skip", "2"], "batches are left out where a branch begins"),
        (["runs/tiny", "--allow-change", "optim.lrr"], "optim.lrr"),
    ],
)
def test_a_flag_of_replay_branch_or_resume_where_it_means_nothing_is_refused(
    refused: Refused, finished: Path, tokens: list[str], message: str
) -> None:
    assert message in refused(2, "train", *tokens)


def test_a_fault_that_cannot_be_read_is_refused_before_any_work(
    refused: Refused, own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWELL_FAULT", "after_lunch@3")
    assert "'after_lunch@3' is no fault; write point@step" in refused(2, "train", "demo")
    assert not (own_folders / "runs").exists()
