"""From a recipe, a file and flags to one validated configuration, or to all mistakes in one error.

Knows names and values only; what they mean is decided in `planning` and `build`. Layers are merged before one
validation, and a mistake names the layer it came from, the key, the value, what is allowed and what to do.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import ValidationError

from trainwell.config import checks
from trainwell.config.keys import Key, by_name, sections
from trainwell.config.syntax import FORMATS, dump_yaml, parse_yaml, read_config_file
from trainwell.config.tree import RunConfig
from trainwell.config.weights import keys_of_weights, misfits
from trainwell.errors import ConfigError

__all__ = ["Recipe", "load", "read_config_file", "read_recipe", "recipe_names"]

_DEFAULT = "demo"
_EXCLUSIVE = [("batch_size", "batch_tokens"), ("data.corpus", "data.path")]
_SWITCHES = {"batch_ramp": "batch_ramp.from_tokens"}
"""Sections that can be off: `batch_ramp: null` is null for the key that switches it on."""
_OF_ONE_TASK = {"data.labels": "classify", "data.template": "instruct"}
"""What weights say for the task that they have learned, and for no other."""
_OF_RECIPES = {"about", "bands", "accepts"}
"""What a recipe says about itself; in a config file, which may be one's own recipe, it says nothing about the run."""
_SPELLINGS = {
    "model.n_layer": "model.num_layers",
    "model.n_layers": "model.num_layers",
    "model.n_head": "model.num_heads",
    "model.n_heads": "model.num_heads",
    "model.n_embd": "model.width",
    "model.emb_dim": "model.width",
    "model.drop_rate": "model.dropout",
    "model.num_key_value_heads": "model.num_kv_heads",
    "model.intermediate_size": "model.mlp_width",
    "model.hidden_size": "model.width",
    "model.context_length": "data.seq_len",
    "model.block_size": "data.seq_len",
}


@dataclass(frozen=True)
class Recipe:
    """A configuration that ships with trainwell."""

    name: str
    about: str
    """One paragraph: where it comes from and what it is for."""
    config: dict[str, Any]
    """Its config keys, as they stand in the file."""
    bands: dict[str, list[dict[str, float]]]
    """By SHA-256 of a corpus, the validation losses it usually gives: {tokens, low, high}."""
    accepts: dict[str, str] = field(default_factory=dict)
    """By name of a finding of `planning.lints`, why the recipe wants it so: mostly because its source has it."""


def recipe_names() -> list[str]:
    """Every recipe, sorted."""
    files = resources.files("trainwell.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """Read a recipe; ConfigError suggests the nearest name."""
    names = recipe_names()
    if name not in names:
        raise ConfigError(
            f"there is no recipe {name!r}; recipes are {', '.join(names)}, and a config file is given by its path, "
            f"ending in {', '.join(FORMATS)}{checks.did_you_mean(name, names)}"
        )
    said = parse_yaml(resources.files("trainwell.recipes").joinpath(f"{name}.yaml").read_text("utf-8"))
    assert isinstance(said, dict), "a recipe holds keys and values"
    about, bands, accepts = said.pop("about"), said.pop("bands", None) or {}, said.pop("accepts", None) or {}
    return Recipe(name, about, said, bands, accepts)


def load(
    target: str | None = None,
    *,
    file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    source: str = "command line",
    record: Path | None = None,
) -> RunConfig:
    """Merge recipe < weights < file < flags and validate once; raise one ConfigError with every mistake.

    `target` is a recipe or the path of a config file; a file stands on the recipe `demo` unless `target` names another.
    `flags` have dotted keys ("optim.lr") or sections ({"optim": {"lr": 3e-4}}); text in them is read as YAML would, and
    `none` is null. `source` is what messages call them. The weights are those of `init_from`, which know their
    shape; where they are gone, `record` does, the config.yaml of a run that started from them.
    """
    if target is not None and _is_path(target):
        if file is not None:
            raise ConfigError(f"{target} and {file} are both config files; name a recipe and one file, or one file")
        file, target = Path(target), None
    recipe = read_recipe(target or _DEFAULT)
    layers = [_Layer(f"recipe {recipe.name}", {"name": recipe.name, **recipe.config})]
    if file is not None:
        said = read_config_file(file)
        said = {key: value for key, value in said.items() if key not in _OF_RECIPES}  # a recipe of one's own
        layers.append(_Layer(f"file {file}", {"name": _as_name(file.stem), **said}))
    layers.append(_Layer(source, flags or {}, typed=True))
    return _validated(layers, record)


def load_recorded(file: Path, *, flags: Mapping[str, object] | None = None, source: str = "command line") -> RunConfig:
    """Read the config.yaml of a run, which says all there is to say, with `flags` above it; see `load`."""
    return load(None, file=file, flags=flags, source=source, record=file)


@dataclass
class _Layer:
    """What one source says, by dotted key, and the mistakes in how it says it."""

    name: str
    said: Mapping[Any, object]
    typed: bool = False
    """Whether text in it was typed, so that `5` may be a number."""
    values: dict[str, object] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def read(self) -> "_Layer":
        """Fill `values` and `mistakes`."""
        for key, value in self.said.items():
            name = str(key)
            self._take(name if name.startswith("extra.") else name.replace("-", "_"), value)
        for pair in _EXCLUSIVE:
            self._choose(*pair)
        return self

    def _choose(self, first: str, second: str) -> None:
        """Of two keys that exclude each other, let the one that is said clear the other in the layers below."""
        one, other = self.values.get(first), self.values.get(second)
        if one is not None and other is not None:
            self.mistakes.append(
                f"{self.name}: {first}, {second}: {_shown(one)} and {_shown(other)} exclude each other; give one"
            )
        elif one is not None:
            self.values[second] = None
        elif other is not None:
            self.values[first] = None

    def _take(self, name: str, value: object) -> None:
        """Take one key: of a section, all that it holds."""
        if name in sections():
            self._take_section(name, value)
        elif name.startswith("extra."):
            for part in reversed(name.split(".")[1:]):
                value = {part: self._typed_yaml(value)}
            self._extend(value)
        elif name == "extra" and isinstance(value, Mapping):
            self._extend(value)
        else:
            self._set(_SPELLINGS.get(name, name), name, value)

    def _take_section(self, name: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                self._take(f"{name}.{key}", inner)
        elif value is None and name in _SWITCHES:
            self._take(_SWITCHES[name], None)
        elif value is not None:  # an empty section in YAML is null, and says nothing
            inside = ", ".join(sections()[name].model_fields)
            self.mistakes.append(f"{self.name}: {name}: {_shown(value)} is not allowed; it is a section, with {inside}")

    def _extend(self, value: object) -> None:
        self.values["extra"] = _deep_merge(self.values.get("extra", {}), value)

    def _set(self, name: str, spelled: str, value: object) -> None:
        key = by_name().get(name)
        if key is None:
            self.mistakes.append(f"{self.name}: {spelled}: there is no such key{_nearest(spelled)}")
        elif name in self.values:
            self.mistakes.append(f"{self.name}: {spelled}: this is {name} again, under another spelling; give it once")
        else:
            plain = str(value) if isinstance(value, PurePath) else value
            self.values[name] = self._read_text(key, plain) if isinstance(plain, str) else plain

    def _read_text(self, key: Key, text: str) -> object:
        """Read text for `key`: `none` is null wherever null is allowed; typed text is what YAML would make of it."""
        if key.optional and text.strip().lower() in {"none", "null"}:
            return None
        if key.kind == "pair":
            return [_as_yaml(part) for part in re.split(r"[\s,]+", text.strip("[]() ")) if part]
        if key.kind == "text" or text in key.choices:
            return text
        return self._typed_yaml(text)

    def _typed_yaml(self, value: object) -> object:
        return _as_yaml(value) if self.typed and isinstance(value, str) else value


def _as_yaml(text: str) -> object:
    """Read a value as YAML would; what YAML cannot read is text."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def _validated(layers: list[_Layer], record: Path | None) -> RunConfig:
    """Merge the layers, the last one winning, and validate the result."""
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    mistakes: list[str] = []
    layers = [layer.read() for layer in layers]
    source, said = _weights(layers, record)
    if said:
        own = {key: value for key, value in said.items() if _OF_ONE_TASK.get(key, _task(layers)) == _task(layers)}
        layers = [layers[0], _Layer(f"weights {source}", own).read(), *layers[1:]]
    for layer in layers:
        mistakes += layer.mistakes
        extra = _deep_merge(values.get("extra", {}), layer.values.get("extra", {}))
        values |= layer.values | {"extra": extra}
        sources |= dict.fromkeys(layer.values, layer.name)
    wrong = {name for name, value in values.items() if isinstance(value, bool) and by_name()[name].kind != "flag"}
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, inner = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[inner] = value
    try:
        config = RunConfig.model_validate(nested)
    except ValidationError as error:
        reasons = {_dotted(each["loc"]): str(each.get("ctx", {}).get("error", "")) for each in error.errors()}
    else:
        reasons = {}
    reasons |= dict.fromkeys(wrong, "")
    mistakes += [f"{sources[name]}: {_refusal(by_name()[name], values[name], why)}" for name, why in reasons.items()]
    if not mistakes:
        mistakes = [*checks.problems(config), *(misfits(config, source, said) if said else [])]
    if mistakes:
        raise checks.error(mistakes)
    return config


def _weights(layers: list[_Layer], record: Path | None) -> tuple[str, dict[str, object]]:
    """The weights of `init_from` and what they say, which goes above the recipe; a run's own record has it all."""
    source = _topmost(layers, "init_from")
    if not isinstance(source, str) or layers[1].name == f"file {record}":
        return "", {}
    return source, keys_of_weights(source, record)


def _task(layers: list[_Layer]) -> object:
    return _topmost(layers, "task") or "pretrain"


def _topmost(layers: list[_Layer], key: str) -> object:
    return next((layer.values[key] for layer in reversed(layers) if key in layer.values), None)


def _refusal(key: Key, value: object, reason: str) -> str:
    """Say why `value` is not allowed for `key`: in its parser's words where it has one, else in those of its type."""
    if reason:
        alternatives = [*key.choices, *(["null"] if key.optional else [])]
        return f"{key.name}: {_shown(value)} {reason}" + (f"; or {', '.join(alternatives)}" if alternatives else "")
    quoted = f' (in quotes: "{value}")' if key.kind == "text" and isinstance(value, int | float) else ""
    near = checks.did_you_mean(value, key.choices) if isinstance(value, str) else ""
    return f"{key.name}: {_shown(value)} is not allowed; give {key.allowed}{quoted}{near}"


def _shown(value: object) -> str:
    """Show a value as a config file has it, text in quotes."""
    return repr(value) if isinstance(value, str) else dump_yaml(value, flow=True)


def _nearest(name: str) -> str:
    """Suggest the key that was meant: the same word elsewhere, else the nearest spelling, else what the section has."""
    section, _, word = name.rpartition(".")
    spelled = {key: _SPELLINGS.get(key, key) for key in [*by_name(), *_SPELLINGS]}
    same = [meant for key, meant in spelled.items() if key.rpartition(".")[2] == word]
    if same:
        return f"; did you mean {' or '.join(same)}?"
    if section in sections():
        inside = [*sections()[section].model_fields]
        near = difflib.get_close_matches(word, inside, n=1)
        return f"; did you mean {section}.{near[0]}?" if near else f"; {section} has {', '.join(inside)}"
    suggestion = checks.did_you_mean(name, [*by_name(), *sections()])
    return suggestion or "; `trainwell show demo --yaml` prints every key, and extra.NAME is free for yours"


def _dotted(loc: tuple[int | str, ...]) -> str:
    """The key of a validation error, whose place goes on into the alternatives of a type."""
    return f"{loc[0]}.{loc[1]}" if loc[0] in sections() else str(loc[0])


def _deep_merge(lower: object, higher: object) -> object:
    if not (isinstance(lower, Mapping) and isinstance(higher, Mapping)):
        return higher
    both = {key: _deep_merge(lower[key], higher[key]) for key in lower.keys() & higher.keys()}
    return {**lower, **higher, **both}


def _is_path(target: str) -> bool:
    return "/" in target or "\\" in target or Path(target).suffix.lower() in FORMATS


def _as_name(stem: str) -> str:
    """Turn a file's name into one that a run's folder may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "my-run"
