"""The result as a page: where it was measured, the tables, and which promises hold."""

import math
from typing import Any

from benchmarks.speed import compare, extras, figures, whole

_NAN = math.nan
_NOTES = """\
Every contestant is one process; they run one after the other in the order A B C ... C B A. A step is timed from the
end of the one before it to its own end; the median is of all steps of both processes after the warm-up, with quartiles.
All start from the same weights and read the same batches; clip 1.0, betas (0.9, 0.95), weight decay 0.1 on matrices,
constant rate. "documented" is as the peer's pages have it in an environment that is untouched; "ours" adds every global
setting that we use: freed memory kept in huge pages, GOMP_SPINCOUNT, fused AdamW, the choice of fp32 products.
The book's model has its head tied here, so that all have the same weights. MFU is (6 N + 12 L H Q T) x tokens/s over
the largest rate of products of matrices measured here, N without positions. "of light" is the time that the step's
products, attention and one pass of AdamW take alone, at their best, over the step's time; a step can be above it where
it saves work. "loss diff" is the largest difference from our losses over the first 20 steps, in nats."""


def lines(result: dict[str, Any]) -> list[str]:
    """The whole page, in markdown."""
    machine = result["machine"]
    made = ["# Speed beside peers", "", *(f"- {name}: {value}" for name, value in machine.items()), ""]
    made += [_NOTES, ""] + (
        ["A quick run, to see that all works: its figures mean little.", ""] if result["quick"] else []
    )
    for name, found in result["cases"].items():
        made += [*of_case(name, found), ""]
    for name, found in result["whole"].items():
        made += [f"## {_TITLES[name]}", "", *whole.table(name, found), ""]
    if result["extras"]:
        made += ["## Stalls and reading", "", *extras.lines(result["extras"]), ""]
    return [*made, "## Promises", "", *figures.verdicts(promises(result))]


_TITLES = {
    "book": "The whole run of the book's appendix D (135 steps, 27 evaluations, 15 samples)",
    "nanogpt": "nanoGPT's recipe for a laptop (2,000 steps on Tiny Shakespeare)",
}


def of_case(name: str, found: dict[str, Any]) -> list[str]:
    """One case in one precision."""
    ceiling = found["ceiling"]
    made = [f"## {name}", "", f"{found['tokens']}; {found['steps']} steps in each process.", ""]
    made += [*compare.table(found["rows"]), ""]
    own = next((row for row in found["rows"] if row["name"] == compare.OURS and "notes" in row), None)
    if own:
        made += [f"Ours chose: {own['notes'].get('chosen', '')}", ""]
    if "ceiling_gflops" not in ceiling:
        return [*made, f"The machine's ceilings were not measured: {ceiling.get('left_out')}"]
    parts = {"products": "matmul_s", "attention": "attention_s", "AdamW": "update_s", "together": "light_s"}
    shown = ", ".join(f"{part} {ceiling[key] * 1000:,.1f} ms" for part, key in parts.items())
    rates = ", ".join(f"{operation} {value:,.0f}" for operation, value in ceiling["gflops"].items())
    made += [f"Speed of light of a step: {shown}; copy {ceiling['copy_gb_per_s']:.1f} GB/s.", ""]
    return [*made, f"GFLOP/s: {rates}."]


def promises(result: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    """What must hold: value, bound, and whether the bound is from below; NaN for what was not measured."""
    small32, small16 = (_rows(result, f"124m-2x256 {precision}") for precision in ("fp32", "bf16"))
    tiny32, tiny16 = (_rows(result, f"tiny {precision}") for precision in ("fp32", "bf16"))
    book_s = _step(small32, "book", "documented")
    own16, own_tiny16 = _step(small16, compare.OURS), _step(tiny16, compare.OURS)
    documented, equal = _best(small32, "documented"), _best(small32, "ours")
    return {
        "fp32 over the best documented peer": (documented / _step(small32, compare.OURS), 1.7, True),
        "fp32 over the best peer with our settings": (equal / _step(small32, compare.OURS), 1.1, True),
        "fp32 losses, largest difference": (_differs(small32), compare.SAME, False),
        "bf16 over the book's loop (fp32)": (book_s / own16, 3.5, True),
        "bf16 over the best documented bf16 peer": (_best(small16, "documented") / own16, 1.6, True),
        **_of_whole_runs(result),
        "tiny step over nanoGPT's, fp32": (
            _step(tiny32, compare.OURS) / _step(tiny32, "nanogpt", "documented"),
            0.85,
            False,
        ),
        "tiny step over nanoGPT's, bf16": (own_tiny16 / _step(tiny32, "nanogpt", "documented"), 0.6, False),
        "overhead over the plain loop at 124M": (_overhead(small32), 0.01, False),
        "overhead over the plain loop at 0.8M": (_overhead(tiny32), 0.05, False),
        "stall of a save at 124M, s": (_stall(result), 0.25, False),
        "share of a step spent waiting for data": (_wait(small32), 0.005, False),
    }


def _of_whole_runs(result: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    rows = result["whole"].get("book", {}).get("rows", [])
    runs = {row["title"]: row for row in rows if "left_out" not in row}
    peer = runs.get("book, fp32, documented", {})

    def over(title: str, what: str) -> float:
        return float(runs.get(title, {}).get(what, _NAN)) / float(peer.get(what, _NAN))

    apart = whole.bf16_against_fp32(rows)
    return {
        "book's run in fp32 over the book's time": (over("ours, fp32", "wall_s"), 0.5, False),
        "book's run in bf16 over the book's time": (over("ours, bf16", "wall_s"), 0.25, False),
        "book's run over the book's memory": (over("ours, fp32", "peak_bytes"), 0.75, False),
        "bf16 loss against fp32 over the book's run": (_NAN if apart is None else apart, 0.01, False),
    }


def _rows(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in result["cases"].get(name, {}).get("rows", []) if "step_s" in row]


def _step(rows: list[dict[str, Any]], name: str, settings: str = "documented") -> float:
    found = (row["step_s"]["median"] for row in rows if (row["name"], row["settings"]) == (name, settings))
    return float(next(found, _NAN))


def _best(rows: list[dict[str, Any]], settings: str) -> float:
    """The shortest step of a peer; of loops that nobody documents none counts as one."""
    left_out = (*compare.OWN, *compare.BOUNDS)
    peers = [row["step_s"]["median"] for row in rows if row["name"] not in left_out and row["settings"] == settings]
    return min(peers, default=_NAN)


def _differs(rows: list[dict[str, Any]]) -> float:
    """Of everybody who computes the same function; nanoGPT's GELU is another."""
    found = [row["loss_difference"] for row in rows if "loss_difference" in row and row["name"] != "nanogpt"]
    return max((value for value in found if value is not None), default=_NAN)


def _overhead(rows: list[dict[str, Any]]) -> float:
    return _step(rows, compare.OURS) / _step(rows, "raw-ours-model") - 1


def _stall(result: dict[str, Any]) -> float:
    found = [part["saves"]["stall_s"] for part in result["extras"].get("stalls", {}).values() if "saves" in part]
    return max(found, default=_NAN)


def _wait(rows: list[dict[str, Any]]) -> float:
    return next((row["data_wait_share"] for row in rows if row["name"] == compare.OURS), None) or _NAN
