"""Give a model the kernels that were chosen for it. No weight and no name of one changes."""

from torch import nn

from trainwell.model import gpt2, llama
from trainwell.model.attention import Kernel
from trainwell.model.cpu_kernels import Dropout


def use_attention(model: nn.Module, kernel: Kernel) -> None:
    """Let every attention of one of trainwell's models be computed by `kernel`."""
    for module in model.modules():
        if isinstance(module, gpt2.Attention | llama.Attention):
            module.kernel = kernel


def use_cpu_dropout(model: nn.Module) -> None:
    """Put `cpu_kernels.Dropout` in the place of every `nn.Dropout`."""
    for module in list(model.modules()):
        for name, part in module.named_children():
            if type(part) is nn.Dropout:
                setattr(module, name, Dropout(part.p))
