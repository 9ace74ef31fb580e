"""The figures of a comparison: pure functions from tables to matplotlib figures, without pyplot and without files."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from comparison.tables import COMPLIANCE, by_fixed_deadline
from reporting.style import (
    FAINT,
    INK,
    PERCENT,
    Floats,
    Look,
    Policy,
    horizontal,
    legend_over,
    plain_log,
    share_axis,
    shortened,
    styled,
    subplots,
)

_BOUND: dict[str, Any] = {"color": "black", "linewidth": 1.2, "linestyle": (0, (1, 1))}
_FRONT: dict[str, Any] = {"color": FAINT, "linewidth": 1, "marker": "o", "markerfacecolor": "none"}
_TRIMMED: dict[str, Any] = {"color": "#d5d9de", "alpha": 0.6}


@styled
def attainment(
    comparison: pd.DataFrame, achievable: pd.DataFrame, look: Mapping[Policy, Look], capacity: Mapping[float, float | None]
) -> Figure:
    """Share of tasks that met the fixed deadline over load, for all tasks and for each SLO class.

    Args:
        comparison: scheduler, queue_discipline, load, metric, mean, low, high.
        achievable: load, achievable_slo_rate.
        look: how each policy is drawn.
        capacity: dispatched load as a fraction of the cluster's capacity, by load.
    """
    comparison = by_fixed_deadline(comparison)
    known = dict.fromkeys(comparison.loc[comparison["mean"].notna(), "metric"])
    metrics = [metric for metric in dict.fromkeys(comparison["metric"]) if metric.startswith("fixed_") and metric in known]
    figure, panels = _grid(len(metrics), 2, 2.6, look, sharex=True)
    for panel, metric in zip(panels, metrics, strict=True):
        _lines_over_load(panel, comparison, metric, look)
        if metric == COMPLIANCE and len(achievable):
            panel.plot(achievable["load"], achievable["achievable_slo_rate"], **_BOUND)
        panel.set_title("all classes" if metric == COMPLIANCE else metric.removeprefix("fixed_"))
        share_axis(panel)
        _load_axis(panel, comparison["load"], capacity)
    figure.supylabel("met the fixed deadline, %", fontsize="medium")
    _name_load_axis(figure, capacity)
    bound = [Line2D([], [], label="achievable", **_BOUND)] if len(achievable) else []
    legend_over(figure, [*_handles(look), *bound])
    return figure


def _grid(count: int, columns: int, row_in: float, look: Mapping[Policy, Look], **options: Any) -> tuple[Figure, list[Axes]]:
    """So many panels, row by row, under room for a legend of all policies; what is left of the last row stays blank."""
    figure, panels = subplots(-(-count // columns), columns, row_in, 0.3 + 0.22 * len(look) / 2, **options)
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def _lines_over_load(
    panel: Axes, comparison: pd.DataFrame, metric: str, look: Mapping[Policy, Look], factor: float = 1.0
) -> None:
    of_metric = comparison[comparison["metric"] == metric]
    apart = 0.6 / len(look) if comparison["load"].nunique() == 1 else 0.0
    for place, (policy, one) in enumerate(look.items()):
        rows = _of_policy(of_metric, policy).sort_values("load")
        mean, error = _with_error(rows, "mean", "low", "high", factor)
        at = rows["load"] + apart * (place - (len(look) - 1) / 2)
        panel.errorbar(at, mean, error, elinewidth=1, capsize=2, **one.options())


def _of_policy(rows: pd.DataFrame, policy: Policy) -> pd.DataFrame:
    return rows[(rows["scheduler"] == policy[0]) & (rows["queue_discipline"] == policy[1])]


def _with_error(rows: pd.DataFrame, mean: str, low: str, high: str, factor: float = 1.0) -> tuple[Floats, Floats]:
    """Means and the lengths of their error bars, shape (2, n); no bar where there is no interval."""
    middle = rows[mean].to_numpy(dtype=float) * factor
    below = middle - rows[low].to_numpy(dtype=float) * factor
    above = rows[high].to_numpy(dtype=float) * factor - middle
    return middle, np.maximum(np.nan_to_num(np.array([below, above])), 0.0)


def _handles(look: Mapping[Policy, Look], joined: bool = True) -> list[Line2D]:
    return [Line2D([], [], label=one.label, **one.options(joined)) for one in look.values()]


def _load_axis(panel: Axes, loads: pd.Series, capacity: Mapping[float, float | None]) -> None:
    """A tick for each load, with its fraction of the capacity below; some of them where there are many."""
    known = sorted(loads.unique())
    shown = known[:: max(1, int(np.ceil(len(known) / 6)))]
    fraction = {load: capacity.get(load) for load in shown}
    panel.set_xticks(shown, [f"{load:g}" + (f"\n{part:.0%}" if part is not None else "") for load, part in fraction.items()])
    room = 0.06 * (known[-1] - known[0]) or 0.5
    panel.set_xlim(known[0] - room, known[-1] + room)


def _name_load_axis(figure: Figure, capacity: Mapping[float, float | None]) -> None:
    below = " (below: dispatched, % of capacity)" if any(part is not None for part in capacity.values()) else ""
    figure.supxlabel(f"load{below}", fontsize="medium")


@styled
def pareto(points: pd.DataFrame, frontier: pd.DataFrame | None, look: Mapping[Policy, Look]) -> Figure:
    """Energy above idle against misses of the fixed deadline, a panel per load; the front is joined and ringed.

    Args:
        points: the columns of pareto.csv.
        frontier: load, miss_rate, above_idle_per_task_j: what no schedule that answers every task can be below; or None.
        look: how each policy is drawn.
    """
    loads = sorted(points["load"].unique())
    figure, panels = _grid(len(loads), min(2, len(loads)), 2.7 if len(loads) > 2 else 3.4, look)
    for panel, load in zip(panels, loads, strict=True):
        _pareto_panel(panel, points[points["load"] == load], look)
        if frontier is not None:
            bound = frontier[frontier["load"] == load].sort_values("miss_rate")
            panel.plot(bound["miss_rate"], bound["above_idle_per_task_j"] * 1e3, **_BOUND)
        panel.set_title(f"load {load:g}")
    figure.supxlabel("missed the fixed deadline, % of dispatched tasks", fontsize="medium")
    figure.supylabel("energy above idle per task, mJ", fontsize="medium")
    front = Line2D([], [], markersize=10, label="Pareto front", **_FRONT)
    bound_line = [] if frontier is None else [Line2D([], [], label="clairvoyant bound", **_BOUND)]
    legend_over(figure, [*_handles(look, joined=False), front, *bound_line])
    return figure


def _pareto_panel(panel: Axes, points: pd.DataFrame, look: Mapping[Policy, Look]) -> None:
    energy = "above_idle_per_task_j"
    front = points[points["on_front"] == 1].sort_values("miss_rate")
    panel.plot(front["miss_rate"], front[energy] * 1e3, markersize=11, **_FRONT)
    for policy, one in look.items():
        rows = _of_policy(points, policy)
        x, x_error = _with_error(rows, "miss_rate", "miss_rate_low", "miss_rate_high")
        y, y_error = _with_error(rows, energy, f"{energy}_low", f"{energy}_high", factor=1e3)
        panel.errorbar(x, y, y_error, x_error, elinewidth=1, capsize=2, **one.options(joined=False))
    seen = points["miss_rate"].to_numpy(dtype=float)
    seen = seen[np.isfinite(seen)]
    if len(seen) and seen.min() > 0 and seen.max() > 8 * seen.min():
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_formatter(PERCENT)


@styled
def over_load(
    comparison: pd.DataFrame,
    metrics: Mapping[str, str],
    factor: float,
    ylabel: str,
    look: Mapping[Policy, Look],
    capacity: Mapping[float, float | None],
    log: bool = False,
) -> Figure:
    """Metrics over load with their intervals, a panel each.

    Args:
        comparison: scheduler, queue_discipline, load, metric, mean, low, high.
        metrics: title of the panel by metric.
        factor: from the metric's unit to the axis's.
        ylabel: the quantity and its unit.
        look: how each policy is drawn; one without any figure is left out.
        capacity: dispatched load as a fraction of the cluster's capacity, by load.
        log: whether the axis is logarithmic.
    """
    chosen = comparison[comparison["metric"].isin(metrics) & comparison["mean"].notna()]
    look = {policy: one for policy, one in look.items() if len(_of_policy(chosen, policy))}
    figure, panels = _grid(len(metrics), len(metrics), 2.7 if len(metrics) > 1 else 3.2, look)
    for panel, (metric, title) in zip(panels, metrics.items(), strict=True):
        _lines_over_load(panel, chosen, metric, look, factor)
        panel.set_title(title)
        _load_axis(panel, comparison["load"], capacity)
        if log:
            panel.set_yscale("log")
            plain_log(panel.yaxis)
    figure.supylabel(ylabel, fontsize="medium")
    _name_load_axis(figure, capacity)
    legend_over(figure, _handles(look))
    return figure


@styled
def load_limits(limits: pd.DataFrame, look: Mapping[Policy, Look]) -> Figure:
    """The highest load each policy stands, with its interval; in words where it was not found for every seed.

    Args:
        limits: the columns of load_limits.csv.
        look: how each policy is drawn.
    """
    figure, (panel,) = subplots(1, 1, 0.4 * len(limits) + 0.7, 0.1)
    looks = [look[policy] for policy in zip(limits["scheduler"], limits["queue_discipline"], strict=True)]
    means, errors = _with_error(limits, "mean", "low", "high")
    for row, (one, mean, error, text) in enumerate(zip(looks, means, errors.T, limits["text"], strict=True)):
        if np.isfinite(mean):
            panel.errorbar([mean], [row], xerr=error[:, None], markersize=7, capsize=3, **one.options(joined=False))
            panel.annotate(f"{mean:.2f}", (mean, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        else:
            words, across = textwrap.fill(text, 44), panel.get_yaxis_transform()
            panel.text(0.01, row, words, transform=across, va="center", fontsize=9, color=FAINT).set_in_layout(False)
    panel.set(yticks=range(len(limits)), yticklabels=[one.label for one in looks], ylim=(-0.7, len(limits) - 0.5))
    found = limits["high"].fillna(limits["mean"]).max()
    panel.set(xlabel="highest load", xlim=(0, 1.1 * found if np.isfinite(found) else 6))
    horizontal(panel)
    return figure


@styled
def compliance_by_minute(
    minutes: pd.DataFrame, duration_s: float, warm_up_s: float, cool_down_s: float, look: Mapping[Policy, Look]
) -> Figure:
    """Share of tasks that met the fixed deadline by minute of arrival, a panel per load; what is trimmed is shaded.

    Args:
        minutes: scheduler, queue_discipline, load, minute, fixed_deadline_compliance_rate.
        duration_s: length of a run.
        warm_up_s: trimmed at the start.
        cool_down_s: trimmed at the end.
        look: how each policy is drawn.
    """
    loads = sorted(minutes["load"].unique())
    figure, panels = _grid(len(loads), min(2, len(loads)), 2.4, look, sharex=True)
    for panel, load in zip(panels, loads, strict=True):
        for policy, one in look.items():
            rows = _of_policy(minutes[minutes["load"] == load], policy).sort_values("minute")
            middle = (rows["minute"] + np.minimum(rows["minute"] + 1, duration_s / 60)) / 2
            panel.plot(middle, rows["fixed_deadline_compliance_rate"], markersize=3.5, linewidth=1.2, **one.options())
        for low_s, high_s in ((0.0, warm_up_s), (duration_s - cool_down_s, duration_s)):
            panel.axvspan(low_s / 60, high_s / 60, linewidth=0, **_TRIMMED)
        panel.set(title=f"load {load:g}", xlim=(0, duration_s / 60))
        panel.xaxis.set_major_locator(MaxNLocator(6))
        share_axis(panel)
    figure.supxlabel("arrival, min", fontsize="medium")
    figure.supylabel("met the fixed deadline, %", fontsize="medium")
    legend_over(figure, [*_handles(look), Patch(label="left out of all other figures", **_TRIMMED)])
    return figure


@styled
def ablation(effects: pd.DataFrame, look: Mapping[Policy, Look]) -> Figure:
    """What each criterion does: the change of compliance and energy without it, with intervals.

    Args:
        effects: the columns of ablation.csv.
        look: how each policy is drawn.
    """
    kinds = list(dict.fromkeys(effects["without"]))
    look = {policy: one for policy, one in look.items() if len(_of_policy(effects, policy))}
    metrics = {
        COMPLIANCE: (100.0, "compliance, points"),
        "above_idle_per_task_j": (1e3, "energy per task, mJ"),
    }
    figure, panels = subplots(1, 2, 0.42 * len(kinds) + 0.7 + 0.12 * len(look), 0.6, sharey=True)
    for panel, (metric, (factor, label)) in zip(panels, metrics.items(), strict=True):
        panel.axvline(0, color=FAINT, linewidth=1)
        for place, (policy, one) in enumerate(look.items()):
            rows = _of_policy(effects[effects["metric"] == metric], policy)
            at = rows["without"].map(kinds.index).to_numpy(dtype=float) + 0.5 * ((place + 0.5) / len(look) - 0.5)
            change, error = _with_error(rows, "difference", "difference_low", "difference_high", factor)
            panel.errorbar(change, at, xerr=error, elinewidth=1, capsize=2, **one.options(joined=False))
        panel.set(xlabel=label)
        panel.margins(x=0.1)
        panel.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set(yticks=range(len(kinds)), yticklabels=[f"without {kind}" for kind in kinds], ylim=(-0.6, len(kinds) - 0.4))
    horizontal(*panels)
    legend_over(figure, _handles(look, joined=False))
    return figure


@styled
def utilisation(busy: pd.DataFrame, nodes: Sequence[str], look: Mapping[Policy, Look]) -> Figure:
    """Busy share of each node under each policy, a panel per load.

    Args:
        busy: scheduler, queue_discipline, load, utilisation_<node>.
        nodes: which nodes.
        look: in which order and under which label the policies stand.
    """
    loads = sorted(busy["load"].unique())
    written = len(nodes) <= 12
    figure, panels = subplots(len(loads), 1, 0.24 * len(look) + 0.45, 0.4, sharex=True)
    for panel, load in zip(panels, loads, strict=True):
        of_load = busy[busy["load"] == load].set_index(["scheduler", "queue_discipline"])
        share = of_load.reindex(list(look))[[f"utilisation_{node}" for node in nodes]].to_numpy(dtype=float)
        mesh = panel.pcolormesh(share, cmap="Blues", vmin=0, vmax=1, edgecolor="white", linewidth=0.8)
        for (row, column), value in np.ndenumerate(share) if written else ():
            text = "–" if np.isnan(value) else f"{value:.0%}"
            ink = "white" if value > 0.6 else INK
            panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
        panel.set_title(f"load {load:g}")
        panel.set_yticks(np.arange(len(look)) + 0.5, [one.label for one in look.values()])
        panel.tick_params(length=0)
        panel.grid(False)
        panel.spines[:].set_visible(False)
        panel.invert_yaxis()
    shown = range(0, len(nodes), max(1, len(nodes) // 12))
    panels[-1].set_xticks([at + 0.5 for at in shown], [shortened(nodes[at], 12) for at in shown])
    if not written:
        bar = figure.colorbar(mesh, ax=panels, location="bottom", shrink=0.7, aspect=50, pad=0.02, format=PERCENT)
        bar.set_label("busy, %")
    return figure
