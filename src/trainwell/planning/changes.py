"""PURE. What a run may change when it continues: one table over every key, and its data by the fingerprint.

Knows keys and values, no folder and no model. Free: no step becomes another. Warn: the same mathematics, with other
last bits or a choice of the machine, so the run goes on and says so. Refuse: other mathematics, which takes
`--allow-change KEY`; or weights, optimizer state or a place in the data that would not fit, which nothing allows.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainwell.config import checks, keys
from trainwell.errors import ConfigError

Kind = Literal["free", "warn", "refuse"]
Way = Literal["allow", "branch", "anew"]


@dataclass(frozen=True)
class Rule:
    """What becomes of a change of some keys; a name that ends in a dot stands for its whole section."""

    kind: Kind
    keys: tuple[str, ...]
    why: str
    """Free: why no step changes. Warn: what is no longer as it was. Refuse: what would not be."""
    way: Way = "allow"
    """The least that a refused change takes: to be allowed; a branch; a new run, as weights or state do not fit."""


TABLE = (
    Rule("free", ("name", "log.", "eval.", "sample.", "checkpoint."), "it looks at steps, or keeps them"),
    Rule("free", ("fast.keep_memory", "recompute"), "where memory comes from, or what is in it, changes no number"),
    Rule("free", ("data.corpus", "data.path"), "a text may move: another one is refused by its fingerprint"),
    Rule(
        "warn", ("micro_batch", "parallel"), "sums are taken in another order, and dropout, if any, draws other masks"
    ),
    Rule("warn", ("device", "kernels", "compile", "deterministic"), "other kernels round otherwise"),
    Rule("warn", ("fast.matmul", "fast.attention", "fast.residual"), "other kernels round otherwise"),
    Rule("warn", ("fast.dropout",), "dropout, if any, draws other masks"),
    Rule("warn", ("precision",), "the forward pass rounds to other digits"),
    Rule("warn", ("guard.",), "a step that leaps out may fare otherwise; all others are as they would have been"),
    Rule("refuse", ("duration",), "its schedule is laid out over it"),  # free where schedule.horizon is set
    Rule("refuse", ("schedule.", "batch_ramp.lr_scaling"), "every rate is another"),
    Rule("refuse", ("optim.lr", "optim.betas", "optim.eps", "optim.weight_decay"), "every update is another"),
    Rule("refuse", ("optim.max_grad_norm", "optim.clip_from"), "gradients are clipped otherwise"),
    Rule("refuse", ("optim.z_loss", "model.dropout"), "the loss is another"),
    Rule("refuse", ("extra",), "what your own code makes of it is not known here"),
    Rule("refuse", ("task", "init_from"), "its weights come from there", "anew"),
    Rule("refuse", ("seed",), "the order of its data is drawn from it, so windows would come twice", "branch"),
    Rule(
        "refuse",
        (
            "batch_size",
            "batch_tokens",
            *(f"batch_ramp.{key}" for key in ("from_tokens", "over", "stages", "multiple_of")),
        ),
        "the place of a step in the data is counted with it",
        "branch",
    ),
    Rule(
        "refuse",
        tuple(f"data.{key}" for key in ("seq_len", "stride", "val_fraction", "split", "order", "rows", "skip")),
        "the windows of the steps so far would be others",
        "branch",
    ),
    Rule("refuse", ("data.template", "data.train_on_prompt"), "its targets so far would be others", "branch"),
    Rule("refuse", ("data.tokenizer", "data.labels"), "the ids that its weights know would be others", "anew"),
    Rule(
        "refuse",
        tuple(
            f"model.{key}"
            for key in (
                *("arch", "num_layers", "num_heads", "num_kv_heads", "head_dim", "width", "mlp_width", "norm_eps"),
                *("rope_theta", "rope_scaling", "rope_factor", "rope_original_context", "qk_norm", "tie_head"),
                *("qkv_bias", "init", "pad_vocab_to"),
            )
        ),
        "its weights are those of this model",
        "anew",
    ),
    Rule("refuse", ("optim.name", "optim.decay", "optim.train"), "the optimizer's state would not fit", "anew"),
    Rule("refuse", ("custom",), "it says which parts a script gave, and the script decides that", "anew"),
)
"""Every key of the configuration, once."""

CHANGES: dict[str, Kind] = {key: rule.kind for rule in TABLE for key in rule.keys}
"""The same by key, or by the beginning of a section's keys."""


@dataclass(frozen=True)
class Change:
    """A key with another value than the run has."""

    key: str
    then: Any
    now: Any

    @property
    def rule(self) -> Rule:
        """The one that decides it."""
        return rule_of(self.key)

    def line(self) -> str:
        """The key with both values."""
        return f"{self.key}: {self.then} there, {self.now} wanted"


def rules_of(key: str) -> list[Rule]:
    """The rules that name a key: one, if the table is right."""
    return [
        rule for rule in TABLE if any(key == name or (name[-1] == "." and key.startswith(name)) for name in rule.keys)
    ]


def rule_of(key: str) -> Rule:
    """The rule of a key."""
    return rules_of(key)[0]


def kind_of(key: str, *, horizon: bool) -> Kind:
    """The class of a key in a run; with a `horizon` of its own, its schedule does not depend on the duration."""
    return "free" if key == "duration" and horizon else rule_of(key).kind


def allowed_keys(given: Collection[str]) -> frozenset[str]:
    """The keys of --allow-change, as the tree spells them; ConfigError names one that does not exist."""
    found = frozenset(key.replace("-", "_") for key in given)
    for key in sorted(found - keys.by_name().keys()):
        near = checks.did_you_mean(key, keys.by_name())
        raise ConfigError(
            f"--allow-change {key}: there is no such key{near or '; `trainwell show demo --yaml` prints every key'}"
        )
    return found


def refusals(changes: Collection[Change], allow: Collection[str]) -> list[str]:
    """A line for every refused change that is not allowed, or that cannot be."""
    found = []
    for change in changes:
        rule = change.rule
        if rule.kind != "refuse" or (rule.way == "allow" and change.key in allow):
            continue
        tried = f"; --allow-change {change.key} cannot make it fit" if change.key in allow else ""
        found.append(f"{change.line()} ({rule.why}{tried})")
    return found


def ways_out(changes: Collection[Change], allow: Collection[str], run: object) -> str:
    """What to do about the refused changes of the run at a path."""
    refused = [change for change in changes if change.rule.kind == "refuse"]
    ways = {change.rule.way for change in refused}
    flags = " ".join(f"--allow-change {change.key}" for change in refused if change.key not in allow)
    return "; ".join(
        [
            "Leave them as they are to continue it",
            *([f"allow it from here on with {flags}"] if ways == {"allow"} else []),
            "start anew with --run OTHER",
            *([] if "anew" in ways else [f"or branch: trainwell train {run}@last --run NEW"]),
        ]
    )


def notes(changes: Collection[Change]) -> tuple[str, ...]:
    """A line for every change that the run goes on with though it is not free."""
    return tuple(
        f"changed: {change.key} is {change.now} and was {change.then}: {change.rule.why}; "
        + (
            "from here on not bitwise what it would have been"
            if change.rule.kind == "warn"
            else f"allowed by --allow-change {change.key}, from here on"
        )
        for change in changes
    )


_MARK = 12
"""Digits of a hash that are shown."""


def data_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between the data a run was trained on and the data at hand; "" for the same data.

    Text is the same where its fingerprint is, which covers every text, the tokenizer and the split, wherever it lies.
    """
    texts = "fingerprint" in then and "fingerprint" in now
    deciding = (then.keys() & now.keys()) - {"corpus", "version"} if texts else then.keys() | now.keys()
    if all(then.get(key) == now.get(key) for key in deciding):
        return ""
    differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return "; ".join(f"{key}: {_shown(then.get(key))} then, {_shown(now.get(key))} now" for key in differing)


def _shown(value: Any) -> str:
    """A hash by its beginning, all else as it is."""
    text = "none" if value is None else str(value)
    return text[:_MARK] if len(text) >= 2 * _MARK and all(digit in "0123456789abcdef" for digit in text) else text
