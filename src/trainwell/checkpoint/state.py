"""A state, as JSON and tensors: nested dicts, lists and scalars stay readable, tensors go to safetensors by name.

Nothing is pickled, so nothing that is read can run. Tensors that share memory (a tied head) are stored once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainwell.distributed.parallel import local
from trainwell.errors import ConfigError

Scalar = str | int | float | bool | None


def pack(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a state into JSON and named tensors; raise ConfigError naming a value that is neither."""
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}

    def free(path: str) -> str:
        """The path as a name; with primes where another tensor's path reads the same (the keys 1 and "1")."""
        while path in tensors:
            path += "'"
        return path

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            here = local(value)
            place = (value.device, here.data_ptr(), value.shape, value.stride(), value.dtype)
            name = names.setdefault(place, free(path)) if here.numel() else free(path)
            tensors[name] = value.detach()
            return {"$tensor": name}
        if isinstance(value, dict):
            _refuse_keys(value, path)
            pairs = [[key, visit(item, f"{path}.{key}" if path else str(key))] for key, item in value.items()]
            return {"$dict": pairs}
        if isinstance(value, list | tuple):
            kind = "$list" if isinstance(value, list) else "$tuple"
            return {kind: [visit(item, f"{path}.{place}") for place, item in enumerate(value)]}
        if not isinstance(value, Scalar):
            raise ConfigError(
                f"{path} is a {type(value).__name__}; a checkpoint holds tensors, numbers, text, true/false, none, and "
                "lists and dicts of them: return such values from state_dict()"
            )
        return value

    return visit(state, ""), tensors


def _refuse_keys(mapping: dict[Any, Any], path: str) -> None:
    for key in mapping:
        if not isinstance(key, Scalar):
            raise ConfigError(
                f"{path} has a key that is a {type(key).__name__}; "
                "a checkpoint's keys are text, numbers, true/false or none"
            )


def unpack(plain: Any, tensors: Mapping[str, Any]) -> Any:
    """Put together again what `pack` split."""
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "$tensor":
        return tensors[content]
    if kind == "$dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return items if kind == "$list" else tuple(items)


def describe(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Type and shape of each tensor, for the manifest."""
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes; NaN equals NaN, 0 does not equal -0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each contiguous and in memory of its own: the file format knows no views."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


class Staging:
    """Memory that a state is copied into, so that it can be written while training goes on.

    One stretch of `size` bytes, taken and touched when it is made: a copy then waits for nothing. A state that is
    larger than was foreseen makes it grow, once.
    """

    _ALIGNED = 64

    def __init__(self, size: int) -> None:
        self._memory = torch.zeros(size, dtype=torch.uint8)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._memory.numel()

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors, in this memory; valid until the next copy."""
        places, end = {}, 0
        for name, tensor in tensors.items():
            places[name] = end
            end += -(-tensor.numel() * tensor.element_size() // self._ALIGNED) * self._ALIGNED
        if end > self.size:
            self._memory = torch.zeros(end, dtype=torch.uint8)
        found = {}
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            found[name] = self._memory[places[name] : places[name] + size].view(tensor.dtype).view(tensor.shape)
            found[name].copy_(tensor)
        return found
