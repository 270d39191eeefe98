"""`trainwell show RUN --watch --serve` and `trainwell show RUNS_DIR`: pages that follow runs. Never imports torch."""

import time
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from trainwell.cli.output import print_json, print_rich
from trainwell.errors import ConfigError
from trainwell.runs import processors
from trainwell.runs.console import safe

ADDRESS = "127.0.0.1:0"
"""This machine alone, at any free port."""
_LONG_S = 3600.0


def follow(path: Path, *, watching: bool, address: str | None) -> None:
    """Write the report of a run, again and again if `watching`, and serve it at `address` if there is one.

    Ends with the run, or, serving, with Ctrl-C.
    """
    from trainwell.report.serve import PageServer
    from trainwell.report.watch import watch, write_once

    processors.step_back()
    server = None if address is None else PageServer(*_parsed(address))

    def publish(page: bytes) -> None:
        if server is not None:
            server.page = page

    with suppress(KeyboardInterrupt), nullcontext() if server is None else server.serving():
        if server is not None:
            _say(f"serving {server.url} until Ctrl-C")
        if watching:
            watch(path, publish, _say)
        else:
            _say(f"wrote {write_once(path, publish)}")
        while server is not None:
            time.sleep(_LONG_S)


def show_index(folder: Path, *, json: bool) -> None:
    """Say how the runs of a folder stand, and write its index.html."""
    from trainwell.report.index import entries, write_index
    from trainwell.report.terminal import index_table

    found = entries(folder)
    if json:
        print_json({"folder": str(folder), "runs": [asdict(entry) for entry in found]})
        return
    print_rich(index_table(str(folder), found))
    _say(f"wrote {write_index(folder, found)}")


def _parsed(address: str) -> tuple[str, int]:
    """Host and port; ConfigError for what is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise ConfigError(f"--address {address!r}: write HOST:PORT, such as 127.0.0.1:8000; port 0 is any free one")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _say(line: str) -> None:
    print(safe(line), flush=True)
