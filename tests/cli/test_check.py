"""`trainwell check`, from the command line to what is printed and how it ends."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainwell.config.load import recipe_names

Command = Callable[..., Any]
Refused = Callable[..., str]
Flags = Callable[..., list[str]]

QUIET = ("--data.corpus", "none", "--eval.batches", "0")
"""The recipe `demo` without a text, which has nothing to say."""
TWICE = ("--schedule.dialect", "build-nanogpt")

ALONE = """
import sys
from trainwell.cli.app import run
code = run(sys.argv[1:])
loaded = [name for name in ("torch", "numpy", "matplotlib") if name in sys.modules]
sys.stderr.write(f"exit code {code}, loaded {loaded}")
"""


@pytest.fixture(autouse=True)
def wide(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_a_finding_says_what_where_why_and_the_line_to_change(command: Command) -> None:
    said = command("check", "demo", *QUIET, *TWICE)
    assert (said.code, said.err) == (0, "")
    assert [line.rstrip() for line in said.out.splitlines()] == [
        "demo: no mistakes; 1,500 steps, 1.54M tokens",
        "a step takes 8 x 128 = 1,024 tokens",
        "",
        "warning  peak-twice  schedule.dialect",
        "  the peak 3e-3 comes twice: on the last step of the warmup and on the one after it",
        "  where   steps 74 and 75",
        "  why     the first step of the decay does not decay, so all of it comes a step later than with one peak",
        "  change  schedule.dialect: nanogpt",
        "",
        "1 warning, no notes",
        "a change is a line of a config file; on the command line, `key: value` is `--key value`",
        "not checked, because the text is not known: passes over it, the horizon against its length, "
        "the size of the validation text",
    ]


def test_nothing_to_say_is_a_line_of_its_own(command: Command) -> None:
    said = command("check", "demo", *QUIET)
    assert said.code == 0
    assert "no warnings, no notes" in said.out.splitlines()
    assert "a change is" not in said.out


def test_what_a_recipe_accepts_is_shown_with_its_reason(command: Command) -> None:
    said = command("check", "gpt2-124m", "--strict")
    assert said.code == 0
    assert "note  peak-twice" in said.out
    assert "  on purpose  the formula of Karpathy's lecture has the peak on both sides" in said.out


def test_the_change_that_is_shown_works_from_the_command_line(command: Command) -> None:
    assert command("check", "demo", *QUIET, "--schedule.dialect", "nanogpt", "--strict").code == 0


def test_strict_ends_with_1_when_a_warning_stands_and_only_then(command: Command) -> None:
    said = command("check", "demo", *QUIET, *TWICE, "--strict")
    assert said.code == 1
    assert "warning  peak-twice" in said.out
    assert said.err == "trainwell: demo has 1 warning: peak-twice\n"
    assert command("check", "demo", *QUIET, "--strict", "--optim.max-grad-norm", "none").code == 0


def test_json_has_every_finding_and_nothing_else_on_stdout(command: Command) -> None:
    said = command("check", "demo", *QUIET, *TWICE, "--json", "--strict")
    assert said.code == 1
    facts = json.loads(said.out)
    assert (facts["target"], facts["num_steps"], facts["horizon"], facts["warmup"]) == ("demo", 1500, 1500, 75)
    assert (facts["counted_with_text"], facts["warnings"]) == (False, 1)
    (finding,) = facts["findings"]
    assert finding.keys() == {"name", "level", "key", "what", "where", "why", "change", "accepted"}
    assert (finding["name"], finding["change"]) == ("peak-twice", "schedule.dialect: nanogpt")


def test_mistakes_are_all_reported_and_end_it_with_2(refused: Refused) -> None:
    said = refused(2, "check", "demo", "--schedule.warmup", "200%", "--model.num-heads", "3")
    assert said.startswith("2 mistakes in the configuration:\n")
    assert "schedule.warmup: 200% is not shorter than the horizon" in said
    assert "model.num_heads: 3 does not divide" in said
    assert "optim.lr: -1 is not allowed" in refused(2, "check", "demo", "--optim.lr", "-1")
    assert "did you mean nanogpt?" in refused(2, "check", "demo", "--schedule.dialect", "nanogtp")
    assert "there is no recipe 'dmo'" in refused(2, "check", "dmo")
    assert "5 minutes is a time" in refused(2, "check", "demo", "--duration", "5 minutes")


def test_a_config_file_is_checked_as_a_target_or_over_a_recipe(command: Command, own_folders: Path) -> None:
    (own_folders / "my.yaml").write_text(yaml.safe_dump({"schedule": {"dialect": "build-nanogpt"}}))
    for tokens in (["my.yaml"], ["--config", "my.yaml"], ["demo", "--config", "my.yaml"]):
        said = command("check", *tokens, *QUIET)
        assert said.code == 0
        assert "warning  peak-twice" in said.out


def test_a_text_that_is_at_hand_is_counted(command: Command, tiny_flags: Flags) -> None:
    said = command("check", "demo", *tiny_flags(duration="400", eval__every="none"))
    assert said.code == 0
    assert said.out.startswith("demo: no mistakes; 400 steps, 25.6k tokens, ")
    assert "warning  many-passes  duration" in said.out
    assert "not checked" not in said.out


def test_a_text_that_is_missing_is_said(command: Command) -> None:
    said = command("check", "demo", "--data.path", "none.txt", "--eval.batches", "0")
    assert said.code == 0
    assert "not checked, because the text is not known" in said.out
    assert "none.txt does not exist" in said.out


def test_a_run_is_checked_as_it_was_planned_and_takes_no_keys(
    command: Command, refused: Refused, finished: Path
) -> None:
    said = command("check", str(finished))
    assert said.code == 0
    assert said.out.startswith(f"{finished}: no mistakes; 12 steps, 768 tokens, ")
    assert "not checked" not in said.out
    assert "is a run and is checked as it is" in refused(2, "check", str(finished), "--seed", "3")


def test_every_file_of_a_run_is_verified_beside_its_plan(command: Command, finished: Path) -> None:
    said = command("check", str(finished))
    assert said.code == 0
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert f"the files of {finished}: all of it is whole" in lines
    assert any(line.startswith("checkpoints/step-12 whole ") for line in lines)
    assert "metrics.jsonl whole 12 steps" in lines


def test_damage_ends_it_with_74_and_is_named_at_the_end(command: Command, finished: Path) -> None:
    tensors = finished / "checkpoints" / "step-8" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with (finished / "metrics.jsonl").open("a") as file:
        file.write("}{\n")
    said = command("check", str(finished))
    assert said.code == 74
    assert said.err.startswith(f"trainwell: {finished}: 2 of ")
    assert said.err.endswith("parts are damaged: checkpoints/step-8, metrics.jsonl\n")
    assert f"delete {finished / 'checkpoints' / 'step-8'}; nothing needs it" in said.out
    facts = json.loads(command("check", str(finished), "--json").out)
    assert facts["damaged"] == ["checkpoints/step-8", "metrics.jsonl"]
    assert {file["state"] for file in facts["files"]} == {"whole", "damaged"}


def test_a_run_without_its_configuration_is_checked_all_the_same(command: Command, finished: Path) -> None:
    (finished / "config.yaml").unlink()
    said = command("check", str(finished))
    assert said.code == 74
    assert said.err == f"trainwell: {finished}: 1 of 7 parts is damaged: config.yaml\n"


@pytest.mark.parametrize("step", ["8", "last", "best"])
def test_a_step_of_a_run_is_its_checkpoint_alone(command: Command, finished: Path, step: str) -> None:
    (finished / "checkpoints" / "step-4" / "manifest.json").unlink()
    said = command("check", f"{finished}@{step}")
    assert (said.code, said.err) == (0, "")
    assert "no mistakes" not in said.out
    assert len(said.out.splitlines()) == 2


def test_a_step_that_is_damaged_or_missing_is_said(command: Command, refused: Refused, finished: Path) -> None:
    (finished / "checkpoints" / "step-8" / "tensors.safetensors").unlink()
    said = command("check", f"{finished}@8")
    assert (said.code, said.err) == (74, f"trainwell: {finished}@8: tensors.safetensors is missing\n")
    assert "has no checkpoint of step 7; it has: 4, 8, 12" in refused(2, "check", f"{finished}@7")


def test_checking_a_run_writes_nothing_and_needs_no_torch(finished: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}

    before = files()
    done = subprocess.run(
        [sys.executable, "-c", ALONE.replace('"numpy", ', ""), "check", str(finished)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == "exit code 0, loaded []"
    assert files() == before


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--small"], "--small is for --prove"),
        (["--prove", "--strict"], "--prove trains twins"),
        (["--prove", "--tasks", "a.yaml"], "give one of them"),
        (["--limit", "3"], "--limit 3 is for --tasks"),
    ],
)
def test_flags_of_different_checks_do_not_go_together(refused: Refused, tokens: list[str], message: str) -> None:
    assert message in refused(2, "check", "demo", *tokens)


def test_a_step_of_a_recipe_is_refused_saying_what_is_checked(refused: Refused) -> None:
    assert refused(2, "check", "demo@40") == (
        "demo@40: a check looks at all steps of a plan; write `trainwell check demo`, "
        "or see that step with `trainwell show demo@40`\n"
    )


COUNTED_IN_EPOCHS = {"book", "classify", "instruct"}
"""Recipes that cannot be planned without their data."""


@pytest.mark.parametrize("name", sorted({*recipe_names()} - COUNTED_IN_EPOCHS))
def test_a_shipped_recipe_passes_its_own_check(
    command: Command, name: str, own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWELL_DATA_DIR", str(own_folders))
    assert command("check", name, "--strict").code == 0


def test_a_recipe_is_checked_without_torch_and_without_numpy(own_folders: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "check", "gpt3-125m"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == "exit code 0, loaded []"
