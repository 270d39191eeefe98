"""Trainers that run a loop of their own, made to take one step at a time: those of transformers and Lightning.

Both fused AdamW, bf16 autocast, clipping to 1 and torch.compile, as their documentation has it.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from benchmarks.gpu.ours import BETAS, CLIP, DECAY, PEAK_RATE, Case, adamw
from benchmarks.gpu.plain import decayed_groups, plain_model
from benchmarks.gpu.timing import Contender, MissingError
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, IterableDataset

ENDLESS = 10**6
_PATIENCE_S = 400.0


class _StoppedError(BaseException):
    """Ends a loop that is not ours from inside."""


class Stepped:
    """Runs `train(gate)` in a thread, which waits at each `gate()`; a call lets it go on to the next one.

    What `train` raises is raised again by the call, as words: the original would keep its tensors alive.
    """

    def __init__(self, train: Callable[[Callable[[], None]], None]) -> None:
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._stop = False
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, args=(train,), daemon=True)
        self._thread.start()
        self._wait()

    def _run(self, train: Callable[[Callable[[], None]], None]) -> None:
        try:
            train(self._gate)
            self._problem = "its loop ended"
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 (it is told in the other thread)
            self._problem = "" if self._stop else f"{type(error).__name__}: {error}"
        self._arrived.release()

    def _gate(self) -> None:
        self._arrived.release()
        self._go.acquire()
        if self._stop:
            raise _StoppedError

    def _wait(self) -> None:
        if not self._arrived.acquire(timeout=_PATIENCE_S):
            raise RuntimeError(f"no step within {_PATIENCE_S:.0f} s")
        if self._problem:
            raise RuntimeError(self._problem)

    def __call__(self) -> None:
        """One step."""
        self._go.release()
        self._wait()

    def close(self) -> None:
        """End the loop."""
        self._stop = True
        self._go.release()
        self._thread.join(timeout=30)


class _Examples(IterableDataset[Any]):
    """The batches of a case, whole or a row at a time."""

    def __init__(self, case: Case, form: Callable[[Any, Any], Any], *, by_row: bool) -> None:
        self._case, self._form, self._by_row = case, form, by_row

    def __iter__(self) -> Iterator[Any]:
        for inputs, targets in self._case.rows():
            if not self._by_row:
                yield self._form(torch.from_numpy(inputs), torch.from_numpy(targets))
                continue
            for row in zip(inputs, targets, strict=True):
                yield self._form(*(torch.from_numpy(part) for part in row))


def transformers_trainer(case: Case) -> Contender:
    """GPT2LMHeadModel under Trainer: sdpa attention, its own loss, which leaves the last token out."""
    _need("transformers", "accelerate")
    transformers: Any = import_module("transformers")
    shape = case.shape
    config = transformers.GPT2Config(
        vocab_size=shape.vocab,
        n_positions=shape.seq_len,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )

    def train(gate: Callable[[], None]) -> None:
        with torch.device(case.device):
            model = transformers.GPT2LMHeadModel(config)
        callback = type("Gate", (transformers.TrainerCallback,), {"on_step_begin": lambda *_, **__: gate()})
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=case.micro_batch,
                max_steps=ENDLESS,
                learning_rate=PEAK_RATE,
                lr_scheduler_type="constant",
                weight_decay=DECAY,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                max_grad_norm=CLIP,
                optim="adamw_torch_fused",
                bf16=True,
                torch_compile=case.compiled,
                use_cpu=case.device.type == "cpu",
                dataloader_pin_memory=case.device.type == "cuda",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            rows = _Examples(case, lambda ids, _targets: {"input_ids": ids, "labels": ids}, by_row=True)
            transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback()]).train()

    return _contender("transformers Trainer", case, train)


def lightning_trainer(case: Case) -> Contender:
    """The plain GPT, compiled, as a LightningModule under bf16-mixed.

    Lightning refuses its own clipping beside a fused optimizer, so it is torch's, in the hook before the update.
    """
    _need("lightning")
    lightning: Any = import_module("lightning.pytorch")

    def train(gate: Callable[[], None]) -> None:
        model = plain_model(case)
        forward = torch.compile(model, dynamic=False) if case.compiled else model
        module_class = type(
            "Module",
            (lightning.LightningModule,),
            {
                "training_step": lambda _self, batch, _index: forward(*batch),
                "configure_optimizers": lambda _self: adamw(decayed_groups(model)),
                "on_before_optimizer_step": lambda _self, _optimizer: clip_grad_norm_(model.parameters(), CLIP),
            },
        )
        callback = type("Gate", (lightning.Callback,), {"on_train_batch_start": lambda *_, **__: gate()})
        module = module_class()
        module.model = model
        trainer = lightning.Trainer(
            accelerator="gpu" if case.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed",
            max_steps=ENDLESS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback()],
        )
        batches = _Examples(case, lambda ids, targets: (ids, targets), by_row=False)
        loader = DataLoader(batches, batch_size=None, pin_memory=case.device.type == "cuda")
        trainer.fit(module, loader)

    return _contender("Lightning", case, train)


def _contender(name: str, case: Case, train: Callable[[Callable[[], None]], None]) -> Contender:
    stepped = Stepped(train)
    return Contender(name, stepped, case.tokens_per_step, stepped.close)


def _need(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingError(f"{' and '.join(missing)} not installed")
