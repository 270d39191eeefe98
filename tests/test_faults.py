"""Named fault points: read from one variable, free when unset, and every one of them in the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwell import faults
from trainwell.errors import ConfigError

SOURCE = Path(faults.__file__).parent
KILLED = """
from trainwell import faults
faults.arm_from_environment()
faults.reach("after_update", 2)
faults.reach("after_update", 3, rank=1)
print("alive", flush=True)
faults.reach("after_update", 3)
print("never")
"""


def named_in_the_code() -> dict[str, set[str]]:
    """The points that `reach` and `armed` are called with, and every other string constant that is one, by module."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        if path.name in {"faults.py", "testing.py"}:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        uses = any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"reach", "armed"}
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "faults"
            for node in ast.walk(tree)
        )
        named = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in faults.POINTS
        }
        if uses:
            found[path.relative_to(SOURCE).as_posix()] = named
    return found


def reached_by_name() -> set[str]:
    """Every constant first argument of a call of `reach` or `armed`."""
    return {
        str(node.args[0].value)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"reach", "armed"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def test_every_point_is_somewhere_in_the_code() -> None:
    assert set().union(*named_in_the_code().values()) == set(faults.POINTS)


def test_the_code_reaches_no_point_that_is_not_named() -> None:
    assert reached_by_name() <= set(faults.POINTS)


def test_nothing_is_armed_unless_asked_for() -> None:
    assert faults._armed == {}
    assert not any(faults.armed(point, 0) for point in faults.POINTS)


def test_a_point_that_is_reached_unarmed_looks_nothing_up() -> None:
    class Untouchable:
        def __hash__(self) -> int:
            raise AssertionError("it was looked up")

    place: str = Untouchable()  # type: ignore[assignment]
    faults.reach(place, 0)
    assert not faults.armed(place, 0)
    with faults.at("after_update@3", lambda: None), pytest.raises(AssertionError, match="looked up"):
        faults.reach(place, 0)


def test_a_block_is_armed_at_one_point_of_one_step_of_one_rank_and_no_longer() -> None:
    done: list[str] = []
    with faults.at("after_update@3:1", lambda: done.append("here")):
        for point, step, rank in [("after_update", 3, 0), ("after_update", 2, 1), ("after_backward", 3, 1)]:
            faults.reach(point, step, rank)
            assert not faults.armed(point, step, rank)
        assert done == []
        assert faults.armed("after_update", 3, 1)
        faults.reach("after_update", 3, 1)
        faults.reach("after_update", 3, 1)
    faults.reach("after_update", 3, 1)
    assert done == ["here", "here"]


def test_a_block_that_fails_is_disarmed_too() -> None:
    with pytest.raises(ZeroDivisionError), faults.at("eval.mid@0", lambda: 1 // 0):
        faults.reach("eval.mid", 0)
    assert faults._armed == {}


@pytest.mark.parametrize("fault", ["x@3", "after_update", "after_update@", "after_update@-1", "after_update@3:x", "@3"])
def test_a_fault_that_cannot_be_read_is_one_message_with_every_point(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINWELL_FAULT", fault)
    with pytest.raises(ConfigError) as caught:
        faults.arm_from_environment()
    assert str(caught.value).startswith(f"TRAINWELL_FAULT: {fault!r} is no fault; write point@step")
    assert all(point in str(caught.value) for point in faults.POINTS)
    assert faults._armed == {}


@given(point=st.sampled_from(sorted(faults.POINTS)), step=st.integers(0, 10**9), rank=st.integers(0, 10**4))
def test_what_is_written_is_what_is_armed(point: str, step: int, rank: int) -> None:
    with faults.at(f" {point}@{step}:{rank} ", lambda: None):
        assert faults.armed(point, step, rank)
        assert len(faults._armed) == 1


def test_a_fault_in_the_environment_ends_the_process_as_a_kill_would() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        env={"TRAINWELL_FAULT": "log.mid_line@7, after_update@3", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "alive\n"
    assert done.returncode == -9
