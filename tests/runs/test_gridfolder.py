"""A grid's folder: a name for every combination, and a file that says what it is made of."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell.errors import ConfigError, StorageError
from trainwell.runs.gridfolder import (
    Grid,
    cells_of,
    is_grid,
    read_grid,
    read_results,
    write_grid,
    write_results,
)

VALUES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True).map(tuple)


def test_every_combination_has_a_folder_the_last_key_changing_first() -> None:
    cells = cells_of(Path("runs/lr"), {"optim.lr": ("1e-4", "3e-4"), "seed": ("1", "2")})
    assert [cell.name for cell in cells] == [
        "optim.lr=1e-4,seed=1", "optim.lr=1e-4,seed=2", "optim.lr=3e-4,seed=1", "optim.lr=3e-4,seed=2"
    ]  # fmt: skip
    assert cells[2].path == Path("runs/lr/optim.lr=3e-4,seed=1")
    assert cells[2].settings == {"optim.lr": "3e-4", "seed": "1"}


@given(VALUES, VALUES)
def test_names_differ_and_stay_inside_their_folder(left: tuple[str, ...], right: tuple[str, ...]) -> None:
    cells = cells_of(Path("g"), {"a": left, "b": right})
    assert len({cell.name for cell in cells}) == len(left) * len(right)
    for cell in cells:
        assert cell.path.parent == Path("g")
        assert not {*cell.name} & {*"/\\\0\n"}


def test_a_name_that_no_folder_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="take fewer keys, or shorter values"):
        cells_of(Path("g"), {"extra.note": ("x" * 300,)})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    assert not is_grid(folder)
    grid = Grid("demo", {"optim.lr": ("1e-4", "3e-4"), "seed": ("1",)}, ("demo", "--duration=5"))
    write_grid(folder, grid)
    assert is_grid(folder)
    assert read_grid(folder) == grid
    assert read_results(folder) == {}
    write_results(folder, {"a": 0, "b": 70})
    assert read_results(folder) == {"a": 0, "b": 70}


@pytest.mark.parametrize("text", ["", "[]", '{"axes": 3, "target": "x", "arguments": []}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(StorageError, match=r"grid\.json cannot be read"):
        read_grid(tmp_path)
