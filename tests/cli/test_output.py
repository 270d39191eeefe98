"""What is printed can be read by programs and by every terminal."""

import io
import json
from contextlib import redirect_stdout

import pytest
from rich.text import Text

from trainwell.cli.output import print_json, print_rich


def test_json_has_no_numbers_that_json_cannot_say_and_flat_lists_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"a": [1, float("nan"), "[\n]"], "b": [[1, 2.5], [3, 4.5]], "c": {"d": ()}}
    print_json(facts)
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": [1, None, "[\n]"], "b": [[1, 2.5], [3, 4.5]], "c": {"d": []}}
    assert "    [1, 2.5],\n" in text


def test_a_terminal_that_lacks_a_character_gets_an_escape() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(stream):
        print_rich(Text("naïve [bold]"))
    stream.seek(0)
    assert stream.read() == "na\\xefve [bold]\n"
