"""Parts that are given in Python, and the data of a run, given or prepared; what a given part switches off is said.

Knows how parts are recorded, not how they are put together.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from trainwell.config.tree import RunConfig
from trainwell.data.batches import Examples, Stream, Windows, stack
from trainwell.data.classify import labels_text, parse_labels
from trainwell.data.examples import ExampleStore
from trainwell.data.prepare import StoreInfo
from trainwell.data.tasks import Store, open_data
from trainwell.data.templates import Template, template_of
from trainwell.data.tokenizer import Tokenizer, open_tokenizer
from trainwell.errors import ConfigError, DataError, StorageError
from trainwell.runs.rundir import RunDir

PARTS = ("model", "data", "val", "optimizer", "schedules", "loss")
"""What can be given."""


@dataclass(frozen=True)
class Given:
    """What was given in place of what the configuration would have made; None for what was not."""

    model: Any = None
    data: Any = None
    val: Any = None
    optimizer: Any = None
    schedules: Mapping[str, Callable[[int], float]] = field(default_factory=dict)
    loss: Any = None


@dataclass(frozen=True)
class Data:
    """Examples to train and evaluate on, and what is known of them."""

    config: RunConfig
    """With seq_len and batch_size as the data has them, where it was given."""
    train: Examples | Stream
    val: Examples | None
    info: StoreInfo
    tokenizer: Tokenizer | None
    facts: dict[str, Any]
    """What identifies the data on resume."""
    bytes_per_token: float | None = None
    switched_off: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What became of single examples, for the summary."""
    template: Template | None = None
    """Of task instruct: how a question becomes text."""
    labels: tuple[str, ...] = ()
    """Of task classify: the names of the classes."""


def data_from(config: RunConfig, given: Given) -> Data:
    """The data that was given, else the one that is configured."""
    if given.data is not None:
        return _given(config, given)
    return prepared(config, open_data(config.task, config.data), given.val)


def prepared(config: RunConfig, store: Store, val: Examples | None = None) -> Data:
    """The data of a store: its examples; or windows at the configured stride to train on, side by side to evaluate."""
    _check_val(val)
    if isinstance(store, ExampleStore):
        return _of_examples(config, store, val)
    info, seq_len = store.info, config.data.seq_len
    return Data(
        config=config,
        train=Windows(store.train, seq_len, config.data.stride or seq_len),
        val=Windows(store.val, seq_len, seq_len) if val is None else val,
        info=info,
        tokenizer=store.tokenizer,
        facts=_facts(info),
        bytes_per_token=info.val_bytes / info.val_tokens if val is None else None,
        switched_off=() if val is None else ("off, because val was given: bits per byte",),
        notes=store.notes,
    )


def _of_examples(config: RunConfig, store: ExampleStore, val: Examples | None) -> Data:
    """The data of a task, its classes written into the configuration, so that they keep their numbers."""
    data = config.data.model_copy(update={"labels": labels_text(store.labels)}) if store.labels else config.data
    return Data(
        config=config.model_copy(update={"data": data}),
        train=store.train,
        val=store.val if val is None else val,
        info=store.info,
        tokenizer=store.tokenizer,
        facts=_facts(store.info) | ({} if store.template is None else {"template": _mark(store.template)}),
        notes=store.notes,
        template=store.template,
        labels=store.labels,
    )


def _mark(template: Template) -> str:
    """Enough of a template's hash to see that it was changed."""
    return sha256(json.dumps(template.state(), sort_keys=True).encode()).hexdigest()[:12]


def _facts(info: StoreInfo) -> dict[str, Any]:
    return {
        "fingerprint": info.fingerprint,
        "corpus": info.corpus,
        "version": info.version,
        "tokenizer": info.tokenizer,
    }


def recorded(config: RunConfig, run_dir: RunDir) -> Data:
    """The data of a run as its own folder tells: counts and tokenizer, no text; DataError when that is not there."""
    try:
        counts = json.loads(run_dir.env_json.read_text(encoding="utf-8"))["counts"]
        info = StoreInfo(**counts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run_dir.env_json} does not say what the run was trained on ({error})") from error
    return Data(
        config=config,
        train=Stream(()),
        val=None,
        info=info,
        tokenizer=open_tokenizer(run_dir.path),
        facts={},
        switched_off=("off, because the text is not there: training and evaluating",),
        template=template_in(run_dir),
        labels=() if config.data.labels is None else parse_labels(config.data.labels),
    )


def template_in(run_dir: RunDir) -> Template | None:
    """The template that a run was trained with, whatever became of the file it came from; None for another task."""
    try:
        return template_of(json.loads(run_dir.template_json.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{run_dir.template_json} cannot be read ({error}); restore it from a copy") from error


def _check_val(val: Any) -> None:
    if val is not None and not isinstance(val, Examples):
        raise ConfigError(
            f"val: {type(val).__name__} was given; allowed are examples, with len(d) and d[i] -> (inputs, targets)"
        )


def _given(config: RunConfig, given: Given) -> Data:
    """The data that was given, with the configuration brought in line with its shape."""
    train, val = given.data, given.val
    if not isinstance(train, Stream | Examples):
        raise ConfigError(
            f"data: {type(train).__name__} was given; allowed are examples, with len(d) and d[i] -> (inputs, targets), "
            "or from_loader(iterable of (inputs, targets) batches)"
        )
    _check_val(val)
    update: dict[str, Any] = {}
    off = ["off, because data was given: corpus look-up, text samples, bits per byte"]
    if isinstance(train, Stream):
        rows, seq_len = train.shape()
        update = {"batch_size": rows, "batch_tokens": None}
        off.append("not promised, because the data only runs forward: its order, and that resuming is exact")
    else:
        seq_len = _length_of(train)
    update["data"] = config.data.model_copy(update={"seq_len": seq_len, "stride": None, "corpus": None, "path": None})
    if val is None:
        off.append("off, because no val was given: evaluation")
    if config.task == "classify" and config.data.labels is None:
        raise ConfigError(
            "data.labels: the classes of given data are not known; name them in the order of their numbers: ham,spam "
            "(the target of a text is the number of its class at its last token, and -100 elsewhere)"
        )
    if config.task == "instruct":
        off.append("off, because data was given: answering questions, whose template is not known")
    return Data(
        config=config.model_copy(update=update),
        train=train,
        val=val,
        info=_counted(train, val, seq_len, config),
        tokenizer=None,
        facts={"given": type(train).__qualname__, "examples": None if isinstance(train, Stream) else len(train)},
        switched_off=tuple(off),
        labels=parse_labels(config.data.labels) if config.task == "classify" and config.data.labels else (),
    )


def _length_of(examples: Examples) -> int:
    if len(examples) == 0:
        raise DataError("data: it has no examples; at least one is needed")
    inputs, targets, _ = stack(examples, np.array([0]))
    if inputs.shape != targets.shape or inputs.dim() != 2:
        raise DataError(
            f"data: inputs and targets of example 0 have shapes {list(inputs.shape[1:])} and "
            f"{list(targets.shape[1:])}; they must be two sequences of ids of one length"
        )
    return int(inputs.shape[1])


def _counted(train: Examples | Stream, val: Examples | None, seq_len: int, config: RunConfig) -> StoreInfo:
    """The counts from which a plan is made, as if the examples were windows side by side."""
    examples = 0 if isinstance(train, Stream) else len(train)
    vocabulary = {"bytes": 257, "gpt2": 50257}.get(config.data.tokenizer, 0)
    return StoreInfo(
        train_tokens=examples * seq_len + 1 if examples else 0,
        val_tokens=0 if val is None else len(val) * seq_len + 1,
        train_bytes=0,
        val_bytes=0,
        vocab_size=config.model.pad_vocab_to or vocabulary,
        fingerprint="given",
        corpus="given in Python",
        corpus_sha256="",
        version=None,
        tokenizer="none",
        note=None,
        num_texts=0,
    )


def refuse_missing_parts(config: RunConfig, given: Given) -> None:
    """Raise ConfigError when a run was made with parts that are not given now, naming where they were."""
    recorded = {name: config.custom[name] for name in PARTS if name in config.custom}
    missing = [f"{name} ({where})" for name, where in recorded.items() if not getattr(given, name)]
    if missing:
        raise ConfigError(
            f"{config.name} was made with parts given in Python: {', '.join(missing)}. Use the script that has them: "
            "trainwell.build(...) or, for every verb, trainwell.cli.main(...) with the same parts"
        )


def describe_custom(given: Given, model: nn.Module) -> dict[str, Any]:
    """What config.yaml says of given parts: enough to tell which script has them."""
    parts: dict[str, Any] = {}
    for name in PARTS:
        part = getattr(given, name)
        if name == "schedules":
            part = ", ".join(part)
            parts |= {"schedules": part} if part else {}
        elif part is not None:
            part = part.loader if isinstance(part, Stream) else part
            parts[name] = _where(part if inspect.isroutine(part) or inspect.isclass(part) else type(part))
    if given.model is not None:
        parts["parameters"] = sum(tensor.numel() for tensor in model.parameters())
        parts["source_sha256"] = _source_hash(type(model))
    return parts


def _where(kind: Any) -> str:
    """Module and name; of what a script itself defines, the script's file and the name."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    place = Path(script).name if kind.__module__ == "__main__" and script else kind.__module__
    return f"{place}:{kind.__qualname__}"


def _source_hash(kind: type) -> str | None:
    """Hash of a class's source; None where there is none, as in an interactive session."""
    try:
        return sha256(inspect.getsource(kind).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return None
