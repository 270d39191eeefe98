"""A model with the kernels chosen for it: the same names, the same numbers to rounding."""

import pytest
import torch
from torch import Tensor, nn

from trainwell.data.batches import MicroBatch
from trainwell.model.cpu_kernels import Dropout
from trainwell.model.fast import use_attention, use_cpu_dropout
from trainwell.model.gpt2 import GPT2, init_gpt2
from trainwell.model.loss import head_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def model(*, dropout: float = 0.0) -> GPT2:
    made = GPT2(vocab_size=40, seq_len=12, num_layers=2, num_heads=2, width=8, dropout=dropout).double()
    init_gpt2(made, torch.Generator().manual_seed(0))
    return made


def rows(seed: int) -> MicroBatch:
    ids = torch.randint(40, (3, 13), generator=torch.Generator().manual_seed(seed))
    return MicroBatch(ids[:, :-1], ids[:, 1:], 0)


def gradients_of_two(of: nn.Module) -> dict[str, Tensor]:
    for seed in range(2):
        head_loss(of, rows(seed)).backward()
    return {name: weight.grad for name, weight in of.named_parameters() if weight.grad is not None}


def test_attention_by_products_gives_the_same_gradients() -> None:
    plain, other = model(), model()
    use_attention(other, "products")
    expected, found = gradients_of_two(plain), gradients_of_two(other)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14, msg=name)


def test_every_dropout_is_replaced_and_no_weight_renamed() -> None:
    made = model(dropout=0.1)
    names = list(made.state_dict())
    use_cpu_dropout(made)
    layers = [module for module in made.modules() if isinstance(module, nn.Dropout)]
    assert len(layers) == 5
    assert all(isinstance(layer, Dropout) and layer.p == 0.1 for layer in layers)
    assert list(made.state_dict()) == names
