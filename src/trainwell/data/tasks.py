"""The data of a task: text in windows to pretrain, examples in rows to answer or to label. Never torch."""

from typing import Protocol

from trainwell.data.classify import ClassifySettings, prepare_classify
from trainwell.data.examples import ExampleStore
from trainwell.data.instruct import InstructSettings, prepare_instruct
from trainwell.data.prepare import DataSettings, OnProgress, TokenStore, prepare
from trainwell.data.stores import is_store, open_store

Store = TokenStore | ExampleStore
"""What `open_data` gives; both have `info`, `train`, `val`, `tokenizer` and `notes`."""


class TaskSettings(DataSettings, InstructSettings, ClassifySettings, Protocol):
    """The part of the configuration that decides the data of any task; `DataConfig` has this shape."""


def open_data(task: str, data: TaskSettings, *, download: bool = False, on_progress: OnProgress | None = None) -> Store:
    """Prepare the data of `task`, or open what an earlier call prepared; see `prepare` and its siblings for errors.

    `on_progress` hears how far the tokenising of a text has come.
    """
    if task == "instruct":
        return prepare_instruct(data)
    if task == "classify":
        return prepare_classify(data)
    if is_store(data.path):
        return open_store(data, on_progress=on_progress)
    return prepare(data, download=download, on_progress=on_progress)
