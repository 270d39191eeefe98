"""Config files as text: what is written is read back, and what cannot be read says where."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainwell.config.syntax import dump_yaml, parse_yaml, read_config_file
from trainwell.errors import ConfigError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@given(plain, st.booleans())
def test_what_is_written_is_read_back(value: object, flow: bool) -> None:
    assert parse_yaml(dump_yaml(value, flow=flow)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 0.001), ("1_000", 1000), (".5", 0.5), ("010", 10), ("~", None), ("true", True)],
        *[(text, text) for text in ("no", "on", "2024-01-01", "1:30", "10%", "375M tokens")],
    ],
)
def test_yaml_says_what_a_reader_expects(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "seed: 1\noptim: {lr: 3e-4}\n"),
        ("a.yml", "\ufeffseed: 1\noptim:\n  lr: 0.0003\n"),
        ("a.toml", "seed = 1\n[optim]\nlr = 3e-4\n"),
        ("a.json", '{"seed": 1, "optim": {"lr": 3e-4}}'),
    ],
)
def test_all_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_config_file(tmp_path / name) == {"seed": 1, "optim": {"lr": 3e-4}}


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# all defaults\n")
    assert read_config_file(tmp_path / "a.yaml") == {}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", b"optim: {lr: 1\n", "not valid YAML at line 2, column 1"),
        ("a.yaml", b"seed: 1\nseed: 2\n", "line 2, column 1: 'seed' is given twice"),
        ("a.json", b'{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ("a.yaml", b"- 1\n", "must hold keys and values"),
        ("a.yaml", b"seed: !!python/name:os.system\n", "not valid YAML"),
        ("a.toml", b"seed = [\n", "not valid TOML"),
        ("a.json", b"{", "not valid JSON"),
        ("a.yaml", b"name: \xff", "not UTF-8 at byte 6"),
        ("a.txt", b"seed: 1", r"the name of one ends in \.yaml, \.yml, \.toml, \.json"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_is_wrong_and_where(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_config_file(tmp_path / name)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no config file"):
        read_config_file(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_config_file(tmp_path)


@pytest.mark.parametrize("text", ["{" * 3000, "9" * 5000, "[1, 2", "? [1, 2]\n: 3", "!x y"])
def test_what_no_reader_can_read_is_an_error_of_the_text(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_a_number_with_two_underscores_in_a_row_is_text() -> None:
    assert parse_yaml("1__0") == "1__0"
    assert parse_yaml("1_0.5") == 10.5


def test_a_name_that_is_too_long_is_not_a_config_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read: File name too long"):
        read_config_file(Path("a" * 3000))
