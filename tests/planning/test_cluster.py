"""What a plan takes on many GPUs: the arithmetic by hand, published figures, and when there is nothing to estimate."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.load import load
from trainwell.config.tree import ModelConfig
from trainwell.distributed.parallel import Place, shards
from trainwell.errors import ConfigError
from trainwell.planning.assumed import assumptions
from trainwell.planning.cluster import (
    Cluster,
    Way,
    advised,
    cluster,
    compare,
    device_memory,
    hoffmann_flops,
    parts,
    rounds_of,
    with_recompute,
)
from trainwell.planning.hardware import GPUS, bandwidth, between_nodes, gpu_named
from trainwell.planning.model_size import count_parameters
from trainwell.planning.resolve import resolve
from trainwell.planning.sharding import held, layout, padded, traffic
from trainwell.planning.speed import Timed

LLAMA_8B: dict[str, object] = {
    "model.num_layers": 32,
    "model.width": 4096,
    "model.mlp_width": 14336,
    "model.num_heads": 32,
    "model.num_kv_heads": 8,
    "model.pad_vocab_to": 128256,
    "model.tie_head": False,
    "data.seq_len": 8192,
    "batch_tokens": None,
}
NO_RAMP = {"batch_ramp.from_tokens": None}
AGAIN = LLAMA_8B | {"recompute": True}
PAGE = Path(__file__).parents[2] / "docs" / "estimates.md"


def on(recipe: str, gpu: str, count: int, **flags: object) -> Cluster:
    return cluster(resolve(load(recipe, flags=flags)), gpu_named(gpu), count)


def way(found: Cluster, parallel: Any = "ddp") -> Way:
    return compare(found, parallel)[0]


def per_gpu(found: Cluster, parallel: Any) -> float:
    timing = way(found, parallel).timing
    assert timing is not None
    return timing["infiniband" if found.count > 8 else "link"].tokens_per_second / found.count


shapes = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=5)


@given(shapes, st.integers(1, 70))
def test_the_shards_of_all_ranks_are_the_whole_and_none_is_larger_than_the_padded_one(
    shapes: list[tuple[int, int]], ranks: int
) -> None:
    sizes = [held(shapes, ranks, rank) for rank in range(ranks)]
    assert sum(sizes) == sum(rows * per_row for rows, per_row in shapes)
    assert sizes[0] == max(sizes) == padded(shapes, ranks)


@pytest.mark.parametrize("labels", [None, 3])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"qkv_bias": False, "qk_norm": True, "tie_head": False},
        {"arch": "llama", "num_kv_heads": 2, "qk_norm": True},
        {"arch": "llama", "qkv_bias": True, "tie_head": False, "mlp_width": 100},
    ],
)
def test_the_tensors_add_up_to_the_parameters_of_the_model(keys: dict[str, Any], labels: int | None) -> None:
    model = ModelConfig(**keys)
    count = count_parameters(model, 320, 64, num_labels=labels)
    found = layout(model, 320, 64, labels)
    assert found.total == found.held(1) == found.padded(1) == count.total
    assert len(found.block) * model.num_layers + len(found.root) == count.decayed_tensors + count.not_decayed_tensors


def test_a_ring_sends_what_is_written_in_the_books() -> None:
    model = layout(ModelConfig(num_layers=2, width=64, num_heads=4), 320, 64)
    total, root = model.total, padded(model.root, 1)
    ddp, fsdp = (traffic(model, how, 4, 8, 2, total) for how in ("ddp", "fsdp"))
    assert asdict(ddp) == {"gathered_forward": 0, "gathered_backward": 0, "reduced": 0, "all_reduced": 6 * total}
    assert ddp.total(5) == ddp.total(1)  # gradients travel once a step
    assert fsdp.gathered_forward == 3 * 2 * total // 4
    assert fsdp.gathered_backward == 3 * 2 * (total - root) // 4
    assert fsdp.reduced == 3 * 4 * total // 4
    assert fsdp.total(3) == 3 * (fsdp.gathered_forward + fsdp.gathered_backward) + fsdp.reduced
    hybrid = traffic(model, "hybrid", 32, 4, 2, total)
    assert replace(hybrid, all_reduced=0) == fsdp  # within a node as if it were alone
    assert hybrid.all_reduced == 2 * 7 * (4 * total // 4) // 8


def test_out_of_a_node_all_ports_carry_what_one_gpu_sends() -> None:
    gpu = GPUS["h100-80gb"]
    assert bandwidth(gpu, 8, "ethernet") == pytest.approx(0.8 * 450e9)
    assert bandwidth(gpu, 16, "infiniband") == pytest.approx(0.8 * 400e9)
    assert bandwidth(gpu, 16, "ethernet") == pytest.approx(0.8 * 12.5e9)
    assert between_nodes("infiniband", gpu) == pytest.approx(0.8 * 50e9)
    assert bandwidth(GPUS["t4"], 16, "infiniband") == pytest.approx(0.8 * 16e9)  # no faster than the node inside


def test_every_gpu_has_an_arithmetic_and_a_name_that_is_its_own() -> None:
    for name, gpu in GPUS.items():
        assert name == gpu.name
        assert gpu.peak("fp16") or gpu.peak("fp32")
        assert gpu.usable < gpu.memory < 300e9 < gpu.bandwidth + 1


@pytest.mark.parametrize(
    ("published", "off", "found"),
    [
        # torchtitan, Llama 3.1 8B, 2 x 8192 a GPU: H100 of 96 GB that run at 500 W
        (6667, 0.020, ("llama-1b", "h100-80gb", 8, "fsdp", LLAMA_8B | {"micro_batch": 2, "batch_size": 16})),
        (6514, 0.049, ("llama-1b", "h100-80gb", 128, "fsdp", LLAMA_8B | {"micro_batch": 2, "batch_size": 256})),
        # the same, all of each block computed again, where torchtitan does so with a part
        (6667, -0.234, ("llama-1b", "h100-80gb", 8, "fsdp", AGAIN | {"micro_batch": 2, "batch_size": 16})),
        (6514, -0.213, ("llama-1b", "h100-80gb", 128, "fsdp", AGAIN | {"micro_batch": 2, "batch_size": 256})),
        # llm.c, GPT-2 124M
        (468_000, -0.022, ("gpt2-124m", "h100-80gb", 8, "ddp", {"micro_batch": 64})),
        # torchtitan on A100, which gets a larger share of a smaller peak
        (2973, -0.276, ("llama-1b", "a100-80gb", 64, "fsdp", LLAMA_8B | {"micro_batch": 1, "batch_size": 64})),
        # our own, on one H200
        (533_205, -0.139, ("gpt2-124m", "h200", 1, "ddp", {"micro_batch": 32, "batch_tokens": 65536})),
        (182_631, -0.216, ("gpt3-350m", "h200", 1, "ddp", {"micro_batch": 8, "batch_tokens": 32768} | NO_RAMP)),
        (66_240, -0.260, ("llama-1b", "h200", 1, "ddp", {})),
    ],
)
def test_published_speeds_are_met_with_the_error_that_the_page_states(
    published: float, off: float, found: tuple[str, str, int, str, dict[str, object]]
) -> None:
    recipe, gpu, count, parallel, flags = found
    estimate = per_gpu(on(recipe, gpu, count, **flags), parallel)
    assert estimate / published - 1 == pytest.approx(off, abs=0.0005)
    assert f"| {published:,} | {estimate:,.0f} | {100 * off:+.1f} % |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("size", "measured"), [(32, 14.93e9), (16, 8.385e9)])
def test_the_peak_of_a_compiled_step_on_one_h200_is_met_within_ten_per_cent(size: int, measured: float) -> None:
    alone = on("gpt2-124m", "h200", 1, micro_batch=size, batch_tokens=1024 * size)
    assert way(alone).memory.total == pytest.approx(measured, rel=0.1)


def test_hoffmanns_count_is_the_papers_and_of_a_large_model_near_the_other() -> None:
    shape: dict[str, object] = {"model.num_layers": 80, "model.width": 16384, "model.num_heads": 128}  # Gopher's
    found = on("gpt3-175b", "h100-80gb", 8, **shape)
    width, length = 16384, 2048
    layer = 2 * 3 * width**2 + 2 * length * width + 3 * 128 * length + 2 * length * width + 2 * width**2
    layer += 2 * (width * 4 * width + 4 * width * width)
    assert hoffmann_flops(found) == 3 * (2 * 50304 * width + 80 * layer + 2 * 50304 * width)
    assert hoffmann_flops(found) == pytest.approx(found.flops, rel=0.01)
    shared, own = (on("llama-1b", "l4", 1, **{"model.num_kv_heads": heads}) for heads in (8, 32))
    assert hoffmann_flops(own) - hoffmann_flops(shared) == own.flops - shared.flops  # 6 FLOPs a weight in both


@given(st.integers(1, 3000), st.integers(1, 70), st.integers(1, 1100))
def test_rounds_are_just_enough_for_the_batch(batch: int, micro_batch: int, count: int) -> None:
    rounds = rounds_of(batch, micro_batch, count)
    assert rounds * micro_batch * count >= batch > (rounds - 1) * micro_batch * count


def test_fsdp_holds_shards_and_what_it_gathers_and_over_several_micro_batches_whole_gradients() -> None:
    one, several = (on("gpt2-124m", "h100-80gb", 8, batch_tokens=8 * 16 * 1024 * times) for times in (1, 4))
    total = one.layout.total
    once, often, ddp = device_memory(one, "fsdp", 16), device_memory(several, "fsdp", 16), device_memory(one, "ddp", 16)
    assert once.parameters == once.gradients == once.optimizer // 2 == 4 * one.layout.padded(8)
    assert often.gradients == once.gradients + 4 * total
    assert replace(often, gradients=once.gradients) == once
    assert (ddp.parameters, ddp.gradients, ddp.optimizer, ddp.gathered) == (4 * total, 4 * total, 8 * total, 0)
    assert (once.activations, once.logits) == (ddp.activations, ddp.logits)
    assert once.gathered > 0


def test_the_largest_micro_batch_fits_and_a_larger_one_does_not() -> None:
    found = on("llama-1b", "a100-40gb", 8, micro_batch="auto")
    chosen = way(found, "fsdp")
    assert chosen.largest == chosen.micro_batch
    assert chosen.memory.total <= found.gpu.usable < device_memory(found, "fsdp", chosen.micro_batch + 1).total
    assert way(on("llama-1b", "a100-40gb", 8, micro_batch=1), "fsdp").micro_batch == 1


def test_the_largest_gpt3_fits_on_1024_gpus_only_sharded_and_with_blocks_computed_again() -> None:
    found = on("gpt3-175b", "h100-80gb", 1024)
    assert advised(compare(found)) is None
    assert [(each.parallel, each.micro_batch) for each in with_recompute(found)] == [("fsdp", 2)]
    again = on("gpt3-175b", "h100-80gb", 1024, recompute=True)
    best = advised(compare(again))
    assert best is not None
    assert (best.parallel, best.rounds, with_recompute(again)) == ("fsdp", 1, [])
    assert best.busy == pytest.approx(784 / 1024)


def test_slow_links_make_a_step_wait_and_only_then() -> None:
    timing = way(on("gpt2-124m", "h100-80gb", 64, micro_batch=8)).timing
    assert timing is not None
    fast, slow = timing["infiniband"], timing["ethernet"]
    assert fast.waiting == pytest.approx(0, abs=1e-9)
    assert slow.waiting > 0
    assert slow.step == pytest.approx(slow.computing + slow.waiting + slow.update)
    assert fast.run == pytest.approx(19_073 * fast.step)


def test_computing_blocks_again_takes_a_third_more_arithmetic() -> None:
    plain, again = (way(on("gpt2-124m", "h100-80gb", 8, recompute=recompute)).timing for recompute in (False, True))
    assert plain is not None
    assert again is not None
    assert again["link"].computing == pytest.approx(4 / 3 * plain["link"].computing)


def test_a_climbing_batch_takes_less_time_than_a_full_one() -> None:
    timing = way(on("gpt3-125m", "h100-80gb", 8)).timing
    assert timing is not None
    steps = on("gpt3-125m", "h100-80gb", 8).plan.num_steps
    assert 0.5 * steps * timing["link"].step < timing["link"].run < steps * timing["link"].step


def test_a_small_model_has_no_times() -> None:
    assert way(on("demo", "t4", 2)).timing is None


def test_a_gpu_without_bf16_is_reckoned_with_fp16_unless_bf16_was_asked_for() -> None:
    assert on("gpt2-124m", "t4", 2).precision == "fp16"
    with pytest.raises(ConfigError, match="t4 has no such arithmetic; give auto or fp16"):
        on("gpt2-124m", "t4", 2, precision="bf16")


def test_what_cannot_be_estimated_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"h100 is not known; known are b200, .*did you mean h100-80gb or h100-pcie\?"
    ):
        gpu_named("h100")
    with pytest.raises(ConfigError, match=r"mi300x; did you mean rtx4090\?; this"):
        gpu_named("rtx-4090")
    with pytest.raises(ConfigError, match=r"mi300x; this very machine is --gpu this --calibrate$"):
        gpu_named("abacus")
    for count in (0, -1, 2**20 + 1):
        with pytest.raises(ConfigError, match=f"--gpus {count} is no number of GPUs; give 1 to 1,048,576"):
            on("gpt2-124m", "l4", count)
    with pytest.raises(ConfigError, match="vocabulary is not known"):
        on("demo", "l4", 1, **{"data.tokenizer": "chars"})
    for count, parallel, names in ((1, "fsdp", "ddp"), (12, "hybrid", "ddp, fsdp")):
        with pytest.raises(ConfigError, match=f"--parallel {parallel} is not for this.* there is {names}$"):
            compare(on("gpt2-124m", "l4", count), parallel)  # type: ignore[arg-type]


def test_only_weights_that_adamw_trains_are_sharded() -> None:
    assert on("gpt2-124m", "l4", 16).ways == ("ddp", "fsdp", "hybrid")
    assert on("gpt2-124m", "l4", 16, **{"optim.name": "muon"}).ways == ("ddp",)
    assert on("gpt2-124m", "l4", 16, **{"optim.train": "last-block"}).ways == ("ddp",)


def test_parts_add_up_and_assumptions_name_what_matters_here() -> None:
    found = on("llama-1b", "h100-80gb", 64)
    count = parts(found)
    outside = count["token_embedding"] + count["position_embedding"] + count["head"] + count["final_norm"]
    assert count["total"] == outside + count["blocks"]
    assert list(assumptions(found)) == [*("arithmetic", "memory", "links", "bytes", "overlap", "ddp", "fsdp", "hybrid")]
    assert list(assumptions(on("llama-1b", "h100-80gb", 1))) == ["arithmetic", "memory"]
    assert "40 % of 989 TFLOP/s, the dense peak in bf16" in assumptions(found)["arithmetic"]
    assert assumptions(found)["hybrid"].endswith("what --parallel fsdp does here")
    assert assumptions(on("gpt3-175b", "h100-80gb", 64))["hybrid"].endswith("half a GPU's memory, and fsdp here")


def test_of_several_nodes_that_way_is_offered_which_fsdp_takes_in_a_run() -> None:
    for recipe in ("gpt2-124m", "gpt3-2.7b", "gpt3-13b", "gpt3-175b"):
        found = on(recipe, "h100-80gb", 64)
        places = [Place(rank % 8, 8, found.gpu.memory) for rank in range(64)]
        copies = shards(places, 16 * found.layout.total) == 8
        assert [each.parallel for each in compare(found) if each.offered] == ["ddp", "hybrid" if copies else "fsdp"]
    assert [each.offered for each in compare(on("gpt3-175b", "h100-80gb", 8))] == [True, True]


def test_what_was_timed_takes_the_place_of_what_is_assumed() -> None:
    plain = on("demo", "t4", 3, micro_batch=2)
    found = replace(plain, timed=Timed("a device", 5, 4, passes=0.4, update=0.01))
    fsdp, ddp = way(found, "fsdp").timing, way(found).timing
    assert fsdp is not None
    assert ddp is not None
    assert (way(found).rounds, way(found).micro_batch) == (2, 2)
    assert ddp["link"].computing == pytest.approx(2 * 0.2)  # in proportion to the sequences, once for each round
    assert ddp["link"].update == pytest.approx(0.01)
    assert fsdp["link"].update == pytest.approx(0.01 * found.layout.padded(3) / found.layout.total)
    assert found.share == pytest.approx(4 * 128 * found.flops / 0.4 / found.peak)
    assert list(assumptions(found))[:2] == ["timed here", "arithmetic"]
    assert assumptions(found)["timed here"] == (
        "steps of 4 x 128 random tokens on a device, median of 5: 400 ms forward and backward, 10 ms to clip and update"
    )
    assert "1.5 s forward" in assumptions(replace(found, timed=Timed("a device", 1, 4, 1.5, 0.01)))["timed here"]


def test_a_device_is_known_by_what_its_driver_says() -> None:
    said = {
        "h100-80gb": ("NVIDIA H100 80GB HBM3", 84_942_979_072),
        "h200": ("NVIDIA H200", 150_109_880_320),
        "a100-40gb": ("NVIDIA A100-SXM4-40GB", 42_298_834_944),
        "a100-80gb": ("NVIDIA A100-SXM4-80GB", 85_175_697_408),
        "h100-pcie": ("NVIDIA H100 PCIe", 85_028_896_768),
        "t4": ("Tesla T4", 15_828_320_256),
    }
    for name, (driver, memory) in said.items():
        assert [gpu.name for gpu in GPUS.values() if gpu.is_named(driver, memory, "fp16")] == [name]
    assert not GPUS["h100-80gb"].is_named("x86_64, AVX512", 80 * 10**9, "fp32")
