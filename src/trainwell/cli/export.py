"""`trainwell export`: the model of a run, or of a step of it, as files that other tools open."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from trainwell.cli import parts
from trainwell.errors import ConfigError
from trainwell.runs.rundir import is_run, parse_target


def export(
    target: str,
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write: one that is not there yet, or is empty.")],
    format: Annotated[
        Literal["hf", "safetensors"],
        Parameter(help="hf: what transformers opens, with the tokenizer. safetensors: the weights alone."),
    ] = "hf",
    fill_biases: Annotated[
        bool,
        Parameter(
            help="Write zeros for the biases of queries, keys and values that GPT-2 has and this model has not; "
            "they change no logit.",
            negative="",
        ),
    ] = False,
) -> None:
    """Write the model of TARGET, a run or a step of it (runs/demo, runs/demo@best), for other tools to open."""
    name, _ = parse_target(target)
    if not is_run(Path(name)):
        raise ConfigError(
            f"{name} is not a run; train one first (trainwell train demo), then: trainwell export runs/demo --out DIR"
        )

    from trainwell import export as exporting
    from trainwell.build import open_run

    exporting.refuse_used(out)
    run = open_run(target, weights_alone=True, **parts.current())
    if "model" in run.config.custom:
        raise ConfigError(
            f"{name} has a model given in Python ({run.config.custom['model']}); only trainwell's own are exported. "
            f"Save it from your script: safetensors.torch.save_model(trainwell.open_run({target!r}, ...).model, FILE)"
        )
    files = exporting.export(
        run.model,
        run.config,
        run.tokenizer,
        out,
        template=run.template,
        labels=run.labels,
        format=format,
        fill_biases=fill_biases,
    )
    for note in exporting.notes(run.config, run.tokenizer) if format == "hf" else ():
        print(note)
    print(_summary(files, out, format, classifies=bool(run.labels), has_text=run.tokenizer is not None))


def _summary(files: Sequence[Path], out: Path, format: str, *, classifies: bool, has_text: bool) -> str:
    weights, *others = files
    written = [f"{weights.name} ({weights.stat().st_size / 1e6:,.1f} MB)", *(file.name for file in others)]
    lines = [f"wrote {out}: {', '.join(written)}"]
    if format == "safetensors":
        return "\n".join([*lines, f'open it: safetensors.torch.load_model(model, "{weights}")'])
    kind = "SequenceClassification" if classifies else "CausalLM"
    lines.append(f'open it: transformers.AutoModelFor{kind}.from_pretrained("{out}")')
    if has_text:
        lines.append(f'         transformers.AutoTokenizer.from_pretrained("{out}")')
    else:
        lines.append("without a tokenizer: the run was trained on ids given in Python")
    return "\n".join(lines)
