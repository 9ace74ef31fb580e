"""Shows what was measured on the nodes beside what the profile held, and says what to mind."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.http_client import NO_QUEUE_TIME, Health
from node_profiling.meter import NodeRecord, Spread
from performance_profile import PerformanceProfile


def print_results(console: Console, old: PerformanceProfile, records: Sequence[NodeRecord], cv: Mapping[str, float]) -> None:
    """What was measured, beside what the profile held before.

    Args:
        console: where.
        old: the profile before.
        records: what was measured.
        cv: the new coefficient of variation by accelerator, of those that get one.
    """
    console.print(_latency_table(old, records))
    if switches := _switch_table(records):
        console.print(switches)
    console.print(_overhead_table(old, records))
    if shown := [f"{name} {value:.3g} (before {_old(old.cv.get(name), '.3g')})" for name, value in cv.items()]:
        console.print(Text(f"cv, pooled over nodes and models: {', '.join(shown)}"), soft_wrap=True)


def _latency_table(old: PerformanceProfile, records: Sequence[NodeRecord]) -> Table:
    table = _table("accelerator time in ms; ±: 95 % interval of the mean", "node, model", "cv")
    for record in records:
        table.add_row(Text(record.name, style="bold"))
        for model, spread in record.inference().items():
            before = old.latency[model].mean_ms.get(record.name) if model in old.latency else None
            table.add_row(Text(f"  {model}"), *_figures(spread, before, f"{spread.cv:.2%}"))
    return table


def _overhead_table(old: PerformanceProfile, records: Sequence[NodeRecord]) -> Table:
    table = _table("request overhead in ms: round trip minus accelerator time", "node", "requests")
    for record in records:
        spread = record.overhead()
        table.add_row(Text(record.name), *_figures(spread, old.nodes[record.name].request_overhead_ms, str(spread.count)))
    return table


def _switch_table(records: Sequence[NodeRecord]) -> Table | None:
    """Mean times after another model and after the same one; None where no server tells them apart."""
    table = Table(title=Text("accelerator time in ms by the inference before"), box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("node, model")
    for name in ("of another model", "of the same"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        for model in record.samples:
            groups = [record.inference_ms(model, switched) for switched in (True, False)]
            if any(groups):
                means = (f"{sum(group) / len(group):.2f} ({len(group)} times)" if group else "–" for group in groups)
                table.add_row(Text(f"{record.name}, {model}"), *means)
    return table if table.row_count else None


def _table(title: str, first: str, fourth: str) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for name in ("mean", "±", fourth, "p50", "p99", "max", "before", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figures(spread: Spread, before: float | None, fourth: str) -> tuple[str, ...]:
    """The columns of `_table` after the first."""
    p50, p99, largest = (f"{value:.2f}" for value in (spread.p50, spread.p99, spread.largest))
    change = f"{spread.mean / before - 1:+.1%}" if before else "–"
    return f"{spread.mean:.2f}", f"{spread.half_width:.2f}", fourth, p50, p99, largest, _old(before, ".2f"), change


def _old(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def remarks(
    old: PerformanceProfile,
    new: PerformanceProfile,
    records: Sequence[NodeRecord],
    healths: Mapping[str, Health],
    cv: Collection[str],
) -> list[str]:
    """What a person must know of the figures before they use them.

    Args:
        old: the profile before.
        new: the profile with what was measured; its last measurement is this one.
        records: what was measured.
        healths: what the nodes said of themselves.
        cv: the accelerators that got a new coefficient of variation.
    """
    return [*_about_nodes(new, records, healths), *_about_mix(old, new), *_about_what_stays(old, new, records, cv)]


def _about_nodes(new: PerformanceProfile, records: Sequence[NodeRecord], healths: Mapping[str, Health]) -> Iterator[str]:
    for record in records:
        if record.refused or record.waited:
            counts = f"it refused {record.refused} requests and let {record.waited} wait behind others"
            yield f"{record.name} was not always alone: {counts}"
        if waits_s := record.gauge_waits_s:
            mean_ms = sum(waits_s) / len(waits_s) * 1e3
            yield (
                f"{record.name} let {len(waits_s)} requests wait, {mean_ms:.2g} ms on average, never two within a second: for "
                "its device's gauges, which it reads that often in a load too, or else for a rare request of others; its request "
                "overhead contains that"
            )
        if not record.tells_waits:
            yield f"{record.name}: {NO_QUEUE_TIME}; if it served others meanwhile, its request overhead contains their inferences"
        if not record.binary:
            yield f"{record.name} takes images as JSON only; its request overhead contains that"
    for name, health in healths.items():
        if unknown := sorted((health.models or frozenset()) - new.latency.keys()):
            yield f"{name} serves {', '.join(unknown)} too, unknown to the profile: --models adds a model"


def _about_mix(old: PerformanceProfile, new: PerformanceProfile) -> Iterator[str]:
    how = new.measurements[-1]
    if how.order == "grouped":
        yield "one model after the other: warm figures, which a load of mixed models does not reach"
    elif others := [model for model in old.latency if model not in how.models]:
        yield f"measured in a mix without {', '.join(others)}: a load that holds them switches models more often"
    if how.cluster == "emulated":
        yield "emulated nodes answer with the figures of the profile: nothing here was measured on real ones"


def _about_what_stays(
    old: PerformanceProfile, new: PerformanceProfile, records: Sequence[NodeRecord], cv: Collection[str]
) -> Iterator[str]:
    names, models = [record.name for record in records], new.measurements[-1].models
    lost: set[str] = set()
    for model, figures in old.latency.items():
        if model not in new.latency:
            yield f"no node serves {model}, so the new profile has no row of it: take it out of `models` in your settings too"
        elif gone := [name for name in figures.mean_ms if name not in new.latency[model].mean_ms]:
            yield f"{model} is taken out of the figures of nodes that do not serve it: {', '.join(gone)}"
        lost |= figures.mean_ms.keys() - (new.latency[model].mean_ms.keys() if model in new.latency else ())
    accelerators = list(dict.fromkeys(old.nodes[name].accelerator for name in names))
    kept = ["power of every node"]
    if others := [name for name in old.nodes if name not in names]:
        kept.append(f"all{' other' if lost.intersection(others) else ''} figures of {', '.join(others)}")
    if others := [model for model in old.latency if model not in models]:
        kept.append(f"{', '.join(others)} on every node")
    if others := [accelerator for accelerator in accelerators if accelerator not in cv]:
        kept.append(f"cv of {', '.join(others)} (one number for all models of an accelerator, and not all were measured)")
    yield f"kept as before: {'; '.join(kept)}"
    for accelerator in accelerators:
        of_kind = [name for name, node in old.nodes.items() if node.accelerator == accelerator]
        if accelerator in cv and (others := [name for name in of_kind if name not in names]):
            yield f"the new cv of {accelerator} holds for {', '.join(others)} too, which had no part in it"
