"""Corpora: found by name or path, read exactly, and refused with a message when they cannot be read."""

import hashlib
import platform
from pathlib import Path

import pytest

from trainwell.data.corpora import CORPORA, Corpus, cache_folder, read_corpus
from trainwell.errors import ConfigError, DataError


def test_the_default_corpus_is_in_every_interpreter() -> None:
    corpus = read_corpus(corpus="python-docs")
    assert len(corpus.texts) == 1
    assert len(corpus.texts[0]) > 100_000
    assert corpus.version == f"{platform.python_implementation()} {platform.python_version()}"
    assert corpus.note is not None
    assert "for looking, not for claims" in corpus.note


def test_the_hash_of_one_text_is_that_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("dos\r\nunix\nÄ".encode())
    corpus = read_corpus(path=str(file))
    assert corpus.texts == ("dos\r\nunix\nÄ",)
    assert corpus.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_hash_of_several_texts_knows_where_they_end() -> None:
    def hashed(*texts: str) -> str:
        return Corpus("c", texts, ()).sha256

    assert len({hashed("ab", "c"), hashed("a", "bc"), hashed("abc"), hashed("c", "ab")}) == 4


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a.txt", "c.MD", "skipped.py", ".git/hidden.txt", "a/._z.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    corpus = read_corpus(path=str(tmp_path))
    assert corpus.texts == ("a.txt", "a/z.md", "b.txt", "c.MD")
    assert corpus.sources == tuple(str(tmp_path / name) for name in corpus.texts)


def test_a_byte_order_mark_is_dropped_and_null_characters_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\0two")
    assert read_corpus(path=str(tmp_path / "a.txt")).texts == ("one\0two",)


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    assert read_corpus(path="~/a.txt").texts == ("text",)


def test_a_missing_path_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: .*nothing\.txt does not exist"):
        read_corpus(path=str(tmp_path / "nothing.txt"))


def test_an_empty_file_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        read_corpus(path=str(tmp_path / "a.txt"))


def test_a_folder_without_text_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"holds no text in its 1 \.txt and \.md files"):
        read_corpus(path=str(tmp_path))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_that_is_not_utf8_names_the_file_and_the_byte(tmp_path: Path, mark: bytes) -> None:
    content = mark + "é".encode() + b"\xff"
    (tmp_path / "latin.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"latin\.txt is not UTF-8: byte 0xff at offset {len(content) - 1},"):
        read_corpus(path=str(tmp_path / "latin.txt"))


def test_an_unknown_corpus_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no corpus 'tiny-shakespear'\. Did you mean tiny-shakespeare") as caught:
        read_corpus(corpus="tiny-shakespear")
    assert all(name in str(caught.value) for name in CORPORA)


@pytest.mark.parametrize("given", [{"corpus": "verdict", "path": "a.txt"}, {}])
def test_a_corpus_and_a_path_exclude_each_other(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="give exactly one of them"):
        read_corpus(**given)  # type: ignore[arg-type]  # mypy takes the strings for any keyword


def test_a_published_text_that_is_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINWELL_DOWNLOAD", raising=False)
    monkeypatch.setenv("TRAINWELL_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"looked for the-verdict\.txt in .*data and .*corpora") as caught:
        read_corpus(corpus="verdict", cache=tmp_path)
    assert "TRAINWELL_DOWNLOAD=1" in str(caught.value)
    assert "TRAINWELL_DATA_DIR" in str(caught.value)


def test_a_download_that_fails_says_where_the_text_may_be_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINWELL_DATA_DIR", raising=False)
    monkeypatch.setenv("TRAINWELL_DOWNLOAD", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there, so nothing leaves the machine
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"verdict could not be downloaded from https://.*corpora.the-verdict\.txt"):
        read_corpus(corpus="verdict", cache=tmp_path)


@pytest.mark.parametrize("place", ["data", "cache/corpora"])
def test_a_published_text_that_was_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("TRAINWELL_DATA_DIR", str(tmp_path / "data"))
    file = tmp_path / place / "tinyshakespeare.txt"
    file.parent.mkdir(parents=True)
    file.write_text("To be")
    with pytest.raises(DataError, match="is not the text expected") as caught:
        read_corpus(corpus="tiny-shakespeare", cache=tmp_path / "cache")
    assert hashlib.sha256(b"To be").hexdigest() in str(caught.value)
    assert "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed" in str(caught.value)


def test_the_cache_is_the_one_given_then_the_environments_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWELL_CACHE_DIR", str(tmp_path))
    assert cache_folder(Path("here")) == Path("here")
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TRAINWELL_CACHE_DIR")
    assert "trainwell" in cache_folder().parts
