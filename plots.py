"""The figures of a report: pure functions from tables to matplotlib figures, without pyplot and without files.

Colours are Paul Tol's "muted" scheme, which people with any common colour vision can tell apart; markers, line styles and
labels say the same again. Text becomes paths in SVG, so that a figure looks alike on every machine.
"""

import functools
import io
import itertools
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

COLOURS = ("#332288", "#cc6677", "#117733", "#88ccee", "#aa4499", "#999933", "#44aa99", "#882255", "#ddcc77", "#777777")
MARKERS = "osD^vP*X<>p"
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
OUTCOME_COLOURS = {
    "on_time": "#44aa99",
    "late": "#cc6677",
    "failed": "#332288",
    "skipped": "#c8ccd2",
    "unfinished": "#ddcc77",
}

_INK, _FAINT, _GRID = "#22272e", "#6b7480", "#e4e7eb"
_WIDTH_IN = 5.7
_PNG_DPI = 300
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": "#9aa2ac",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": "#9aa2ac",
    "ytick.color": "#9aa2ac",
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "hatch.color": "white",
    "svg.fonttype": "path",
}

_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:,.10g}")

Floats = NDArray[np.float64]
Arguments = ParamSpec("Arguments")
Policy = tuple[str, str]
"""A scheduler and the queue discipline it was run with."""


class Look(NamedTuple):
    """How a policy is drawn in every figure of a report."""

    label: str
    colour: str
    marker: str
    face: str
    """Colour of the marker's inside."""
    line: Any


def looks(policies: Iterable[Policy]) -> dict[Policy, Look]:
    """A look for each policy: colour and marker by scheduler; line style and filling by queue discipline if there are several."""
    policies = list(dict.fromkeys(policies))
    schedulers = list(dict.fromkeys(scheduler for scheduler, _ in policies))
    disciplines = list(dict.fromkeys(discipline for _, discipline in policies))
    chosen = {}
    for scheduler, discipline in policies:
        which, queue = schedulers.index(scheduler), disciplines.index(discipline)
        label = f"{scheduler}, {discipline}" if len(disciplines) > 1 else scheduler
        colour, line = COLOURS[which % len(COLOURS)], queue if len(disciplines) > 1 else which
        chosen[scheduler, discipline] = Look(
            shortened(label),
            colour,
            MARKERS[which % len(MARKERS)],
            "white" if queue % 2 else colour,
            LINE_STYLES[line % len(LINE_STYLES)],
        )
    return chosen


def shortened(name: str, longest: int = 32) -> str:
    """A name on one line that leaves room for the figure; the end of it says most."""
    name = " ".join(name.split())
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


class Drawn(NamedTuple):
    """A figure in the formats that papers and pages take."""

    svg: str
    png: bytes | None


def drawn(figure: Figure, name: str, png: bool) -> Drawn:
    """The figure as an SVG document and, if asked for, as a PNG: the same bytes for the same figure and name, without a date.

    Args:
        figure: what to draw.
        name: stands before every id of the SVG, so that several figures can stand in one page.
        png: whether to make the PNG, of 300 dots per inch, too.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), _without_glyph_warnings():
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        svg = re.sub(r"<!-- .*? -->\n?", "", text.getvalue(), flags=re.DOTALL)
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
        svg = re.sub(r' d="[^"]+"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
        if not png:
            return Drawn(svg, None)
        figure.set_layout_engine("none")  # it has been laid out
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_PNG_DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return Drawn(svg, file.getvalue())


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """A name may hold characters that the font has not; a box in their place is enough."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Artists take their style when they are made: make them under ours."""

    @functools.wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def _panels(rows: int, columns: int, row_in: float, extra_in: float = 0.5, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of one column's width and its panels, row by row."""
    figure = Figure(figsize=(_WIDTH_IN, rows * row_in + extra_in), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def _legend_over(figure: Figure, handles: Sequence[Any], columns: int = 2) -> None:
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3, columnspacing=1.4)


def _legend_above(panel: Axes) -> None:
    handles, _ = panel.get_legend_handles_labels()
    if handles:
        panel.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), handlelength=1.8, columnspacing=1.1, borderpad=0.1
        )


def _share_axis(panel: Axes) -> None:
    panel.yaxis.set_major_formatter(_PERCENT)


@_styled
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
    figure, (above, below) = _panels(2, 1, 2.1, sharex=True)
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
            inside, edges_s, baseline=None, color=COLOURS[1], linestyle=(0, (5, 1.5)), lw=1.5, label="devices in the cell"
        )
    _share_axis(below)
    seen = np.concatenate([compliance, inside])
    low = np.nanmin(seen) if np.isfinite(seen).any() else 0.0
    below.set(xlabel="arrival time, s", ylabel="share, %", xlim=(0, duration_s), ylim=(max(0.0, low - 0.1 * (1.05 - low)), 1.01))
    _legend_above(below)
    return figure


@_styled
def response_time_cdf(tasks: pd.DataFrame, deadlines_s: Mapping[str, tuple[float, float]]) -> Figure:
    """Share of each SLO class's dispatched tasks answered within a time, over the range of its base deadlines.

    Args:
        tasks: slo_class, response_time_s (NaN: no answer); a row per dispatched task.
        deadlines_s: least and greatest base deadline by class, in seconds.
    """
    classes = [name for name in dict.fromkeys([*deadlines_s, *tasks["slo_class"]]) if (tasks["slo_class"] == name).any()]
    figure = Figure(figsize=(_WIDTH_IN, 3.9), layout="constrained")
    panel, strip = figure.subplots(2, 1, sharex=True, height_ratios=(1, 0.06 * max(1, len(deadlines_s))))
    for name, colour, line in zip(classes, _cycled(COLOURS), _cycled(LINE_STYLES), strict=False):
        response_ms = tasks.loc[tasks["slo_class"] == name, "response_time_s"].to_numpy() * 1e3
        answered = np.sort(response_ms[np.isfinite(response_ms)])
        at = np.unique(np.linspace(0, len(answered) - 1, 400).astype(int)) if len(answered) else np.array([], dtype=int)
        panel.plot(answered[at], (at + 1) / len(response_ms), color=colour, linestyle=line, drawstyle="steps-post", label=name)
        if name in deadlines_s:
            low_ms, high_ms = (value * 1e3 for value in deadlines_s[name])
            panel.axvspan(low_ms, high_ms, color=colour, alpha=0.07, linewidth=0)
    for row, (name, colour) in enumerate(zip(deadlines_s, _cycled(COLOURS), strict=False)):
        low_ms, high_ms = (value * 1e3 for value in deadlines_s[name])
        strip.barh(row, high_ms - low_ms, left=low_ms, height=0.7, color=colour)
    panel.set(xscale="log", ylabel="answered, % of dispatched", ylim=(0, 1.01))
    _share_axis(panel)
    _legend_above(panel)
    strip.set(
        xlabel="response time, ms", yticks=range(len(deadlines_s)), yticklabels=[f"{name} deadlines" for name in deadlines_s]
    )
    strip.invert_yaxis()
    strip.tick_params(axis="y", length=0)
    strip.grid(False, axis="y")
    _plain_log(strip.xaxis)
    return figure


def _cycled(values: Sequence[Any]) -> Iterator[Any]:
    return itertools.cycle(values)


def _plain_log(axis: Axis) -> None:
    """Ticks 1, 2, 5 of each decade as plain numbers."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high < 1e4 * max(low, 1e-12) else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


@_styled
def queue_depth(decisions: pd.DataFrame, nodes: Sequence[str], duration_s: float) -> Figure:
    """Tasks waiting and in flight on each node, as the decisions saw them: mean and maximum of each second.

    Args:
        decisions: decision_time_s, queue_depth_<node>; a row per decision.
        nodes: which nodes, a panel each.
        duration_s: length of the load; from 1,200 s on, figures are of longer spans than a second.
    """
    figure, panels = _lanes(nodes)
    for panel, node in zip(panels, nodes, strict=True):
        seen = _resampled(decisions, f"queue_depth_{node}", duration_s)
        edges_s = _edges_s(seen)
        panel.add_collection(_under_steps(edges_s, seen["max"].fillna(0).to_numpy(), color=COLOURS[3], label="maximum"))
        panel.plot(*_steps(edges_s, seen["mean"].to_numpy()), color=COLOURS[0], linewidth=1, label="mean")
        _named_beside(panel, node)
        panel.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    deepest = decisions[[f"queue_depth_{node}" for node in nodes]].to_numpy(dtype=float)
    panels[0].set_ylim(0, 1.05 * max(1.0, np.nanmax(deepest)))
    _legend_above(panels[0])
    figure.supylabel("tasks waiting and in flight", fontsize="medium")
    panels[-1].set(xlabel="time, s", xlim=(0, duration_s))
    return figure


@_styled
def power(decisions: pd.DataFrame, nodes: Sequence[str], duration_s: float, idle_w: Mapping[str, float]) -> Figure:
    """Power of each node over time, as the decisions saw it: mean of each second; a gap where there was no sample.

    Args:
        decisions: decision_time_s, power_w_<node>; a row per decision.
        nodes: which nodes, a panel each.
        duration_s: length of the load.
        idle_w: idle power by node, in watts.
    """
    figure, panels = _lanes(nodes)
    for panel, node in zip(panels, nodes, strict=True):
        seen = _resampled(decisions, f"power_w_{node}", duration_s)
        panel.plot(*_steps(_edges_s(seen), seen["mean"].to_numpy()), color=COLOURS[7], linewidth=1, label="power")
        if node in idle_w:
            panel.axhline(idle_w[node], color=_FAINT, linestyle=(0, (4, 2)), linewidth=1, label="idle")
        _named_beside(panel, node)
        panel.yaxis.set_major_locator(MaxNLocator(3))
        if not np.isfinite(seen["mean"]).any():
            panel.text(0.5, 0.5, "no power measured", transform=panel.transAxes, ha="center", va="center", color=_FAINT)
    panels[0].set_ylim(bottom=0)
    _legend_above(panels[0])
    figure.supylabel("power, W", fontsize="medium")
    panels[-1].set(xlabel="time, s", xlim=(0, duration_s))
    return figure


def _lanes(nodes: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Low panels one below the other, with room for a name on their right; laid out by hand, which takes half the time."""
    height_in, names_in = 0.72 * len(nodes) + 0.8, 0.15 + 0.1 * max(len(_beside(node)) for node in nodes)
    figure = Figure(figsize=(_WIDTH_IN, height_in))
    panels = figure.subplots(len(nodes), 1, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(0.65 / _WIDTH_IN, 0.5 / height_in, 1 - names_in / _WIDTH_IN, 1 - 0.3 / height_in, hspace=0.3)
    return figure, list(panels.flat)


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


def _beside(name: str) -> str:
    return shortened(name, 16)


def _named_beside(panel: Axes, name: str) -> None:
    panel.annotate(_beside(name), (1, 0.5), (5, 0), xycoords="axes fraction", textcoords="offset points", va="center")


@_styled
def work_by_node(tasks: pd.DataFrame, nodes: Sequence[str], utilisation: Mapping[str, float | None]) -> Figure:
    """Tasks on each node by model, and how busy each node was.

    Args:
        tasks: assigned_node, model_name; a row per dispatched task.
        nodes: which nodes.
        utilisation: busy share of the window by node.
    """
    number = pd.crosstab(tasks["assigned_node"], tasks["model_name"]).reindex(nodes, fill_value=0)
    figure, (left, right) = _panels(1, 2, 0.34 * len(nodes) + 0.7, 0.5, sharey=True, width_ratios=(3, 2))
    row = np.arange(len(nodes))
    base = np.zeros(len(nodes))
    for model, colour, hatch in zip(number.columns, _cycled(COLOURS), _cycled(("", "///", "---", "\\\\\\")), strict=False):
        values = number[model].to_numpy()
        left.barh(row, values, 0.72, base, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=shortened(str(model)))
        base += values
    handles, _ = left.get_legend_handles_labels()
    busy = np.array([np.nan if utilisation.get(node) is None else utilisation[node] for node in nodes], dtype=float)
    right.barh(row, np.nan_to_num(busy), 0.72, color=COLOURS[0])
    for at, value in zip(row, busy, strict=True):
        text = "–" if np.isnan(value) else f"{value:.1%}"
        right.annotate(text, (np.nan_to_num(value), at), (3, 0), textcoords="offset points", va="center", fontsize=9)
    right.xaxis.set_major_formatter(_PERCENT)
    right.set(xlabel="busy, % of the window", xlim=(0, max(0.1, 1.3 * np.nan_to_num(busy).max(initial=0))))
    left.set(xlabel="dispatched tasks", yticks=row, yticklabels=map(shortened, nodes))
    left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _horizontal(left, right)
    _legend_over(figure, handles, min(4, max(1, len(handles))))
    return figure


def _horizontal(*panels: Axes) -> None:
    """First row on top, no lines between rows."""
    if not panels[0].yaxis_inverted():
        panels[0].invert_yaxis()
    for panel in panels:
        panel.grid(False, axis="y")
        panel.tick_params(axis="y", length=0)


@_styled
def energy_by_node(energy: pd.DataFrame) -> Figure:
    """Energy of each node, above idle and at idle, each on its own scale.

    Args:
        energy: node, above_idle_j, idle_j.
    """
    figure, (left, right) = _panels(1, 2, 0.34 * len(energy) + 0.7, 0.2, sharey=True)
    row = np.arange(len(energy))
    for panel, column, colour in ((left, "above_idle_j", COLOURS[7]), (right, "idle_j", COLOURS[9])):
        values = energy[column].to_numpy(dtype=float)
        panel.barh(row, np.nan_to_num(values), 0.72, color=colour)
        for at, value in zip(row, values, strict=True):
            text = "–" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}"
            panel.annotate(
                text, (max(0.0, np.nan_to_num(value)), at), (3, 0), textcoords="offset points", va="center", fontsize=9
            )
        panel.margins(x=0.25)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    left.set(xlabel="energy above idle, J", yticks=row, yticklabels=map(shortened, energy["node"]))
    right.set(xlabel="energy at idle, J")
    _horizontal(left, right)
    return figure


@_styled
def device_map(tasks: pd.DataFrame, devices: pd.DataFrame, area_side_m: float, cell_radius_m: float) -> Figure:
    """Where tasks arrived and where the devices ended, with the cell.

    Args:
        tasks: device_x_m, device_y_m, outcome; at least one row, of which at most 1,500 are shown.
        devices: final_x_m, final_y_m, device_type.
        area_side_m: side of the square area.
        cell_radius_m: radius of the cell around its centre.
    """
    figure = Figure(figsize=(_WIDTH_IN, 6.1), layout="constrained")
    panel = figure.subplots()
    centre, edge_m = area_side_m / 2, 0.02 * area_side_m
    panel.add_patch(Circle((centre, centre), cell_radius_m, facecolor="#f1f6fb", edgecolor=_FAINT, linestyle=(0, (5, 2))))
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
    for kind, marker in zip(dict.fromkeys(ended["device_type"]), _cycled("o^sD"), strict=False):
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
    _legend_over(figure, handles, 2)
    return figure


@_styled
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
    metrics = [metric for metric in dict.fromkeys(comparison["metric"]) if metric.startswith("slo_")]
    titles = {metric: "all classes" if metric == "slo_compliance_rate" else metric.removeprefix("slo_") for metric in metrics}
    known = {metric: titles[metric] for metric in metrics if comparison.loc[comparison["metric"] == metric, "mean"].notna().any()}
    rows = (len(known) + 1) // 2
    figure, panels = _panels(rows, 2, 2.6, 0.3 + 0.22 * len(look) / 2, sharex=True)
    for panel, (metric, title) in zip(panels, known.items(), strict=False):
        _lines_over_load(panel, comparison, metric, look)
        if metric == "slo_compliance_rate" and len(achievable):
            panel.plot(achievable["load"], achievable["achievable_slo_rate"], color="black", linestyle=(0, (1, 1)), lw=1.2)
        panel.set_title(title)
        _share_axis(panel)
    for panel in panels[len(known) :]:
        panel.set_axis_off()
    for panel in panels:
        _load_axis(panel, comparison["load"], capacity)
    figure.supylabel("met the fixed deadline, %", fontsize="medium")
    _name_load_axis(figure, capacity)
    bound = [Line2D([], [], color="black", linestyle=(0, (1, 1)), lw=1.2, label="achievable")] if len(achievable) else []
    _legend_over(figure, [*_handles(look), *bound])
    return figure


def _lines_over_load(
    panel: Axes, comparison: pd.DataFrame, metric: str, look: Mapping[Policy, Look], factor: float = 1.0
) -> None:
    of_metric = comparison[comparison["metric"] == metric]
    apart = 0.6 / len(look) if comparison["load"].nunique() == 1 else 0.0
    for place, (policy, drawn) in enumerate(look.items()):
        rows = _of_policy(of_metric, policy).sort_values("load")
        mean, error = _with_error(rows, "mean", "low", "high", factor)
        panel.errorbar(
            rows["load"] + apart * (place - (len(look) - 1) / 2),
            mean,
            error,
            color=drawn.colour,
            marker=drawn.marker,
            mfc=drawn.face,
            linestyle=drawn.line,
            elinewidth=1,
            capsize=2,
        )


def _of_policy(rows: pd.DataFrame, policy: Policy) -> pd.DataFrame:
    return rows[(rows["scheduler"] == policy[0]) & (rows["queue_discipline"] == policy[1])]


def _with_error(rows: pd.DataFrame, mean: str, low: str, high: str, factor: float = 1.0) -> tuple[Floats, Floats]:
    """Means and the lengths of their error bars, shape (2, n); no bar where there is no interval."""
    middle = rows[mean].to_numpy(dtype=float) * factor
    below = middle - rows[low].to_numpy(dtype=float) * factor
    above = rows[high].to_numpy(dtype=float) * factor - middle
    return middle, np.maximum(np.nan_to_num(np.array([below, above])), 0.0)


def _handles(look: Mapping[Policy, Look]) -> list[Line2D]:
    return [
        Line2D([], [], color=one.colour, marker=one.marker, mfc=one.face, linestyle=one.line, label=one.label)
        for one in look.values()
    ]


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


@_styled
def pareto(points: pd.DataFrame, frontier: pd.DataFrame | None, look: Mapping[Policy, Look]) -> Figure:
    """Energy above idle against misses of the fixed deadline, a panel per load; the front is joined and ringed.

    Args:
        points: the columns of pareto.csv.
        frontier: load, miss_rate, above_idle_per_task_j: what no schedule can be below; or None.
        look: how each policy is drawn.
    """
    loads = sorted(points["load"].unique())
    columns = min(2, len(loads))
    figure, panels = _panels(-(-len(loads) // columns), columns, 2.7 if len(loads) > 2 else 3.4, 0.3 + 0.22 * len(look) / 2)
    for panel, load in zip(panels, loads, strict=False):
        _pareto_panel(panel, points[points["load"] == load], look)
        if frontier is not None:
            bound = frontier[frontier["load"] == load].sort_values("miss_rate")
            panel.plot(
                bound["miss_rate"], bound["above_idle_per_task_j"] * 1e3, color="black", linewidth=1.2, linestyle=(0, (1, 1))
            )
        panel.set_title(f"load {load:g}")
    for panel in panels[len(loads) :]:
        panel.set_axis_off()
    figure.supxlabel("missed the fixed deadline, % of dispatched tasks", fontsize="medium")
    figure.supylabel("energy above idle per task, mJ", fontsize="medium")
    front = Line2D([], [], color=_FAINT, linewidth=1, marker="o", markersize=10, markerfacecolor="none", label="Pareto front")
    bound_line = [Line2D([], [], color="black", linewidth=1.2, linestyle=(0, (1, 1)), label="clairvoyant bound")]
    dots = [
        Line2D([], [], color=one.colour, marker=one.marker, mfc=one.face, linestyle="", label=one.label) for one in look.values()
    ]
    _legend_over(figure, [*dots, front, *(bound_line if frontier is not None else [])])
    return figure


def _pareto_panel(panel: Axes, points: pd.DataFrame, look: Mapping[Policy, Look]) -> None:
    front = points[points["on_front"] == 1].sort_values("miss_rate")
    panel.plot(
        front["miss_rate"],
        front["above_idle_per_task_j"] * 1e3,
        color=_FAINT,
        linewidth=1,
        marker="o",
        markersize=11,
        markerfacecolor="none",
    )
    for policy, drawn in look.items():
        rows = _of_policy(points, policy)
        x, x_error = _with_error(rows, "miss_rate", "miss_rate_low", "miss_rate_high")
        energy = "above_idle_per_task_j"
        y, y_error = _with_error(rows, energy, f"{energy}_low", f"{energy}_high", factor=1e3)
        panel.errorbar(
            x, y, y_error, x_error, color=drawn.colour, marker=drawn.marker, mfc=drawn.face, linestyle="", elinewidth=1, capsize=2
        )
    panel.xaxis.set_major_formatter(_PERCENT)
    seen = points["miss_rate"].to_numpy(dtype=float)
    seen = seen[np.isfinite(seen)]
    if len(seen) and seen.min() > 0 and seen.max() > 8 * seen.min():
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
        panel.xaxis.set_major_formatter(_PERCENT)
        panel.xaxis.set_minor_formatter(NullFormatter())


@_styled
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
    look = {policy: drawn for policy, drawn in look.items() if len(_of_policy(chosen, policy))}
    figure, panels = _panels(1, len(metrics), 2.7 if len(metrics) > 1 else 3.2, 0.3 + 0.22 * len(look) / 2)
    for panel, (metric, title) in zip(panels, metrics.items(), strict=True):
        _lines_over_load(panel, chosen, metric, look, factor)
        panel.set_title(title)
        _load_axis(panel, comparison["load"], capacity)
        if log:
            panel.set_yscale("log")
            _plain_log(panel.yaxis)
    figure.supylabel(ylabel, fontsize="medium")
    _name_load_axis(figure, capacity)
    _legend_over(figure, _handles(look))
    return figure


@_styled
def load_limits(limits: pd.DataFrame, look: Mapping[Policy, Look]) -> Figure:
    """The highest load each policy stands, with its interval; in words where it was not found for every seed.

    Args:
        limits: the columns of load_limits.csv.
        look: how each policy is drawn.
    """
    figure, (panel,) = _panels(1, 1, 0.4 * len(limits) + 0.7, 0.1)
    for row, (_, limit) in enumerate(limits.iterrows()):
        drawn = look[limit["scheduler"], limit["queue_discipline"]]
        if np.isfinite(limit["mean"]):
            mean, error = _with_error(limits.iloc[[row]], "mean", "low", "high")
            panel.errorbar(
                mean,
                [row],
                xerr=error,
                color=drawn.colour,
                marker=drawn.marker,
                mfc=drawn.face,
                markersize=7,
                capsize=3,
                linestyle="",
            )
            panel.annotate(f"{mean[0]:.2f}", (mean[0], row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        else:
            words = textwrap.fill(limit["text"], 44)
            text = panel.text(0.01, row, words, transform=panel.get_yaxis_transform(), va="center", fontsize=9, color=_FAINT)
            text.set_in_layout(False)
    labels = [look[limit["scheduler"], limit["queue_discipline"]].label for _, limit in limits.iterrows()]
    panel.set(yticks=range(len(limits)), yticklabels=labels, ylim=(-0.7, len(limits) - 0.5), xlabel="highest load")
    found = limits["high"].fillna(limits["mean"]).max()
    panel.set_xlim(0, 1.1 * found if np.isfinite(found) else 6)
    _horizontal(panel)
    return figure


@_styled
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
    columns = min(2, len(loads))
    figure, panels = _panels(-(-len(loads) // columns), columns, 2.4, 0.3 + 0.22 * len(look) / 2, sharex=True)
    for panel, load in zip(panels, loads, strict=False):
        for policy, drawn in look.items():
            rows = _of_policy(minutes[minutes["load"] == load], policy).sort_values("minute")
            middle = (rows["minute"] + np.minimum(rows["minute"] + 1, duration_s / 60)) / 2
            rate = rows["fixed_deadline_compliance_rate"]
            panel.plot(
                middle,
                rate,
                color=drawn.colour,
                linestyle=drawn.line,
                marker=drawn.marker,
                mfc=drawn.face,
                markersize=3.5,
                linewidth=1.2,
            )
        for low_s, high_s in ((0.0, warm_up_s), (duration_s - cool_down_s, duration_s)):
            panel.axvspan(low_s / 60, high_s / 60, color="#d5d9de", alpha=0.6, linewidth=0)
        panel.set(title=f"load {load:g}", xlim=(0, duration_s / 60))
        panel.xaxis.set_major_locator(MaxNLocator(6))
        _share_axis(panel)
    for panel in panels[len(loads) :]:
        panel.set_axis_off()
    figure.supxlabel("arrival, min", fontsize="medium")
    figure.supylabel("met the fixed deadline, %", fontsize="medium")
    _legend_over(figure, [*_handles(look), Patch(color="#d5d9de", alpha=0.6, label="left out of all other figures")])
    return figure


@_styled
def ablation(effects: pd.DataFrame, look: Mapping[Policy, Look]) -> Figure:
    """What each criterion does: the change of compliance and energy without it, with intervals.

    Args:
        effects: the columns of ablation.csv.
        look: how each policy is drawn.
    """
    kinds = list(dict.fromkeys(effects["without"]))
    policies = [policy for policy in look if len(_of_policy(effects, policy))]
    metrics = {
        "slo_compliance_rate": (100.0, "compliance, points"),
        "above_idle_per_task_j": (1e3, "energy per task, mJ"),
    }
    figure, panels = _panels(1, 2, 0.42 * len(kinds) + 0.7 + 0.12 * len(policies), 0.6, sharey=True)
    for panel, (metric, (factor, label)) in zip(panels, metrics.items(), strict=True):
        panel.axvline(0, color=_FAINT, linewidth=1)
        for place, policy in enumerate(policies):
            drawn = look[policy]
            rows = _of_policy(effects[effects["metric"] == metric], policy)
            at = rows["without"].map(kinds.index).to_numpy(dtype=float) + 0.5 * ((place + 0.5) / len(policies) - 0.5)
            change, error = _with_error(rows, "difference", "difference_low", "difference_high", factor)
            panel.errorbar(
                change,
                at,
                xerr=error,
                color=drawn.colour,
                marker=drawn.marker,
                mfc=drawn.face,
                linestyle="",
                capsize=2,
                elinewidth=1,
            )
        panel.set(xlabel=label)
        panel.margins(x=0.1)
        panel.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set(yticks=range(len(kinds)), yticklabels=[f"without {kind}" for kind in kinds], ylim=(-0.6, len(kinds) - 0.4))
    _horizontal(*panels)
    dots = [
        Line2D([], [], color=look[one].colour, marker=look[one].marker, mfc=look[one].face, linestyle="", label=look[one].label)
        for one in policies
    ]
    _legend_over(figure, dots)
    return figure


@_styled
def utilisation(busy: pd.DataFrame, nodes: Sequence[str], look: Mapping[Policy, Look]) -> Figure:
    """Busy share of each node under each policy, a panel per load.

    Args:
        busy: scheduler, queue_discipline, load, utilisation_<node>.
        nodes: which nodes.
        look: in which order and under which label the policies stand.
    """
    loads = sorted(busy["load"].unique())
    written = len(nodes) <= 12
    figure, panels = _panels(len(loads), 1, 0.24 * len(look) + 0.45, 0.4, sharex=True)
    for panel, load in zip(panels, loads, strict=True):
        of_load = busy[busy["load"] == load].set_index(["scheduler", "queue_discipline"])
        share = of_load.reindex(list(look))[[f"utilisation_{node}" for node in nodes]].to_numpy(dtype=float)
        mesh = panel.pcolormesh(share, cmap="Blues", vmin=0, vmax=1, edgecolor="white", linewidth=0.8)
        for (row, column), value in np.ndenumerate(share) if written else ():
            text = "–" if np.isnan(value) else f"{value:.0%}"
            ink = "white" if value > 0.6 else _INK
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
        bar = figure.colorbar(mesh, ax=panels, location="bottom", shrink=0.7, aspect=50, pad=0.02, format=_PERCENT)
        bar.set_label("busy, %")
    return figure
