"""The same weights under the names, and in the layout, of each peer. From GPT-2's names with torch's (out, in)."""

from torch import Tensor

_PROJECTIONS = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_IN_THE_BOOK = {
    "ln_1.weight": "norm1.scale",
    "ln_1.bias": "norm1.shift",
    "ln_2.weight": "norm2.scale",
    "ln_2.bias": "norm2.shift",
    "attn.c_proj.weight": "att.out_proj.weight",
    "attn.c_proj.bias": "att.out_proj.bias",
    "mlp.c_fc.weight": "ff.layers.0.weight",
    "mlp.c_fc.bias": "ff.layers.0.bias",
    "mlp.c_proj.weight": "ff.layers.2.weight",
    "mlp.c_proj.bias": "ff.layers.2.bias",
}
_OUTSIDE_IN_THE_BOOK = {
    "wte.weight": "tok_emb.weight",
    "wpe.weight": "pos_emb.weight",
    "ln_f.weight": "final_norm.scale",
    "ln_f.bias": "final_norm.shift",
}


def to_hf(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """For transformers, whose projections lie as (in, out)."""
    return {
        f"transformer.{name}": (tensor.T if name.endswith(_PROJECTIONS) else tensor).contiguous()
        for name, tensor in weights.items()
    }


def to_nanogpt(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """For nanoGPT, whose head is the embedding under a second name."""
    return {f"transformer.{name}": tensor for name, tensor in weights.items()} | {
        "lm_head.weight": weights["wte.weight"]
    }


def to_book(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """For the book's model, which has queries, keys and values apart; its head gets the embedding."""
    found = {"out_head.weight": weights["wte.weight"]}
    for name, tensor in weights.items():
        if name in _OUTSIDE_IN_THE_BOOK:
            found[_OUTSIDE_IN_THE_BOOK[name]] = tensor
            continue
        _, layer, part = name.split(".", 2)
        if part.startswith("attn.c_attn"):
            kind = part.rpartition(".")[2]
            for letter, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"trf_blocks.{layer}.att.W_{letter}.{kind}"] = third.clone()
        else:
            found[f"trf_blocks.{layer}.{_IN_THE_BOOK[part]}"] = tensor
    return found
