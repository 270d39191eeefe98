"""Several optimizers behave as one, and each as it would alone."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, nn

from trainwell.optim.together import Together


def weights() -> list[nn.Parameter]:
    generator = Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (3, 5), (6,), (2,))]


def set_gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def muon_and_adamw(parameters: list[nn.Parameter]) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    return torch.optim.Muon(parameters[:2], lr=0.01), torch.optim.AdamW(parameters[2:], lr=0.02)


def test_a_step_is_the_step_of_each() -> None:
    joined, apart = weights(), weights()
    together, separate = Together(*muon_and_adamw(joined)), muon_and_adamw(apart)
    for step in range(3):
        set_gradients(joined, step)
        set_gradients(apart, step)
        together.step()
        for optimizer in separate:
            optimizer.step()  # type: ignore[no-untyped-call]
    assert all(torch.equal(one, other) for one, other in zip(joined, apart, strict=True))
    assert not torch.equal(joined[0], weights()[0])
    assert not torch.equal(joined[3], weights()[3])


def test_a_rate_set_in_a_group_is_the_rate_of_its_optimizer() -> None:
    muon, adamw = muon_and_adamw(weights())
    together = Together(muon, adamw)
    assert [group["lr"] for group in together.param_groups] == [0.01, 0.02]
    for group in together.param_groups:
        group["lr"] = 0.5
    assert muon.param_groups[0]["lr"] == adamw.param_groups[0]["lr"] == 0.5


def test_gradients_of_all_are_dropped_or_set_to_zero() -> None:
    parameters = weights()
    together = Together(*muon_and_adamw(parameters))
    set_gradients(parameters, 0)
    together.zero_grad(set_to_none=False)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in parameters)
    together.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


def test_a_restored_state_goes_on_bit_for_bit_and_its_groups_can_still_be_set(bits_of: Callable[[Any], Any]) -> None:
    first, second = weights(), weights()
    one, other = Together(*muon_and_adamw(first)), Together(*muon_and_adamw(second))
    set_gradients(first, 0)
    one.step()
    one.param_groups[1]["lr"] = 0.3
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    with torch.no_grad():
        for mine, theirs in zip(second, first, strict=True):
            mine.copy_(theirs)
    for together, parameters in ((one, first), (other, second)):
        set_gradients(parameters, 1)
        together.param_groups[0]["lr"] = 0.04
        together.step()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))
    assert bits_of(one.state_dict()) == bits_of(other.state_dict())
