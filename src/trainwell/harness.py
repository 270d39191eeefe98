"""Benchmarks of EleutherAI's lm-evaluation-harness on a model in memory. It is imported when a task is run.

What the harness asks a model is answered here in ids and probabilities; tasks, prompts and metrics are its own. Knows
no configuration and no run.
"""

import difflib
import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import nn

from trainwell.data.tokenizer import Tokenizer
from trainwell.errors import ConfigError, DataError, TrainwellError
from trainwell.generate import generate
from trainwell.hellaswag import Row, likelihoods

DEFAULT_MAX_TOKENS = 256
"""Tokens of an answer where a task does not say, as the harness has it."""
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_BOOTSTRAP = 1000
_FEWSHOT_SEED = 1234
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}

Results = dict[str, dict[str, Any]]


class HarnessModel:
    """A model's answers to the three kinds of question that the harness has."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, context: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._context = context

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log-probability in nats, and whether it is greedy.

        The two are encoded as one text; spaces at the end of the context belong to the continuation, as in the
        harness. An empty context is an end-of-text. What does not fit is cut on the left.
        """
        found = self._likelihoods([self._row(*pair) for pair in pairs])
        return [(likelihood.total, likelihood.greedy) for likelihood in found]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each whole text after an end-of-text, each of its ids asked about once.

        A long text is read in windows of the model's context that overlap by one id; the last one reaches as far back
        as it can.
        """
        windows = [list(self._windows(text)) for text in texts]
        found = iter(self._likelihoods([row for rows in windows for row in rows]))
        return [sum(next(found).total for _ in rows) for rows in windows]

    def generate_until(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """For each (prompt, settings): the text up to the first of `until`, an end-of-text, or the limit of tokens.

        Greedy unless a temperature is given. The prompt is cut on the left to leave room for the answer; where the
        answer alone is longer than the context, its own oldest ids are forgotten on the way.
        """
        return [self._answer(prompt, how, seed) for seed, (prompt, how) in enumerate(asked)]

    def _likelihoods(self, rows: Sequence[Row]) -> Any:
        return likelihoods(self._model, rows, context=self._context, vocab_size=self._tokenizer.vocab_size)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).tolist()  # type: ignore[no-any-return]

    def _start(self) -> int:
        if self._tokenizer.end_of_text is None:
            raise ConfigError(
                f"--tasks: this task asks for text after nothing, which is an end-of-text, and the tokenizer "
                f"{self._tokenizer.name} has none; train with bytes or gpt2, or take another task"
            )
        return self._tokenizer.end_of_text

    def _row(self, context: str, continuation: str) -> Row:
        before = context.rstrip()
        known, whole = self._encode(before), self._encode(context + continuation)
        asked = whole[len(known) :]
        return [*(known or [self._start()]), *asked], len(asked)

    def _windows(self, text: str) -> Iterator[Row]:
        ids = [self._start(), *self._encode(text)]
        ends = [*range(0, len(ids) - 1, self._context), len(ids) - 1]
        for last, end in pairwise(ends):
            yield ids[max(0, end - self._context) : end + 1], end - last

    def _answer(self, prompt: str, how: Mapping[str, Any], seed: int) -> str:
        until = how.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        limit = int(next((how[name] for name in _LIMITS if how.get(name) is not None), DEFAULT_MAX_TOKENS))
        ids = self._encode(prompt) or [self._start()]
        drawn = generate(
            self._model,
            ids[-(self._context - limit) :] if limit < self._context else ids,
            limit,
            temperature=float(how.get("temperature") or 0.0) if how.get("do_sample", True) else 0.0,
            top_k=how.get("top_k"),
            top_p=how.get("top_p"),
            seed=seed,
            stop=self._tokenizer.end_of_text,
            vocab_size=self._tokenizer.vocab_size,
            context=self._context,
        )
        answer: list[int] = []
        for token in drawn:
            answer.append(token)
            text = self._tokenizer.decode(answer)
            ends = [text.find(stop) for stop in stops if stop and stop in text]
            if ends:
                return text[: min(ends)]
        return self._tokenizer.decode(answer)


def run_tasks(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    context: int,
    limit: int | None = None,
) -> Results:
    """Run tasks of the harness, offline, and return what was measured, by the name of the task.

    Args:
        model: ids (B, T) to logits (B, T, V), or an object with `.logits`.
        tokenizer: the model's own.
        tasks: names the harness knows; paths of task files (.yaml); or folders, for all tasks in them. Relative
            `data_files` of a task file lie beside it. Nothing is fetched unless HF_HUB_OFFLINE=0 is set.
        context: how many ids the model can read.
        limit: only the first so many documents of each task.

    Returns:
        For each task `samples` and `shots`, and for each of its `metrics` a `value` and a `stderr`, None where the
        harness has none. Text printed by the harness is dropped; the global random generators are left as they were.

    Raises:
        ConfigError: for a package that is missing or a task that is not known.
        DataError: for a task that cannot be loaded or scored.
    """
    answers = HarnessModel(model, tokenizer, context)
    with _quiet_and_offline(), TemporaryDirectory(prefix="trainwell-", ignore_cleanup_errors=True) as folder:
        harness = _harness()
        names = _local_tasks(tasks, Path(folder))
        loaded = _loaded(harness, names, Path(folder))
        with torch.random.fork_rng():
            results = _evaluated(harness, answers, loaded, limit)
    return {name: _measured(name, results) for name in results["results"]}


def _harness() -> Any:
    try:
        harness = import_module("lm_eval")
        import_module("lm_eval.api.model")
        import_module("lm_eval.tasks")
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs the lm-evaluation-harness, and {error.name or error} is not installed; run: "
            "pip install 'trainwell[eval]'"
        ) from error
    return harness


@contextmanager
def _quiet_and_offline() -> Iterator[None]:
    """Without the network, child processes, and what the harness prints, logs and warns about."""
    logger, generator = logging.getLogger("lm_eval"), random.getstate()
    level, missing = logger.level, {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(StringIO()))
        stack.enter_context(redirect_stderr(StringIO()))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        os.environ.update(missing)
        logger.setLevel(logging.CRITICAL)
        random.seed(0)  # some tasks shuffle their choices with it; the harness does the same
        try:
            yield
        finally:
            random.setstate(generator)
            logger.setLevel(level)
            for name in missing:
                del os.environ[name]


def _local_tasks(tasks: Sequence[str], folder: Path) -> list[str]:
    """Write into `folder` what lets the harness find the task files among `tasks`; return the names of all tasks."""
    names, own = list[str](), list[str]()
    for task in tasks:
        path = Path(task).expanduser()
        if path.is_dir():
            own += _from_folder(path, folder)
        elif path.is_file():
            own.append(_from_file(path, folder))
        elif path.suffix in {".yaml", ".yml"} or path.name != task:
            raise ConfigError(f"--tasks: there is no file or folder {task} (looked in {Path.cwd()})")
        else:
            names.append(task)
    twice = sorted({name for name in own if own.count(name) > 1})
    if twice:
        raise ConfigError(f"--tasks: two task files have the name {twice[0]}; give each a name of its own")
    return list(dict.fromkeys(own + names))


def _from_folder(path: Path, folder: Path) -> list[str]:
    found = {file: _read_task(file) for file in sorted(path.glob("*.yaml"))}
    tasks = {file: content for file, content in found.items() if isinstance(content.get("task"), str)}
    if not tasks:
        raise ConfigError(f"--tasks: no file in {path} is a task; one is a .yaml with the key task")
    return [_wrapped(file, content, folder) for file, content in tasks.items()]


def _from_file(path: Path, folder: Path) -> str:
    content = _read_task(path)
    if "group" in content:  # its members lie beside it
        for file in sorted(path.parent.glob("*.yaml")):
            member = _read_task(file)
            if isinstance(member.get("task"), str) and "group" not in member:
                _wrapped(file, member, folder)
    elif not isinstance(content.get("task"), str):
        raise ConfigError(f"--tasks: {path} is no task; give it a name with the key task")
    return _wrapped(path, content, folder)


def _wrapped(path: Path, content: Mapping[str, Any], folder: Path) -> str:
    """Write a task file that includes the one at `path`, with its data found beside it and cached in `folder`."""
    name = str(content.get("group", content.get("task")))
    wrapper: dict[str, Any] = {"include": str(path.resolve())}
    how = content.get("dataset_kwargs")
    if isinstance(how, dict) and "data_files" in how:
        files = _beside(how["data_files"], path.resolve().parent)
        wrapper["dataset_kwargs"] = {"cache_dir": str(folder / "cache")} | how | {"data_files": files}
    number = len(list(folder.glob("*.yaml")))
    (folder / f"{number:04}.yaml").write_text(yaml.safe_dump(wrapper), encoding="utf-8")
    return name


def _beside(files: Any, folder: Path) -> Any:
    """The same names of files, absolute where the file lies in `folder`."""
    if isinstance(files, dict):
        return {split: _beside(some, folder) for split, some in files.items()}
    if isinstance(files, list):
        return [_beside(file, folder) for file in files]
    return str(folder / files) if isinstance(files, str) and (folder / files).exists() else files


class _TaskLoader(yaml.SafeLoader):
    """Reads a task file for its plain keys; what it would import is left to the harness."""


def _as_text(_loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return str(node.value)


_TaskLoader.add_constructor("!function", _as_text)


def _read_task(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise DataError(f"--tasks: {path} cannot be read: {_first_line(error)}") from error
    return content if isinstance(content, dict) else {}


def _loaded(harness: Any, names: Sequence[str], folder: Path) -> Any:
    manager = harness.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    groups = [manager.task_index[group].cfg.get("task") for group in manager.all_groups]
    members = {member for group in groups if isinstance(group, list) for member in group if isinstance(member, str)}
    if not members.union(names) <= set(manager.all_tasks):
        manager = harness.tasks.TaskManager(include_path=str(folder))  # its own thousands, which takes seconds
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            raise ConfigError(
                f"--tasks: the harness has no task {name!r}{hint} Allowed are its own names (lm_eval ls tasks), and "
                "paths of task files or folders of them"
            )
    try:
        loaded = manager.load(list(names))
    except Exception as error:
        raise DataError(
            f"--tasks: {', '.join(names)} cannot be loaded: {type(error).__name__}: {_first_line(error)}. Data that is "
            "not on this machine is fetched only with HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0"
        ) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _evaluated(harness: Any, answers: HarnessModel, loaded: Any, limit: int | None) -> Any:
    class Adapter(harness.api.model.LM):  # type: ignore[misc]
        """The harness's idea of a model, as our answers."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return answers.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return answers.loglikelihood_rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return answers.generate_until([request.args for request in requests])

    try:
        return harness.evaluate(
            lm=Adapter(), task_dict=loaded, limit=limit, bootstrap_iters=_BOOTSTRAP, log_samples=False
        )
    except (TrainwellError, RuntimeError):  # ours, or the device's
        raise
    except Exception as error:
        raise DataError(
            f"--tasks: the harness could not score: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _measured(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    found: Mapping[str, Any] = results["results"][name]
    metrics = dict[str, dict[str, float | None]]()
    for key, value in found.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = found.get(f"{metric}_stderr,{kind}")
            shown = metric if kind == "none" else f"{metric} ({kind})"
            metrics[shown] = {"value": value, "stderr": error if isinstance(error, int | float) else None}
    samples = results.get("n-samples", {}).get(name, {}).get("effective")
    return {"samples": samples, "shots": results.get("n-shot", {}).get(name), "metrics": metrics}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:300].rstrip(".")
