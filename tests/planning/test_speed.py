"""How fast a plan would be: the arithmetic by hand, and when nothing is said."""

import pytest

from trainwell.config.load import load
from trainwell.planning.model_size import flops_per_token
from trainwell.planning.resolve import Plan, resolve
from trainwell.planning.speed import speed_line, speeds


def plan_of(recipe: str, **flags: object) -> Plan:
    return resolve(load(recipe, flags=flags))


def test_a_rate_is_two_fifths_of_the_peak_over_the_work_of_a_token() -> None:
    plan = plan_of("gpt2-124m")
    work = flops_per_token(plan.config.model, 50304, 1024)
    fast, slow = speeds(plan)
    assert (fast.device, slow.device) == ("H100", "A100")
    assert fast.tokens_per_second == pytest.approx(0.4 * 989.4e12 / work)
    assert slow.tokens_per_second == pytest.approx(0.4 * 312e12 / work)
    assert fast.seconds * fast.tokens_per_second == pytest.approx(plan.batch.tokens_before(plan.num_steps))


def test_a_line_has_the_rate_of_each_device_the_assumption_and_the_time_of_the_run() -> None:
    line = speed_line(speeds(plan_of("gpt2-124m")))
    assert line == (
        "about 460k tokens a second on an H100, 150k on an A100 at 40 % of the peak: 6 h and 19 h 2 min for this run"
    )


def test_float32_is_reckoned_with_the_peak_of_float32() -> None:
    half, single = (speeds(plan_of("gpt2-124m", precision=name))[0] for name in ("bf16", "fp32"))
    assert half.tokens_per_second / single.tokens_per_second == pytest.approx(989.4 / 66.9)


def test_a_model_too_small_to_keep_a_gpu_busy_and_one_of_unknown_vocabulary_have_no_speed() -> None:
    assert speeds(plan_of("demo")) == []
    assert speeds(plan_of("gpt2-124m", **{"data.tokenizer": "chars", "model.pad_vocab_to": None})) == []
    assert speed_line([]) is None
