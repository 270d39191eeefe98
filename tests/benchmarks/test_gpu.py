"""The benchmark for one GPU: its formulas, how it takes turns, what it writes; and all of it on a CPU, tiny."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.gpu import checks, estimates, kernels, report, shapes, timing
from benchmarks.gpu.board import SECTIONS, Bench, compete, main, verdict
from benchmarks.gpu.ours import Case, How, MasterWeights, make_model, ours
from benchmarks.gpu.peers import Stepped
from benchmarks.gpu.plain import plain_gpt, plain_model, raw_loop

from trainwell.data.batches import MicroBatch
from trainwell.model.loss import token_loss

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NANO = shapes.Shape("nano", layers=1, heads=2, width=16, vocab=64, seq_len=8, micro_batches=(2,))
CASE = Case(NANO, 2, CPU, compiled=False)


def a_report(folder: Path) -> report.Report:
    made = report.Report({"date": "2026-03-01T12:30:00+00:00", "device": "A GPU, 80GB", "cuda": None}, folder)
    made.section("Part")
    return made


def a_bench(folder: Path, budget_s: float = 60.0) -> Bench:
    return Bench(CPU, False, False, 2, a_report(folder), budget_s, time.perf_counter(), _until=math.inf)


def test_parameters_of_gpt2_are_the_published_ones() -> None:
    gpt2 = shapes.Shape("124M", 12, 12, 768, vocab=50257, seq_len=1024, micro_batches=(1,))
    assert gpt2.parameters == 124_439_808
    medium = shapes.Shape("350M", 24, 16, 1024, vocab=50257, seq_len=1024, micro_batches=(1,))
    assert medium.parameters == 354_823_168


def test_parameters_are_those_of_the_model_itself() -> None:
    assert NANO.parameters == sum(weight.numel() for weight in make_model(NANO, CPU).parameters())


def test_mfu_of_gpt2_124m_by_hand() -> None:
    gpt2 = shapes.Shape("124M", 12, 12, 768, vocab=50257, seq_len=1024, micro_batches=(1,))
    assert gpt2.flops_per_token == 6 * 123_653_376 + 12 * 12 * 12 * 64 * 1024 == 855_166_464
    assert shapes.mfu(gpt2, 1e6) == pytest.approx(0.86468, abs=1e-5)


def test_the_products_of_a_step_are_what_the_formula_counts() -> None:
    products = shapes.GPT2_124M.matmuls(1)
    block = sum(2 * math.prod(products[name]) for name in ("qkv", "attention out", "up", "down"))
    head = 2 * math.prod(products["head forward"])
    matrices = 12 * 12 * 768**2 + 50304 * 768
    assert 3 * (12 * block + head) == 6 * matrices


def test_tokens_are_the_same_for_a_seed_and_the_commonest_come_first() -> None:
    tokens = shapes.make_tokens(4096, 100, seed=3)
    assert tokens.dtype == "uint16"
    assert tokens.max() < 100
    assert (tokens == 0).sum() > (tokens == 50).sum()
    shapes.make_tokens.cache_clear()
    assert (shapes.make_tokens(4096, 100, seed=3) == tokens).all()


def test_turns_go_up_the_list_and_down_again() -> None:
    assert timing.turns(2, 4) == [0, 1, 1, 0, 0, 1, 1, 0]
    assert timing.turns(3, 2) == [0, 1, 2, 2, 1, 0]


def test_a_race_times_as_many_steps_of_each() -> None:
    taken: list[str] = []
    racers = [timing.Contender(name, lambda name=name: taken.append(name), 8) for name in "ab"]  # type: ignore[misc]
    timing.race(racers, 20, CPU)
    assert [len(each.times_ms) for each in racers] == [20, 20]
    assert "".join(taken) == "aaaaabbbbb" + "bbbbbaaaaa" + "aaaaabbbbb" + "bbbbbaaaaa"


def test_speed_and_spread_by_hand() -> None:
    racer = timing.Contender("a", lambda: None, 1000, times_ms=[9.0, 10.0, 10.0, 11.0, 100.0])
    assert racer.median_ms == 10
    assert racer.tokens_per_second == 100_000
    assert racer.spread == pytest.approx((55.5 - 9.5) / 10)


def test_a_kernel_that_says_both_is_attention_and_not_a_product() -> None:
    named = {
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>": "attention",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma": "attention",
        "nvjet_tst_256x128_64x4_2x1_v_bz_coopB_TNT": "matmul",
        "sm90_xmma_gemm_bf16bf16_bf16f32": "matmul",
        "triton_red_fused__log_softmax__log_softmax_backward_data_nll_loss_backward_10": "loss",
        "void at::native::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>>": "optimizer",
        "triton_poi_fused_gelu_2": "other",
        "Memcpy HtoD (Pinned -> Device)": "copies",
    }
    assert {name: kernels.kind_of(name) for name in named} == named


def test_shares_and_idle_time_by_hand() -> None:
    runs = [kernels.Kernel("a_gemm", 0, 40), kernels.Kernel("flash", 30, 60), kernels.Kernel("a_gemm", 80, 100)]
    found = kernels.summed(runs)
    assert kernels.busy(runs) == 80
    assert found.table == [("a_gemm", "matmul", 2, 0.06), ("flash", "attention", 1, 0.03)]
    assert found.shares["matmul"] == pytest.approx(0.6)
    assert found.shares["attention"] == pytest.approx(0.3)
    assert found.shares["idle"] == pytest.approx(0.2)


def test_all_contenders_begin_with_the_same_loss_and_stay_together() -> None:
    makers: list[Any] = [ours, plain_gpt, raw_loop]
    made = [maker(CASE) for maker in makers]
    losses = [[float(each.step()) for _ in range(5)] for each in made]
    made[0].close()
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert abs(losses[0][0] - math.log(NANO.vocab)) < 0.1


@pytest.mark.parametrize("how", [How(loss="chunked"), How(weights="master"), How(recompute=True)], ids=repr)
def test_a_variant_computes_what_ours_does(how: How) -> None:
    losses = []
    for contender in (ours(CASE), ours(CASE, how)):
        losses.append([contender.step().item() for _ in range(5)])  # type: ignore[union-attr]
        contender.close()
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)


def test_the_plain_model_is_ours_written_out() -> None:
    ids, targets, _ = CASE.windows().gather(CASE.batches().indices(0))
    batch = MicroBatch(torch.from_numpy(ids), torch.from_numpy(targets), 0)
    ours_mean = token_loss(make_model(NANO, CPU), batch) / targets.size
    assert plain_model(CASE)(batch.inputs, batch.targets).item() == pytest.approx(ours_mean.item(), rel=1e-6)


def test_masters_move_the_narrow_weights_and_take_their_gradients() -> None:
    model = make_model(NANO, CPU)
    optimizer = MasterWeights(model)
    inputs, targets = next(CASE.rows())
    token_loss(model, MicroBatch(torch.from_numpy(inputs), torch.from_numpy(targets), 0)).backward()
    masters = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert all(weight.grad is None and weight.dtype == torch.bfloat16 for weight in model.parameters())
    assert all(master.grad.dtype == torch.float32 for master in masters)
    before = model.wte.weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert not torch.equal(model.wte.weight, before)
    assert {master.dtype for master in masters} == {torch.float32}
    rounded = {master.to(torch.bfloat16).double().sum().item() for master in masters}
    assert {weight.double().sum().item() for weight in model.parameters()} == rounded


def test_a_loop_that_is_not_ours_takes_one_step_a_call() -> None:
    done: list[int] = []

    def train(gate: Any) -> None:
        for number in range(100):
            gate()
            done.append(number)

    stepped = Stepped(train)
    assert done == []
    stepped()
    stepped()
    assert done == [0, 1]
    stepped.close()
    assert done == [0, 1]


def test_what_goes_wrong_in_such_a_loop_is_said_where_it_is_called() -> None:
    def train(gate: Any) -> None:
        gate()
        raise ValueError("no such kernel")

    stepped = Stepped(train)
    with pytest.raises(RuntimeError, match="ValueError: no such kernel"):
        stepped()


def test_what_fails_or_is_missing_is_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    def broken(_case: Case) -> timing.Contender:
        raise ValueError("bad kernel\nand much more")

    def missing(_case: Case) -> timing.Contender:
        raise timing.MissingError("it not installed")

    bench = a_bench(tmp_path)
    bench.attempt("x", lambda: None)
    found = compete(bench, CASE, "nano", [("broken", broken), ("missing", missing), ("ours", ours)])
    assert [each.name for each in found] == ["trainwell"]
    text = bench.report.markdown()
    assert "- nano: broken: failed, ValueError: bad kernel\n" in text
    assert "- nano: missing: left out, it not installed\n" in text
    assert "| trainwell " in text


def test_what_there_is_no_time_for_is_left_out_with_a_line(tmp_path: Path) -> None:
    bench = a_bench(tmp_path)
    bench._until = bench.started
    assert compete(bench, CASE, "nano", [("ours", ours)]) == []
    assert "- nano: ours: left out, 0 s of its time are left and about 20 needed\n" in bench.report.markdown()


def test_sections_share_the_time_and_leave_what_is_over_to_the_next(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, budget_s=100)
    ends = []
    for name in ("ceilings", "parity"):
        bench.begin(name, name, ["ceilings", "parity"])
        ends.append(bench._until - bench.started)
    assert ends == pytest.approx([100 * 15 / 35, 100])


def test_the_verdict_is_ours_by_the_fastest_peer_and_the_cost_of_the_trainer(tmp_path: Path) -> None:
    bench = a_bench(tmp_path)
    times = {"trainwell": 100.0, "slow": 150.0, "fast": 120.0, "raw loop, our model": 99.0}
    verdict(bench, CASE, "nano", [timing.Contender(name, lambda: None, 8, times_ms=[ms]) for name, ms in times.items()])
    text = bench.report.markdown()
    assert "nano: the trainer costs +1.01% over the raw loop" in text
    assert "nano: 1.200 times the fastest peer, fast (goal at 124M: 1.15)" in text


def test_a_report_is_a_page_and_json_under_date_and_device(tmp_path: Path) -> None:
    made = a_report(tmp_path)
    made.rows(("what", "ms", "share"), [("a|b", 12345.678, None), ("c", 0.012345, 3)], "Table")
    made.say("a line")
    path = made.write()
    assert path.name == "2026-03-01-1230-gpu-a-gpu-80gb.md"
    page = path.read_text(encoding="utf-8")
    assert "| a/b  | 12,346  | -     |" in page
    assert "| c    | 0.01235 | 3     |" in page
    assert "cuda" not in page
    figures = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    rows = figures["sections"]["Part"]
    assert rows[0] == {"table": "Table", "what": "a|b", "ms": 12345.678, "share": None}
    assert rows[-1] == {"note": "a line"}


def test_a_device_and_itself_have_the_same_losses() -> None:
    difference, first, last = checks.largest_difference(CPU, steps=2)
    assert difference == 0
    assert last < first == pytest.approx(math.log(checks.PARITY.vocab), abs=0.1)


def test_fp32_is_within_the_tolerance_of_fp64() -> None:
    wide = checks.losses(CPU, 5, torch.float64)
    assert wide == pytest.approx(checks.losses(CPU, 5), abs=checks.TOLERANCE / 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("target", "seq_len"), [("gpt2-124m", 1024), ("llama-1b", 2048)])
def test_a_step_takes_the_memory_that_was_estimated_within_a_tenth(target: str, seq_len: int, compiled: bool) -> None:
    plan = estimates.Plan(target, 8, compiled=compiled, steps=1, seq_len=seq_len, model={"num_layers": 6})
    found = dict(zip(estimates.HEADER, estimates.measured(plan, torch.device("cuda")), strict=True))
    assert found["estimated GB"] == pytest.approx(found["peak GB"], rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_command_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--device cpu --small" in capsys.readouterr().out


BLOCKED = "pydantic, cyclopts, rich, matplotlib, yaml, fsspec, regex"
SCRIPT = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
sys.argv = ["gpu", "--device", "cpu", "--small", "--out", {out!r}, "--only", *{sections!r}]
runpy.run_path({folder!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_with_torch_numpy_safetensors_and_tiktoken_alone(tmp_path: Path) -> None:
    script = SCRIPT.format(
        names=BLOCKED.split(", "), out=str(tmp_path), folder=str(ROOT / "benchmarks" / "gpu"), sections=[*SECTIONS]
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found["sections"]) == [title for title, _ in SECTIONS.values()]
    notes = [row["note"] for rows in found["sections"].values() for row in rows if "note" in row]
    failed = [note for note in notes if "failed" in note]
    assert [note for note in failed if "cuDNN" not in note] == []
    assert any(note.startswith("cpu and CPU, fp32") and note.endswith(": holds") for note in notes)
    rows = [row for rows in found["sections"].values() for row in rows]
    assert {"trainwell", "plain GPT, compiled", "chunked head_loss"} <= {row.get("contender") for row in rows}
    assert {row.get("operation") for row in found["sections"]["Bare ceilings"]} >= {"copy", "square", "head gradient"}
    assert path.with_suffix(".md").read_text(encoding="utf-8").startswith("# Training speed on one GPU\n")
