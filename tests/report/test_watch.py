"""A report that follows its run: written when there is news, for the last time when the run is over."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.report.conftest import rows

from trainwell.report.watch import watch, write_once
from trainwell.runs.metrics import MetricsFile
from trainwell.runs.rundir import RunDir

Maker = Callable[..., Path]


@pytest.mark.slow
def test_a_page_is_written_for_each_piece_of_news_until_the_run_is_over(make_run: Maker) -> None:
    path, pages, said = make_run(num_steps=40, taken=10), list[bytes](), list[str]()
    news = threading.Event()

    def publish(page: bytes) -> None:
        pages.append(page)
        news.set()

    def wait_for_news() -> None:
        assert news.wait(timeout=60)
        news.clear()

    thread = threading.Thread(target=watch, args=(path, publish, said.append), kwargs={"every_s": 0.05, "share": 0})
    with RunDir(path).lock():
        thread.start()
        wait_for_news()
        MetricsFile(path / "metrics.jsonl").append(*rows(40, 40)[11:])
        wait_for_news()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert b'"reload":0.05' in pages[0]
    assert b"step 10 of 40" in pages[0]
    assert b'"reload":0}' in pages[-1]
    assert b"finished after 40 steps" in pages[-1]
    assert (path / "report.html").read_bytes() == pages[-1]
    assert len(said) == 2


def test_a_finished_run_is_written_once(make_run: Maker) -> None:
    said, pages = list[str](), list[bytes]()
    path = make_run(num_steps=20)
    watch(path, pages.append, said.append)
    assert len(pages) == 1
    assert said == [f"{path}/report.html: written"]


def test_without_watching_there_is_one_page(make_run: Maker) -> None:
    pages = list[bytes]()
    assert write_once(make_run(num_steps=20, taken=5), pages.append).read_bytes() == pages[0]
