"""Step 0 of Karpathy's run: the same draws, the same text in the same order, the loss and the norm that he prints."""

import os
from pathlib import Path

import pytest
from torch.nn.utils import get_total_norm

from trainwell.build import build

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    not (Path(os.environ.get("TRAINWELL_DATA_DIR", "")) / "tinyshakespeare.txt").is_file(),
    reason="TRAINWELL_DATA_DIR does not hold tinyshakespeare.txt",
)
def test_step_0_of_gpt2_124m_has_karpathys_loss_and_norm(own_folders: Path) -> None:
    run = build(
        "gpt2-124m",
        batch_size=8,
        duration=1,
        data={"corpus": "tiny-shakespeare", "order": "sequential", "seq_len": 1024},
        schedule={"dialect": "build-nanogpt", "warmup": 10, "horizon": 50},
        device="cpu",
    )
    run.model.train()
    loss = run.trainer.backward()
    norm = get_total_norm([tensor.grad for tensor in run.trainer.parameters if tensor.grad is not None])
    run.close()
    assert float(loss) == pytest.approx(10.934, abs=1e-2)
    assert float(norm) == pytest.approx(29.42, abs=1e-2)
    assert f"{run.plan.lr(0):.4e}" == "6.0000e-05"
