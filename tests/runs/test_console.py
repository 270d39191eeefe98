"""What training prints, on a terminal and elsewhere."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.runs.console import Console, Silent, format_step, parts_line, safe, short_count, short_time


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_step_is_printed_as_in_the_lecture() -> None:
    line = format_step(10, 7.380367, 6e-4, 2.0155, 0.14372, 56999.66)
    assert line == "step   10 | loss: 7.380367 | lr 6.0000e-04 | norm: 2.0155 | dt: 143.72ms | tok/sec: 56999.66"


def test_plain_lines_come_every_so_many_steps_and_at_the_last() -> None:
    stream = io.StringIO()
    with Console(num_steps=25, log_every=10, stream=stream) as console:
        for step in range(25):
            console.step_line(step, 1.0, 1e-3, 0.5, 0.1, 100.0)
    assert [int(line.split()[1]) for line in stream.getvalue().splitlines()] == [0, 10, 20, 24]


def test_a_terminal_gets_a_bar_and_the_same_lines() -> None:
    stream = Terminal()
    with Console(num_steps=25, log_every=10, stream=stream) as console:
        for step in range(25):
            console.step_line(step, 1.0, 1e-3, 0.5, 0.1, 100.0)
        console.message("saved")
    screen = stream.getvalue()
    assert screen.count("| loss: 1.000000 |") == 4
    assert "0/25" in screen
    assert "saved" in screen


def test_a_bar_of_a_continued_run_starts_where_the_run_stood() -> None:
    stream = Terminal()
    with Console(num_steps=25, log_every=10, stream=stream) as console:
        console.message("continuing")
        assert "/25" not in stream.getvalue()
        console.advance(12)
    assert "12/25" in stream.getvalue()


def test_a_stream_that_cannot_write_a_character_gets_its_escape() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with Console(num_steps=1, log_every=1, stream=stream) as console:
        console.message("cos\u00ed fan tutte")
    assert raw.getvalue() == b"cos\\xed fan tutte\n"


def test_a_message_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    with Console(num_steps=1, log_every=1, stream=stream) as console:
        console.message("a\x1b[2Jb\rc\u202ed")
    assert stream.getvalue() == "a\\x1b[2Jb\\rc\\u202ed\n"


@given(text=st.text())
def test_safe_text_has_no_control_character_and_ordinary_text_is_untouched(text: str) -> None:
    shown = safe(text)
    assert all(char in "\n\t" or ord(char) >= 32 for char in shown)
    assert safe(shown) == shown


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (950, "950"),
        (999.4, "999"),
        (1000, "1k"),
        (12_345, "12.3k"),
        (999_900, "1M"),
        (1_500_000, "1.5M"),
        (375e6, "375M"),
        (2.4576e6, "2.46M"),
        (300e9, "300B"),
        (3.15e12, "3.15T"),
    ],
)
def test_a_count_is_short(count: float, text: str) -> None:
    assert short_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.52, "0.5 s"),
        (2, "2 s"),
        (42.4, "42 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3900, "1 h 5 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert short_time(seconds) == text


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({}, ""),
        ({"ce": 1.5}, ""),
        (
            {"accuracy": 0.912, "accuracy/ham": 1.0, "accuracy/spam": float("nan")},
            " | accuracy: 91.2% (ham 100.0%, spam of none)",
        ),
        ({"hellaswag": 0.25, "hellaswag/sum": 0.3}, " | hellaswag: 25.0% (sum 30.0%)"),
    ],
)
def test_what_else_was_measured_ends_the_line_of_an_evaluation(parts: dict[str, float], line: str) -> None:
    assert parts_line(parts) == line


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_silent_console_shows_nothing_whatever_it_is_told(stream: io.StringIO) -> None:
    with Silent(num_steps=3, log_every=1, stream=stream) as console:
        console.message("a line")
        for step in range(3):
            console.step_line(step, 2.0, 1e-3, 1.0, 0.1, 100.0)
            console.advance(step)
    assert stream.getvalue() == ""
