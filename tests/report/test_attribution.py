"""Every microsecond of profiled steps in one class: on a CPU by the operators, on a device by the kernels."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.report.attribution import BODY, DATA, FORWARD, LOSS, OPTIMIZER, STEP, Attributed, Event, attribute

NODE = "autograd::engine::evaluate_function: "


def named(name: str, start: float, end: float, *, sequence: int = -1, forward_thread: int = 0) -> Event:
    """An operator on the thread of the steps."""
    return Event(name, start, end, thread=1, sequence=sequence, forward_thread=forward_thread)


def around(name: str, start: float, end: float) -> Event:
    return Event(name, start, end, thread=1, is_range=True)


def on_cpu(*events: Event) -> Attributed:
    found = attribute(events, device=False)
    assert found is not None
    return found


def microseconds(found: Attributed) -> dict[str, float]:
    """Of all steps together, without classes in which nothing is."""
    return {kind: round(ms * 1000 * found.num_steps, 6) for kind, ms in found.class_ms.items() if ms}


def only(name: str) -> str:
    """The class of an operator that stands alone."""
    (kind,) = microseconds(on_cpu(around(STEP, 0, 10), named(name, 0, 10)))
    return kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "matmul"),
        ("aten::addmm", "matmul"),
        ("aten::bmm", "matmul"),
        ("aten::linear", "matmul"),
        ("aten::_scaled_mm", "matmul"),
        ("mkldnn::_linear_pointwise", "matmul"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("_CausalAttention", "attention"),
        ("HeadLoss", "loss"),
        ("HeadLossBackward", "loss"),
        ("aten::linear_cross_entropy", "loss"),
        ("aten::nll_loss_forward", "loss"),
        ("aten::_log_softmax", "loss"),
        ("aten::logsumexp", "loss"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::_foreach_norm", "optimizer"),
        ("aten::linalg_vector_norm", "optimizer"),
        ("aten::copy_", "copies"),
        ("aten::_to_copy", "copies"),
        ("aten::contiguous", "copies"),
        ("aten::gelu_backward", "elementwise"),
        ("aten::native_layer_norm", "elementwise"),
        ("aten::embedding_dense_backward", "elementwise"),
        ("aten::t", "elementwise"),
        ("Torch-Compiled Region: 0/0", "compiled"),
        ("CompiledFunctionBackward", "compiled"),
        ("## Call CompiledFxGraph f1x2 ##", "compiled"),
    ],
)
def test_an_operator_goes_by_its_name(name: str, kind: str) -> None:
    assert only(name) == kind


def test_an_operator_has_the_time_of_those_it_calls_only_where_they_have_no_class_of_their_own() -> None:
    found = on_cpu(
        around(STEP, 0, 100),
        named("aten::linear", 10, 90),
        named("aten::to", 10, 30),  # a cast of the weights under autocast
        named("aten::addmm", 40, 80),
        named("aten::as_strided", 45, 50),
    )
    assert microseconds(found) == {"matmul": 60, "copies": 20, "idle": 20}


def test_what_is_around_the_body_of_the_model_is_loss_and_so_is_its_backward_pass() -> None:
    found = on_cpu(
        around(STEP, 0, 200),
        around(LOSS, 0, 100),
        around(BODY, 0, 50),
        named("aten::mm", 0, 50, sequence=7),
        named("aten::mm", 50, 80, sequence=8),
        named("aten::_log_softmax", 80, 100, sequence=9),
        named(f"{NODE}LogSoftmaxBackward0", 100, 120, sequence=9, forward_thread=1),
        named(f"{NODE}MmBackward0", 120, 160, sequence=8, forward_thread=1),
        named("aten::mm", 125, 155),
        named(f"{NODE}MmBackward0", 160, 200, sequence=7, forward_thread=1),
        named("aten::mm", 160, 200),
    )
    assert microseconds(found) == {"matmul": 90, "loss": 110}


def test_a_sequence_number_belongs_to_the_innermost_operator_that_has_it() -> None:
    found = on_cpu(
        around(STEP, 0, 40),
        named("aten::ones", 0, 10, sequence=3),  # recorded nothing, so the next operator got the same number
        named("aten::scaled_dot_product_attention", 10, 20, sequence=3),
        named("aten::matmul", 12, 20, sequence=3),
        named(f"{NODE}MmBackward0", 20, 40, sequence=3, forward_thread=1),
        named("aten::mm", 20, 40),
    )
    assert microseconds(found) == {"elementwise": 10, "attention": 30}


def test_all_of_an_update_is_the_optimizers_and_all_of_a_wait_is_the_datas_python_included() -> None:
    found = on_cpu(
        around(STEP, 0, 100),
        around("Optimizer.zero_grad#AdamW.zero_grad", 0, 5),
        around(DATA, 5, 25),
        around(OPTIMIZER, 50, 100),
        named("aten::copy_", 60, 70),
        named("aten::mm", 70, 80),
    )
    assert microseconds(found) == {"optimizer": 55, "data": 20, "idle": 25}
    assert {(each.name, each.kind) for each in found.operators} == {
        ("aten::copy_", "optimizer"),
        ("aten::mm", "optimizer"),
    }


def test_a_compiled_model_keeps_what_still_has_a_name() -> None:
    found = on_cpu(
        around(STEP, 0, 100),
        around(FORWARD, 0, 100),
        around("Torch-Compiled Region: 0/0", 0, 100),
        named("aten::empty_strided", 0, 10),
        named("aten::mm", 20, 50),
    )
    assert microseconds(found) == {"compiled": 70, "matmul": 30}
    assert found.operators[0].name == "Torch-Compiled Region: 0/0"


def test_other_threads_and_what_is_before_and_after_the_steps_do_not_count() -> None:
    found = on_cpu(
        named("aten::mm", 0, 10),
        around(STEP, 10, 20),
        Event("aten::mm", 12, 18, thread=2),
        around(STEP, 30, 40),
        named("aten::mm", 35, 40),
        named("aten::mm", 40, 90),
    )
    assert microseconds(found) == {"matmul": 5, "idle": 25}
    assert found.num_steps == 2
    assert found.step_ms == pytest.approx(0.015)
    assert found.operators[0].ms == pytest.approx(0.0025)
    assert found.operators[0].calls == 0.5


def test_without_a_step_there_is_nothing_to_share_out() -> None:
    assert attribute([named("aten::mm", 0, 1)], device=False) is None


@st.composite
def nested(draw: st.DrawFn, start: int = 0, end: int = 64, depth: int = 3) -> list[Event]:
    """Operators and ranges, one inside another or one after another, as one thread has them."""
    found: list[Event] = []
    cuts = sorted(draw(st.lists(st.integers(start, end), max_size=6, unique=True)))
    for since, until in zip(cuts[::2], cuts[1::2], strict=False):
        name = draw(st.sampled_from([LOSS, BODY, DATA, OPTIMIZER, "aten::mm", "aten::copy_", "aten::gelu", f"{NODE}X"]))
        found.append(Event(name, since, until, 1, draw(st.integers(-1, 3)), 1, is_range=name.startswith("trainwell")))
        if depth and until > since + 1:
            found += draw(nested(since, until, depth - 1))
    return found


@given(inside=nested(), kernels=st.lists(st.tuples(st.integers(-9, 80), st.integers(1, 20)), max_size=5))
def test_the_classes_are_the_wall_time_together(inside: list[Event], kernels: list[tuple[int, int]]) -> None:
    events = [around(STEP, 0, 64), *inside]
    events += [Event("gemm", start, start + length, on_device=True) for start, length in kernels]
    for device in (False, True):
        found = attribute(events, device=device)
        assert found is not None
        assert sum(found.class_ms.values()) == pytest.approx(found.step_ms)
        assert min(found.class_ms.values()) >= 0


def kernel(name: str, start: float, end: float) -> Event:
    return Event(name, start, end, on_device=True)


def launch(name: str, start: float, *kernels: tuple[str, float]) -> Event:
    """An operator that takes a microsecond of the CPU and launches these."""
    return Event(name, start, start + 1, thread=1, kernels=kernels)


def on_gpu(events: Sequence[Event]) -> Attributed:
    found = attribute(events, device=True)
    assert found is not None
    return found


def test_a_kernel_is_counted_as_the_operator_that_launched_it_and_the_rest_is_idle() -> None:
    found = on_gpu([
        around(STEP, 0, 100),
        around(LOSS, 0, 10),
        launch("aten::mm", 1, ("nvjet_tst", 20.0)),
        launch("aten::layer_norm", 20, ("vectorized_layer_norm_kernel", 10.0)),
        kernel("nvjet_tst", 10, 30),
        kernel("vectorized_layer_norm_kernel", 40, 50),
    ])  # fmt: skip
    assert microseconds(found) == {"loss": 20, "elementwise": 10, "idle": 70}
    assert [(each.name, each.kind, each.ms) for each in found.operators] == [
        ("nvjet_tst", "loss", 0.02), ("vectorized_layer_norm_kernel", "elementwise", 0.01)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("triton_poi_fused_gelu_3", "compiled"),
        ("triton_tem_fused_mm_7", "matmul"),
        ("sm90_xmma_gemm_bf16bf16", "matmul"),
        ("void cutlass::Kernel2<sm80>", "matmul"),
        ("flash_fwd_kernel", "attention"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::multi_tensor_apply_kernel", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel", "elementwise"),
    ],
)
def test_a_kernel_that_nobody_is_known_to_have_launched_goes_by_its_own_name(name: str, kind: str) -> None:
    assert microseconds(on_gpu([around(STEP, 0, 100), kernel(name, 0, 60)])) == {kind: 60, "idle": 40}


def test_a_kernel_of_a_compiled_model_is_compiled_unless_it_is_a_product() -> None:
    found = on_gpu([
        around(STEP, 0, 100),
        launch("CompiledFunction", 1, ("triton_red_fused_2", 30.0)),
        launch("CompiledFunction", 3, ("triton_tem_fused_mm_2", 50.0)),
        kernel("triton_red_fused_2", 10, 40),
        kernel("triton_tem_fused_mm_2", 40, 90),
    ])  # fmt: skip
    assert microseconds(found) == {"compiled": 30, "matmul": 50, "idle": 20}


def test_kernels_at_the_same_time_share_it() -> None:
    found = on_gpu(
        [around(STEP, 0, 100), kernel("gemm", 0, 60), kernel("Memcpy HtoD", 30, 60), kernel("gemm", 90, 120)]
    )
    seen = microseconds(found)
    assert seen["idle"] == 30
    assert sum(seen.values()) == pytest.approx(100)
    assert seen["matmul"] == pytest.approx(3 * seen["copies"])


def test_a_device_that_is_idle_while_the_steps_wait_for_a_batch_waits_for_it_too() -> None:
    found = on_gpu([around(STEP, 0, 100), around(DATA, 10, 40), kernel("gemm", 0, 20), kernel("gemm", 50, 80)])
    assert microseconds(found) == {"matmul": 50, "data": 20, "idle": 30}


def test_a_range_that_is_shown_on_the_device_too_is_no_kernel() -> None:
    found = on_gpu([
        Event(STEP, 0, 100, thread=1, is_range=True, kernels=((STEP, 90.0),)),
        Event(STEP, 5, 95, is_range=True, on_device=True),
        kernel("gemm", 0, 60),
    ])  # fmt: skip
    assert microseconds(found) == {"matmul": 60, "idle": 40}
