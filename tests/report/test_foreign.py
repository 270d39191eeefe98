"""Logs of other programs: what they print is read as what it means, and what is wrong in them is said."""

import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import ConfigError
from trainwell.report.foreign import read_log


def log(folder: Path, text: str, name: str = "log.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_trainers_state_counts_updates_done(tmp_path: Path) -> None:
    history = [
        {"epoch": 0.1, "grad_norm": 2.5, "learning_rate": 5e-5, "loss": 3.2, "step": 10},
        {"epoch": 0.1, "eval_loss": 3.1, "eval_runtime": 0.2, "step": 10, "num_input_tokens_seen": 5120},
        {"epoch": 0.2, "loss": 2.9, "step": 20},
        {"epoch": 0.2, "step": 20, "train_loss": 3.0, "train_runtime": 9.0},
    ]
    log(tmp_path, json.dumps({"log_history": history, "global_step": 20}), "trainer_state.json")
    found = read_log(tmp_path)
    assert found.kind == "Hugging Face trainer_state.json"
    assert found.train[0] == {"step": 9, "epoch": 0.1, "train/loss": 3.2, "train/lr": 5e-5, "train/grad_norm": 2.5}
    assert found.val == ({"step": 10, "epoch": 0.1, "tokens": 5120, "val/loss": 3.1},)
    assert len(found.train) == 2
    assert "means over the steps" in found.notes[0]


def test_lines_of_build_nanogpt_and_its_log(tmp_path: Path) -> None:
    printed = (
        "using device: cuda\n"
        "validation loss: 10.9511\n"
        "step     0 | loss: 10.955029 | lr 8.3916e-07 | norm: 15.3627 | dt: 25012.11ms | tok/sec: 20961.37\n"
        "step     1 | loss: 10.9 | lr 1.7e-06 | norm: nan | dt: 1000.00ms | tok/sec: 524288.00\n"
        "step    2 | val loss: 9.5\n"
    )
    found = read_log(log(tmp_path, printed), tokens_per_step=524_288)
    assert found.kind == "lines as build-nanogpt prints them"
    assert found.train[0]["train/loss"] == 10.955029
    assert found.train[0]["tokens"] == 524_288
    assert math.isnan(found.train[1]["train/grad_norm"])
    assert found.val == ({"step": 2, "tokens": 1_048_576, "val/loss": 9.5, "time": pytest.approx(26.01211)},)
    assert found.notes == ()
    own = read_log(log(tmp_path, "0 val 10.95\n0 hella 0.2470\n0 train 10.955029\n1 train 10.9\n250 val 6.5\n"))
    assert own.kind == "log.txt of build-nanogpt"
    assert [row["step"] for row in own.val] == [0, 250]


@pytest.mark.parametrize(("wrong", "said"), [("250000.00", "too large"), ("0.25", "too small")])
def test_a_time_that_is_a_thousand_times_off_is_put_right_and_said(tmp_path: Path, wrong: str, said: str) -> None:
    lines = [f"step {step} | loss: 3.0 | dt: {wrong}ms | tok/sec: 4096.00\n" for step in range(5)]
    found = read_log(log(tmp_path, "".join(lines)), tokens_per_step=1024)
    assert found.train[3]["train/step_ms"] == pytest.approx(250)
    assert found.notes == (
        f"its dt is 1000 times {said} for 1,024 tokens a step at its tok/sec; it was put right here",
    )


def test_the_books_lines_are_of_the_weights_after_the_update(tmp_path: Path) -> None:
    text = (
        "Ep 1 (Step 000000): Train loss 9.781, Val loss 9.933\nEp 1 (Iter 000005): Train loss 8.111, Val loss 8.339\n"
    )
    found = read_log(log(tmp_path, f"{text}Every effort moves you,,,,\n"))
    assert found.kind == "lines as the book prints them"
    assert [(row["step"], row["val/loss"]) for row in found.val] == [(1, 9.933), (6, 8.339)]
    assert [row["step"] for row in found.train] == [0, 5]


def test_lines_of_nanogpt(tmp_path: Path) -> None:
    text = "step 0: train loss 4.2874, val loss 4.2823\niter 0: loss 4.2664, time 29392.85ms, mfu -100.00%\n"
    found = read_log(log(tmp_path, text))
    assert found.val == ({"step": 0, "val/loss": 4.2823},)
    assert found.train == ({"step": 0, "train/loss": 4.2664, "train/step_ms": 29392.85},)


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    text = "iter,my loss,eval_loss,tokens\n0,5.0,,100\n1,4.0,4.5,200\nx,1,1,1\n"
    path = log(tmp_path, text, "log.csv")
    found = read_log(path, {"train/loss": "my loss"})
    assert [row["train/loss"] for row in found.train] == [5.0, 4.0]
    assert found.val == ({"step": 1, "tokens": 200.0, "val/loss": 4.5},)
    assert found.notes == ("taken as it is named: step from column iter, val/loss from column eval_loss",)
    with pytest.raises(ConfigError, match=r"no column 'none'; it has iter, my loss, eval_loss, tokens"):
        read_log(path, {"step": "none"})
    lines = "".join(json.dumps({"_step": step, "loss": 5.0 - step}) + "\n" for step in range(3))
    assert len(read_log(log(tmp_path, f"{lines}[1]\nnot json\n", "log.jsonl")).train) == 3


@pytest.mark.parametrize("text", ["", "nothing of note\n", "\x00\x1b[31m", "{}", "[]", '{"log_history": 3}'])
def test_a_file_without_a_known_line_says_what_is_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer_state\.json of Hugging Face's Trainer; lines as build-nanogpt"):
        read_log(log(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_log(tmp_path / "none.txt")


@given(st.binary(max_size=400), st.sampled_from(["a.txt", "a.csv", "a.jsonl", "trainer_state.json"]))
def test_no_bytes_are_too_strange(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("log") / name
    path.write_bytes(content)
    with suppress(ConfigError):
        read_log(path)
