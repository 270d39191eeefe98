"""Which version of a package this is, also where it was never installed."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str = "trainwell") -> str:
    """The installed version; that it runs from its source where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed, run from its source"
