"""Keeps a run on disk: what it is, and its state, written in the background. A failed save never ends a healthy run.

Of several ranks that have all weights the first writes; where each has a part, each writes its own. All vote on what
became of it. Knows what a run's state is made of and when it is safe; how it is written is the store's business.
"""

import json
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainwell.checkpoint.layout import write_synced
from trainwell.checkpoint.shards import Share, share
from trainwell.checkpoint.state import Staging, apart, num_bytes, pack
from trainwell.checkpoint.store import CheckpointStore
from trainwell.config.render import to_yaml
from trainwell.distributed.parallel import local
from trainwell.distributed.world import ALONE, World
from trainwell.errors import ConfigError, DataError, StorageError
from trainwell.planning.changes import data_difference
from trainwell.planning.memory import saves_in_between
from trainwell.planning.target import mathematics
from trainwell.runs.owner import Ownership
from trainwell.runs.rundir import is_run
from trainwell.runs.starts import note_start, this_start
from trainwell.settings import environment, versions
from trainwell.trainer import Trainer

if TYPE_CHECKING:
    from trainwell.run import Run

THREAD = "trainwell-save"
"""How the thread that writes is named."""
_NO_STEP = -1
"""Of a checkpoint that is only rehearsed, so that no fault that waits for a step happens to it."""
_IN_PARTS = ("trainer.model.", "trainer.optimizer.")
"""How the names of tensors begin of which a rank may need some rows alone."""
_MOMENTS = 2
"""Tensors that an optimizer keeps of each weight, at the most: AdamW's two."""


class Stateful(Protocol):
    """Anything that can be saved with a run."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, text, and dicts and lists of them."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Restore what state_dict gave."""


def load_trainer(trainer: Trainer, state: dict[str, Any], source: str, *, own_settings: bool = False) -> None:
    """Restore a trainer, or raise ConfigError naming the `source` whose state does not fit it.

    A checkpoint carries the optimizer's settings with its state; `own_settings` keeps those of this trainer.
    """
    if own_settings:
        state = state | {"optimizer": _with_settings(state["optimizer"], trainer.optimizer.state_dict())}
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the weights or the optimizer's state in {source} do not fit this run; give both the same model and "
            f"optim.name, tokenizer and data.seq_len. {str(error).splitlines()[-1].strip()}"
        ) from error


def _with_settings(state: Any, own: Any) -> Any:
    """An optimizer's state with the settings of `own`, before it is loaded: `fused` decides where its counters lie."""
    if not isinstance(state, dict) or not isinstance(own, dict):
        return state
    if "param_groups" not in own:  # several optimizers as one
        return {name: _with_settings(part, own.get(name)) for name, part in state.items()}
    settings = [{key: value for key, value in group.items() if key != "params"} for group in own["param_groups"]]
    groups = state.get("param_groups", [])
    if len(groups) != len(settings):
        return state  # does not fit, and loading it says so
    return state | {"param_groups": [group | kept for group, kept in zip(groups, settings, strict=True)]}


def describe(run: "Run") -> None:
    """Write what a run is: env.json, tokenizer and template once; config.yaml each time, for it makes the run.

    Last a line that says where it begins or goes on.
    """
    folder = run.run_dir
    try:
        if not is_run(folder.path):
            parent = None if run.parent is None else f"{run.parent[0].shown}@{run.parent[1]}"
            content = environment(run.settings) | {
                "data": run.facts,
                "counts": None if run.plan.info is None else asdict(run.plan.info),
                "parent": parent,
                "duration": run.asked_duration,
            }
            write_synced(folder.env_json, json.dumps(content, indent=1).encode())
            if run.tokenizer is not None:
                run.tokenizer.save(folder.path)
            if run.template is not None:
                write_synced(folder.template_json, json.dumps(run.template.state(), indent=1).encode())
        unfinished = folder.path / ".config.yaml"
        write_synced(unfinished, to_yaml(run.config).encode())
        unfinished.replace(folder.config_yaml)
        if run.trainer.step < run.num_steps:
            note_start(folder.starts_jsonl, this_start(run.trainer.step, run.world.size))
    except OSError as error:
        raise StorageError(f"{folder.path} cannot be written: {error}; choose another folder with --run") from error
    if folder.remote is not None:
        folder.remote.push_light()


class Saver:
    """Saves and restores one run: its trainer, and whatever was given to `keep`."""

    def __init__(self, run: "Run") -> None:
        how = run.config.checkpoint
        self._run = run
        self.store = CheckpointStore(run.run_dir.checkpoints, keep=how.keep, keep_every=run.plan.keep_every)
        self.kept: dict[str, Stateful] = {}
        self.step: int | None = None
        """The newest state that is on disk, or on its way there."""
        self._asynchronous = how.asynchronous and saves_in_between(run.config)  # nobody waits for the last save
        self.remote = run.run_dir.remote if run.world.main else None
        self.ownership: Ownership | None = None
        """Of a run behind a URL: says whether others can see that it lives."""
        self._sharded = run.settings.parallel == "fsdp"
        self._beside: World | None = None
        """The ranks that write, each its part; with words of their own, since they exchange them beside training."""
        self._staging = Staging(0)
        self._pool: ThreadPoolExecutor | None = None
        self._writing: tuple[int, Future[None]] | None = None
        self.failed: StorageError | None = None
        """Why the newest save came to nothing; None when it did not."""

    @property
    def buffers(self) -> int:
        """Bytes that are held to save from in the background."""
        return self._staging.size

    def state(self) -> dict[str, Any]:
        """Everything that steps change."""
        kept = {name: part.state_dict() for name, part in self.kept.items()}
        return {"trainer": self._run.trainer.state_dict(), "kept": kept}

    @property
    def _writes(self) -> bool:
        """Whether this rank writes something of a state."""
        return self._sharded or self._run.world.main

    def estimate(self, *, all_ranks: bool = False) -> int:
        """Bytes of what this rank writes, or of all together, the moments of the optimizer included where it has none.

        `all_ranks` is collective.
        """
        state = self.state()
        fresh = not pack(state["trainer"]["optimizer"])[1]
        moments = _MOMENTS * num_bytes(map(local, self._run.trainer.parameters)) if fresh else 0
        mine = num_bytes(share(state, main=self._run.world.main).tensors.values()) + moments
        return sum(self._run.world.collect(mine)) if all_ranks and self._sharded else mine

    def prepare(self) -> None:
        """Take the memory that saving in the background needs, so that no save has to wait for it."""
        size = self.estimate() if self._asynchronous else 0
        if self._asynchronous and self._writes:
            self._staging = Staging(size + 2**16)
        if self._sharded:
            self._beside = self._run.world.beside()
        _ = self._facts  # gathered before step 1 too

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What every manifest says of the run, gathered once: looking up versions takes longer than copying a state."""
        config = self._run.config
        return {
            "data": self._run.facts,
            "world_size": self._run.world.size,
            "config": mathematics(config),
            "config_sha256": sha256(to_yaml(config).encode()).hexdigest(),
            "versions": versions(),
        }

    def rehearse(self, folder: Path) -> None:
        """Write and verify this rank's part of the state as it is, in a folder that will be removed."""
        CheckpointStore(folder).write(_NO_STEP, self._staged(share(self.state(), main=True)), {})

    def _staged(self, mine: Share) -> Share:
        """The same in memory of its own, on the host: in the buffers that are there for it, or as little as has to."""
        tensors = self._staging.copy(mine.tensors) if self._asynchronous else apart(mine.tensors)
        return replace(mine, tensors=tensors)

    def save(self, protected: Collection[int]) -> None:
        """Save the current state, unless it is saved already; a failure is reported, and tried again when next due."""
        run, step = self._run, self._run.trainer.step
        if step == self.step:
            return
        self.join()
        if self.ownership is not None and self.ownership.trouble:
            run.console.message(f"others cannot see that this run lives: {self.ownership.trouble}")
        mine = run.world.together(lambda: share(self.state(), main=run.world.main))
        meta = self._facts | {
            "tokens": run.plan.batch.tokens_before(step),
            "skipped": int(run.trainer.guard.skipped),
        }
        self.step = step
        self._writing = (step, self._begin(step, mine, meta, protected))
        if not self._asynchronous:
            self.join()

    def _begin(self, step: int, mine: Share, meta: dict[str, Any], protected: Collection[int]) -> Future[None]:
        """Write this rank's share of a state, in the background or at once."""
        done: Future[None] = Future()
        try:
            if self._writes and self._asynchronous:
                self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix=THREAD)
                return self._pool.submit(self._write, step, self._staged(mine), meta, protected)
            if self._writes:
                self._write(step, self._staged(mine), meta, protected)
        except Exception as error:  # noqa: BLE001  it is raised where the ranks vote
            done.set_exception(error)
        else:
            done.set_result(None)
        return done

    def _write(self, step: int, mine: Share, meta: dict[str, Any], protected: Collection[int]) -> None:
        self._run.metrics.sync()  # no checkpoint may be ahead of its metrics after a power cut
        self.store.write(step, mine, meta, self._beside or ALONE)
        if not self._run.world.main:
            return
        try:
            self.store.retain(protected)
        except StorageError as error:
            self._run.console.message(f"{error}; step {step:,} is saved, and training goes on")
        self.push()

    def push(self) -> StorageError | None:
        """Bring what lies behind a run's URL up to date; what fails is reported, and tried again with the next save."""
        if self.remote is None:
            return None
        try:
            self.remote.push()
        except StorageError as error:
            self._run.console.message(f"saved here, and not there: {error}; it is tried again with the next save")
            return error
        return None

    def join(self) -> None:
        """Wait for the save that is under way, and report what became of it: on one rank, so on all."""
        if self._writing is not None:
            (step, writing), self._writing = self._writing, None
            self._take(step, writing.result)

    def _take(self, step: int, outcome: Callable[[], None]) -> None:
        try:
            self._run.world.together(outcome)
        except StorageError as error:
            self.failed, self.step = error, None
            self._run.find_best()
            self._run.console.message(f"step {step:,} is not saved, training goes on and saves when next due: {error}")
        else:
            self.failed = None

    def abandon(self) -> None:
        """Wait no longer for the save that is under way: the process is about to end, and what is written stays."""
        self._writing = self._pool = None

    def close(self) -> None:
        """Wait for the last save, and end the thread."""
        self.join()
        if self._pool is not None:
            self._pool.shutdown()

    def load(self, store: CheckpointStore, step: int, *, own_run: bool = True) -> None:
        """Restore the state of `step`: of this run, or of the one it branches from.

        Raises DataError for a run whose data has changed, ConfigError for a state that does not fit.
        """
        run = self._run
        state, meta = run.world.together(
            lambda: store.load(step, verify=run.world.main, on_disk=lambda name: name.startswith(_IN_PARTS))
        )
        difference = data_difference(meta["data"], run.facts) if own_run else ""
        if difference:
            raise DataError(
                f"the data is not what {run.run_dir.shown} was trained on: {difference}. "
                f"Bring that text back, or branch from it: trainwell train {run.run_dir.shown}@{step} --run NEW"
            )
        if own_run and meta["versions"] != versions():
            changed = data_difference(meta["versions"], versions())
            run.console.message(f"saved by other versions ({changed}): the next steps are no longer bitwise the same")
        ranks = meta.get("world_size", 1)
        if own_run and ranks != run.world.size:
            run.console.message(
                f"saved by {_ranks(ranks)}, and continued by {_ranks(run.world.size)}: the next steps are the same to "
                "rounding, and no longer bitwise"
            )
        edited = data_difference(meta["config"], mathematics(run.config)) if own_run else ""
        if edited:
            run.console.message(
                f"config.yaml is not what step {step:,} was saved with ({edited}): from here on it is another run"
            )
        missing, unknown = self.kept.keys() - state["kept"].keys(), state["kept"].keys() - self.kept.keys()
        if missing and own_run:
            raise ConfigError(
                f"{store.folder} holds no state of {', '.join(sorted(missing))}; it was not kept when it was saved"
            )
        if unknown:
            run.console.message(
                f"state of {', '.join(sorted(unknown))} in the checkpoint is left alone: nothing here keeps it"
            )
        configured = "optimizer" not in run.config.custom  # its settings are then those of the configuration
        load_trainer(
            run.trainer, state["trainer"], f"{store.folder}/step-{step}", own_settings=configured or not own_run
        )
        for name in self.kept.keys() - missing:
            self.kept[name].load_state_dict(state["kept"][name])
        self.step = step if own_run else None


def _ranks(count: int) -> str:
    return "one process" if count == 1 else f"{count} ranks"
