"""`trainwell show`, from the command line to what is printed."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainwell.cli.app import run
from trainwell.config.load import load
from trainwell.runs.incidents import Incident, SampleLoss, write_incident
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

Command = Callable[..., Any]
Refused = Callable[..., str]

MODEL = ("--data.seq-len", "128", "--model.num-layers", "4", "--model.num-heads", "4", "--model.width", "128")
"""The model whose parameters are counted below."""
RISE = ("--optim.lr", "3e-3", "--schedule.warmup", "10%")
"""The rise of the rate that is looked for below, said here, so that tuning the recipe changes no test."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINWELL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    folder = RunDir(tmp_path / "demo")
    folder.create()
    folder.config_yaml.write_text("name: demo\nduration: 20\nbatch_size: 16\nmicro_batch: 16\n")
    rows = [{"step": step, "train/loss": 5.0 - step / 10, "train/lr": 1e-3} for step in range(10)]
    MetricsFile(folder.metrics_jsonl).append(
        {"step": 0, "val/loss": 5.5}, *rows, {"step": 10, "val/loss": float("nan")}
    )
    return folder.path


def show(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    assert run(["show", *tokens]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    assert run(["show", *tokens]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_without_a_target_it_shows_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys)
    assert text.startswith("demo\n")
    assert "trainwell train demo" in text
    assert text == show(capsys, "demo")
    shaped = show(capsys, *MODEL)
    assert shaped.startswith("demo\n")
    assert "842,624 parameters" in " ".join(shaped.split())


def test_a_flag_changes_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "linear warmup 5 steps to 3e-3" in show(capsys, "demo", "--duration", "50", *RISE)


def test_the_yaml_of_a_recipe_is_a_config_file_that_gives_the_same_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(show(capsys, "demo", "--yaml", "--optim.lr", "2e-3"))
    assert load(str(file)) == load("demo", flags={"optim.lr": "2e-3"})


def test_a_step_of_a_recipe_is_shown_before_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(show(capsys, "demo@40", "--duration", "1200", *RISE).split())
    assert "P x (s + 1)/W = 3e-3 x (40 + 1)/120 = 1.025e-3" in text


def test_a_run_is_reported(capsys: pytest.CaptureFixture[str], a_run: Path) -> None:
    assert "stopped after step 9 of 20" in " ".join(show(capsys, str(a_run)).split())


def test_a_step_of_a_run_shows_what_was_recorded(capsys: pytest.CaptureFixture[str], a_run: Path) -> None:
    assert json.loads(show(capsys, f"{a_run}@3", "--json"))["recorded"]["train/loss"] == 4.7


def test_an_incident_of_a_step_is_explained_and_the_run_counts_it(
    capsys: pytest.CaptureFixture[str], a_run: Path
) -> None:
    samples = (SampleLoss(1, 7, float("nan"), 16, "odd text"), SampleLoss(0, 3, 2.5, 16, "plain text"))
    incident = Incident(3, "loss is nan", True, float("nan"), 2.0, 1e-3, {"loss": 4.0}, (3, 7), samples)
    write_incident(RunDir(a_run), incident)
    text = " ".join(show(capsys, f"{a_run}@3").split())
    assert "reason loss is nan" in text
    assert "example 7: the loss is not finite; of the other 1 it is" in text
    assert "odd text" in text
    assert f"trainwell train {a_run}@3 --steps 1" in text
    facts = json.loads(show(capsys, f"{a_run}@3", "--json"))["incident"]
    assert (facts["loss"], facts["bounds"], facts["samples"][1]["loss"]) == (None, {"loss": 4.0}, 2.5)
    assert facts["explained"] == ["example 7: the loss is not finite; of the other 1 it is"]
    assert "incidents @3" in " ".join(show(capsys, str(a_run)).split())
    assert json.loads(show(capsys, str(a_run), "--json"))["incidents"] == [3]


def test_a_step_without_an_incident_has_none(capsys: pytest.CaptureFixture[str], a_run: Path) -> None:
    assert json.loads(show(capsys, f"{a_run}@3", "--json"))["incident"] is None
    assert json.loads(show(capsys, str(a_run), "--json"))["incidents"] == []
    assert "incident" not in show(capsys, f"{a_run}@3")
    assert "incident" not in show(capsys, str(a_run))


@pytest.mark.parametrize("target", ["demo", "demo@7"])
def test_json_of_a_recipe_is_strict(capsys: pytest.CaptureFixture[str], target: str) -> None:
    assert isinstance(json.loads(show(capsys, target, "--json")), dict)


def test_json_of_a_run_has_null_for_a_loss_that_is_no_number(capsys: pytest.CaptureFixture[str], a_run: Path) -> None:
    facts = json.loads(show(capsys, str(a_run), "--json"))
    assert facts["val"][-1] == {"step": 10, "val/loss": None}
    assert facts["verdict"]["kind"] == "learned"
    assert (facts["steps_done"], facts["num_steps"]) == (10, 20)


def test_the_yaml_of_a_run_is_its_configuration(capsys: pytest.CaptureFixture[str], a_run: Path) -> None:
    assert yaml.safe_load(show(capsys, str(a_run), "--yaml"))["duration"] == 20


def test_the_code_of_the_demo_is_the_plain_loop_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(__file__).parents[2] / "src" / "trainwell" / "reference.py"
    shown = show(capsys, "demo", "--code")
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse(source.read_text(encoding="utf-8")))


def test_a_step_past_the_end_names_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "demo@1200", "--duration", "1200")
    assert "demo@1200: the run has 1200 steps; the last one taken is @1199" in said


def test_a_recipe_has_no_best_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert "only a run has a best step" in refused(capsys, "demo@best")


def test_a_run_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], a_run: Path) -> None:
    assert "is a run and is shown as it is" in refused(capsys, str(a_run), "--optim.lr", "1")


def test_two_forms_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give one of them" in refused(capsys, "demo", "--yaml", "--json")


def test_an_unknown_recipe_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "demo" in refused(capsys, "dmo")


def test_json_of_a_recipe_has_its_curve_and_its_batch(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(show(capsys, "gpt3-125m", "--json"))
    assert facts["curve_columns"] == ["step", "tokens", "lr", "batch_size"]
    assert 100 < len(facts["curve"]) <= 200
    assert facts["curve"][0] == [0, 0, 0.0, 16]
    assert facts["curve"][-1][0] == facts["num_steps"] - 1
    assert facts["batch_ramp_steps"] == 22_565
    assert {joint["what"]: joint["batch"] for joint in facts["joints"]}["full batch"] == 256


def test_a_large_recipe_says_what_it_takes_and_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(show(capsys, "llama-1b").split())
    assert "llama, 16 layers, 32 heads over 8 of keys and values, 2048 wide, 1,076,168,704 parameters" in text
    assert " GB in bf16 with micro-batches of 4: " in text
    assert "speed about 49k tokens a second on an H100, 15k on an A100 at 40 % of the peak: 4 d 17 h and " in text


def test_a_small_recipe_says_what_it_takes_and_gives_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(show(capsys, "llama-tiny").split())
    assert " MB in fp32 with micro-batches of 8: " in text
    assert "tokens a second" not in text


def test_json_of_a_recipe_has_its_memory_by_part_and_its_speed(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(show(capsys, "llama-1b", "--json"))
    memory = facts["memory"]
    assert (memory.pop("precision"), memory.pop("micro_batch")) == ("bf16", 4)
    assert memory.pop("total") == sum(memory.values())
    assert memory["parameters"] == 4 * 1_076_168_704
    assert [speed["device"] for speed in facts["speed"]] == ["H100", "A100"]
    assert {speed["utilisation"] for speed in facts["speed"]} == {0.4}
    assert json.loads(show(capsys, "demo", "--json"))["speed"] == []
    unknown = json.loads(
        show(capsys, "llama-1b", "--data.tokenizer", "chars", "--model.pad-vocab-to", "null", "--json")
    )
    assert (unknown["memory"], unknown["speed"]) == (None, [])


def test_json_of_a_step_has_the_formula_of_the_batch_and_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(show(capsys, "demo@3", "--json"))
    assert len(facts["text"]["indices"]) == facts["batch_size"]
    assert facts["text"]["windows"][0]["example"] == facts["first_example"]
    assert facts["batch_because"]
    assert "--data.path" in json.loads(show(capsys, "gpt3-125m@3", "--json"))["text"]["missing"]


def test_a_step_of_a_run_whose_text_is_unknown_says_so(capsys: pytest.CaptureFixture[str], a_run: Path) -> None:
    assert "the text cannot be shown: the run did not record" in show(capsys, f"{a_run}@3")


def test_pictures_of_recipes_and_runs_are_written(
    capsys: pytest.CaptureFixture[str], a_run: Path, tmp_path: Path
) -> None:
    png, svg = tmp_path / "a.png", tmp_path / "a.svg"
    assert show(capsys, "demo", "--png", str(png)) == f"wrote {png}\n"
    assert png.read_bytes().startswith(b"\x89PNG")
    show(capsys, str(a_run), "--svg", str(svg))
    assert "recorded" in svg.read_text()


def test_json_of_a_run_has_its_plan(capsys: pytest.CaptureFixture[str], a_run: Path) -> None:
    assert json.loads(show(capsys, str(a_run), "--json"))["plan"]["num_steps"] == 20


def test_a_picture_of_one_step_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave out @STEP" in refused(capsys, "demo@3", "--png", "a.png")


def test_what_is_nowhere_is_said_to_be_nowhere(refused: Refused) -> None:
    assert "there is nothing at runs/nope: no run and no config file" in refused(2, "show", "runs/nope")


def test_a_picture_is_not_written_under_the_name_of_another_kind(refused: Refused) -> None:
    assert "--png x.svg: the picture would be PNG; name a file that ends in .png" in refused(
        2, "show", "demo", "--png", "x.svg"
    )


def test_what_else_is_scheduled_is_shown_with_a_step(command: Command) -> None:
    said = command("show", "demo@0", "--schedule.final-weight-decay", "0", "--schedule.initial-momentum", "0.5").out
    assert "weight decay  0.1" in said
    assert "momentum      0.5" in said


def test_a_file_of_the_users_own_is_never_named_as_one_to_write(command: Command, own_folders: Path) -> None:
    (own_folders / "my.yaml").write_text("duration: 100\n")
    assert "> my" not in command("show", "my.yaml").out
    assert "> my-demo.yaml" in command("show", "demo").out
