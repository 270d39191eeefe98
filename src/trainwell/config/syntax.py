"""Config files as text: YAML, TOML and JSON in, YAML out.

Knows no key. The YAML is 1.2's core: `1e-3` is a number, `no` and `on` are words, a date is text, and a key given twice
is a mistake, where YAML 1.1 (PyYAML's default) says otherwise. Reader and writer share the rules, so text stays text.
"""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from trainwell.errors import ConfigError

_RULES = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+(?:_[0-9]+)*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
]


_UNICODE_BREAKS = set("\x85\u2028\u2029")


class _Loader(yaml.SafeLoader):
    """Reads plain data only."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's name and type

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's name and type

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RULES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), list(_first))


def _read_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # decimal: YAML 1.1 reads 010 as 8


_Loader.add_constructor("tag:yaml.org,2002:int", _read_int)


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Text with a line break that only Unicode knows must be escaped: read back plain, it would be a space."""
    style = '"' if _UNICODE_BREAKS & set(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)


def parse_yaml(text: str) -> object:
    """Read one YAML document; raises yaml.YAMLError."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits, a date that no calendar has
        raise yaml.YAMLError(f"it holds a value that cannot be read: {error}") from None


def dump_yaml(value: object, *, flow: bool = False) -> str:
    """Write `value` as YAML in its own order, without a final newline; `flow` keeps lists and mappings on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=10**6
    )
    return text.removesuffix("\n").removesuffix("\n...")


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a .yaml, .yml, .toml or .json file into a dictionary; ConfigError says what is wrong with it and where."""
    try:
        is_dir, exists = path.is_dir(), path.exists()
    except OSError as error:  # a name that is too long
        raise ConfigError(f"the config file {str(path)[:100]!r} cannot be read: {error.strerror}") from None
    if path.suffix.lower() not in FORMATS or is_dir:
        if not exists:
            raise ConfigError(
                f"there is nothing at {path}: no run and no config file, whose name would end in {', '.join(FORMATS)}"
            )
        kind = "folder" if is_dir else "file"
        raise ConfigError(f"{path} is a {kind}, not a config file; the name of one ends in {', '.join(FORMATS)}")
    text = _read_text(path)
    try:
        said = _PARSERS[path.suffix.lower()](text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"the config file {path} is not valid YAML{where}: {error.problem}") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"the config file {path} is not valid {path.suffix[1:].upper()}: {error}") from None
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise ConfigError(
            f"the config file {path} holds {said!r:.40}; it must hold keys and values, such as `duration: 500`"
        )
    return said


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no config file {path}; `trainwell show demo --yaml > {path.with_suffix('.yaml')}` writes one"
        ) from None
    except OSError as error:
        raise ConfigError(f"the config file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the config file {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _parse_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    given: dict[str, object] = {}
    for key, value in pairs:
        if key in given:
            raise ValueError(f"{key!r} is given twice")
        given[key] = value
    return given


_PARSERS: dict[str, Callable[[str], object]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".toml": tomllib.loads,
    ".json": _parse_json,
}
FORMATS = tuple(_PARSERS)
"""Endings of config files."""
