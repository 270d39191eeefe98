"""The Triton kernel, on a GPU or, where Triton is installed without one, in its interpreter; skipped elsewhere."""

import os
from importlib.util import find_spec

import pytest
import torch
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, which comes with torch for a GPU")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU a kernel is interpreted, if that is said before it is made."""
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "1"))


@pytest.mark.parametrize("z_weight", [0.0, 1e-3])
@pytest.mark.parametrize("vocab", [50, 257, 5000])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)])
def test_loss_and_gradient_are_those_of_cross_entropy_and_its_z_loss(
    dtype: torch.dtype, exact: float, vocab: int, z_weight: float
) -> None:
    from trainwell.model.cuda_kernels import loss_and_gradient

    generator = torch.Generator().manual_seed(7)
    logits = (4 * torch.randn(7, vocab, generator=generator)).to(dtype)
    targets = torch.randint(vocab, (7,), generator=generator)
    targets[3] = -100
    wide = logits.double().requires_grad_()
    entropy = cross_entropy(wide, targets, ignore_index=-100, reduction="sum")
    z = z_weight * wide.logsumexp(1)[targets >= 0].square().sum()
    (wanted,) = torch.autograd.grad(entropy + z, wide)
    found = logits.to(DEVICE)
    sums = loss_and_gradient(found, targets.to(DEVICE), z_weight)
    assert sums.tolist() == pytest.approx([float(entropy), float(z)], rel=1e-5)
    torch.testing.assert_close(found.double().cpu(), wanted, atol=exact, rtol=exact)
    assert not found[3].any()
