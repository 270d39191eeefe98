"""`trainwell sample`: text from a run or a step of it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from trainwell.cli import parts
from trainwell.data.tokenizer import Tokenizer
from trainwell.errors import ConfigError
from trainwell.runs.console import safe
from trainwell.runs.rundir import is_run, parse_target


def sample(
    target: str,
    /,
    *,
    prompt: Annotated[
        str | None,
        Parameter(
            help="Text to continue; - reads it from standard input. Default: the run's own.", allow_leading_hyphen=True
        ),
    ] = None,
    tokens: Annotated[int, Parameter(help="Tokens to generate.", validator=Number(gte=1))] = 200,
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
    """Generate text from TARGET, a run or a step of it (runs/demo, runs/demo@1200, runs/demo@best), as it is drawn."""
    name, _ = parse_target(target)
    if not is_run(Path(name)):
        raise ConfigError(
            f"{name} is not a run; train one first (trainwell train demo), then: trainwell sample runs/demo"
        )

    from trainwell.build import open_run
    from trainwell.generate import generate

    run = open_run(target, **parts.current(), **({} if device is None else {"device": device}))
    tokenizer = run.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{name} was trained on ids given in Python, so there is no tokenizer; "
            "call trainwell.generate in your script"
        )
    text = run.config.sample.prompt if prompt is None else sys.stdin.read() if prompt == "-" else prompt
    ids = [int(token) for token in tokenizer.encode(text)]
    if not ids:
        raise ConfigError("--prompt: it is empty; give at least one character")
    for number in range(count):
        drawn = generate(
            run.model,
            ids,
            tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed + number,
            stop=tokenizer.end_of_text,
            vocab_size=tokenizer.vocab_size,
            context=run.plan.seq_len,
        )
        sys.stdout.write(safe(text))
        _stream(drawn, tokenizer)
        sys.stdout.write("\n" if number == count - 1 else "\n---\n")


def _stream(drawn: Iterator[int], tokenizer: Tokenizer) -> None:
    """Write text as soon as it is certain: the last characters wait while their bytes may be incomplete."""
    ids: list[int] = []
    written = 0
    for token in drawn:
        ids.append(token)
        text = tokenizer.decode(ids)
        certain = len(text.rstrip("\ufffd"))
        sys.stdout.write(safe(text[written:certain]))
        sys.stdout.flush()
        written = max(written, certain)
    sys.stdout.write(safe(tokenizer.decode(ids)[written:]))
