"""Parts that a script gave to `trainwell.cli.main`, for the verbs to build runs with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_GIVEN: ContextVar[Mapping[str, Any]] = ContextVar("given", default={})  # noqa: B039  never written to


@contextmanager
def given(parts: Mapping[str, Any]) -> Iterator[None]:
    """Give these parts to the verbs called inside."""
    token = _GIVEN.set(parts)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def current() -> Mapping[str, Any]:
    """The parts given, by their names in `trainwell.build`."""
    return _GIVEN.get()
