"""Every knob of a run as one frozen tree; the same tree is the YAML file, these models and the flags.

Knows no component: a value is a name or a number, and what it builds is decided in `planning` and `build`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainwell.config.values import Duration, Share

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

Dialect = Literal[
    "book",
    "build-nanogpt",
    "composer",
    "exponential",
    "flashcard-1",
    "gpt3",
    "hf-cosine",
    "hf-cosine-warmup-with-min-lr",
    "hf-cosine-with-min-lr",
    "hf-inverse-sqrt",
    "hf-linear",
    "litgpt",
    "llm.c",
    "llm.c-wsd",
    "nanochat",
    "nanogpt",
    "nanotron",
    "olmo-core",
    "torchtitan",
    "torchtitan-1-sqrt",
    "torchtitan-linear",
]


class Section(BaseModel):
    """A group of keys: frozen, strict about names; the docstrings of its fields are the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Which text, cut into tokens and windows how."""

    corpus: str | None = "python-docs"
    """Corpus by name: python-docs (embedded), tiny-shakespeare, verdict. Excludes data.path."""
    path: str | None = None
    """Your own UTF-8 text (a file, or a folder of .txt and .md), or token files. For tasks a .json, .jsonl or .csv."""
    tokenizer: str = "bytes"
    """bytes, chars, gpt2, or the path of a Hugging Face tokenizer.json."""
    seq_len: Positive = 128
    """Tokens per sequence: the context length the model is trained on."""
    stride: Positive | None = None
    """Tokens between the starts of neighbouring windows; null means seq_len (no overlap)."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the text held out for validation."""
    split: Literal["auto", "tail", "documents"] = "auto"
    """How text is held out: its tail, or whole documents by hash; auto is tail for one text, documents for several."""
    order: Literal["shuffled", "sequential"] = "shuffled"
    """Order of windows or examples: reshuffled every epoch, without replacement; or as they stand in the file."""
    template: str = "alpaca"
    """How an instruction becomes text: alpaca, phi3, tokenizer (its own chat template), or the path of your own."""
    train_on_prompt: bool = False
    """Learn the prompt of an instruction too; otherwise only its answer counts in the loss."""
    rows: Literal["buckets", "packed", "padded"] = "buckets"
    """Examples of tasks in rows: short ones together in short rows, several in a row (instruct), or all filled up."""
    skip: str | None = None
    """Batches passed over: "1200+200" leaves out 200 from step 1200 on; several with commas; null for none."""
    labels: str | None = None
    """Names of the classes in their order, with commas between; null takes those of the file, sorted."""


class ModelConfig(Section):
    """The shape of the model and how its weights start."""

    arch: Literal["gpt2", "llama"] = "gpt2"
    """Architecture: GPT-2's, or Llama's (rotary positions, RMS norms, SwiGLU) with the switches of its kin."""
    num_layers: Positive = 4
    """Transformer blocks."""
    num_heads: Positive = 4
    """Attention heads; must divide width where head_dim is null."""
    num_kv_heads: Positive | None = None
    """Heads of keys and values, each shared by several of the queries' (llama); null means num_heads."""
    head_dim: Positive | None = None
    """Size of an attention head (llama); null means width / num_heads."""
    width: Positive = 128
    """Size of the residual stream (n_embd, emb_dim)."""
    mlp_width: Positive | None = None
    """Inner size of the MLP (llama); null means 8/3 of width, up to the next multiple of 64. GPT-2's is 4 x width."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of the layer norms or RMS norms."""
    rope_theta: Annotated[float, Field(gt=1)] = 10_000.0
    """Base of the rotary positions' wavelengths (llama)."""
    rope_scaling: Literal["linear", "llama3"] | None = None
    """Stretch rotary positions for a longer context: all of them, or the long wavelengths only (Llama 3.1)."""
    rope_factor: Annotated[float, Field(ge=1)] = 1.0
    """By how much rope_scaling stretches."""
    rope_original_context: Positive | None = None
    """Context length before rope_scaling llama3."""
    qk_norm: bool = False
    """RMS norms of each head's queries and keys, as in Qwen3: attention logits cannot grow without bound."""
    dropout: Fraction = 0.0
    """Dropout on embeddings, attention weights and residual branches."""
    tie_head: bool = True
    """Share the token embedding with the output head."""
    qkv_bias: bool | None = None
    """Biases in the query, key and value projections; null: gpt2 has them, llama has not."""
    init: Literal["gpt2", "torch"] = "gpt2"
    """Initial weights: GPT-2's (normal, residual projections scaled) or torch's defaults as in the book."""
    pad_vocab_to: Positive | None = None
    """Pad the vocabulary to this many entries (50304 for GPT-2); null leaves it as the tokenizer has it."""

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def size_of_head(self) -> int:
        """Size of an attention head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def width_of_mlp(self) -> int:
        """Inner size of the MLP: of a SwiGLU 8/3, so that its three matrices weigh what GPT-2's two do."""
        own = 4 * self.width if self.arch == "gpt2" else -(-8 * self.width // (3 * 64)) * 64
        return self.mlp_width or own

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.arch == "gpt2" if self.qkv_bias is None else self.qkv_bias


class OptimConfig(Section):
    """The optimizer, its parameter groups and clipping."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon for hidden matrices with adamw for the rest."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """Which tensors decay: those of two or more dimensions, or all of them (as in the book)."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip gradients to this global L2 norm; null never clips."""
    clip_from: Literal["warmup"] | Duration = Duration.parse(0)
    """First step that is clipped, or warmup: clip from the end of the warmup."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the z-loss, which holds the logits near zero (PaLM: 1e-4); 0 for none."""
    train: Literal["all", "last-block"] = "all"
    """Which weights learn: all; or the last block, the last norm and the head with what is tied to it (chapter 6)."""


class ScheduleConfig(Section):
    """The learning rate as a function of the step."""

    dialect: Dialect | None = None
    """Use another system's exact formula; null is trainwell's own."""
    warmup: Duration = Duration.parse("10%")
    """Length of the warmup; 0 for none. Per cents are of the horizon."""
    warmup_shape: Literal["linear", "exponential"] = "linear"
    """Shape of the warmup; exponential needs initial_lr."""
    initial_lr: Share | None = None
    """Rate of step 0, as a rate or a share of the peak ("1%"); null starts at peak / warmup."""
    decay: Literal["cosine", "linear", "constant", "inverse-sqrt", "wsd"] = "cosine"
    """Shape after the warmup; wsd (warmup, stable, decay) stays at the peak and decays over decay_steps."""
    decay_steps: Duration | None = None
    """Length of the final decay of wsd (null: 20% of the horizon) and of torchtitan's (null: all after the warmup)."""
    min_lr: Share = Share.parse("10%")
    """Rate at the end of the horizon, as a rate or a share of the peak."""
    horizon: Duration | None = None
    """Length over which the schedule is laid out; null is the run's duration. Past it the rate stays constant."""
    reach_min: bool = False
    """Lay a dialect that stops a step short of its minimum out over one step less, so that the last step is there."""
    final_weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay at the end of the horizon, along a cosine from optim.weight_decay; null keeps it as it is."""
    initial_momentum: Fraction | None = None
    """AdamW's first beta at step 0, rising in a line to optim.betas over the warmup; null keeps it as it is."""


class BatchRampConfig(Section):
    """A batch that grows: the batch size of the run is reached after some tokens, and then kept."""

    from_tokens: Positive | None = None
    """Tokens in the batch of step 0, as GPT-3's 32768; null for no ramp."""
    over: Duration | None = None
    """Length of the climb, in tokens ("4B tokens") or epochs."""
    stages: Positive | None = None
    """Climb in so many equal stages (Megatron-LM); null climbs in a line, a little with every step (GPT-3)."""
    multiple_of: Positive | None = None
    """Sequences by which the batch grows at a time; null is the most that both ends of the climb allow."""
    lr_scaling: Literal["none", "sqrt"] = "none"
    """sqrt: multiply the learning rate by the square root of the share of the full batch (Malladi et al., 2022)."""


class GuardConfig(Section):
    """What happens to a step whose loss or gradient norm leaps out; one that is not finite is always skipped."""

    policy: Literal["log", "skip", "stop"] = "log"
    """log: say so; skip: leave the update out; stop: end the run with exit code 70, its checkpoints all from before."""
    k: Annotated[float, Field(gt=0)] = 10.0
    """A spike is above median + k * 1.4826 * MAD of the accepted losses or gradient norms."""
    window: Annotated[int, Field(ge=8)] = 128
    """Steps that the median is of."""


class EvalConfig(Section):
    """Validation loss during training."""

    every: Duration | None = Duration.parse(200)
    """How often; null never. A run also evaluates before step 0 and at its end."""
    batches: Annotated[int, Field(ge=0)] = 20
    """Batches of batch_size sequences, the same each time; 0 is the whole validation set."""
    hellaswag: str | None = None
    """A HellaSwag file (JSON lines) on your disk: its accuracy comes with every evaluation; null for none."""


class SampleConfig(Section):
    """Text generated during training."""

    every: Duration | None = Duration.parse("1 epochs")
    """How often; null never."""
    prompt: str = "The "
    """What the sample continues; of instruct, the instruction that it answers."""
    tokens: Positive = 50
    """Tokens to generate."""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Softmax temperature; 0 always takes the likeliest token."""
    top_k: Positive | None = 50
    """Draw from the k likeliest tokens only; null draws from all."""


class CheckpointConfig(Section):
    """What is saved, and how much of it is kept."""

    every: Duration | None = Duration.parse(500)
    """How often; null only at the end and on a stop."""
    keep: Positive = 3
    """Checkpoints kept, newest first."""
    best: bool = True
    """Also keep the checkpoint with the lowest validation loss."""
    keep_every: Duration | None = None
    """Also keep one checkpoint of every such stretch for good, such as 5000; null for none."""
    asynchronous: bool = True
    """Copy the state into buffers and write it while training goes on; false writes at once, without the buffers."""


class LogConfig(Section):
    """What is printed; metrics.jsonl holds every step whatever this says."""

    every: Positive = 10
    """Steps between printed lines."""
    plots: bool = True
    """Draw the curves as PNG files and write report.html when the run ends."""
    sinks: str | None = None
    """Where else each row goes: tensorboard, trackio, wandb; several with commas."""

    @property
    def sink_names(self) -> tuple[str, ...]:
        """The sinks by their names."""
        return tuple(name.strip() for name in (self.sinks or "").split(",") if name.strip())


class FastConfig(Section):
    """What makes a step faster on this machine; `kernels: reference` turns all of it off."""

    matmul: Literal["auto", "default", "onednn"] = "auto"
    """Products of fp32 matrices on a CPU; auto takes oneDNN's where they are as exact and win a short race."""
    attention: Literal["auto", "sdpa", "flash", "efficient", "cudnn", "math", "products"] = "auto"
    """What computes attention: torch's choice (sdpa), one of its kernels, or on a CPU matrix products."""
    dropout: Literal["auto", "default", "bits"] = "auto"
    """How a CPU draws dropout: a float for each value (default), or sixteen random bits, which is quicker (bits)."""
    residual: Literal["auto", "fp32", "bf16"] = "auto"
    """What the sum of all blocks' outputs is kept in where the run is in bf16; auto takes bf16 on a GPU."""
    keep_memory: Literal["auto", "huge"] | bool = "auto"
    """Keep freed memory for the next step rather than give it back, if huge in huge pages; auto does under Linux."""


class RunConfig(Section):
    """One run: every key has a default, and a recipe or file says what differs."""

    name: str = "my-run"
    """Name of the run; its folder is runs/NAME."""
    task: Literal["pretrain", "instruct", "classify"] = "pretrain"
    """What is learned: the next token of a text, answers to instructions, or the label of a text."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337
    """Seed of everything random: initial weights, data order, dropout, samples."""
    duration: Duration = Duration.parse(1200)
    """Length of the run: 1200 (steps), "2M tokens", "15 epochs", "5 minutes"."""
    batch_size: Positive | None = 32
    """Sequences per step over all ranks. Excludes batch_tokens."""
    batch_tokens: Positive | None = None
    """Tokens per step over all ranks. Excludes batch_size."""
    micro_batch: Literal["auto"] | Positive = "auto"
    """Sequences per forward pass, at most; memory depends on it, results do not. auto estimates what fits."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto is cuda, then mps, then cpu."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 where native, fp16 with scaling on other GPUs, else fp32."""
    compile: Literal["auto", "blocks", "max-autotune"] | bool = "auto"
    """torch.compile model and loss (true), each block for a quick start, or with tuning; auto: where the run gains."""
    recompute: bool = False
    """Compute the inside of each block again when going back, not keep it: less memory, a third more work."""
    kernels: Literal["auto", "reference"] = "auto"
    """auto: fused optimizer, folded clipping, `fast`; reference: plain operations, bitwise equal to the plain loop."""
    deterministic: bool = False
    """On CUDA, use deterministic algorithms only; a CPU run always does."""
    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """How ranks share a step: ddp, each has all weights; fsdp, each has a part; auto: ddp, on GPUs where that fits."""
    init_from: str | None = None
    """Start from the weights of a run (runs/demo), a step of it (runs/demo@best) or a Hugging Face folder."""
    data: DataConfig = DataConfig()
    """Which text, cut into tokens and windows how."""
    model: ModelConfig = ModelConfig()
    """The shape of the model and how its weights start."""
    optim: OptimConfig = OptimConfig()
    """The optimizer, its parameter groups and clipping."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate as a function of the step."""
    batch_ramp: BatchRampConfig = BatchRampConfig()
    """The batch size as a function of the step: a climb to the full batch."""
    guard: GuardConfig = GuardConfig()
    """What happens to a step whose loss or gradient norm leaps out."""
    eval: EvalConfig = EvalConfig()
    """Validation loss during training."""
    sample: SampleConfig = SampleConfig()
    """Text generated during training."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is saved, and how much of it is kept."""
    fast: FastConfig = FastConfig()
    """Choices that make a step faster and change nothing but rounding."""
    log: LogConfig = LogConfig()
    """What is printed."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Yours: free keys, recorded with the run, read by your own parts."""
    custom: dict[str, Any] = Field(default_factory=dict)
    """Written by trainwell: which parts of the run were given in Python, so that it can say which script has them."""
