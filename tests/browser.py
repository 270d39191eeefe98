"""A real browser for tests: the system's own Chromium, headless, or a reason why there is none."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks import browser

CLEAN = ("info", "log", "debug")
"""Kinds of console lines that are no complaint."""


@dataclass
class Seen:
    """A page that was opened, and everything it did besides showing itself."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where none is installed."""
    if browser.installed() is None:
        pytest.skip("no Chromium on this machine: make ci-deps installs one")
    with browser.chromium() as found:
        yield found


def look(opened: Any, file: Path | str, *, dark: bool = False, phone: bool = False) -> Seen:
    """Open a file or an address and wait until its charts stand."""
    width, height = (390, 844) if phone else (1280, 900)
    scheme = "dark" if dark else "light"
    viewport = {"width": width, "height": height}
    context = opened.new_context(viewport=viewport, color_scheme=scheme, is_mobile=phone, has_touch=phone)
    page = context.new_page()
    seen = Seen(page)

    def refuse(dialog: Any) -> None:
        seen.dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("console", lambda line: seen.complaints.append(line.text) if line.type not in CLEAN else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("dialog", refuse)
    page.goto(file if isinstance(file, str) else file.as_uri())
    browser.wait_ready(page)
    return seen


def wait_until(page: Any, expression: str) -> None:
    """Wait until an expression is true; asked from here, since the page's policy lets no text become code."""
    from playwright.sync_api import Error

    for _ in range(600):
        with suppress(Error):  # the page is being left for another, or for itself
            if page.evaluate(expression):
                return
        page.wait_for_timeout(100)
    pytest.fail(f"never came true: {expression}")
