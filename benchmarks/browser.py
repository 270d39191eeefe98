"""A real browser, headless: the system's own Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def installed() -> str | None:
    """Where it is; None where there is none."""
    return next((place for name in NAMES if (place := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser as Playwright drives it; RuntimeError where none is installed."""
    place = installed()
    if place is None:
        raise RuntimeError("no Chromium on this machine: make ci-deps installs one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def wait_ready(page: Any) -> None:
    """Wait until the script of one of our pages is through."""
    page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
