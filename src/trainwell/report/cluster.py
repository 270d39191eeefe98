"""What a plan would take on many GPUs, on a terminal: its size, the ways to share it side by side, what is assumed.

Returns what rich prints. Knows how things look; the numbers are those of `planning.cluster`.
"""

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trainwell.planning.assumed import assumptions
from trainwell.planning.cluster import Cluster, Way, advised, hoffmann_flops, parts, with_recompute
from trainwell.planning.hardware import PER_NODE, THIS, Network
from trainwell.planning.memory import in_bytes
from trainwell.report.axes import FAINT, facts, heading
from trainwell.runs.console import scientific, short_count, short_time

_PARTS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "copies": "weights in 16 bits",
    "gathered": "gathered weights",
    "activations": "activations",
    "logits": "head and loss",
}
_NOTHING = "-"


def show_cluster(on: Cluster, ways: Sequence[Way], name: str) -> RenderableType:
    """The whole page."""
    best = advised(ways)
    return Group(
        *heading(f"{name} on {on.count:,} x {_kind(on)}", _about(on)),
        _size(on),
        Text(),
        _side_by_side(on, ways, best),
        Text(),
        _verdict(on, ways, best),
        Text("\nassumed", "bold"),
        _assumed(on),
    )


def _kind(on: Cluster) -> str:
    return "this machine" if on.gpu.name == THIS else on.gpu.name


def _about(on: Cluster) -> str:
    if on.timed is None:
        return "Closed formulas: nothing was built, sent or timed."
    return "Closed formulas, and a few steps of the model that were timed here; nothing was sent."


def _assumed(on: Cluster) -> Table:
    table = facts()
    for what, line in assumptions(on).items():
        table.add_row(what, line)
    return table


def _size(on: Cluster) -> Table:
    plan, count, table = on.plan, parts(on), facts()
    tokens, layers = plan.batch.tokens_before(plan.num_steps), on.config.model.num_layers
    listed = [
        f"{short_count(count['token_embedding'])} token embedding",
        *([f"{short_count(count['position_embedding'])} positions"] if count["position_embedding"] else []),
        f"{layers} blocks of {short_count(count['blocks'] / layers)}",
        *([f"{short_count(count['head'])} head"] if count["head"] else []),
        f"{short_count(count['final_norm'])} last norm",
    ]
    full = "" if plan.batch.ramp is None else " when full"
    step = plan.batch.batch_size * plan.seq_len
    table.add_row("model", f"{count['total']:,} parameters: {', '.join(listed)}")
    table.add_row("a step", f"{plan.batch.batch_size:,} x {plan.seq_len:,} = {step:,} tokens{full}")
    table.add_row(
        "",
        f"{scientific(on.flops * step)} FLOPs as 6N + 12LHDT, "
        f"{scientific(hoffmann_flops(on) * step)} as Hoffmann et al. count",
    )
    table.add_row(
        "the run", f"{plan.num_steps:,} steps, {short_count(tokens)} tokens, {scientific(on.flops * tokens)} FLOPs"
    )
    table.add_row("checkpoint", in_bytes(on.estimate(1).checkpoint))
    return table


def _side_by_side(on: Cluster, ways: Sequence[Way], best: Way | None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("on each machine" if on.gpu.name == THIS else "on each GPU", style=FAINT, no_wrap=True)
    for way in ways:
        title = "alone" if on.count == 1 else way.parallel
        table.add_column(title, justify="right", no_wrap=True, style="bold" if way is best else "")

    def row(what: str, value: Callable[[Way], str], style: str | None = None) -> None:
        table.add_row(what, *map(value, ways), style=style)

    row("micro-batch", lambda way: f"{way.micro_batch:,}")
    row("micro-batches in a step", _rounds)
    for part, what in _PARTS.items():
        if any(getattr(way.memory, part) for way in ways):
            row(f"  {what}", lambda way, part=part: _size_of(getattr(way.memory, part)))  # type: ignore[misc]
    row(f"memory, of {in_bytes(on.gpu.usable)}", lambda way: in_bytes(way.memory.total))
    row("largest micro-batch", lambda way: "none fits" if way.largest is None else f"{way.largest:,}")
    if on.count > 1:
        table.add_row()
        row("sent in a step", lambda way: in_bytes(way.sent_bytes))
        for network in ways[0].seconds:
            row(f"  over {_named(network, on)}", lambda way, at=network: _seconds(way.seconds[at]))  # type: ignore[misc]
    if best is not None and best.timing is not None:
        table.add_row()
        _times(on, row)
    return table


def _times(on: Cluster, row: Callable[[str, Callable[[Way], str]], None]) -> None:
    usual = usual_network(on)
    row("a step", lambda way: _timed(way, usual, "step"))
    row("  computing", lambda way: _timed(way, usual, "computing"))
    if on.count > 1:
        row("  waiting for the network", lambda way: _timed(way, usual, "waiting"))
    row("  update", lambda way: _timed(way, usual, "update"))
    if on.count > PER_NODE:
        row("a step over Ethernet", lambda way: _timed(way, "ethernet", "step"))
    row("tokens a second, all", lambda way: _timed(way, usual, "tokens_per_second"))
    row("the run", lambda way: _timed(way, usual, "run"))


def _rounds(way: Way) -> str:
    return f"{way.rounds:,}" if way.busy == 1 else f"{way.rounds:,}, {way.busy:.0%} full"


def usual_network(on: Cluster) -> Network:
    """The network that times are given for: the node's own link within one, InfiniBand between several."""
    return "infiniband" if on.count > PER_NODE else "link"


def _timed(way: Way, network: Network, what: str) -> str:
    """A time of a way that fits; of one that does not there is nothing to time."""
    if way.timing is None or not way.fits:
        return _NOTHING
    value: float = getattr(way.timing[network], what)
    if what == "tokens_per_second":
        return short_count(value)
    return short_time(value) if what == "run" else _seconds(value)


def _size_of(count: int) -> str:
    return in_bytes(count) if count else _NOTHING


def _named(network: Network, on: Cluster) -> str:
    return on.gpu.link_name if network == "link" else {"infiniband": "InfiniBand", "ethernet": "Ethernet"}[network]


def _seconds(value: float) -> str:
    """A duration with three digits: 0 s, 940 us, 15.2 ms, 2.41 s, then as `short_time` has it."""
    if value >= 100 or value == 0:
        return short_time(value)
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= 0.9995 * size:
            return f"{float(f'{value / size:.3g}'):g} {unit}"
    return "0 s" if value < 5e-10 else f"{value / 1e-6:.2g} us"


def _verdict(on: Cluster, ways: Sequence[Way], best: Way | None) -> Text:
    if best is None:
        nearest = min(ways, key=lambda way: way.memory.total)
        again = with_recompute(on)
        hint = (
            f"with --recompute true {again[0].parallel} takes micro-batches of {again[0].micro_batch}"
            if again
            else "a shorter data.seq_len, more GPUs or larger ones are left"
        )
        return Text(
            f"It does not fit: {nearest.parallel} comes nearest and needs {in_bytes(nearest.memory.total)} of "
            f"{in_bytes(on.gpu.usable)}; {hint}.",
            "yellow",
        )
    network = usual_network(on)
    took = _timed(best, network, "run")
    time = "too small a model to say how long it takes" if took == _NOTHING else f"{took} for the run"
    how = "It fits on one GPU" if on.count == 1 else f"It fits with {best.parallel}"
    return Text(f"{how}, micro-batches of {best.micro_batch}: {time}.{_more(best)}", "green")


def _more(best: Way) -> str:
    """Where a larger micro-batch would fit and be worth a try."""
    if best.largest is None or best.largest <= best.micro_batch:
        return ""
    return f" Up to {best.largest} would fit (--micro-batch)."
