"""The comparison with peers: its figures, its order, its tables, and that everybody trains the same model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.speed import compare, extras, figures, page, processes, whole
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.tree import ModelConfig
from trainwell.planning.model_size import count_parameters, flops_per_token

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50)


@given(TIMES)
def test_a_spread_is_in_order(values: list[float]) -> None:
    found = figures.spread(values)
    assert found.least <= found.low <= found.median <= found.high <= found.most
    assert (found.least, found.most, found.count) == (min(values), max(values), len(values))


def test_a_spread_of_nothing_is_not_a_number() -> None:
    found = figures.spread([])
    assert math.isnan(found.median)
    assert found.count == 0


def test_quartiles_are_those_of_a_hand_computed_case() -> None:
    assert figures.spread([5.0, 1.0, 2.0, 3.0, 4.0]) == figures.Spread(3.0, 2.0, 4.0, 1.0, 5.0, 5)


@given(st.lists(st.integers(), max_size=9))
def test_there_and_back_meets_a_drift_in_a_line_equally(entries: list[int]) -> None:
    order = figures.there_and_back(entries)
    assert order == order[::-1]
    assert all(place + len(order) - 1 - place == len(order) - 1 for place in range(len(entries)))
    assert figures.there_and_back("ABC") == list("ABCCBA")


def test_utilisation_is_flops_done_over_flops_possible() -> None:
    assert figures.utilisation(1000, 600e6, 1200) == pytest.approx(0.5)


def test_losses_are_compared_over_the_steps_that_both_have() -> None:
    assert figures.largest_difference([1.0, 2.0, 9.0], [1.0, 2.5]) == 0.5
    assert math.isnan(figures.largest_difference([], [1.0]))


def test_a_table_is_markdown_whose_columns_stand_below_each_other() -> None:
    assert figures.table(["", "ms"], [["ours", "9"], ["a peer", "1,000"]]) == [
        "|        |    ms |",
        "| ------ | ----: |",
        "| ours   |     9 |",
        "| a peer | 1,000 |",
    ]


def test_milliseconds_have_a_digit_where_they_are_few() -> None:
    assert figures.shown_ms(figures.spread([0.0352, 0.0352])) == "35.2 (35.2-35.2)"
    assert figures.shown_ms(figures.spread([2.0, 2.0])) == "2,000 (2,000-2,000)"


def test_a_promise_holds_does_not_hold_or_was_not_measured() -> None:
    asked = {"speed": (1.8, 1.7, True), "memory": (0.9, 0.75, False), "stall": (math.nan, 0.25, False)}
    assert [line.rpartition(": ")[2] for line in figures.verdicts(asked)] == ["holds", "DOES NOT HOLD", "not measured"]


def test_a_stall_is_in_the_step_after_the_one_that_was_saved() -> None:
    seconds = [1.0, 1.1, 1.5, 1.1, 1.0, 1.0]  # of steps 1, 2, ...: a save after step 2
    found = extras.stalls(seconds, [2], warm_up=1)
    assert (found["step_s"], found["stall_s"]) == (1.0, 0.5)


@pytest.mark.parametrize("name", ["124m-2x256", "124m-4x1024", "tiny"])
def test_a_case_counts_what_our_own_formulas_count(name: str) -> None:
    from benchmarks.speed.cases import CASES

    case = CASES[name]
    shape = ModelConfig(num_layers=case.num_layers, num_heads=case.num_heads, width=case.width)
    assert case.parameters == count_parameters(shape, case.vocab_size, case.seq_len).total
    ours = flops_per_token(shape, case.vocab_size, case.seq_len)
    assert case.flops_per_token == pytest.approx(ours, rel=0.02)  # biases and norms count here, and not there


def test_rows_follow_each_other_and_begin_again_where_tokens_end() -> None:
    import numpy as np
    from benchmarks.speed.cases import Examples

    examples = Examples(np.arange(11), 4, 5)
    inputs = [examples[index][0].tolist() for index in range(len(examples))]
    assert inputs == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert examples[1][1].tolist() == [5, 6, 7, 8]
    with pytest.raises(IndexError):
        examples[5]


@pytest.mark.usefixtures("one_thread")
def test_all_models_compute_the_same_from_the_same_weights(tmp_path: Path) -> None:
    import torch
    from benchmarks.speed import names, peers
    from benchmarks.speed.cases import CASES, draw_weights, prepare
    from benchmarks.speed.clock import Job
    from benchmarks.speed.plain import PlainGPT
    from llms_from_scratch.ch04 import GPTModel  # type: ignore[import-untyped, unused-ignore]

    from trainwell.model.gpt2 import GPT2
    from trainwell.model.hf import read_state

    case = CASES["smallest"]
    prepare(case, tmp_path)
    weights = draw_weights(case)
    ids = torch.randint(case.vocab_size, (2, case.seq_len), generator=torch.Generator().manual_seed(3))
    plain = PlainGPT(case)
    plain.load_state_dict(weights)
    ours = GPT2(vocab_size=65, seq_len=16, num_layers=2, num_heads=2, width=32)
    ours.load_state_dict(read_state(tmp_path / "gpt2", ours))
    book = GPTModel(peers._in_the_book(Job(case, "fp32", ours=False, steps=1, folder=tmp_path)))
    missing, unknown = book.load_state_dict(names.to_book(weights), strict=False)
    assert not unknown
    assert all(name.endswith("mask") for name in missing)
    assert torch.allclose(plain(ids), ours(ids), atol=1e-6)
    assert torch.allclose(plain(ids), book(ids), atol=1e-6)
    assert names.to_nanogpt(weights)["lm_head.weight"] is weights["wte.weight"]


@pytest.mark.slow
def test_the_folder_is_one_that_transformers_reads(tmp_path: Path) -> None:
    import torch
    from benchmarks.speed.cases import CASES, draw_weights, prepare
    from benchmarks.speed.plain import PlainGPT
    from transformers import GPT2LMHeadModel

    case = CASES["smallest"]
    prepare(case, tmp_path)
    plain = PlainGPT(case)
    plain.load_state_dict(draw_weights(case))
    ids = torch.arange(16)[None]
    theirs: Any = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")
    assert torch.allclose(plain(ids), theirs(ids).logits, atol=1e-6)


def test_our_environment_gives_way_to_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert processes.environment(ours=True)["GOMP_SPINCOUNT"] == "10000"
    assert "GOMP_SPINCOUNT" not in processes.environment(ours=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert "GOMP_SPINCOUNT" not in processes.environment(ours=True)


def test_a_process_without_an_answer_says_how_it_ended() -> None:
    ended = processes.Ended(3, 0.1, 10**6, "", "no such thing")
    assert ended.answer == {"left_out": "failed with exit code 3: no such thing"}
    assert processes.Ended(0, 0.1, 10**6, 'noise\n{"a": 1}\n', "").answer == {"a": 1}


def test_what_is_ours_runs_once_and_peers_with_each_kind_of_settings() -> None:
    titles = [entry.title for entry in compare.entries(["ours", "raw-ours-model", "raw"], ["documented", "ours"])]
    assert titles == ["ours", "raw-ours-model", "raw, documented", "raw, ours"]


def test_time_to_a_loss_is_that_of_the_first_evaluation_that_has_it() -> None:
    course = [{"seconds": 0.0, "val_loss": 4.0}, {"seconds": 8.0, "val_loss": 2.0}, {"seconds": 16.0, "val_loss": 1.9}]
    assert whole.seconds_to(course, 2.0) == 8.0
    assert whole.seconds_to(course, 1.0) is None


def result_with(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = {"case": {}, "tokens": "dice", "steps": 20, "rows": rows, "ceiling": {"left_out": "no"}}
    return {"machine": {"cores": "2"}, "quick": False, "cases": {"124m-2x256 fp32": found}, "whole": {}, "extras": {}}


def row_of(name: str, seconds: float, settings: str = "documented", difference: float = 0.0) -> dict[str, Any]:
    row: dict[str, Any] = {
        "title": name,
        "name": name,
        "settings": settings,
        "step_s": vars(figures.spread([seconds])),
        "notes": {},
    }
    row |= {"tokens_per_s": 512 / seconds, "first_step_s": 1.0, "peak_bytes": 10**9, "data_wait_share": None}
    return row | {"loss_difference": difference}


def test_promises_are_kept_against_the_best_peer_and_not_against_a_bound() -> None:
    rows = [row_of("ours", 1.0), row_of("raw", 1.01), row_of("book", 3.0), row_of("trainer", 2.0, difference=2e-4)]
    rows += [row_of("trainer", 1.2, "ours"), row_of("raw-ours-model", 0.995), row_of("nanogpt", 4.0, difference=1e-2)]
    asked = page.promises(result_with(rows))
    assert asked["fp32 over the best documented peer"][0] == 2.0
    assert asked["fp32 over the best peer with our settings"][0] == 1.2
    assert asked["fp32 losses, largest difference"][0] == 2e-4
    assert asked["overhead over the plain loop at 124M"][0] == pytest.approx(0.005, abs=1e-4)
    assert math.isnan(asked["bf16 over the book's loop (fp32)"][0])


def test_the_page_shows_who_was_left_out_and_why() -> None:
    rows = [row_of("ours", 1.0), {"title": "litgpt", "name": "litgpt", "left_out": "not installed: pip install x"}]
    shown = page.lines(result_with(rows))
    assert "- litgpt: not installed: pip install x" in shown
    assert any(line.startswith("| ours ") and "1,000 (1,000-1,000)" in line for line in shown)
    assert "- fp32 over the best documented peer: nan, at least 1.7: not measured" in shown


def test_a_schedule_of_a_peer_is_its_formula() -> None:
    from benchmarks.speed.recipes import rate

    assert rate(0) == pytest.approx(1e-3 / 101)
    assert rate(100) == pytest.approx(1e-3)
    assert rate(1050) == pytest.approx(5.5e-4)
    assert rate(2000) == pytest.approx(1e-4)


@pytest.mark.slow
def test_ours_and_the_raw_loop_give_the_same_losses_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.speed.cases import CASES, prepare

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    case, said = CASES["smallest"], list[str]()
    prepare(case, tmp_path)
    asked = compare.entries(["ours", "raw"], ["documented"])
    rows = compare.run(case, "fp32", asked, tmp_path, 3, say=said.append)
    compare.add_ratios(rows, case, {"ceiling_gflops": 100.0, "light_s": 1e-4})
    assert [line.split()[2] for line in said] == ["ours:", "raw,", "raw,", "ours:"]
    assert rows[1]["loss_difference"] < compare.SAME
    assert all(row["step_s"]["count"] == 4 and 0 < row["mfu"] < 1 for row in rows)
    assert rows[0]["times_ours"] == 1.0
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.slow
def test_a_peer_that_is_not_installed_is_left_out_with_the_command_that_installs_it(tmp_path: Path) -> None:
    from benchmarks.speed.cases import CASES, prepare

    prepare(CASES["smallest"], tmp_path)
    (tmp_path / "accelerate.py").write_text("raise ModuleNotFoundError(name='accelerate')")
    arguments = ["accelerate", "--case", "smallest", "--folder", str(tmp_path)]
    ended = processes.start("benchmarks.speed.worker", arguments, ours=False, PYTHONPATH=f"{tmp_path}:src:.")
    assert ended.answer == {"left_out": "not installed (accelerate): pip install '.[bench]'"}
