"""GPT-2 by hand, in the fewest operations that torch has for it: the model of the loop that bounds everybody's time."""

from benchmarks.speed.cases import Case
from torch import Tensor, arange, nn
from torch.nn import functional as F  # noqa: N812


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.c_attn(x).view(rows, length, 3, self.num_heads, width // self.num_heads).transpose(1, 3)
        queries, keys, values = parts.unbind(2)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, length, width))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = _Attention(width, num_heads), _MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class PlainGPT(nn.Module):
    """Token ids (B, T) to logits (B, T, V); the head is the embedding."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.wte = nn.Embedding(case.vocab_size, case.width)
        self.wpe = nn.Embedding(case.seq_len, case.width)
        self.h = nn.Sequential(*(_Block(case.width, case.num_heads) for _ in range(case.num_layers)))
        self.ln_f = nn.LayerNorm(case.width)

    def forward(self, ids: Tensor) -> Tensor:
        """See the class."""
        x = self.wte(ids) + self.wpe(arange(ids.shape[1], device=ids.device))
        return F.linear(self.ln_f(self.h(x)), self.wte.weight)
