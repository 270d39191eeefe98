"""starts.jsonl: what was noted is read back, and a line that is none costs nothing."""

from pathlib import Path

from trainwell.runs.starts import note_start, read_starts, this_start


def test_starts_are_read_back_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "starts.jsonl"
    first, second = this_start(0, 1), this_start(40, 2)
    note_start(file, first)
    note_start(file, second)
    assert read_starts(file) == (first, second)
    assert first.command
    assert second.processes == 2


def test_a_line_that_is_no_start_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "starts.jsonl"
    note_start(file, this_start(0, 1))
    with file.open("a", encoding="utf-8") as lines:
        lines.write('[]\n{"step": "x"}\nnull\n{"step": 3, "at"')
    assert [start.step for start in read_starts(file)] == [0]


def test_a_run_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    assert read_starts(tmp_path / "starts.jsonl") == ()
