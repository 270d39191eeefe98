"""Every key of the configuration as a flag: `--optim.lr 3e-4`, made from the tree so that the two cannot differ."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Group, Parameter

from trainwell.config.keys import Key, keys


def with_config_flags(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb one keyword-only parameter per key; those that were typed reach it as `flags`, by dotted key."""
    signature = inspect.signature(verb)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "flags"]
    names = {_variable(key): key.name for key in keys() if key.name != "custom"}

    def called(*args: Any, **kwargs: Any) -> Any:
        typed = dict[str, object]()
        for variable, name in names.items():
            value = kwargs.pop(variable, None)
            if isinstance(value, dict):
                typed |= {f"{name}.{key}": inner for key, inner in value.items()}
            elif value is not None:
                typed[name] = value
        return verb(*args, **kwargs, flags=typed)

    called.__doc__ = verb.__doc__
    called.__name__ = verb.__name__
    added = [_parameter(key) for key in keys() if key.name != "custom"]
    called.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    return called


def _variable(key: Key) -> str:
    return "key_" + key.name.replace(".", "__")


def _parameter(key: Key) -> inspect.Parameter:
    section, _, _ = key.name.rpartition(".")
    kind: Any = dict[str, str] | None if key.kind == "mapping" else str | None
    default = "" if key.default is None or key.name == "name" else f" Default: {_shown(key.default)}."
    parameter = Parameter(
        name=_spellings(key),
        help=key.help + default,
        group=Group(f"Configuration: {section}" if section else "Configuration", sort_key=(2, section)),
        show_default=False,
        allow_leading_hyphen=True,
    )
    return inspect.Parameter(
        _variable(key), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, parameter]
    )


def _spellings(key: Key) -> tuple[str, ...]:
    dashed = "--" + key.name.replace("_", "-")
    return (dashed,) if "_" not in key.name else (dashed, f"--{key.name}")


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
