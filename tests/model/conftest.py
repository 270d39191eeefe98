"""Both architectures, small enough that a hundred of them cost a second."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainwell.model.gpt2 import GPT2
from trainwell.model.llama import Llama, init_llama_gpt2


@pytest.fixture(scope="session")
def llama_of() -> Callable[..., Llama]:
    """Makes a Llama of a few thousand weights with all switches on; `seed` says which weights, `dtype` their type."""

    def make(*, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Llama:
        shape: dict[str, Any] = {
            "vocab_size": 19,
            "seq_len": 12,
            "num_layers": 2,
            "num_heads": 4,
            "width": 16,
            "num_kv_heads": 2,
            "head_dim": 6,
            "mlp_width": 24,
            "qk_norm": True,
            "qkv_bias": True,
        }
        model = Llama(**shape | changes)
        generator = Generator().manual_seed(seed)
        init_llama_gpt2(model, generator)
        with torch.no_grad():
            for weight in model.parameters():  # larger than at the start of training, and no norm 1, no bias 0
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
        return model.to(dtype)

    return make


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def either_of(
    request: pytest.FixtureRequest, gpt2_of: Callable[..., GPT2], llama_of: Callable[..., Llama]
) -> Callable[..., Any]:
    """`gpt2_of`, then `llama_of`: what holds for every architecture."""
    return {"gpt2": gpt2_of, "llama": llama_of}[request.param]


class Largest(TorchDispatchMode):
    """Watches the sizes of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.fixture
def largest() -> Callable[[], Any]:
    """Makes what is entered to watch; `numbers` is then the largest number of elements that a tensor had."""
    return Largest
