"""A configuration as the text of a config file, one section a block.

Knows the tree only. The text is itself a valid config file: reading it gives the same configuration.
"""

from trainwell.config.keys import Key, keys, sections
from trainwell.config.load import load
from trainwell.config.syntax import dump_yaml
from trainwell.config.tree import RunConfig

__all__ = ["Key", "keys", "to_yaml"]


def to_yaml(config: RunConfig, *, full: bool = True) -> str:
    """Write every key, durations and rates in their one canonical spelling.

    Without `full`, only the name and what differs from the recipe `demo`, on which every config file stands.
    """
    plain = config.model_dump()
    base = {} if full else load().model_dump()
    top: list[str] = []
    blocks: list[str] = []
    for name, value in plain.items():
        below = base.get(name, {})
        if name in sections():
            lines = [_line(key, inner) for key, inner in value.items() if full or inner != below[key]]
            blocks += ["\n".join([f"{name}:", *(f"  {line}" for line in lines)])] if lines else []
        elif isinstance(value, dict):
            blocks += [dump_yaml({name: value})] if value else []
        elif full or name == "name" or value != below:
            top.append(_line(name, value))
    return "\n\n".join(["\n".join(top), *blocks]) + "\n"


def _line(key: str, value: object) -> str:
    return f"{key}: {dump_yaml(list(value) if isinstance(value, tuple) else value, flow=True)}"
