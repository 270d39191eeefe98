"""The peers, each as its own documentation has it; `job.ours` gives it the settings that we use beside that.

Peers are imported when they are called, so that the suite runs without any of them.
"""

import importlib
import sys
import tempfile
from typing import Any

import torch
from benchmarks.speed.cases import BETAS, CLIP, WEIGHT_DECAY, open_weights
from benchmarks.speed.clock import Clock, Job, NotMeasuredError
from benchmarks.speed.names import to_book, to_nanogpt
from benchmarks.speed.plain import PlainGPT
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_


def _plain(job: Job) -> PlainGPT:
    model = PlainGPT(job.case)
    model.load_state_dict(open_weights(job.folder))
    return model


def raw(job: Job, clock: Clock, *, compiled: bool = False) -> None:
    """The loop that torch's own pages teach, with fused AdamW and SDPA, and nothing else."""
    model: Any = _plain(job)
    optimizer = job.adamw(model, fused=True)
    forward = torch.compile(model) if compiled else model
    for inputs, targets in job.examples().batches(job.case.batch_size):
        optimizer.zero_grad()
        with job.autocast:
            loss = cross_entropy(forward(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        clock.step(loss.detach(), norm)


def raw_compiled(job: Job, clock: Clock) -> None:
    """The same model through torch.compile."""
    raw(job, clock, compiled=True)


def book(job: Job, clock: Clock) -> None:
    """The loop of the book's chapter 5 with the clipping of its appendix D, on the book's model with the head tied."""
    if job.precision == "bf16" and not job.ours:
        raise NotMeasuredError("the book's loop computes in fp32 only")
    model = importlib.import_module("llms_from_scratch.ch04").GPTModel(_in_the_book(job))
    model.load_state_dict(to_book(open_weights(job.folder)), strict=False)  # its masks are computed
    model.out_head.weight = model.tok_emb.weight
    optimizer = job.adamw(model)
    model.train()
    for inputs, targets in job.loader():
        optimizer.zero_grad()
        with job.autocast:
            loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), max_norm=CLIP)
        optimizer.step()
        clock.step(loss.detach(), norm)


def _in_the_book(job: Job) -> dict[str, Any]:
    case = job.case
    return {
        "vocab_size": case.vocab_size,
        "context_length": case.seq_len,
        "emb_dim": case.width,
        "n_heads": case.num_heads,
        "n_layers": case.num_layers,
        "drop_rate": 0.0,
        "qkv_bias": True,
    }


def nanogpt(job: Job, clock: Clock) -> None:
    """The loop of nanoGPT's train.py with --device=cpu --compile=False, on its own model; its GELU is the exact one.

    It never casts on a CPU, whatever --dtype, and its AdamW is fused on CUDA alone.
    """
    if job.nanogpt is None:
        raise NotMeasuredError("give --nanogpt PATH, a checkout with model.py")
    if job.precision == "bf16" and not job.ours:
        raise NotMeasuredError("nanoGPT computes in fp32 on a CPU")
    sys.path.insert(0, str(job.nanogpt))
    theirs, case = importlib.import_module("model"), job.case
    shape = {"n_layer": case.num_layers, "n_head": case.num_heads, "n_embd": case.width, "block_size": case.seq_len}
    model = theirs.GPT(theirs.GPTConfig(**shape, vocab_size=case.vocab_size, dropout=0.0, bias=True))
    model.load_state_dict(to_nanogpt(open_weights(job.folder)))
    optimizer = model.configure_optimizers(WEIGHT_DECAY, case.lr, BETAS, "cpu")
    if job.ours:
        optimizer = job.adamw(model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    model.train()
    for inputs, targets in job.examples().batches(case.batch_size):
        for group in optimizer.param_groups:
            group["lr"] = case.lr
        with job.autocast:
            _, loss = model(inputs, targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        clock.step(loss.detach(), norm)


def _transformers_model(job: Job) -> Any:
    return importlib.import_module("transformers").GPT2LMHeadModel.from_pretrained(job.folder / "gpt2")


class _Labelled:
    """Examples in the form that models of transformers take; the labels are shifted already."""

    def __init__(self, job: Job) -> None:
        self._examples = job.examples()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inputs, targets = self._examples[index]
        return {"input_ids": inputs, "labels": targets, "shift_labels": targets}


def trainer(job: Job, clock: Clock) -> None:
    """Hugging Face's Trainer with a GPT-2 of transformers, attention by SDPA as is its default."""
    transformers = importlib.import_module("transformers")

    class InOrder(transformers.Trainer):  # type: ignore[misc, name-defined]
        """It shuffles otherwise, and tells losses only now and then."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *given: Any, **named: Any) -> Tensor:
            self.last_loss = super().training_step(*given, **named)
            return self.last_loss  # type: ignore[no-any-return]

    class Stamp(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        """Notes the end of each step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step(made.last_loss)

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=job.steps,
            per_device_train_batch_size=job.case.batch_size,
            learning_rate=job.case.lr,
            lr_scheduler_type="constant",
            weight_decay=WEIGHT_DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=CLIP,
            bf16=job.precision == "bf16",
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            **({"optim": "adamw_torch_fused"} if job.ours else {}),
        )
        made = InOrder(_transformers_model(job), arguments, train_dataset=_Labelled(job), callbacks=[Stamp()])
        clock.notes["optim"] = str(arguments.optim)
        made.train()


def lightning(job: Job, clock: Clock) -> None:
    """Lightning's Trainer around the plain model; everything it logs or saves by default is off.

    With mixed precision it refuses to clip for a fused AdamW, so that it has none there.
    """
    pl = importlib.import_module("lightning")

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        """As its first page has it."""

        def __init__(self) -> None:
            super().__init__()
            self.model = _plain(job)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss = cross_entropy(self.model(batch[0]).flatten(0, 1), batch[1].flatten())
            self.last_loss = loss.detach()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return job.adamw(self.model, fused=False if job.precision == "bf16" else None)

        def on_train_batch_end(self, *_: Any) -> None:
            clock.step(self.last_loss)

    with tempfile.TemporaryDirectory() as folder:
        made = pl.Trainer(
            accelerator="cpu",
            precision="bf16-mixed" if job.precision == "bf16" else "32-true",
            gradient_clip_val=CLIP,
            max_steps=job.steps,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        made.fit(Module(), job.loader())


def accelerate(job: Job, clock: Clock) -> None:
    """The loop of accelerate's first page around a GPT-2 of transformers."""
    library = importlib.import_module("accelerate")
    accelerator = library.Accelerator(mixed_precision="bf16" if job.precision == "bf16" else "no", cpu=True)
    plain_model = _transformers_model(job)
    loader: Any = torch.utils.data.DataLoader(_Labelled(job), batch_size=job.case.batch_size)  # type: ignore[arg-type]
    model, optimizer, loader = accelerator.prepare(plain_model, job.adamw(plain_model), loader)
    model.train()
    for batch in loader:
        optimizer.zero_grad()
        loss = model(**batch).loss
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        clock.step(loss.detach(), norm)


def litgpt(job: Job, clock: Clock, *, compiled: bool = True) -> None:
    """The loop of litgpt's `pretrain`: Fabric, its own GPT compiled, its loss in chunks.

    Its GPT has rotary positions and no others, and starts from weights of its own: its losses are not comparable.
    """
    fabric_of, theirs = importlib.import_module("lightning").Fabric, importlib.import_module("litgpt.model")
    loss_of = importlib.import_module("litgpt.utils").chunked_cross_entropy
    fabric = fabric_of(accelerator="cpu", devices=1, precision="bf16-mixed" if job.precision == "bf16" else "32-true")
    model = theirs.GPT(_in_litgpt(job))
    model.lm_head.weight = model.transformer.wte.weight
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, 0.0, 0.02) if tensor.dim() >= 2 else None
    model.max_seq_length = job.case.seq_len
    optimizer_made = job.adamw(model)
    model = fabric.setup(torch.compile(model) if compiled else model)
    optimizer = fabric.setup_optimizers(optimizer_made)
    clock.notes["losses"] = "not comparable: rotary positions"
    for inputs, targets in fabric.setup_dataloaders(job.loader()):
        loss = loss_of(model(inputs), targets)
        fabric.backward(loss)
        norm = fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        clock.step(loss.detach(), norm)


def litgpt_eager(job: Job, clock: Clock) -> None:
    """The same not compiled."""
    litgpt(job, clock, compiled=False)


def _in_litgpt(job: Job) -> Any:
    """GPT-2's shape in litgpt's words: a Pythia whose attention and MLP come one after the other."""
    case = job.case
    return importlib.import_module("litgpt.config").Config(
        n_layer=case.num_layers,
        n_head=case.num_heads,
        n_embd=case.width,
        block_size=case.seq_len,
        vocab_size=case.vocab_size,
        padded_vocab_size=case.vocab_size,
        parallel_residual=False,
        attn_bias=True,
        bias=True,
        norm_eps=1e-5,
        gelu_approximate="tanh",
        mlp_class_name="GptNeoxMLP",
        norm_class_name="LayerNorm",
    )
