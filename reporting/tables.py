"""Tables as a page shows them: names and units of the columns, and every cell as text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reporting.reading import GREATEST

_UNITS: dict[str, tuple[str, Callable[[float], str]]] = {
    "percent": ("%", lambda value: f"{100 * value:.1f}"),
    "points": ("points", lambda value: f"{100 * value:+.2f}"),
    "ms": ("ms", lambda value: f"{1e3 * value:.1f}"),
    "ms difference": ("ms", lambda value: f"{1e3 * value:+.1f}"),
    "mj": ("mJ", lambda value: f"{1e3 * value:.1f}"),
    "mj difference": ("mJ", lambda value: f"{1e3 * value:+.2f}"),
    "j": ("J", lambda value: f"{value:,.1f}"),
    "w": ("W", lambda value: f"{value:.2f}"),
    "s": ("s", lambda value: f"{value:,.1f}"),
    "p": ("", lambda value: "< 0.001" if value < 0.001 else f"{value:.3f}"),
    "count": ("", lambda value: f"{value:,.0f}"),
    "load": ("", lambda value: f"{value:g}"),
    "rate": ("", lambda value: f"{value:,.1f}"),
    "number": ("", lambda value: f"{value:.3f}"),
    "number difference": ("", lambda value: f"{value:+.3f}"),
    "flag": ("", lambda value: "yes" if value else "no"),
}
"""How a kind of figure is written: the unit it is shown in, and its text from the unit it is kept in (shares, s, J, W)."""

_COLUMNS = {
    "scheduler": ("policy", "text"),
    "queue_discipline": ("queue", "text"),
    "load": ("load", "load"),
    "seed": ("seed", "count"),
    "seeds": ("seeds", "count"),
    "found": ("found for", "count"),
    "mean": ("mean", "number"),
    "text": ("highest load", "text"),
    "tasks": ("dispatched tasks", "count"),
    "minute": ("minute", "count"),
    "dispatched": ("dispatched", "count"),
    "on_time": ("on time", "count"),
    "late": ("late", "count"),
    "failed": ("failed", "count"),
    "unanswered": ("unanswered", "count"),
    "slo_class": ("SLO class", "text"),
    "model_name": ("model", "text"),
    "node": ("node", "text"),
    "quantity": ("", "text"),
    "error": ("error", "text"),
    "times": ("tasks", "count"),
    "slo_compliance_rate": ("SLO compliance", "percent"),
    "adapted_deadline_compliance_rate": ("met adapted deadline", "percent"),
    "fixed_deadline_compliance_rate": ("met fixed deadline", "percent"),
    "base_deadline_compliance_rate": ("met base deadline", "percent"),
    "achievable_slo_rate": ("achievable", "percent"),
    "in_cell_share": ("devices in the cell", "percent"),
    "dispatch_lag_p99_s": ("dispatch lag p99", "ms"),
    "response_p50_s": ("response p50", "ms"),
    "response_p99_s": ("response p99", "ms"),
    "excess_p50_s": ("over the deadline, median", "ms"),
    "mean_s": ("mean", "ms"),
    **{f"{name}_s": (name, "ms") for name in ("p50", "p90", "p95", "p99")},
    "p999_s": ("p99.9", "ms"),
    "max_s": ("max", "ms"),
    "busy": ("busy", "percent"),
    "total_j": ("energy", "j"),
    "above_idle_j": ("above idle", "j"),
    "idle_j": ("at idle", "j"),
    "idle_w": ("idle", "w"),
    "busy_w": ("busy", "w"),
    "overhead_w": ("during overhead, above idle", "w"),
    "power_provenance": ("power is", "text"),
    "request_overhead_s": ("request overhead", "ms"),
    "overhead_cv": ("cv of the overhead", "number"),
    "overhead_provenance": ("overhead is", "text"),
    "provenance": ("provenance", "text"),
    "least_mean_s": ("fastest node", "ms"),
    "greatest_mean_s": ("slowest node", "ms"),
    "note": ("note", "text"),
    "above_idle_per_task_j": ("above idle per task", "mj"),
    "above_idle_per_on_time_task_j": ("above idle per on-time task", "mj"),
    "load_fairness": ("load fairness (Jain)", "number"),
    "rank_reversal_rate": ("rank reversals", "percent"),
    "miss_rate": ("missed fixed deadline", "percent"),
    "on_front": ("on the Pareto front", "flag"),
    "miss_rate_per_task_minimum": ("missed, per-task minimum", "percent"),
    "miss_rate_bound": ("missed, bound", "percent"),
    "miss_gap": ("missed above the bound", "points"),
    "energy_per_task_minimum_j": ("above idle per task, per-task minimum", "mj"),
    "energy_bound_j": ("above idle per task, bound at any misses", "mj"),
    "energy_bound_at_fewest_misses_j": ("above idle per task, bound at fewest misses", "mj"),
    "energy_bound_at_its_misses_j": ("above idle per task, bound at its misses", "mj"),
    "energy_excess": ("energy above the bound", "percent"),
    "without": ("without", "text"),
    "dispatched_tasks_per_s": ("dispatched tasks/s", "rate"),
    "fraction_of_capacity": ("of the capacity", "percent"),
}
"""Name and kind of a column; one that is not here keeps its name and is shown as a plain number."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the page shows it.

    Attributes:
        name: of its CSV file.
        title: what it holds.
        group: where on the page it stands.
        header: names of the columns with their units.
        kinds: "text" or "number" for each column.
        rows: texts of the cells; the first column names the row.
    """

    name: str
    title: str
    group: str
    header: list[str]
    kinds: list[str]
    rows: list[list[str]]


def text_of(value: Any, unit: str) -> str:
    """A figure as text, '–' where there is none."""
    return _UNITS[unit][1](value).replace("-", "−") if _known(value) else "–"


def _known(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and abs(value) < GREATEST


def kind_of(column: str) -> tuple[str, str]:
    """Name and kind of a column, that of a difference derived from its metric's."""
    if column.endswith("_difference"):
        name, kind = kind_of(column.removesuffix("_difference"))
        return f"Δ {name}", "points" if kind == "percent" else f"{kind} difference"
    if column.startswith("utilisation_"):
        return column.removeprefix("utilisation_"), "percent"
    if column in _COLUMNS:
        return _COLUMNS[column]
    if column.startswith("fixed_"):
        return column.removeprefix("fixed_"), "percent"
    return column.replace("_", " "), "number"


def shown(name: str, title: str, frame: pd.DataFrame, group: str) -> Table:
    """A frame as a table of texts; a figure, its interval and its p share a cell."""
    header, kinds, columns = [], [], []
    for column in frame.columns:
        if column.endswith("_p_holm") or column.endswith(("_low", "_high")) and column.rsplit("_", 1)[0] in frame.columns:
            continue
        called, kind = kind_of(column)
        unit = "" if kind == "text" else _UNITS[kind][0]
        header.append(f"{called}, {unit}" if unit else called)
        kinds.append("text" if kind == "text" else "number")
        columns.append(_words(frame[column]) if kind == "text" else _figures(frame, column, kind))
    return Table(name, title, group, header, kinds, [list(row) for row in zip(*columns, strict=True)])


def _words(column: pd.Series) -> list[str]:
    return ["–" if value is None or value != value or value == "" else str(value) for value in column]


def _figures(frame: pd.DataFrame, column: str, kind: str) -> list[str]:
    texts = [text_of(value, kind) for value in frame[column].tolist()]
    if f"{column}_low" in frame.columns:
        ends = zip(frame[f"{column}_low"].tolist(), frame[f"{column}_high"].tolist(), strict=True)
        texts = [text + _interval(*pair, kind) for text, pair in zip(texts, ends, strict=True)]
    p_holm = f"{column.removesuffix('_difference')}_p_holm"
    if column.endswith("_difference") and p_holm in frame.columns:
        texts = [text + _p(value) for text, value in zip(texts, frame[p_holm].tolist(), strict=True)]
    return texts


def _interval(low: Any, high: Any, kind: str) -> str:
    return f" ({text_of(low, kind)} to {text_of(high, kind)})" if _known(low) and _known(high) else ""


def _p(value: Any) -> str:
    return f", p {text_of(value, 'p')}" if _known(value) else ""
