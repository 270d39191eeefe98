"""Where a measurement was made: the machine, the versions, the commit, the command."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "trainwell": "trainwell",
    "torch": "torch",
    "transformers": "transformers",
    "lightning": "lightning",
    "accelerate": "accelerate",
    "litgpt": "litgpt",
    "llms-from-scratch": "llms_from_scratch",
}
"""Packages whose versions are told, and what each is imported as."""


def describe() -> dict[str, str]:
    """Facts by name, as text."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": platform.platform(),
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.speed", *sys.argv[1:]]),
    }


def commit() -> str:
    """The commit that is measured, and whether files differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}, with changes" if _git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
