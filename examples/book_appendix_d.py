"""The book's appendix D with one import changed: warmup, cosine decay, clipping, and the training loop with all three.

python examples/book_appendix_d.py [STEPS]

Without STEPS it is the book's own run: 162 million parameters on The Verdict for 15 epochs, which is 135 steps and a
quarter of an hour on one core. The text is looked for in TRAINWELL_DATA_DIR; TRAINWELL_DOWNLOAD=1 fetches it. With
STEPS a small model takes that many, rounded up to whole epochs, on a text that comes with Python.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import torch

from trainwell.book import (  # the import that is changed
    GPTModel,
    calc_loss_batch,
    create_dataloader_v1,
    find_highest_gradient,
    get_encoding,
    gradient_report,
    plot_losses,
    plot_lrs,
    train_model,
)
from trainwell.data.corpora import read_corpus

GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
SMALL = GPT_CONFIG_124M | {"context_length": 32, "emb_dim": 32, "n_heads": 2, "n_layers": 2}
WARMUP = 0.2


def make_loaders(text: str, cfg: dict[str, Any]) -> tuple[Any, Any]:
    """Nine tenths of the text to train on, the rest to validate on; windows side by side, two a batch."""
    split = int(0.9 * len(text))
    length = cfg["context_length"]
    torch.manual_seed(123)
    train_loader = create_dataloader_v1(text[:split], batch_size=2, max_length=length, stride=length)
    val_loader = create_dataloader_v1(
        text[split:], batch_size=2, max_length=length, stride=length, shuffle=False, drop_last=False
    )
    return train_loader, val_loader


def visit_rates(
    model: torch.nn.Module, loader: Any, n_epochs: int, rate: Callable[[int], float]
) -> tuple[list[float], Any]:
    """Give an optimizer the rate of each step, as D.1 and D.2 do without training; also the last batch that passed."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    rates: list[float] = []
    last = None
    for _ in range(n_epochs):
        for batch in loader:
            last = batch
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate(len(rates))
            rates.append(optimizer.param_groups[0]["lr"])
    return rates, last


def clip_gradients(cfg: dict[str, Any], batch: Any, device: torch.device) -> None:
    """D.3: the highest gradient before and after clipping to norm 1, and what it does not see."""
    torch.manual_seed(123)
    model = GPTModel(cfg).to(device)
    inputs, targets = batch
    calc_loss_batch(inputs, targets, model, device).backward()
    report = gradient_report(model)
    print(f"highest gradient before clipping: {find_highest_gradient(model):.4f}")
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    print(f"highest gradient after clipping: {find_highest_gradient(model):.4f}")
    largest = report[0]
    print(f"of largest magnitude: {largest.magnitude:.4f} in {largest.name}; global norm {report.norm:.4f}")


def train(
    cfg: dict[str, Any], train_loader: Any, val_loader: Any, device: torch.device, n_epochs: int
) -> tuple[list[float], list[float], list[int], list[float]]:
    """D.4: the training with warmup, decay and clipping. `run="runs/verdict"` in the call would make it a run."""
    torch.manual_seed(123)
    model = GPTModel(cfg).to(device)
    peak_lr = 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, weight_decay=0.1)
    return train_model(
        model,
        train_loader,
        val_loader,
        optimizer,
        device,
        n_epochs=n_epochs,
        eval_freq=5,
        eval_iter=1,
        start_context="Every effort moves you",
        tokenizer=get_encoding("gpt2"),
        warmup_steps=int(WARMUP * len(train_loader) * n_epochs),
        initial_lr=1e-5,
        min_lr=1e-5,
        peak_lr=peak_lr,
    )


def main(steps: int | None = None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg = GPT_CONFIG_124M if steps is None else SMALL
    corpus = read_corpus(corpus="verdict" if steps is None else "python-docs")
    torch.manual_seed(123)
    model = GPTModel(cfg)
    train_loader, val_loader = make_loaders(corpus.texts[0] if steps is None else corpus.texts[0][:3000], cfg)
    n_epochs = 15 if steps is None else -(-steps // len(train_loader))
    total_steps = len(train_loader) * n_epochs
    warmup_steps = int(WARMUP * total_steps)
    print(f"{total_steps} steps, {warmup_steps} of them warmup")

    initial_lr, peak_lr, min_lr = 1e-4, 1e-2, 1e-5

    def warmup_only(step: int) -> float:
        return initial_lr + (peak_lr - initial_lr) * min(step / warmup_steps, 1.0)

    def warmup_and_cosine(step: int) -> float:
        if step < warmup_steps:
            return warmup_only(step)
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    for section, rate in (("D.1", warmup_only), ("D.2", warmup_and_cosine)):
        rates, batch = visit_rates(model, train_loader, n_epochs, rate)
        print(f"{section}: rate of step 0 {rates[0]:.2e}, highest {max(rates):.2e}, of the last step {rates[-1]:.2e}")

    clip_gradients(cfg, batch, device)
    train_losses, val_losses, tokens_seen, track_lrs = train(cfg, train_loader, val_loader, device, n_epochs)

    plot_lrs(track_lrs).savefig("lr-plot.pdf")
    epochs_seen = torch.linspace(1, n_epochs, len(train_losses))
    plot_losses(epochs_seen, tokens_seen, train_losses, val_losses)
    print("plots: lr-plot.pdf, loss-plot.pdf")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
