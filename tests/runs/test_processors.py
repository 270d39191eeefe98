"""The processors of a machine: counted, and left to others by this thread and its children."""

import os
import sys
import threading

import pytest

from trainwell.runs import processors


def test_there_is_at_least_one_and_no_more_than_the_machine_has() -> None:
    assert 1 <= processors.usable() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("load", "room"), [(0.0, True), (3.0, True), (3.1, False), (40.0, False)])
def test_there_is_room_where_the_load_leaves_a_processor_to_another_thread(load: float, room: bool) -> None:
    assert processors.has_room(load, 4) is room


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a whole process has one priority, and here pytest's")
def test_a_thread_that_stands_back_takes_along_those_it_starts() -> None:
    found = list[int]()

    def note() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, 0))

    def stand_back() -> None:
        processors.step_back()
        child = threading.Thread(target=note)
        child.start()
        child.join()

    thread = threading.Thread(target=stand_back)
    thread.start()
    thread.join()
    assert found == [19]
