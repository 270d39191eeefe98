"""For all tests: hypothesis without deadlines, and GPT-2s small enough to take a step in a millisecond."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from trainwell.model.gpt2 import GPT2

settings.register_profile("trainwell", deadline=None)
settings.load_profile("trainwell")


@pytest.fixture(scope="session")
def gpt2_of() -> Callable[..., "GPT2"]:
    """Makes a GPT-2 of a few thousand weights: `seed` says which weights, `dtype` their type, the rest changes it."""
    import torch  # here and not above: most tests run without torch

    from trainwell.model.gpt2 import GPT2, init_torch

    def make(*, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> GPT2:
        shape: dict[str, Any] = {"vocab_size": 19, "seq_len": 12, "num_layers": 2, "num_heads": 2, "width": 16}
        model = GPT2(**shape | changes)
        init_torch(model, torch.Generator().manual_seed(seed))
        return model.to(dtype)

    return make
