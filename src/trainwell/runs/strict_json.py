"""JSON that every reader takes: a number that is not finite is null, and a second key says which it was.

Knows plain values: dicts, lists, numbers, text.
"""

import math
from collections.abc import Mapping
from typing import Any

_FLAG = "/nonfinite"


def to_plain(value: Any) -> Any:
    """The same with null in place of every NaN and infinity in a dict, and `NAME/nonfinite` beside it."""
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    plain: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, float) and not math.isfinite(item):
            plain |= {name: None, name + _FLAG: str(float(item))}
        else:
            plain[name] = to_plain(item)
    return plain


def from_plain(plain: Any) -> Any:
    """Put back what `to_plain` took out; raise ValueError for a flag that is no number."""
    if isinstance(plain, list):
        return [from_plain(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    flags = {name: float(item) for name, item in plain.items() if name.endswith(_FLAG)}
    values = {name: from_plain(item) for name, item in plain.items() if name not in flags}
    return values | {name.removesuffix(_FLAG): item for name, item in flags.items()}
