"""Runs and logs compared on the command line: text, a page, JSON, and an exit code for CI."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Command

Flags = Callable[..., list[str]]


def trained(command: Command, tiny_flags: Flags, rate: str, *seeds: str) -> None:
    for seed in seeds:
        flags = tiny_flags(optim__lr=rate, seed=seed, data__path="text.txt")
        assert command("train", "demo", *flags, "--run", f"runs/{rate}/{seed}").code == 0


def test_two_folders_of_seeds_are_compared(command: Command, tiny_flags: Flags, finished: Path) -> None:
    trained(command, tiny_flags, "3e-2", "1", "2")
    trained(command, tiny_flags, "3e-4", "1", "2")
    said = command("compare", "runs/3e-2", "runs/3e-4", "--target-loss", "5", "-o", "compare.html")
    assert (said.code, said.err) == (0, "")
    assert "optim.lr" in said.out
    assert "wrote compare.html" in said.out
    assert "What each came to" in Path("compare.html").read_text(encoding="utf-8")
    facts = json.loads(command("compare", "runs/3e-2", "runs/3e-4", "--json").out)
    assert facts["differing"]["optim.lr"] == ["0.03", "0.03", "0.0003", "0.0003"]
    assert [run["seed"] for arm in facts["arms"] for run in arm["runs"]] == ["1", "2", "1", "2"]
    assert facts["comparisons"][0]["difference"]["method"] == "student"
    over = json.loads(command("compare", "runs", "--by", "optim.lr", "--json").out)
    assert [arm["settings"]["optim.lr"] for arm in over["arms"]] == ["0.0003", "0.003", "0.03"]
    worse = command("compare", "runs/3e-2", "runs/3e-4", "--fail-if-worse", "0.5%")
    assert worse.code == 1
    assert worse.err.startswith("trainwell: --fail-if-worse 0.005: against optim.lr=0.03 (")
    assert command("compare", "runs/3e-4", "runs/3e-2", "--fail-if-worse", "0.5%").code == 0


def test_a_run_is_compared_with_a_log_of_another_program(command: Command, finished: Path) -> None:
    Path("other.txt").write_text("step 0: train loss 5.5, val loss 5.5\nstep 12: train loss 4.0, val loss 4.0\n")
    said = command("compare", "runs/tiny", "other.txt", "--tokens-per-step", "64")
    assert (said.code, said.err) == (0, "")
    assert "what other.txt was evaluated on is not on record" in said.out
    assert "cannot be told from 1 and 1 runs" in " ".join(said.out.split())
    refused = command("compare", "runs/tiny", "other.txt")
    assert refused.code == 2
    assert "--by steps, or give --tokens-per-step" in refused.err


def test_what_cannot_be_compared_is_said(command: Command, refused: Callable[..., str], finished: Path) -> None:
    assert "name runs, folders of runs or logs" in refused(2, "compare", "demo", "book", "--by", "steps")
    assert "--by optim.lrr: allowed are tokens, steps, time, flops and every key" in refused(
        2, "compare", "runs/tiny", "runs/tiny", "--by", "optim.lrr"
    )
    assert "write a share of the loss" in refused(2, "compare", "runs/tiny", "runs/tiny", "--fail-if-worse", "much")
    assert "write OURS=THEIRS" in refused(2, "compare", "runs/tiny", "runs/tiny", "--columns", "step")
    assert "given: demo" in refused(2, "compare", "demo")
    assert "leave out the step" in refused(2, "compare", "runs/tiny@4", "runs/tiny")
