"""`trainwell sample`: text from a run or a step of it; answers and labels from one that was fine-tuned."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from trainwell.cli import parts
from trainwell.errors import ConfigError
from trainwell.runs.console import safe
from trainwell.runs.rundir import is_run, parse_target

if TYPE_CHECKING:
    from trainwell.run import Run


def sample(
    target: str,
    /,
    *,
    prompt: Annotated[
        str | None,
        Parameter(
            help="Text to continue, or of task instruct the question; - reads it from standard input. "
            "Default: the run's own.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    chat: Annotated[
        bool, Parameter(help="Answer every line of standard input, as a conversation.", negative=())
    ] = False,
    file: Annotated[
        Path | None, Parameter(help="Answer (or label) every record of a .json, .jsonl or .csv file.")
    ] = None,
    output: Annotated[
        Path | None, Parameter(name=("--output", "-o"), help="Where --file writes, as JSON lines. Default: the screen.")
    ] = None,
    label: Annotated[
        str | None, Parameter(help="Text to give a label; - reads it from standard input.", allow_leading_hyphen=True)
    ] = None,
    tokens: Annotated[int, Parameter(help="Tokens to generate, at most.", validator=Number(gte=1))] = 200,
    count: Annotated[
        int, Parameter(help="How many samples, each with a seed of its own.", validator=Number(gte=1))
    ] = 1,
    temperature: Annotated[
        float, Parameter(help="Softmax temperature; 0 always takes the likeliest token.", validator=Number(gte=0))
    ] = 0.8,
    top_k: Annotated[
        int | None, Parameter(help="Draw from the k likeliest tokens only.", validator=Number(gte=1))
    ] = None,
    top_p: Annotated[
        float | None,
        Parameter(
            help="Draw from the fewest tokens that together have this probability.", validator=Number(gt=0, lte=1)
        ),
    ] = None,
    seed: Annotated[int, Parameter(help="The same seed gives the same text.", validator=Number(gte=0))] = 0,
    device: Annotated[
        str | None, Parameter(help="cpu, cuda or mps. Default: the run's own where it is to be had.")
    ] = None,
) -> None:
    """Generate text from TARGET, a run or a step of it (runs/demo, runs/demo@1200, runs/demo@best), as it is drawn.

    A run of task instruct answers --prompt, a --chat or the questions of a --file; one of task classify gives the label
    of --label TEXT or of every text in a --file.
    """
    name, _ = parse_target(target)
    if not is_run(Path(name)):
        raise ConfigError(
            f"{name} is not a run; train one first (trainwell train demo), then: trainwell sample runs/demo"
        )
    _refuse_together(prompt=prompt, chat=chat or None, file=file, label=label)
    if output is not None and file is None:
        raise ConfigError(f"--output {output} is where the answers to a --file go; name one, or leave it out")

    from trainwell.build import open_run
    from trainwell.cli import ask

    run = open_run(target, weights_alone=True, **parts.current(), **({} if device is None else {"device": device}))
    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if label is not None:
        ask.label(run, sys.stdin.read() if label == "-" else label)
    elif file is not None:
        ask.answer_file(run, file, output, {"max_tokens": tokens, **how})
    elif chat:
        ask.chat(run, sys.stdin, {"max_tokens": tokens, **how})
    elif run.labels:
        raise ConfigError(f"{name} gives labels and writes no text; use --label TEXT or --file FILE")
    else:
        text = run.config.sample.prompt if prompt is None else sys.stdin.read() if prompt == "-" else prompt
        if prompt is None and run.template is not None:
            print(f"> {safe(text)}")
        _draw(run, text, tokens, count, how)


def _refuse_together(**given: object) -> None:
    """Raise ConfigError for more than one of what a call is about."""
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} exclude each other; give one of them")


def _draw(run: "Run", text: str, tokens: int, count: int, how: dict[str, Any]) -> None:
    """Continue a text, or answer a question, `count` times."""
    from trainwell.answers import continued, prompt_ids
    from trainwell.cli.ask import stream

    tokenizer = run.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{run.run_dir.path} was trained on ids given in Python, so there is no tokenizer; "
            "call trainwell.generate in your script"
        )
    if not text:
        raise ConfigError("--prompt: it is empty; give at least one character")
    ids = prompt_ids(tokenizer, text, run.template)
    for number in range(count):
        seeded = {**how, "seed": how["seed"] + number}
        drawn = continued(
            run.model, tokenizer, run.template, ids, context=run.plan.seq_len, max_tokens=tokens, **seeded
        )
        if run.template is None:
            sys.stdout.write(safe(text))
        stream(drawn, tokenizer)
        sys.stdout.write("\n" if number == count - 1 else "\n---\n")
