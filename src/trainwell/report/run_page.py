"""report.html: a run on one page, for whoever looks rather than reads. Written at the end of a run, or during it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainwell.config.load import recipe_names
from trainwell.planning.lints import findings
from trainwell.report import story
from trainwell.report.charts import Marks, charts, epoch_starts, whole_of
from trainwell.report.columns import axes_of
from trainwell.report.course import course
from trainwell.report.html import Drawn, drawn, page, write
from trainwell.report.load import Joined, RunData, joined
from trainwell.report.verdict import Judgement, judge_joined
from trainwell.runs.console import short_count, short_time
from trainwell.runs.metrics import Row

_SIGNS = {"learned": ("✓", "good"), "diverged": ("✕", "bad"), "overfitting": ("▲", "bad"), "not learning": ("▬", "bad")}
_EVALUATIONS = 40
_COLUMNS = {
    "val/loss": ("validation loss", ".4f"),
    "val/ppl": ("perplexity", ".3f"),
    "val/bpb": ("bits per byte", ".3f"),
    "val/accuracy": ("accuracy", ".1%"),
    "val/hellaswag": ("HellaSwag", ".1%"),
}


def write_report(run: RunData, file: Path | None = None, reload_s: float = 0) -> Path:
    """Write the report of a run into its folder, or into `file`; StorageError when that fails."""
    return write(report(run, reload_s), file or run.dir.report_html)


def report(run: RunData, reload_s: float = 0) -> str:
    """The page of a run, which may be going on; it loads itself again after `reload_s` seconds, 0 for never."""
    rows = joined(run)
    judged = judge_joined(run, rows)
    against, settings = story.settings(run.config)
    left = story.time_left(run, rows) if run.owner else None
    samples = story.samples(run, rows.val)
    found = findings(run.plan) if run.plan else []
    drawing = _drawn(run, rows)
    context = {
        "title": run.dir.name,
        "run": {
            "recipe": run.config.name if run.config.name in recipe_names() else None,
            "status": run.status,
            "left": short_time(left) if left else None,
        },
        "verdict": _verdict(run, rows, judged),
        "outcome": story.outcome(run, rows, judged),
        "samples": samples,
        "evaluations": _evaluations(rows.val, judged),
        "events": story.events(run, rows, judged),
        "findings": found,
        "settings": settings,
        "against": against,
        "changed": sum(setting.usual is not None for setting in settings),
        "data": [*story.facts_of(run.env.get("data")), *story.facts_of(run.env.get("counts"))],
        "parameters": story.parameters(run),
        "environment": _environment(run),
        "sections": [
            (name, title)
            for name, title, there in (
                ("curves", "Curves", drawing.charts),
                ("samples", "Samples", samples),
                ("evaluations", "Evaluations", rows.val),
                ("events", "What happened", True),
                ("findings", "Worth knowing", found),
                ("configuration", "Configuration", True),
                ("environment", "Environment", True),
            )
            if there
        ],
    }
    return page("report.html", context, drawing, reload_s)


def _drawn(run: RunData, rows: Joined) -> Drawn:
    planned = [] if run.plan is None else [(moment.step, moment.tokens) for moment in course(run.plan)]
    if run.plan is not None:
        planned.append((run.plan.num_steps, run.plan.batch.tokens_before(run.plan.num_steps)))
    knots, axes = axes_of(rows.train, planned, story.cost_per_token(run))
    bands = story.bands_of(run) if planned else ()
    counts, states = ([count for _, count in planned], [state for state, _ in planned])
    marks = Marks(
        checkpoints=run.checkpoints,
        resumes=sorted({start.step for start in story.resumes(run)}),
        epochs=epoch_starts(rows.train),
        spikes=[row["step"] for row in rows.train if row.get("train/spike") and not row.get("train/skipped")],
        skipped=[row["step"] for row in rows.train if row.get("train/skipped")],
        bands=[(float(np.interp(band.tokens, counts, states)), band) for band in bands],
    )
    whole = whole_of(run)
    return drawn(charts(run, rows.train, rows.val, marks), knots, axes, whole)


def _verdict(run: RunData, rows: Joined, judged: Judgement) -> Mapping[str, Any]:
    sign, tone = _SIGNS.get(judged.kind, ("…", ""))
    unfinished = run.num_steps is not None and run.steps_done < run.num_steps
    text = judged.text.removeprefix(judged.kind).lstrip(" :,")
    return {
        "sign": sign,
        "tone": tone,
        "kind": f"{judged.kind.capitalize()}{', so far' if unfinished and judged.kind != 'diverged' else ''}",
        "text": text[:1].upper() + text[1:],
        "advice": judged.advice if not unfinished or judged.kind != "learned" else "",
        "band": story.band(run, rows.val),
    }


def _evaluations(val: Sequence[Row], judged: Judgement) -> Mapping[str, Any]:
    """The last evaluations as a table, the best one marked."""
    shown = [key for key in _COLUMNS if any(row.get(key) is not None for row in val)]
    return {
        "columns": ["state", "tokens", *(_COLUMNS[key][0] for key in shown)],
        "rows": [
            {
                "best": row["step"] == judged.best_step,
                "cells": [
                    f"{row['step']:,}",
                    "" if row.get("tokens") is None else short_count(row["tokens"]),
                    *("" if row.get(key) is None else format(row[key], _COLUMNS[key][1]) for key in shown),
                ],
            }
            for row in val[-_EVALUATIONS:]
        ],
        "left_out": max(0, len(val) - _EVALUATIONS),
    }


def _environment(run: RunData) -> list[story.Fact]:
    command = run.env.get("command")
    typed = " ".join(str(word) for word in command) if isinstance(command, list) else ""
    return [
        *story.facts_of(run.env.get("versions")),
        *story.facts_of({"platform": run.env.get("platform")}),
        *story.facts_of(run.env.get("settings")),
        *([story.Fact("command", typed)] if typed else []),
    ]
