"""GPT-2 against the models it stands for, written out here: Karpathy's for its draws, the book's for everything."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from trainwell.generate import generate
from trainwell.model.gpt2 import GPT2, init_gpt2, init_torch

Make = Callable[..., GPT2]

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES: dict[str, Any] = {"vocab_size": 19, "seq_len": 12, "num_layers": 3, "num_heads": 2, "width": 16}


def small(**switches: bool) -> GPT2:
    return GPT2(**SIZES, **switches)


def on_meta(**shape: Any) -> GPT2:
    with torch.device("meta"):
        return GPT2(**shape)


def num_parameters(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


def karpathys_model(*, tie_head: bool, qkv_bias: bool) -> nn.Module:
    """The modules of build-nanogpt in the order in which its constructors make them, and its `_init_weights`."""
    width, layers = SIZES["width"], SIZES["num_layers"]

    def block() -> nn.Module:
        return nn.ModuleDict(
            {
                "ln_1": nn.LayerNorm(width),
                "attn": nn.ModuleDict(
                    {
                        "c_attn": nn.Linear(width, 3 * width, bias=qkv_bias),
                        "c_proj": nn.Linear(width, width),
                    }
                ),
                "ln_2": nn.LayerNorm(width),
                "mlp": nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}),
            }
        )

    model = nn.ModuleDict(
        {
            "wte": nn.Embedding(SIZES["vocab_size"], width),
            "wpe": nn.Embedding(SIZES["seq_len"], width),
            "h": nn.ModuleList([block() for _ in range(layers)]),
            "ln_f": nn.LayerNorm(width),
            "lm_head": nn.Linear(width, SIZES["vocab_size"], bias=False),
        }
    )
    if tie_head:
        model["wte"].weight = model["lm_head"].weight
    residual = {id(module) for name, module in model.named_modules() if name.endswith("c_proj")}

    def init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            std = 0.02
            if id(module) in residual:
                std *= (2 * layers) ** -0.5
            torch.nn.init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    return model.apply(init_weights)


class WrittenNorm(nn.Module):
    """A head over its root mean square, in as many steps as it takes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-5) ** 0.5 * self.scale


class BookAttention(nn.Module):
    """Multi-head attention as the book has it: three projections, softmax over masked scores; norms where wanted."""

    def __init__(self, width: int, heads: int, qkv_bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.W_query = nn.Linear(width, width, bias=qkv_bias)
        self.W_key = nn.Linear(width, width, bias=qkv_bias)
        self.W_value = nn.Linear(width, width, bias=qkv_bias)
        self.out_proj = nn.Linear(width, width)
        self.norms = nn.ModuleList([WrittenNorm(width // heads) for _ in range(2)] if qk_norm else [])

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        shape = (rows, length, self.heads, width // self.heads)
        queries = self.W_query(x).view(shape).transpose(1, 2)
        keys = self.W_key(x).view(shape).transpose(1, 2)
        values = self.W_value(x).view(shape).transpose(1, 2)
        if self.norms:
            queries, keys = self.norms[0](queries), self.norms[1](keys)
        scores = queries @ keys.transpose(2, 3)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        weights = torch.softmax(scores / (width // self.heads) ** 0.5, dim=-1)
        return self.out_proj((weights @ values).transpose(1, 2).reshape(rows, length, width))  # type: ignore[no-any-return]


class BookNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.scale * centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) + self.shift


class BookGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class BookBlock(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.att = BookAttention(width, heads, qkv_bias, qk_norm)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), BookGELU(), nn.Linear(4 * width, width))
        self.norm1, self.norm2 = BookNorm(width), BookNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))  # type: ignore[no-any-return]


class BookModel(nn.Module):
    """The book's GPTModel without its dropout."""

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        num_layers: int,
        num_heads: int,
        width: int,
        qkv_bias: bool,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(vocab_size, width), nn.Embedding(seq_len, width)
        self.trf_blocks = nn.Sequential(*[BookBlock(width, num_heads, qkv_bias, qk_norm) for _ in range(num_layers)])
        self.final_norm = BookNorm(width)
        self.out_head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))  # type: ignore[no-any-return]


def in_our_names(book: BookModel) -> dict[str, Tensor]:
    """The book's weights under GPT-2's names, its three projections stacked into one."""
    ours = {
        "wte.weight": book.tok_emb.weight,
        "wpe.weight": book.pos_emb.weight,
        "lm_head.weight": book.out_head.weight,
    }
    ours |= {"ln_f.weight": book.final_norm.scale, "ln_f.bias": book.final_norm.shift}
    for index, block in enumerate(book.trf_blocks):
        assert isinstance(block, BookBlock)
        projections = (block.att.W_query, block.att.W_key, block.att.W_value)
        at = f"h.{index}"
        ours |= {f"{at}.ln_1.weight": block.norm1.scale, f"{at}.ln_1.bias": block.norm1.shift}
        ours |= {f"{at}.ln_2.weight": block.norm2.scale, f"{at}.ln_2.bias": block.norm2.shift}
        ours[f"{at}.attn.c_attn.weight"] = torch.cat([projection.weight for projection in projections])
        if block.att.W_query.bias is not None:
            ours[f"{at}.attn.c_attn.bias"] = torch.cat([projection.bias for projection in projections])
        for name, norm in zip(("q_norm", "k_norm"), block.att.norms, strict=False):
            ours[f"{at}.attn.{name}.weight"] = cast(WrittenNorm, norm).scale
        for name, layer in (
            ("attn.c_proj", block.att.out_proj),
            ("mlp.c_fc", block.ff[0]),
            ("mlp.c_proj", block.ff[2]),
        ):
            assert isinstance(layer, nn.Linear)
            ours |= {f"{at}.{name}.weight": layer.weight, f"{at}.{name}.bias": layer.bias}
    return ours


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_karpathys_model_has_the_published_number_of_weights() -> None:
    shape = {"seq_len": 1024, "num_layers": 12, "num_heads": 12, "width": 768}
    assert num_parameters(on_meta(vocab_size=50257, **shape)) == 124_439_808
    assert num_parameters(on_meta(vocab_size=50304, **shape)) == 124_354_560 + 121_344


def test_the_books_model_has_the_books_number_of_weights() -> None:
    shape = {"vocab_size": 50257, "seq_len": 256, "num_layers": 12, "num_heads": 12, "width": 768}
    assert num_parameters(on_meta(**shape, tie_head=False, qkv_bias=False)) == 162_419_712


def test_weights_have_gpt2s_own_names() -> None:
    model = GPT2(**SIZES | {"num_layers": 1})
    layers = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    names = [f"h.0.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert list(model.state_dict()) == [
        "wte.weight", "wpe.weight", *names, "ln_f.weight", "ln_f.bias", "lm_head.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("seed", [1337, 0])
def test_gpt2_weights_are_karpathys_for_the_same_seed(seed: int, tie_head: bool, qkv_bias: bool) -> None:
    torch.manual_seed(seed)
    karpathys = karpathys_model(tie_head=tie_head, qkv_bias=qkv_bias)
    ours = small(tie_head=tie_head, qkv_bias=qkv_bias)
    init_gpt2(ours, Generator().manual_seed(seed))
    assert_same_weights(ours.state_dict(), karpathys.state_dict())


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("seed", [123, 0])
def test_torch_weights_are_the_books_for_the_same_seed(seed: int, qkv_bias: bool) -> None:
    torch.manual_seed(seed)
    book = BookModel(**SIZES, qkv_bias=qkv_bias)
    ours = small(tie_head=False, qkv_bias=qkv_bias)
    init_torch(ours, Generator().manual_seed(seed))
    assert_same_weights(ours.state_dict(), in_our_names(book))


@given(
    heads=st.sampled_from([1, 2, 4]),
    layers=st.integers(0, 3),
    rows=st.integers(1, 3),
    length=st.integers(1, 12),
    qkv_bias=st.booleans(),
    qk_norm=st.booleans(),
    seed=st.integers(0, 99),
)
@examples(max_examples=40)
def test_logits_and_gradients_are_those_of_the_model_written_out(
    heads: int, layers: int, rows: int, length: int, qkv_bias: bool, qk_norm: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    switches = {"qkv_bias": qkv_bias, "qk_norm": qk_norm}
    sizes = SIZES | {"num_heads": heads, "num_layers": layers}
    book = BookModel(**sizes, **switches).double()
    ours = GPT2(**sizes, tie_head=False, **switches).double()
    with torch.no_grad():
        for weight in book.parameters():
            weight.add_(torch.randn_like(weight))  # norms and biases too: nothing may be 1 or 0 by chance
    ours.load_state_dict(in_our_names(book))
    ids = torch.randint(SIZES["vocab_size"], (rows, length))
    torch.testing.assert_close(ours(ids), book(ids), rtol=1e-12, atol=1e-12)
    for model in (ours, book):
        model(ids).log_softmax(dim=2)[..., 3].sum().backward()
    theirs = {id(weight): weight.grad for weight in book.parameters()}
    for name, tensor in in_our_names(book).items():
        if id(tensor) in theirs:  # not the three projections that were put together
            torch.testing.assert_close(ours.get_parameter(name).grad, theirs[id(tensor)], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("draw", [init_gpt2, init_torch])
@pytest.mark.parametrize("switches", [{}, {"tie_head": False, "qkv_bias": False}])
def test_norms_of_queries_and_keys_start_as_ones_and_move_no_other_weight(
    draw: Callable[[GPT2, Generator], None], switches: dict[str, bool]
) -> None:
    plain, normed = small(**switches), small(**switches, qk_norm=True)
    for model in (plain, normed):
        draw(model, Generator().manual_seed(5))
    added = {name: tensor for name, tensor in normed.state_dict().items() if name not in plain.state_dict()}
    kinds = ("q_norm", "k_norm")
    assert list(added) == [f"h.{layer}.attn.{kind}.weight" for layer in range(3) for kind in kinds]
    assert all(torch.equal(tensor, torch.ones(8)) for tensor in added.values())
    assert_same_weights(plain.state_dict(), {name: normed.state_dict()[name] for name in plain.state_dict()})


def test_with_norms_no_size_of_the_projections_makes_attention_sharp(gpt2_of: Make) -> None:
    ids = torch.arange(12)[None]
    for qk_norm, same in ((True, True), (False, False)):
        model = gpt2_of(dtype=torch.float64, qkv_bias=False, qk_norm=qk_norm, norm_eps=1e-12)
        with torch.no_grad():
            before = model(ids)
            for block in model.blocks:
                block.get_parameter("attn.c_attn.weight")[:32].mul_(1000)  # queries and keys
            assert torch.allclose(model(ids), before, rtol=1e-6, atol=1e-6) is same


def test_with_norms_reading_in_pieces_gives_the_logits_and_the_ids_of_reading_at_once(gpt2_of: Make) -> None:
    model = gpt2_of(dtype=torch.float64, qk_norm=True, num_heads=4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_norm" in name:
                weight.copy_(torch.linspace(0.5, 3, 4))
        ids, cache = torch.arange(12).view(1, 12), model.new_cache()
        pieces = [model(piece, cache) for piece in ids.split([5, 1, 1, 4, 1], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-12, atol=1e-12)
    with_cache, without = (list(generate(model, [3, 1], 20, cache=cache)) for cache in (True, False))
    assert with_cache == without


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_under_autocast_norms_compute_in_their_own_type_and_give_that_of_the_others(
    gpt2_of: Make, narrow: torch.dtype
) -> None:
    model = gpt2_of(qk_norm=True)
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    norm = model.blocks[0].get_submodule("attn.q_norm")
    norm.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    exact = model(torch.arange(12)[None])
    with torch.autocast("cpu", narrow):
        logits = model(torch.arange(12)[None])
    assert seen[1] == (torch.float32, torch.float32)
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.1)


def test_a_tied_head_is_the_embedding_itself(gpt2_of: Make) -> None:
    tied, untied = gpt2_of(), gpt2_of(tie_head=False)
    assert tied.lm_head.weight is tied.wte.weight
    assert num_parameters(untied) == num_parameters(tied) + tied.wte.weight.numel()


def test_a_classifiers_head_is_drawn_as_narrow_as_all_others() -> None:
    model = GPT2(**SIZES | {"width": 64}, num_labels=50)
    init_gpt2(model, Generator().manual_seed(3))
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)
