"""The figures of one run: pure functions from tables to matplotlib figures, without pyplot and without files."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from reporting.style import (
    COLOURS,
    FAINT,
    LINE_STYLES,
    PERCENT,
    WIDTH_IN,
    Floats,
    horizontal,
    legend_over,
    plain_log,
    share_axis,
    shortened,
    styled,
    subplots,
)

OUTCOME_COLOURS = {
    "on_time": "#44aa99",
    "late": "#cc6677",
    "failed": "#332288",
    "skipped": "#c8ccd2",
    "unfinished": "#ddcc77",
}


def _legend_above(panel: Axes) -> None:
    handles, _ = panel.get_legend_handles_labels()
    if handles:
        panel.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), handlelength=1.8, columnspacing=1.1, borderpad=0.1
        )


@styled
def outcomes_over_time(tasks: pd.DataFrame, in_cell: pd.DataFrame, duration_s: float) -> Figure:
    """Tasks by outcome, and SLO compliance with the share of devices in the cell, by arrival time.

    Args:
        tasks: arrival_time_s, outcome; a row per generated task.
        in_cell: minute, in_cell_share.
        duration_s: length of the load.
    """
    bin_s = next((size for size in (1, 2, 5, 10) if duration_s <= 30 * size), 60 * int(np.ceil(duration_s / 3600)))
    count = max(1, int(np.ceil(duration_s / bin_s)))
    which = np.clip(tasks["arrival_time_s"].to_numpy() // bin_s, 0, count - 1).astype(int)
    left_s = np.arange(count) * bin_s
    number = {name: np.bincount(which[tasks["outcome"] == name], minlength=count) for name in OUTCOME_COLOURS}
    figure, (above, below) = subplots(2, 1, 2.1, sharex=True)
    base = np.zeros(count)
    for name, height in number.items():
        if height.any():
            above.bar(left_s, height, 0.94 * bin_s, base, align="edge", color=OUTCOME_COLOURS[name], label=name.replace("_", " "))
            base += height
    above.set_ylabel(f"tasks per {bin_s} s")
    _legend_above(above)
    dispatched = number["on_time"] + number["late"] + number["failed"]
    compliance = np.divide(number["on_time"], dispatched, out=np.full(count, np.nan), where=dispatched > 0)
    middle_s = (left_s + np.minimum(left_s + bin_s, duration_s)) / 2
    below.plot(middle_s, compliance, marker="o", markersize=3.5, color=COLOURS[0], label="SLO compliance")
    inside = in_cell["in_cell_share"].to_numpy(dtype=float)
    if len(inside):
        edges_s = np.minimum(np.append(in_cell["minute"], in_cell["minute"].max() + 1) * 60.0, duration_s)
        below.stairs(
            inside, edges_s, baseline=None, color=COLOURS[1], linestyle=LINE_STYLES[1], lw=1.5, label="devices in the cell"
        )
    share_axis(below)
    seen = np.concatenate([compliance, inside])
    low = np.nanmin(seen) if np.isfinite(seen).any() else 0.0
    below.set(xlabel="arrival time, s", ylabel="share, %", xlim=(0, duration_s), ylim=(max(0.0, low - 0.1 * (1.05 - low)), 1.01))
    _legend_above(below)
    return figure


@styled
def response_time_cdf(tasks: pd.DataFrame, deadlines_s: Mapping[str, tuple[float, float]]) -> Figure:
    """Share of each SLO class's dispatched tasks answered within a time, over the range of its base deadlines.

    Args:
        tasks: slo_class, response_time_s (NaN: no answer); a row per dispatched task.
        deadlines_s: least and greatest base deadline by class, in seconds.
    """
    classes = [name for name in dict.fromkeys([*deadlines_s, *tasks["slo_class"]]) if (tasks["slo_class"] == name).any()]
    deadlines_ms = {name: (low_s * 1e3, high_s * 1e3) for name, (low_s, high_s) in deadlines_s.items()}
    figure = Figure(figsize=(WIDTH_IN, 3.9), layout="constrained")
    panel, strip = figure.subplots(2, 1, sharex=True, height_ratios=(1, 0.06 * max(1, len(deadlines_ms))))
    for name, colour, line in zip(classes, cycle(COLOURS), cycle(LINE_STYLES), strict=False):
        response_ms = tasks.loc[tasks["slo_class"] == name, "response_time_s"].to_numpy() * 1e3
        answered = np.sort(response_ms[np.isfinite(response_ms)])
        at = np.unique(np.linspace(0, len(answered) - 1, 400).astype(int)) if len(answered) else np.array([], dtype=int)
        panel.plot(answered[at], (at + 1) / len(response_ms), color=colour, linestyle=line, drawstyle="steps-post", label=name)
        if name in deadlines_ms:
            panel.axvspan(*deadlines_ms[name], color=colour, alpha=0.07, linewidth=0)
    for row, ((low_ms, high_ms), colour) in enumerate(zip(deadlines_ms.values(), cycle(COLOURS), strict=False)):
        strip.barh(row, high_ms - low_ms, left=low_ms, height=0.7, color=colour)
    panel.set(xscale="log", ylabel="answered, % of dispatched", ylim=(0, 1.01))
    share_axis(panel)
    _legend_above(panel)
    names = [f"{name} deadlines" for name in deadlines_ms]
    strip.set(xlabel="response time, ms", yticks=range(len(names)), yticklabels=names)
    horizontal(strip)
    plain_log(strip.xaxis)
    return figure


@styled
def queue_depth(decisions: pd.DataFrame, nodes: Sequence[str], duration_s: float) -> Figure:
    """Tasks waiting and in flight on each node, as the decisions saw them: mean and maximum of each second.

    Args:
        decisions: decision_time_s, queue_depth_<node>; a row per decision.
        nodes: which nodes, a panel each.
        duration_s: length of the load; from 1,200 s on, figures are of longer spans than a second.
    """
    figure, lanes = _lanes(nodes, duration_s, "tasks waiting and in flight")
    for lane, node in zip(lanes, nodes, strict=True):
        seen = _resampled(decisions, f"queue_depth_{node}", duration_s)
        edges_s = _edges_s(seen)
        lane.add_collection(_under_steps(edges_s, seen["max"].fillna(0).to_numpy(), color=COLOURS[3], label="maximum"))
        lane.plot(*_steps(edges_s, seen["mean"].to_numpy()), color=COLOURS[0], linewidth=1, label="mean")
        lane.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    deepest = decisions[[f"queue_depth_{node}" for node in nodes]].to_numpy(dtype=float)
    lanes[0].set_ylim(0, 1.05 * max(1.0, np.nanmax(deepest)))
    _legend_above(lanes[0])
    return figure


@styled
def power(decisions: pd.DataFrame, nodes: Sequence[str], duration_s: float, idle_w: Mapping[str, float]) -> Figure:
    """Power of each node over time, as the decisions saw it: mean of each second; a gap where there was no sample.

    Args:
        decisions: decision_time_s, power_w_<node>; a row per decision.
        nodes: which nodes, a panel each.
        duration_s: length of the load.
        idle_w: idle power by node, in watts.
    """
    figure, lanes = _lanes(nodes, duration_s, "power, W")
    for lane, node in zip(lanes, nodes, strict=True):
        seen = _resampled(decisions, f"power_w_{node}", duration_s)
        lane.plot(*_steps(_edges_s(seen), seen["mean"].to_numpy()), color=COLOURS[7], linewidth=1, label="power")
        if node in idle_w:
            lane.axhline(idle_w[node], color=FAINT, linestyle=(0, (4, 2)), linewidth=1, label="idle")
        lane.yaxis.set_major_locator(MaxNLocator(3))
        if not np.isfinite(seen["mean"]).any():
            lane.text(0.5, 0.5, "no power measured", transform=lane.transAxes, ha="center", va="center", color=FAINT)
    lanes[0].set_ylim(bottom=0)
    _legend_above(lanes[0])
    return figure


def _lanes(nodes: Sequence[str], duration_s: float, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A low panel for each node, its name on the right, over one time axis; laid out by hand, which takes half the time."""
    names = [shortened(node, 16) for node in nodes]
    height_in, names_in = 0.72 * len(nodes) + 0.8, 0.15 + 0.1 * max(map(len, names))
    figure = Figure(figsize=(WIDTH_IN, height_in))
    lanes = list(figure.subplots(len(nodes), 1, sharex=True, sharey=True, squeeze=False).flat)
    figure.subplots_adjust(0.65 / WIDTH_IN, 0.5 / height_in, 1 - names_in / WIDTH_IN, 1 - 0.3 / height_in, hspace=0.3)
    for lane, name in zip(lanes, names, strict=True):
        lane.annotate(name, (1, 0.5), (5, 0), xycoords="axes fraction", textcoords="offset points", va="center")
    figure.supylabel(ylabel, fontsize="medium")
    lanes[-1].set(xlabel="time, s", xlim=(0, duration_s))
    return figure, lanes


def _steps(edges: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Corners of a line that holds each value between two edges."""
    return np.repeat(edges, 2)[1:-1], np.repeat(values, 2)


def _under_steps(edges: Floats, values: Floats, **options: Any) -> PolyCollection:
    """The area between such a line and zero."""
    x, y = _steps(edges, values)
    corners = np.column_stack([np.concatenate([x[:1], x, x[-1:]]), np.concatenate([[0.0], y, [0.0]])])
    return PolyCollection([corners], linewidth=0, **options)


def _resampled(decisions: pd.DataFrame, column: str, duration_s: float) -> pd.DataFrame:
    """Mean and max of a column for each span of time, by the span's first second; NaN where no decision was."""
    span_s = max(1, int(np.ceil(duration_s / 1200)))
    which = decisions["decision_time_s"].to_numpy() // span_s
    known = np.isfinite(which)
    seen = decisions.loc[known, column].groupby(which[known]).agg(["mean", "max"])
    seen = seen.reindex(np.arange(0.0, np.ceil(duration_s / span_s)))
    return seen.set_axis(seen.index * span_s).astype(float)


def _edges_s(seen: pd.DataFrame) -> Floats:
    start_s = seen.index.to_numpy(dtype=float)
    return np.append(start_s, start_s[-1] + (start_s[1] if len(start_s) > 1 else 1.0))


@styled
def work_by_node(tasks: pd.DataFrame, nodes: Sequence[str], utilisation: Mapping[str, float | None]) -> Figure:
    """Tasks on each node by model, and how busy each node was.

    Args:
        tasks: assigned_node, model_name; a row per dispatched task.
        nodes: which nodes.
        utilisation: busy share of the window by node.
    """
    number = pd.crosstab(tasks["assigned_node"], tasks["model_name"]).reindex(nodes, fill_value=0)
    figure, (left, right) = subplots(1, 2, 0.34 * len(nodes) + 0.7, 0.5, sharey=True, width_ratios=(3, 2))
    row = np.arange(len(nodes))
    base = np.zeros(len(nodes))
    for model, colour, hatch in zip(number.columns, cycle(COLOURS), cycle(("", "///", "---", "\\\\\\")), strict=False):
        values = number[model].to_numpy()
        left.barh(row, values, 0.72, base, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=shortened(str(model)))
        base += values
    handles, _ = left.get_legend_handles_labels()
    busy = np.array([np.nan if utilisation.get(node) is None else utilisation[node] for node in nodes], dtype=float)
    _labelled_bars(right, busy, COLOURS[0], ["–" if np.isnan(value) else f"{value:.1%}" for value in busy])
    right.xaxis.set_major_formatter(PERCENT)
    right.set(xlabel="busy, % of the window", xlim=(0, max(0.1, 1.3 * np.nan_to_num(busy).max(initial=0))))
    left.set(xlabel="dispatched tasks", yticks=row, yticklabels=map(shortened, nodes))
    left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    horizontal(left, right)
    legend_over(figure, handles, min(4, max(1, len(handles))))
    return figure


def _labelled_bars(panel: Axes, values: Floats, colour: str, texts: Sequence[str]) -> None:
    lengths = np.nan_to_num(values)
    panel.barh(np.arange(len(values)), lengths, 0.72, color=colour)
    for row, (length, text) in enumerate(zip(lengths, texts, strict=True)):
        panel.annotate(text, (max(0.0, length), row), (3, 0), textcoords="offset points", va="center", fontsize=9)


@styled
def energy_by_node(energy: pd.DataFrame) -> Figure:
    """Energy of each node, above idle and at idle, each on its own scale.

    Args:
        energy: node, above_idle_j, idle_j.
    """
    figure, (left, right) = subplots(1, 2, 0.34 * len(energy) + 0.7, 0.2, sharey=True)
    for panel, column, colour in ((left, "above_idle_j", COLOURS[7]), (right, "idle_j", COLOURS[9])):
        values = energy[column].to_numpy(dtype=float)
        texts = ["–" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}" for value in values]
        _labelled_bars(panel, values, colour, texts)
        panel.margins(x=0.25)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    left.set(xlabel="energy above idle, J", yticks=np.arange(len(energy)), yticklabels=map(shortened, energy["node"]))
    right.set(xlabel="energy at idle, J")
    horizontal(left, right)
    return figure


@styled
def device_map(tasks: pd.DataFrame, devices: pd.DataFrame, area_side_m: float, cell_radius_m: float) -> Figure:
    """Where tasks arrived and where the devices ended, with the cell.

    Args:
        tasks: device_x_m, device_y_m, outcome; at least one row, of which at most 1,500 are shown.
        devices: final_x_m, final_y_m, device_type.
        area_side_m: side of the square area.
        cell_radius_m: radius of the cell around its centre.
    """
    figure = Figure(figsize=(WIDTH_IN, 6.1), layout="constrained")
    panel = figure.subplots()
    centre, edge_m = area_side_m / 2, 0.02 * area_side_m
    panel.add_patch(Circle((centre, centre), cell_radius_m, facecolor="#f1f6fb", edgecolor=FAINT, linestyle=(0, (5, 2))))
    shown = tasks.iloc[:: -(-len(tasks) // 1500)]
    skipped = shown["outcome"] == "skipped"
    for rows, colour, label in (
        (~skipped, COLOURS[3], "task, dispatched"),
        (skipped, COLOURS[1], "task, skipped (out of coverage)"),
    ):
        points = shown[rows]
        if len(points):
            panel.plot(points["device_x_m"], points["device_y_m"], ".", markersize=3, color=colour, label=label)
    ended = devices.iloc[:: max(1, -(-len(devices) // 1000))]
    for kind, marker in zip(dict.fromkeys(ended["device_type"]), cycle("o^sD"), strict=False):
        of_kind = ended[ended["device_type"] == kind]
        panel.plot(
            of_kind["final_x_m"],
            of_kind["final_y_m"],
            marker,
            markersize=6,
            color=COLOURS[0],
            markeredgecolor="white",
            label=f"{kind}, at the end",
        )
    panel.set(
        xlabel="x, m", ylabel="y, m", aspect="equal", xlim=(-edge_m, area_side_m + edge_m), ylim=(-edge_m, area_side_m + edge_m)
    )
    panel.grid(False)
    handles, _ = panel.get_legend_handles_labels()
    legend_over(figure, handles, 2)
    return figure
