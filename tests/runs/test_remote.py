"""A run behind a URL: what is committed there, what a mirror holds, which side is right, what a bad network costs."""

import json
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainwell.checkpoint.layout import Manifest, directory_of, read_manifest, saved_steps, write_manifest
from trainwell.data import corpora
from trainwell.errors import ConfigError, RunBusyError, StorageError
from trainwell.runs.mirror import cache_folder
from trainwell.runs.objects import Objects
from trainwell.runs.remote import Remote, bring
from trainwell.runs.rundir import RunDir, Target, local_folder, parse_target, split_target

pytestmark = pytest.mark.usefixtures("line")

Behind = Callable[[str], dict[str, bytes]]
Until = Callable[[Callable[[], object]], None]
TENSORS = "tensors.safetensors"


def write_checkpoint(folder: Path, step: int, *, seed: int = 0) -> Path:
    """A checkpoint as the store leaves it, of two files with random bytes."""
    directory = directory_of(folder / "checkpoints", step)
    directory.mkdir(parents=True)
    dice = random.Random(1000 * seed + step)
    (directory / TENSORS).write_bytes(dice.randbytes(300))
    (directory / "more.safetensors").write_bytes(dice.randbytes(40))
    write_manifest(directory, Manifest(step, {"lr": 1e-05, "step": step}, {}, {}))
    return directory


def write_run(folder: Path, *steps: int, lines: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("name: demo\n")
    (folder / "env.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(lines)))
    (folder / "attempts").mkdir(exist_ok=True)
    (folder / "attempts" / "001.jsonl").write_text("old\n")
    for step in steps:
        write_checkpoint(folder, step)


def content(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden, by its name."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def overwrite(url: str, name: str, value: bytes) -> None:
    store, place = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{place}/{name}", value)


# ---- names


def test_caches_of_runs_and_of_texts_lie_in_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == corpora.cache_folder()
    monkeypatch.delenv("TRAINWELL_CACHE_DIR")
    assert cache_folder() == corpora.cache_folder()


def test_a_target_with_a_url_becomes_the_mirror_that_holds_what_is_there(url: str, tmp_path: Path) -> None:
    there = Remote(url, tmp_path / "writer")
    write_run(there.mirror, 4, 8)
    there.push()
    path, step = parse_target(f"{url}@8")
    assert step == 8
    assert RunDir(Path(path)).config_yaml.read_text() == "name: demo\n"
    assert saved_steps(RunDir(Path(path)).checkpoints) == [4, 8]
    assert parse_target(url) == Target(path, None)
    assert Path(path).is_relative_to(tmp_path / "cache" / "remote")
    assert RunDir(Path(path)).name == "demo"
    assert RunDir(Path(path)).shown == url
    assert local_folder(Path(url)) == Path(path)


def test_an_at_sign_inside_a_url_is_no_step() -> None:
    assert split_target("memory://box@account/demo") == Target("memory://box@account/demo", None)
    assert split_target("memory://box@account/demo@best") == Target("memory://box@account/demo", "best")


def test_a_url_without_a_run_is_named_with_how_to_start_one() -> None:
    with pytest.raises(ConfigError, match=r"no run at memory://nothing/demo; .* trainwell train demo --run memory://"):
        parse_target("memory://nothing/demo@best")


def test_a_url_is_split_from_its_step_without_looking_behind_it() -> None:
    assert split_target("nonsense://a/b@7") == Target("nonsense://a/b", 7)


def test_a_local_run_has_no_remote_and_is_shown_by_its_path(tmp_path: Path) -> None:
    assert RunDir(tmp_path).remote is None
    assert RunDir(tmp_path).shown == str(tmp_path)


# ---- stores that cannot be used


def test_whatever_a_client_raises_becomes_one_message_with_the_url(faulty: str, tmp_path: Path, line: Any) -> None:
    remote = Remote(faulty, tmp_path / "a")
    write_run(remote.mirror)
    line.left = 0
    with pytest.raises(StorageError, match=rf"{faulty}: .* cannot be written \(RuntimeError: line cut\).*credentials"):
        remote.push_light()


# ---- pushing and pulling


def test_what_was_pushed_is_pulled_and_fetched_elsewhere_to_the_byte(url: str, tmp_path: Path) -> None:
    a, b = Remote(url, tmp_path / "a"), Remote(url, tmp_path / "b")
    write_run(a.mirror, 4, 8)
    a.push()
    b.pull()
    light = {name: value for name, value in content(a.mirror).items() if not name.endswith(".safetensors")}
    assert content(b.mirror) == light
    assert b.saved_steps() == [4, 8]
    for step in (4, 8):
        read_manifest(b.fetch(step))
    assert content(b.mirror) == content(a.mirror)


def test_every_file_of_a_checkpoint_precedes_its_manifest_and_goes_after_it(
    faulty: str, tmp_path: Path, line: Any, behind: Behind
) -> None:
    remote = Remote(faulty, tmp_path / "a")
    remote.push_checkpoint(write_checkpoint(remote.mirror, 4))
    remote.delete_checkpoint(4)
    names = [f"checkpoints/step-4/{name}" for name in ("more.safetensors", TENSORS)]
    manifest = "checkpoints/step-4/manifest.json"
    written = [f"write {name}" for name in (*names, manifest)]
    removed = [f"remove {name}" for name in (manifest, *names)]
    assert line.said == written + removed
    assert behind(faulty) == {}


def test_a_push_cut_off_anywhere_leaves_what_was_there_and_the_next_one_completes_it(
    faulty: str, tmp_path: Path, line: Any
) -> None:
    remote = Remote(faulty, tmp_path / "a")
    write_run(remote.mirror, 4)
    remote.push()
    before = content(remote.mirror)
    cut = 0
    while True:
        step = 8 + cut
        write_checkpoint(remote.mirror, step)
        RunDir(remote.mirror).metrics_jsonl.write_text('{"step": 0}\n' * (5 + cut))
        reader = Remote(faulty, tmp_path / f"reader{cut}")
        line.left = cut
        try:
            remote.push()
        except StorageError:
            reader.pull()
            for saved in reader.saved_steps():
                read_manifest(reader.fetch(saved))
            assert 4 in reader.saved_steps()
            line.left = None
            Remote(faulty, remote.mirror).push()
            reader.pull()
            assert {**before, **content(remote.mirror)} == content(remote.mirror)
            assert sorted(reader.saved_steps()) == saved_steps(remote.mirror / "checkpoints")
            assert content(reader.mirror)["metrics.jsonl"] == content(remote.mirror)["metrics.jsonl"]
            cut += 1
        else:
            break
    assert cut == 5  # two files, the manifest, the metrics, the index


def test_a_half_pushed_checkpoint_is_invisible_and_removed_by_the_next_push(
    faulty: str, tmp_path: Path, line: Any, behind: Behind
) -> None:
    remote = Remote(faulty, tmp_path / "a")
    write_run(remote.mirror)
    remote.push_light()
    half = write_checkpoint(remote.mirror, 4)
    line.left = 2
    with pytest.raises(StorageError):
        remote.push_checkpoint(half)
    line.left = None
    assert "checkpoints/step-4/more.safetensors" in behind(faulty)
    assert remote.saved_steps() == []
    remote.push_checkpoint(write_checkpoint(remote.mirror, 8))
    assert remote.saved_steps() == [8]
    assert not [name for name in behind(faulty) if "step-4/" in name]


def test_a_checkpoint_that_changed_is_pushed_again_under_its_name(url: str, tmp_path: Path) -> None:
    a, b = Remote(url, tmp_path / "a"), Remote(url, tmp_path / "b")
    write_run(a.mirror, 4)
    write_run(b.mirror)
    a.push()
    again = write_checkpoint(tmp_path / "other", 4, seed=1)
    for file in again.iterdir():
        file.replace(a.mirror / "checkpoints" / "step-4" / file.name)
    a.push()
    read_manifest(b.fetch(4))
    assert content(b.mirror / "checkpoints") == content(a.mirror / "checkpoints")


def test_what_the_mirror_no_longer_keeps_goes_and_foreign_names_stay(url: str, tmp_path: Path, behind: Behind) -> None:
    remote = Remote(url, tmp_path / "a")
    write_run(remote.mirror, 4, 8)
    remote.push()
    overwrite(url, "checkpoints/step-4/notes.txt", b"mine")
    overwrite(url, "notes.txt", b"mine")
    write_checkpoint(remote.mirror, 12)
    for file in (remote.mirror / "checkpoints" / "step-4").iterdir():
        file.unlink()
    remote.push()
    assert remote.saved_steps() == [8, 12]
    there = behind(url)
    assert there["checkpoints/step-4/notes.txt"] == there["notes.txt"] == b"mine"
    assert [name for name in there if "step-4" in name] == ["checkpoints/step-4/notes.txt"]


def test_a_mirror_that_was_emptied_takes_no_checkpoint_with_it(url: str, tmp_path: Path) -> None:
    remote = Remote(url, tmp_path / "a")
    write_run(remote.mirror, 4, 8, 12)
    remote.push()
    for step in (4, 8):
        for file in (remote.mirror / "checkpoints" / f"step-{step}").iterdir():
            file.unlink()
    remote.push()
    assert remote.saved_steps() == [4, 8, 12]


def test_only_light_files_that_changed_are_written_again(faulty: str, tmp_path: Path, line: Any) -> None:
    remote = Remote(faulty, tmp_path / "a")
    write_run(remote.mirror)
    remote.push_light()
    line.said.clear()
    remote.push_light()
    assert line.said == []
    with RunDir(remote.mirror).metrics_jsonl.open("a") as file:
        file.write('{"step": 3}\n')
    remote.push_light()
    assert line.said == ["write metrics.jsonl", "write mirror.json"]


def test_hidden_and_unfinished_files_stay_in_the_mirror(url: str, tmp_path: Path, behind: Behind) -> None:
    remote = Remote(url, tmp_path / "a")
    write_run(remote.mirror)
    (remote.mirror / ".lock").write_text("process 1")
    (remote.mirror / "metrics.tmp").write_text("")
    (remote.mirror / "attempts" / "002.tmp").write_text("")
    remote.push_light()
    assert sorted(behind(url)) == ["attempts/001.jsonl", "config.yaml", "env.json", "metrics.jsonl", "mirror.json"]


def test_a_reader_that_pulls_between_any_two_writes_sees_only_whole_checkpoints(
    faulty: str, tmp_path: Path, line: Any
) -> None:
    writer, reader = Remote(faulty, tmp_path / "a"), Remote(faulty, tmp_path / "b")
    seen: set[tuple[int, ...]] = set()

    def read(_name: str) -> None:
        reader.pull()
        steps = reader.saved_steps()
        seen.add(tuple(steps))
        assert saved_steps(reader.mirror / "checkpoints") in (steps, sorted({*steps, 4}))
        for step in steps:
            read_manifest(reader.fetch(step))

    write_run(writer.mirror, 4, 8)
    line.after = read
    writer.push()
    write_checkpoint(writer.mirror, 12)
    for file in (writer.mirror / "checkpoints" / "step-4").iterdir():
        file.unlink()
    writer.push()
    assert seen == {(), (8,), (4, 8), (4, 8, 12), (8, 12)}


# ---- which side is right


def test_a_mirror_that_is_ahead_stays_ahead(url: str, tmp_path: Path) -> None:
    remote = Remote(url, tmp_path / "a")
    write_run(remote.mirror, 4)
    remote.push()
    with RunDir(remote.mirror).metrics_jsonl.open("a") as file:
        file.write('{"step": 3}\n')
    write_checkpoint(remote.mirror, 8)
    ahead = content(remote.mirror)
    Remote(url, remote.mirror).pull()
    assert content(remote.mirror) == ahead


def test_a_mirror_becomes_what_another_machine_has_written_since(url: str, tmp_path: Path) -> None:
    a, b = Remote(url, tmp_path / "a"), Remote(url, tmp_path / "b")
    write_run(a.mirror, 4)
    a.push()
    write_checkpoint(a.mirror, 6)  # never pushed
    b.pull()
    b.fetch(4)
    write_checkpoint(b.mirror, 8)
    RunDir(b.mirror).metrics_jsonl.write_text('{"step": 0}\n' * 8)
    b.push()
    a.pull()
    a.fetch(8)
    assert content(a.mirror) == content(b.mirror)


def test_a_run_that_another_machine_began_anew_is_not_mixed_with_the_old_one(url: str, tmp_path: Path) -> None:
    a, b = Remote(url, tmp_path / "a"), Remote(url, tmp_path / "b")
    write_run(a.mirror, 4, 8)
    a.push()
    store, place = fsspec.core.url_to_fs(url)
    store.rm(place, recursive=True)
    write_run(b.mirror, lines=1)
    (b.mirror / "attempts" / "001.jsonl").unlink()
    b.push()
    a.pull()
    assert content(a.mirror) == content(b.mirror)


def test_a_run_that_is_gone_from_its_place_is_not_dropped_from_the_mirror(url: str, tmp_path: Path) -> None:
    remote = Remote(url, tmp_path / "a")
    write_run(remote.mirror, 4)
    remote.push()
    before = content(remote.mirror)
    store, place = fsspec.core.url_to_fs(url)
    store.rm(place, recursive=True)
    with pytest.raises(StorageError, match=r"holds no run any more.*bring it back from that copy, or remove the copy"):
        remote.pull()
    assert content(remote.mirror) == before


def test_a_run_whose_first_push_failed_stays_in_its_mirror(faulty: str, tmp_path: Path, line: Any) -> None:
    for cut in range(3):
        remote = Remote(f"{faulty[:-5]}{cut}/demo", tmp_path / f"{cut}")
        write_run(remote.mirror, 4)
        before = content(remote.mirror)
        line.left = cut
        with pytest.raises(StorageError):
            remote.push()
        line.left = None
        remote.pull()
        assert content(remote.mirror) == before


def test_a_run_that_was_copied_there_by_hand_can_be_read_and_continued(url: str, tmp_path: Path) -> None:
    write_run(tmp_path / "local", 4)
    for name, value in content(tmp_path / "local").items():
        Objects(url).write(name, value)
    remote = Remote(url, tmp_path / "a")
    remote.pull()
    remote.fetch(4)
    assert content(remote.mirror) == content(tmp_path / "local")
    write_checkpoint(remote.mirror, 8)
    remote.push()
    other = Remote(url, tmp_path / "b")
    other.pull()
    assert saved_steps(other.mirror / "checkpoints") == [4, 8]


def test_a_mirror_that_a_run_works_in_is_not_pulled_over(url: str, tmp_path: Path) -> None:
    other = Remote(url, tmp_path / "b")
    write_run(other.mirror, 4)
    other.push()
    mirror = local_folder(url)
    with RunDir(mirror).lock(heartbeat_s=0.05):
        RunDir(other.mirror).metrics_jsonl.write_text("")
        (other.mirror / ".owner").unlink(missing_ok=True)
        other.push()
        assert local_folder(url) == mirror
        assert RunDir(mirror).metrics_jsonl.read_text() != ""
    local_folder(url)
    assert RunDir(mirror).metrics_jsonl.read_text() == ""


# ---- damage


@pytest.fixture
def pushed(tmp_path: Path) -> str:
    url = f"memory://{secrets.token_hex(4)}/demo"
    remote = Remote(url, tmp_path / "writer")
    write_run(remote.mirror, 4, 8)
    remote.push()
    return url


def fetched_and_verified(url: str, mirror: Path, step: int) -> None:
    remote = Remote(url, mirror)
    remote.pull()
    read_manifest(remote.fetch(step))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.integers(0, 2))
def test_a_flipped_bit_is_noticed(
    pushed: str, tmp_path: Path, place: float, bit: int, which: int, behind: Behind
) -> None:
    name = f"checkpoints/step-4/{(TENSORS, 'more.safetensors', 'manifest.json')[which]}"
    good = behind(pushed)[name]
    damaged = bytearray(good)
    damaged[int(place * len(good))] ^= 1 << bit
    overwrite(pushed, name, bytes(damaged))
    with pytest.raises(StorageError):
        fetched_and_verified(pushed, tmp_path / secrets.token_hex(4), 4)
    overwrite(pushed, name, good)
    fetched_and_verified(pushed, tmp_path / secrets.token_hex(4), 4)


@pytest.mark.parametrize("name", [TENSORS, "more.safetensors", "manifest.json"])
def test_a_truncated_object_is_noticed_and_named(pushed: str, tmp_path: Path, name: str, behind: Behind) -> None:
    path = f"checkpoints/step-4/{name}"
    overwrite(pushed, path, behind(pushed)[path][:-1])
    with pytest.raises(StorageError, match=rf"{path} .*the checkpoint is damaged"):
        fetched_and_verified(pushed, tmp_path / "b", 4)
    assert list((tmp_path / "b").rglob("*unfinished*")) == []
    fetched_and_verified(pushed, tmp_path / "b", 8)


@pytest.mark.parametrize("name", [TENSORS, "more.safetensors", "manifest.json"])
def test_damage_behind_a_url_is_named_where_the_mirror_is_whole(
    pushed: str, tmp_path: Path, name: str, behind: Behind
) -> None:
    writer = Remote(pushed, tmp_path / "writer")
    assert (writer.problem(4), writer.problem(8)) == (None, None)
    path = f"checkpoints/step-4/{name}"
    content = behind(pushed)[path]
    overwrite(pushed, path, content[:-1] + bytes([content[-1] ^ 1]))
    assert "manifest" in str(writer.problem(4))
    assert writer.problem(8) is None
    assert list(writer.mirror.glob(".read-*")) == []


def test_files_of_two_checkpoints_that_were_swapped_are_noticed(pushed: str, tmp_path: Path, behind: Behind) -> None:
    there = behind(pushed)
    for step, other in ((4, 8), (8, 4)):
        overwrite(pushed, f"checkpoints/step-{step}/{TENSORS}", there[f"checkpoints/step-{other}/{TENSORS}"])
    for step in (4, 8):
        with pytest.raises(StorageError, match="another SHA-256"):
            Remote(pushed, tmp_path / "b").fetch(step)


def test_a_missing_object_and_a_missing_checkpoint_are_messages(pushed: str, tmp_path: Path) -> None:
    Objects(pushed).remove(f"checkpoints/step-4/{TENSORS}")
    with pytest.raises(StorageError, match=rf"{TENSORS} cannot be read"):
        Remote(pushed, tmp_path / "b").fetch(4)
    with pytest.raises(StorageError, match=r"has no checkpoint of step 6; it has: 4, 8"):
        Remote(pushed, tmp_path / "b").fetch(6)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "..", ".owner", "a\\b", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_damage(pushed: str, tmp_path: Path, name: str) -> None:
    manifest = {"files": {name: {"size": 1, "sha256": ""}}}
    overwrite(pushed, "checkpoints/step-4/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(StorageError, match="the checkpoint is damaged"):
        Remote(pushed, tmp_path / "b").fetch(4)
    assert not list((tmp_path / "b").rglob("*evil*"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": "x", "files": []}'])
def test_an_index_that_cannot_be_read_makes_everything_be_looked_at(
    pushed: str, tmp_path: Path, text: str, behind: Behind
) -> None:
    overwrite(pushed, "mirror.json", text.encode())
    remote = Remote(pushed, tmp_path / "b")
    remote.pull()
    assert content(remote.mirror)["metrics.jsonl"] == behind(pushed)["metrics.jsonl"]
    remote.push()
    assert json.loads(behind(pushed)["mirror.json"])["version"]


@pytest.mark.parametrize("lies_about", [TENSORS, "manifest.json"])
def test_a_store_that_loses_bytes_is_noticed_while_pushing(
    faulty: str, tmp_path: Path, lies_about: str, line: Any, behind: Behind
) -> None:
    remote = Remote(faulty, tmp_path / "a")

    def lose(name: str) -> None:
        if name.endswith(lies_about) and name in behind(faulty):
            path = f"/{faulty.removeprefix('faulty://')}/{name}"
            MemoryFileSystem.pipe_file(line(), path, behind(faulty)[name][:-1])

    line.after = lose
    with pytest.raises(StorageError, match=rf"{lies_about} .*after it was written; the store is not to be trusted"):
        remote.push_checkpoint(write_checkpoint(remote.mirror, 4))
    assert remote.saved_steps() == []


def test_only_what_is_missing_is_fetched_and_a_whole_checkpoint_needs_no_network(pushed: str, tmp_path: Path) -> None:
    remote = Remote(pushed, tmp_path / "b")
    remote.pull()
    directory = remote.mirror / "checkpoints" / "step-8"
    assert [file.name for file in directory.iterdir()] == ["manifest.json"]
    bring(directory)
    read_manifest(directory)
    MemoryFileSystem.store.clear()
    bring(directory)
    bring(tmp_path / "elsewhere" / "checkpoints" / "step-8")
    read_manifest(directory)


# ---- who owns it


def test_an_owner_that_was_replaced_notices_and_writes_no_more(
    url: str, tmp_path: Path, behind: Behind, dead_owner: Callable[..., None], until: Until
) -> None:
    remote = Remote(url, tmp_path / "a")
    write_run(remote.mirror, 4)
    with remote.own(0.3) as ownership:
        remote.push()
        dead_owner(url)
        for write in (remote.push, remote.push_light, lambda: remote.delete_checkpoint(4)):
            with pytest.raises(RunBusyError, match="process 4711 on elsewhere"):
                write()
        until(lambda: ownership.lost)
        assert ownership.lost == "process 4711 on elsewhere"
    assert json.loads(behind(url)["owner.json"])["nonce"] == "dead"
    assert remote.saved_steps() == [4]


def test_locking_a_mirror_owns_what_is_behind_it(url: str, behind: Behind) -> None:
    run = RunDir(local_folder(url))
    with run.lock(heartbeat_s=0.05) as ownership:
        assert ownership is not None
        assert json.loads(behind(url)["owner.json"])["heartbeat_s"] == 0.05
        with pytest.raises(RunBusyError), run.lock():
            pass
    assert behind(url) == {}


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(url: str, tmp_path: Path, behind: Behind) -> None:
    Objects(url).write("thesis.txt", b"mine")
    remote = Remote(url, tmp_path / "a")
    remote.pull()
    with pytest.raises(ConfigError, match=rf"--run {url}: it exists and holds no run \(thesis.txt lies there\)"):
        remote.own(0.05)
    assert behind(url) == {"thesis.txt": b"mine"}
