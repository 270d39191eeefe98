"""Every key of the configuration in words: its dotted name, what it takes, its default and its help.

Read off the tree, so that flags, documentation and error messages never say anything else than the tree does.
"""

import ast
import inspect
import types
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from trainwell.config import tree
from trainwell.config.values import Duration, Share

_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_KINDS = {
    bool: ("flag", "true or false"),
    int: ("integer", "a whole number"),
    float: ("number", "a number"),
    str: ("text", "text"),
    Duration: ("duration", 'a length such as 500, "375M tokens", "10%" or "2 epochs"'),
    Share: ("rate", 'a rate such as 6e-5, or a share of the peak such as "10%"'),
    tuple: ("pair", "two numbers"),
    dict: ("mapping", "keys of your own, such as extra.alpha"),
}


@dataclass(frozen=True)
class Key:
    """One key of the configuration."""

    name: str
    """Dotted: optim.lr."""
    kind: str
    """flag, integer, number, text, duration, rate, pair, mapping, or choice when only `choices` are allowed."""
    default: object
    """The tree's default, as plain data."""
    help: str
    """What it does: its docstring in the tree."""
    choices: tuple[str, ...]
    """Words that are allowed, alone or beside values of the kind."""
    optional: bool
    """Whether null is allowed."""
    allowed: str
    """What is allowed, in words: "auto, or a whole number (at least 1)"."""


@cache
def keys() -> list[Key]:
    """Every key, in the order of the tree, sections after the keys beside them."""
    return [*_keys_of(tree.RunConfig, "")]


@cache
def by_name() -> dict[str, Key]:
    """Every key by its dotted name."""
    return {key.name: key for key in keys()}


@cache
def sections() -> dict[str, type[tree.Section]]:
    """The sections of the tree by name."""
    fields = tree.RunConfig.model_fields.items()
    return {name: field.annotation for name, field in fields if _is_section(field.annotation)}  # type: ignore[misc]


def _keys_of(section: type[tree.Section], prefix: str) -> list[Key]:
    plain = section().model_dump()
    found = []
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            found += _keys_of(field.annotation, f"{name}.")  # type: ignore[arg-type]
        else:
            found.append(_key(prefix + name, field, plain[name], _docstrings()[section.__name__][name]))
    return found


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, tree.Section)


def _key(name: str, field: FieldInfo, default: object, text: str) -> Key:
    parts = _parts(field.annotation, field.metadata)
    choices = tuple(word for kind, bounds in parts if kind is Literal for word in bounds)
    kinds = [(kind, bounds) for kind, bounds in parts if kind not in {Literal, types.NoneType}]
    optional = any(kind is types.NoneType for kind, _ in parts)
    words = [", ".join(choices)] if choices else []
    for kind, bounds in kinds:
        words.append(_KINDS[kind][1] + (f" ({' and '.join(bounds)})" if bounds else ""))
    return Key(
        name=name,
        kind=_KINDS[kinds[0][0]][0] if kinds else "choice",
        default=default,
        help=text,
        choices=choices,
        optional=optional,
        allowed=", or ".join([*words, *(["null"] if optional else [])]),
    )


def _parts(annotation: Any, metadata: list[Any]) -> list[tuple[Any, list[str]]]:
    """Take a type apart: each alternative with its bounds in words, Literal with its words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        return _parts(inner, [bound for info in extra for bound in getattr(info, "metadata", [info])])
    if origin in {Union, types.UnionType}:
        return [part for each in get_args(annotation) for part in _parts(each, metadata)]
    if origin is Literal:
        return [(Literal, [str(word) for word in get_args(annotation)])]
    if origin is tuple:
        return [(tuple, [f"each {' and '.join(_parts(get_args(annotation)[0], [])[0][1])}"])]
    bounds = [
        f"{word} {getattr(bound, name)}" for bound in metadata for name, word in _WORDS.items() if hasattr(bound, name)
    ]
    return [(origin or annotation, bounds)]


@cache
def _docstrings() -> dict[str, dict[str, str]]:
    """The docstring under each field, by class and field; Python itself drops them."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(tree)).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {
                field.target.id: inspect.cleandoc(text.value.value)
                for field, text in zip(node.body, node.body[1:], strict=False)
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return found
