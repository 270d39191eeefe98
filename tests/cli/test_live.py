"""Pages from the command line: a report, an index, and one that is served."""

import json
import shutil
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest
from tests.cli.conftest import Command


def test_showing_a_run_writes_its_report(command: Command, finished: Path) -> None:
    said = command("show", "runs/tiny")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-1] == "wrote runs/tiny/report.html"
    assert "Learned" in Path("runs/tiny/report.html").read_text(encoding="utf-8")


def test_showing_a_folder_of_runs_writes_their_index(command: Command, finished: Path) -> None:
    shutil.copytree("runs/tiny", "runs/other")
    said = command("show", "runs")
    assert (said.code, said.err) == (0, "")
    assert "tiny" in said.out
    assert "finished" in said.out
    assert Path("runs/index.html").is_file()
    facts = json.loads(command("show", "runs", "--json").out)
    assert [run["name"] for run in facts["runs"]] == ["other", "tiny"]


def test_what_is_no_run_is_not_followed(command: Command, finished: Path) -> None:
    for words in (["demo", "--watch"], ["runs", "--serve"], ["runs/tiny@4", "--watch"]):
        said = command("show", *words)
        assert said.code == 2
        assert "--watch and --serve follow a run" in said.err
    assert "leave out --json" in command("show", "runs/tiny", "--watch", "--json").err
    assert "leave out --yaml" in command("show", "runs", "--yaml").err
    said = command("show", "runs/tiny", "--address", "8000")
    assert said.code == 2
    assert "write HOST:PORT" in said.err


@pytest.mark.slow
def test_a_report_is_served_until_it_is_stopped(finished: Path) -> None:
    words = [sys.executable, "-m", "trainwell", "show", "runs/tiny", "--watch", "--serve"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving http://127.0.0.1:")
        assert process.stdout.readline() == "runs/tiny/report.html: written\n"
        line = line.split()[1]
        answer = HTTPConnection(line.removeprefix("http://").removesuffix("/"), timeout=20)
        answer.request("GET", "/")
        assert b"Learned" in answer.getresponse().read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
