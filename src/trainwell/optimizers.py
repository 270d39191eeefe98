"""The optimizer of a configuration. Knows the keys of `optim` and the parameters, no data and no run."""

from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon

from trainwell.config.tree import OptimConfig
from trainwell.errors import ConfigError
from trainwell.optim.groups import hidden_matrices, parameter_groups
from trainwell.optim.together import Together


def make_optimizer(how: OptimConfig, model: nn.Module, outputs: int, *, fused: bool) -> Any:
    """AdamW over what learns of `model`, `fused` or plain; or Muon for the hidden matrices, and AdamW for the rest.

    `outputs` is the size of the head, 0 where it is not known; Muon must know it.
    """
    matrices = _muon_matrices(model, outputs) if how.name == "muon" else []
    learning = [tensor for tensor in model.parameters() if tensor.requires_grad]
    rest = [tensor for tensor in learning if not any(tensor is matrix for matrix in matrices)]
    adamw = AdamW(
        parameter_groups(rest, how.weight_decay, how.decay),
        lr=how.lr,
        betas=how.betas,
        eps=how.eps,
        fused=fused,
        foreach=None if fused else False,
    )
    if how.name == "adamw":
        return adamw
    return Together(Muon(matrices, lr=how.lr, weight_decay=how.weight_decay, adjust_lr_fn="match_rms_adamw"), adamw)


def _muon_matrices(model: nn.Module, outputs: int) -> list[Tensor]:
    if not outputs:
        raise ConfigError("model.pad_vocab_to: muon must know which layer is the head; say how many ids there are")
    matrices = hidden_matrices(model, outputs)
    if not matrices:
        raise ConfigError(
            "optim.name: muon is for linear layers between embedding and head, and this model has none; use adamw"
        )
    return matrices
