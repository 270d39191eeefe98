"""Parameter groups: which tensors decay, every parameter in exactly one group. Knows tensors and names only."""

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

Group = dict[str, Any]


def parameter_groups(
    parameters: Iterable[Tensor], weight_decay: float, decay: Literal["matrices", "all"] = "matrices"
) -> list[Group]:
    """Two groups: tensors of two or more dimensions decay, the rest does not; or all of them decay, as in the book.

    A group without tensors is left out. The matrices rule is GPT-2's and GPT-3's as build-nanogpt has it.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    decayed = [parameter for parameter in trained if decay == "all" or parameter.dim() >= 2]
    plain = [parameter for parameter in trained if not (decay == "all" or parameter.dim() >= 2)]
    groups: list[Group] = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module, vocab_size: int) -> list[Tensor]:
    """The weights Muon is made for: those of linear layers between the embedding and the head.

    The last linear layer with `vocab_size` outputs is the head; a hidden one may be as wide by chance.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    head = [module for module in linear if module.out_features == vocab_size][-1:]
    return [module.weight for module in linear if module not in head and module.weight.requires_grad]


def describe_groups(optimizer: Optimizer | Any) -> list[str]:
    """Two lines, as readers of build-nanogpt know them: how many tensors and parameters decay, and how many do not."""
    groups = optimizer.param_groups
    return [
        _count("decayed", [tensor for group in groups if group.get("weight_decay") for tensor in group["params"]]),
        _count(
            "non-decayed", [tensor for group in groups if not group.get("weight_decay") for tensor in group["params"]]
        ),
    ]


def _count(kind: str, tensors: list[Tensor]) -> str:
    total = sum(tensor.numel() for tensor in tensors)
    return f"num {kind} parameter tensors: {len(tensors)}, with {total:,} parameters"
