"""Reports: one self-contained HTML page for a run or for a comparison, with its figures and tables as files for papers.

    python3 report.py results/20261123_160325

It reads what the run or the comparison left in its folder and writes `report.html`, `figures/` and `tables/` there. Importing
this module is cheap: pandas, matplotlib and Jinja2 are loaded when a report is made.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from performance_profile import PerformanceProfile, load_profile
from utils import PROJECT_ROOT, HarnessError, UsageError, write_failure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

EXIT_FAILED, EXIT_USAGE = 1, 2
DISPATCHED = ("on_time", "late", "failed")
MOST_NODES = 12
"""Nodes that a figure of one run shows; the busiest where there are more."""

TEXT_COLUMNS = (
    "scheduler",
    "queue_discipline",
    "metric",
    "without",
    "text",
    "scenario_sha256",
    "device_type",
    "model_name",
    "slo_class",
    "assigned_node",
    "outcome",
    "error",
)
FLAG_COLUMNS = ("met_fixed_deadline", "met_base_deadline", "delivered", "on_front")


def write_run_report(folder: Path, output: Path | None = None, png: bool = False) -> Path:
    """Make the report of one run.

    Args:
        folder: the run's folder, with its experiment_summary_<id>.json and its CSV files.
        output: where `report.html`, `figures/` and `tables/` go; default: beside the run's files.
        png: whether the figures are written as PNG too.

    Returns:
        The path of the page.

    Raises:
        UsageError: the folder holds no readable summary, or the output cannot be written.
        HarnessError: the disk is full.
    """
    summary = _summary_of(folder)
    report = _Report(output or folder, png)
    run = _read_run(folder, summary)
    _run_figures(run, report)
    _run_tables(run, report)
    profile = _profile_of(run)
    if profile:
        _profile_tables(profile, report)
    return report.write("run.html", summary=summary, run=run, profile=profile)


def write_comparison_report(folder: Path, output: Path | None = None, png: bool = True) -> Path:
    """Make the report of a comparison.

    Args:
        folder: the sweep's folder, with its comparison.json and its CSV files.
        output: where `report.html`, `figures/` and `tables/` go; default: beside those files.
        png: whether the figures are written as PNG too.

    Returns:
        The path of the page.

    Raises:
        UsageError: the folder holds no readable comparison.json, or the output cannot be written.
        HarnessError: the disk is full.
    """
    about = _read_json(folder / "comparison.json")
    report = _Report(output or folder, png)
    sweep = _read_comparison(folder, about)
    _comparison_figures(sweep, report)
    _comparison_tables(sweep, report)
    return report.write("comparison.html", about=about, policies=sweep.policies())


def write_report(folder: Path, output: Path | None = None, png: bool = False) -> Path:
    """Make the report of whatever `folder` holds, a run or a comparison.

    Raises:
        UsageError: it holds neither.
        HarnessError: the disk is full.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: expected the folder of a run or of a comparison, found {'a file' if folder.exists() else 'nothing'}"
        )
    if (folder / "comparison.json").exists():
        return write_comparison_report(folder, output, png)
    return write_run_report(folder, output, png)


def _summary_of(folder: Path) -> dict[str, Any]:
    found = sorted(folder.glob("experiment_summary_*.json"))
    if len(found) != 1:
        kinds = "experiment_summary_<id>.json of a run or comparison.json of a comparison"
        raise UsageError(f"{folder}: expected one {kinds}, found {len(found) or 'neither'}")
    return _read_json(found[0])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a CSV file, empty where the file or the column is missing: numbers as floats, true and false as 1 and 0."""
    import pandas as pd

    table = pd.DataFrame()
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):  # a row that was cut short may have left a quotation mark open
        try:
            table = pd.read_csv(
                path,
                usecols=lambda name: name in columns,
                dtype={name: str for name in TEXT_COLUMNS},
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
                on_bad_lines="skip",
                quoting=quoting,
            )
            break
        except pd.errors.ParserError:
            continue
        except (OSError, ValueError):  # missing, empty, or not UTF-8
            break
    table = table.reindex(columns=list(columns))
    for name in columns:
        if name in TEXT_COLUMNS:
            table[name] = table[name].fillna("").astype(str)
        elif name in FLAG_COLUMNS and table[name].dtype == object:
            table[name] = table[name].map({"true": 1.0, "false": 0.0, True: 1.0, False: 0.0})
        table[name] = table[name] if name in TEXT_COLUMNS else pd.to_numeric(table[name], errors="coerce").astype(float)
    return table


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().strip().split(",")
    except (OSError, UnicodeDecodeError):
        return []


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


@dataclass(slots=True)
class _Report:
    """What has been drawn so far, and where it goes."""

    folder: Path
    png: bool
    figures: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    def figure(self, name: str, missing: str, draw: Callable[[], Figure]) -> None:
        """Draw a figure and write its files, or keep why it is `missing`; files of an earlier report do not stay."""
        for kind in ("svg", "png"):
            self._remove(f"figures/{name}.{kind}")
        if missing:
            self.left_out[name] = missing
            return
        from plots import drawn

        figure = drawn(draw(), name, self.png)
        self._write(f"figures/{name}.svg", figure.svg.encode())
        if figure.png:
            self._write(f"figures/{name}.png", figure.png)
        self.figures[name] = _inline(figure.svg)

    def table(self, name: str, title: str, frame: pd.DataFrame, group: str) -> None:
        """Keep a table and write its CSV file; one without rows is left out."""
        if len(frame) and len(frame.columns) > 1:
            self._write(f"tables/{name}.csv", frame.to_csv(index=False, lineterminator="\n").encode())
            self.tables.append(Table(name, title, group, *_shown(frame)))

    def write(self, template: str, **content: Any) -> Path:
        """Write the page from its template; its path."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(PROJECT_ROOT / "templates"),
            autoescape=True,
            undefined=jinja2.ChainableUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(
            {unit: partial(_text_of, unit=unit) for unit in ("percent", "ms", "mj", "j", "count", "number")}
        )
        environment.filters["flat"] = _flat
        page = environment.get_template(template).render(
            figures=self.figures, left_out=self.left_out, tables=self.tables, png=self.png, **content
        )
        return self._write("report.html", page.encode())

    def _remove(self, name: str) -> None:
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(f"{path} cannot be replaced", error) from None

    def _write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            raise write_failure(f"{path} cannot be written", error) from None
        return path


def _inline(svg: str) -> str:
    """The SVG document as an element of a page: scales with its box, and is read out as one image by what stands around it."""
    root = re.search(r"<svg\b[^>]*>", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    if not root or not box:
        raise ValueError("matplotlib's SVG has no root element with a viewBox")
    inner = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>", "", svg[root.end() :], flags=re.DOTALL)
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} aria-hidden="true" focusable="false">{inner}'


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
    "slo_class": ("SLO class", "text"),
    "model_name": ("model", "text"),
    "node": ("node", "text"),
    "quantity": ("", "text"),
    "error": ("error", "text"),
    "times": ("tasks", "count"),
    "slo_compliance_rate": ("SLO compliance", "percent"),
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
    "power_provenance": ("power is", "text"),
    "request_overhead_s": ("request overhead", "ms"),
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
    "energy_bound_j": ("bound, any misses", "mj"),
    "energy_bound_at_fewest_misses_j": ("bound at fewest misses", "mj"),
    "energy_bound_at_its_misses_j": ("bound at its misses", "mj"),
    "energy_excess": ("energy above the bound", "percent"),
    "without": ("without", "text"),
    "dispatched_tasks_per_s": ("dispatched tasks/s", "rate"),
    "fraction_of_capacity": ("of the capacity", "percent"),
}
"""Name and kind of a column; one that is not here keeps its name and is shown as a plain number."""


def _text_of(value: Any, unit: str) -> str:
    """A figure as text, '–' where there is none."""
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        return _UNITS[unit][1](value).replace("-", "−")
    return "–"


def _kind_of(column: str) -> tuple[str, str]:
    """Name and kind of a column, that of a difference derived from its metric's."""
    if column.endswith("_difference"):
        name, kind = _kind_of(column.removesuffix("_difference"))
        return f"Δ {name}", "points" if kind == "percent" else f"{kind} difference"
    if column.startswith("utilisation_"):
        return column.removeprefix("utilisation_"), "percent"
    if column in _COLUMNS:
        return _COLUMNS[column]
    if column.startswith("slo_"):
        return column.removeprefix("slo_"), "percent"
    return column.replace("_", " "), "number"


def _shown(frame: pd.DataFrame) -> tuple[list[str], list[str], list[list[str]]]:
    """Header, kinds of the columns and cells of a table; a figure, its interval and its p share a cell."""
    header, kinds, columns = [], [], []
    for column in frame.columns:
        if column.endswith("_p_holm") or column.endswith(("_low", "_high")) and column.rsplit("_", 1)[0] in frame.columns:
            continue
        name, kind = _kind_of(column)
        kinds.append("text" if kind == "text" else "number")
        if kind == "text":
            header.append(name)
            columns.append(["–" if value is None or value != value or value == "" else str(value) for value in frame[column]])
            continue
        unit = _UNITS[kind][0]
        header.append(f"{name}, {unit}" if unit else name)
        texts = [_text_of(value, kind) for value in frame[column].tolist()]
        if f"{column}_low" in frame.columns:
            ends = zip(frame[f"{column}_low"].tolist(), frame[f"{column}_high"].tolist(), strict=True)
            texts = [text + _interval(*pair, kind) for text, pair in zip(texts, ends, strict=True)]
        p_holm = f"{column.removesuffix('_difference')}_p_holm"
        if column.endswith("_difference") and p_holm in frame.columns:
            texts = [text + _p(value) for text, value in zip(texts, frame[p_holm].tolist(), strict=True)]
        columns.append(texts)
    return header, kinds, [list(row) for row in zip(*columns, strict=True)]


def _interval(low: Any, high: Any, kind: str) -> str:
    known = all(isinstance(end, float) and math.isfinite(end) for end in (low, high))
    return f" ({_text_of(low, kind)} to {_text_of(high, kind)})" if known else ""


def _p(value: Any) -> str:
    known = isinstance(value, float) and math.isfinite(value)
    return f", p {_text_of(value, 'p')}" if known else ""


def _flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and texts."""
    if not prefix and not isinstance(content, Mapping):
        return []
    if not isinstance(content, Mapping):
        return [
            (prefix, json.dumps(content, ensure_ascii=False) if isinstance(content, (list, bool, type(None))) else str(content))
        ]
    return [row for key, value in content.items() for row in _flat(value, f"{prefix}.{key}" if prefix else str(key))]


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows))


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run left in its folder."""

    summary: Mapping[str, Any]
    tasks: pd.DataFrame
    decisions: pd.DataFrame
    devices: pd.DataFrame
    violations: pd.DataFrame
    nodes: list[str]
    """All nodes."""
    shown: list[str]
    """Those that the figures show."""

    @property
    def settings(self) -> Mapping[str, Any]:
        return _mapping(self.summary, "settings")

    @property
    def dispatched(self) -> pd.DataFrame:
        return self.tasks[self.tasks["outcome"].isin(DISPATCHED)]

    @property
    def duration_s(self) -> float:
        duration_s = self.settings.get("duration_s") or self.tasks["arrival_time_s"].max()
        return float(duration_s) if duration_s == duration_s and duration_s else 1.0

    @property
    def idle_w(self) -> dict[str, float]:
        return {node: float(idle_w) for node, idle_w in _mapping(self.summary, "idle_w").items() if idle_w is not None}

    def deadlines_s(self) -> dict[str, tuple[float, float]]:
        """Least and greatest base deadline by SLO class."""
        classes = _mapping(self.settings, "slo_classes")
        return {name: tuple(one["base_deadline_s"]) for name, one in classes.items() if one.get("base_deadline_s")}


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at a key, empty where there is none."""
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}


_RESULT_COLUMNS = (
    "device_x_m",
    "device_y_m",
    "model_name",
    "slo_class",
    "arrival_time_s",
    "assigned_node",
    "response_time_s",
    "outcome",
    "met_fixed_deadline",
    "error",
)
_DEVICE_COLUMNS = ("device_type", "final_x_m", "final_y_m")
_VIOLATION_COLUMNS = ("slo_class", "model_name", "outcome", "excess_s")


def _read_run(folder: Path, summary: Mapping[str, Any]) -> _Run:
    tasks = _read_table(folder / "master_inference_results.csv", _RESULT_COLUMNS)
    tasks = tasks[tasks["arrival_time_s"].notna()]  # a row that was cut short
    decisions = _one_of(folder, "scheduling_decisions_*.csv")
    offered = [name.removeprefix("queue_depth_") for name in _header(decisions) if name.startswith("queue_depth_")]
    served = tasks["assigned_node"][tasks["assigned_node"] != ""].value_counts()
    nodes = offered or list(_mapping(summary, "utilisation")) or list(served.index)
    busiest = sorted(nodes, key=lambda node: -int(served.get(node, 0)))[:MOST_NODES]
    shown = [node for node in nodes if node in busiest]
    columns = [f"{kind}_{node}" for node in shown for kind in ("queue_depth", "power_w")]
    return _Run(
        summary,
        tasks,
        _read_table(decisions, ["decision_time_s", *columns]),
        _read_table(_one_of(folder, "devices_*.csv"), _DEVICE_COLUMNS),
        _read_table(_one_of(folder, "slo_violations_*.csv"), _VIOLATION_COLUMNS),
        nodes,
        shown,
    )


def _one_of(folder: Path, pattern: str) -> Path:
    """The file of that kind; a name that does not exist where there is none."""
    return next(iter(sorted(folder.glob(pattern))), folder / pattern)


def _run_figures(run: _Run, report: _Report) -> None:
    import plots

    no_tasks = "" if len(run.tasks) else "master_inference_results.csv holds no task"
    no_dispatched = no_tasks or ("" if len(run.dispatched) else "no task was dispatched to its end")
    no_nodes = no_dispatched or ("" if run.shown else "no node is known")
    decided = run.decisions[[name for name in run.decisions if name.startswith("queue_depth_")]]
    no_decisions = "" if decided.notna().any(axis=None) else "the file of decisions holds none"
    measured = run.decisions[[name for name in run.decisions if name.startswith("power_w_")]]
    no_power = no_decisions or ("" if measured.notna().any(axis=None) else "no power was measured")
    energy = _energy_by_node(run)
    no_energy = "" if len(energy) and energy["above_idle_j"].notna().any() else "no energy by node is known"
    no_positions = no_tasks or ("" if run.tasks["device_x_m"].notna().any() else "no positions are known")
    area = _mapping(run.settings, "devices")
    no_positions = no_positions or ("" if area.get("area_side_m") and area.get("cell_radius_m") else "the settings name no area")
    by_minute = _frame(run.summary.get("by_minute") or []).reindex(columns=["minute", "in_cell_share"]).astype(float)

    report.figure("outcomes", no_tasks, lambda: plots.outcomes_over_time(run.tasks, by_minute.dropna(), run.duration_s))
    report.figure("response_times", no_dispatched, lambda: plots.response_time_cdf(run.dispatched, run.deadlines_s()))
    report.figure("queue_depth", no_decisions, lambda: plots.queue_depth(run.decisions, run.shown, run.duration_s))
    report.figure("power", no_power, lambda: plots.power(run.decisions, run.shown, run.duration_s, run.idle_w))
    busy = _mapping(run.summary, "utilisation")
    report.figure("nodes", no_nodes, lambda: plots.work_by_node(run.dispatched, run.shown, busy))
    report.figure("energy", no_energy, lambda: plots.energy_by_node(energy[energy["node"].isin(run.shown)]))
    report.figure(
        "map", no_positions, lambda: plots.device_map(run.tasks, run.devices, area["area_side_m"], area["cell_radius_m"])
    )


def _energy_by_node(run: _Run) -> pd.DataFrame:
    """Energy of each node, and what of it is idle power over the window."""
    total_j = _mapping(_mapping(run.summary, "energy_j"), "by_node")
    window_s = run.summary.get("window_s") or math.nan
    rows = []
    for node in run.nodes:
        node_j = math.nan if total_j.get(node) is None else float(total_j[node])
        idle_j = run.idle_w.get(node, math.nan) * window_s
        rows.append({"node": node, "total_j": node_j, "above_idle_j": node_j - idle_j, "idle_j": idle_j})
    return _frame(rows)


def _run_tables(run: _Run, report: _Report) -> None:
    report.table("classes", "By SLO class", _by_class(run), "results")
    report.table("times", "Times", _times(run.summary), "results")
    report.table("nodes", "By node", _by_node(run), "results")
    violations = run.violations.groupby(["slo_class", "model_name"])
    worst = violations.agg(
        late=("outcome", lambda of: (of == "late").sum()), failed=("outcome", lambda of: (of == "failed").sum())
    )
    worst["excess_p50_s"] = violations["excess_s"].median()
    report.table("violations", "Late and failed tasks", worst.astype(float).reset_index(), "results")
    errors = run.tasks["error"][run.tasks["error"] != ""].value_counts().head(20)
    report.table("errors", "Why tasks failed", errors.rename_axis("error").reset_index(name="times"), "results")
    report.table("minutes", "By minute of arrival", _frame(run.summary.get("by_minute") or []), "results")


def _by_class(run: _Run) -> pd.DataFrame:
    rows = []
    for name, of_class in run.dispatched.groupby("slo_class", sort=False):
        response_s = of_class["response_time_s"].dropna()
        rows.append(
            {
                "slo_class": name,
                "dispatched": len(of_class),
                **{outcome: int((of_class["outcome"] == outcome).sum()) for outcome in DISPATCHED},
                "slo_compliance_rate": float((of_class["outcome"] == "on_time").mean()),
                "fixed_deadline_compliance_rate": float(of_class["met_fixed_deadline"].mean()),
                "response_p50_s": _percentile(response_s, 50),
                "response_p99_s": _percentile(response_s, 99),
            }
        )
    order = list(run.deadlines_s())
    return _frame(sorted(rows, key=lambda row: order.index(row["slo_class"]) if row["slo_class"] in order else len(order)))


def _percentile(values: pd.Series, percent: float) -> float:
    import numpy as np

    return float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else math.nan


def _times(summary: Mapping[str, Any]) -> pd.DataFrame:
    kinds = ("response_time_s", "waiting_time_s", "inference_time_s", "dispatch_lag_s", "decision_duration_s")
    names = ("mean", "p50", "p90", "p95", "p99", "p999", "max")
    rows = []
    for kind in kinds:
        if figures := _mapping(summary, kind):
            quantity = kind.removesuffix("_s").replace("_", " ")
            rows.append({"quantity": quantity, **{f"{name}_s": figures.get(name) for name in names}})
    return _frame(rows)


def _by_node(run: _Run) -> pd.DataFrame:
    served = run.dispatched["assigned_node"].value_counts()
    busy = _mapping(run.summary, "utilisation")
    energy = {row["node"]: row for row in _energy_by_node(run).to_dict("records")}
    return _frame(
        {
            "node": node,
            "dispatched": int(served.get(node, 0)),
            "busy": busy.get(node),
            **{name: energy[node][name] for name in ("total_j", "above_idle_j", "idle_j")},
            "idle_w": run.idle_w.get(node),
        }
        for node in run.nodes
    )


def _profile_of(run: _Run) -> PerformanceProfile | None:
    """The profile that the run's settings name, None where it cannot be read any more."""
    try:
        return load_profile(Path(str(run.settings.get("performance_profile"))))
    except UsageError:
        return None


def _profile_tables(profile: PerformanceProfile, report: _Report) -> None:
    nodes = _frame(
        {
            "node": name,
            "idle_w": node.idle_w,
            "busy_w": node.busy_w,
            "power_provenance": node.power_provenance,
            "request_overhead_s": node.request_overhead_ms / 1e3,
            "overhead_provenance": node.overhead_provenance,
        }
        for name, node in profile.nodes.items()
    )
    report.table("profile_nodes", "Performance profile: nodes", nodes, "profile")
    latency = _frame(
        {
            "model_name": name,
            "least_mean_s": min(model.mean_ms.values(), default=math.nan) / 1e3,
            "greatest_mean_s": max(model.mean_ms.values(), default=math.nan) / 1e3,
            "provenance": model.provenance,
            "note": model.note,
        }
        for name, model in profile.latency.items()
    )
    report.table("profile_latency", "Performance profile: mean accelerator time", latency, "profile")


_POLICY = ("scheduler", "queue_discipline")
_SWEEP_COLUMNS = {
    "cells": (*_POLICY, "load", "achievable_slo_rate"),
    "minutes": (*_POLICY, "load", "minute", "fixed_deadline_compliance_rate"),
    "comparison": (
        *(*_POLICY, "load", "metric", "seeds", "mean", "low", "high"),
        *("difference", "difference_low", "difference_high", "p_value", "p_holm"),
    ),
    "pareto": (
        *(*_POLICY, "load", "miss_rate", "miss_rate_low", "miss_rate_high", "above_idle_per_task_j"),
        *("above_idle_per_task_j_low", "above_idle_per_task_j_high", "on_front"),
    ),
    "bounds": (
        *("load", "seed", "tasks", "miss_rate_per_task_minimum", "miss_rate_bound", "energy_per_task_minimum_j"),
        *("energy_bound_j", "energy_bound_at_fewest_misses_j"),
    ),
    "gaps": (
        *(*_POLICY, "load", "miss_rate", "miss_rate_bound", "miss_gap", "miss_gap_low", "miss_gap_high"),
        *("above_idle_per_task_j", "energy_bound_at_its_misses_j", "energy_excess", "energy_excess_low", "energy_excess_high"),
    ),
    "frontier": ("load", "miss_rate", "above_idle_per_task_j"),
    "load_limits": (*_POLICY, "seeds", "found", "mean", "low", "high", "text"),
    "ablation": (
        *(*_POLICY, "load", "without", "metric", "seeds", "mean"),
        *("difference", "difference_low", "difference_high", "p_holm"),
    ),
}
"""Columns of the tables that a comparison leaves in its folder, as far as the report shows them."""


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What a comparison left in its folder."""

    about: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    nodes: list[str]

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.tables[name]

    def policies(self) -> list[tuple[str, str]]:
        """Every policy of any table, in the order of their first appearance."""
        named = [table for table in self.tables.values() if "scheduler" in table]
        return list(
            dict.fromkeys(pair for table in named for pair in zip(table["scheduler"], table["queue_discipline"], strict=True))
        )

    def without_metric(self, metric: str) -> str:
        """Why a metric cannot be drawn: comparison.csv has no figure for it; '' where it has."""
        table = self.tables["comparison"]
        known = table.loc[table["metric"] == metric, "mean"].notna().any()
        return "" if known else f"comparison.csv is not there or holds no {metric}"

    def utilisation(self) -> pd.DataFrame:
        """Mean over the seeds of each node's busy share, by policy and load."""
        columns = [f"utilisation_{node}" for node in self.nodes]
        return self.tables["cells"].groupby([*_POLICY, "load"], sort=False)[columns].mean().reset_index()

    def trim_s(self) -> tuple[float, float, float]:
        """Length of a run, of its warm-up and of its cool-down, in seconds."""
        minutes = self.tables["minutes"]["minute"].max() + 1
        duration_s = _mapping(self.about, "settings").get("duration_s") or 60 * minutes
        return float(duration_s), float(self.about.get("warm_up_s") or 0), float(self.about.get("cool_down_s") or 0)

    def without(self, name: str, column: str) -> str:
        """Why a table cannot be drawn: it has no row with a figure in `column`; '' where it has."""
        return "" if self.tables[name][column].notna().any() else f"{name}.csv is not there or holds none"

    @property
    def capacity(self) -> dict[float, float | None]:
        """Dispatched load as a fraction of the cluster's capacity, by load."""
        rows = self.about.get("loads")
        return {row["load"]: row.get("fraction_of_capacity") for row in rows} if isinstance(rows, list) else {}


def _read_comparison(folder: Path, about: Mapping[str, Any]) -> _Comparison:
    busy = [name for name in _header(folder / "cells.csv") if name.startswith("utilisation_")]
    tables = {name: _read_table(folder / f"{name}.csv", columns) for name, columns in _SWEEP_COLUMNS.items() if name != "cells"}
    tables["cells"] = _read_table(folder / "cells.csv", (*_SWEEP_COLUMNS["cells"], *busy))
    return _Comparison(about, tables, [name.removeprefix("utilisation_") for name in busy])


def _comparison_figures(sweep: _Comparison, report: _Report) -> None:
    import plots

    table, cells, frontier = sweep["comparison"], sweep["cells"], sweep["frontier"].dropna()
    look = plots.looks(sweep.policies())
    over_load = partial(plots.over_load, table, look=look, capacity=sweep.capacity)
    achievable = cells.groupby("load")["achievable_slo_rate"].mean().dropna().reset_index()
    bound = frontier if len(frontier) else None
    busy = sweep.utilisation()
    report.figure(
        "attainment",
        sweep.without_metric("slo_compliance_rate"),
        lambda: plots.attainment(table, achievable, look, sweep.capacity),
    )
    report.figure("pareto", sweep.without("pareto", "miss_rate"), lambda: plots.pareto(sweep["pareto"], bound, look))
    report.figure(
        "energy_over_load",
        sweep.without_metric("above_idle_per_task_j"),
        lambda: over_load({"above_idle_per_task_j": ""}, 1e3, "energy above idle per task, mJ"),
    )
    report.figure(
        "response_over_load",
        sweep.without_metric("response_p50_s"),
        lambda: over_load({"response_p50_s": "p50", "response_p99_s": "p99"}, 1e3, "response time, ms", log=True),
    )
    report.figure("load_limits", sweep.without("load_limits", "seeds"), lambda: plots.load_limits(sweep["load_limits"], look))
    report.figure(
        "compliance_by_minute",
        sweep.without("minutes", "fixed_deadline_compliance_rate"),
        lambda: plots.compliance_by_minute(sweep["minutes"], *sweep.trim_s(), look),
    )
    report.figure(
        "utilisation",
        "" if sweep.nodes and busy.notna().any(axis=None) else "cells.csv is not there or holds no utilisation",
        lambda: plots.utilisation(busy, sweep.nodes, look),
    )
    report.figure(
        "rank_reversal",
        sweep.without_metric("rank_reversal_rate"),
        lambda: over_load({"rank_reversal_rate": ""}, 100, "rank reversals, % of probed decisions"),
    )
    report.figure("ablation", sweep.without("ablation", "difference"), lambda: plots.ablation(sweep["ablation"], look))


def _comparison_tables(sweep: _Comparison, report: _Report) -> None:
    fixed = {"metric": {"slo_compliance_rate": "fixed_deadline_compliance_rate"}}
    table = sweep["comparison"].replace(fixed)
    many = table["queue_discipline"].nunique() > 1
    for (load, discipline), rows in table.groupby(["load", "queue_discipline"]):
        name = f"load_{load:g}_{discipline}" if many else f"load_{load:g}"
        title = f"load {load:g}, {discipline}" if many else f"load {load:g}"
        report.table(f"policies_{name}", f"Policies at {title}: mean (95 % interval)", _wide(rows), "policies")
        report.table(
            f"differences_{name}", f"Differences to the reference at {title} (95 % interval)", _differences(rows), "differences"
        )
    report.table("load_limits", "Highest load", _one_discipline(sweep["load_limits"][[*_POLICY, "text"]]), "limits")
    for name, title in (("pareto", "Energy and misses"), ("gaps", "How far each policy is from the possible")):
        report.table(name, title, _one_discipline(sweep[name].sort_values("load", kind="stable")), "bounds")
    bounds = sweep["bounds"].groupby("load").mean().drop(columns="seed").reset_index()
    report.table("bounds", "Clairvoyant bounds, mean over the seeds", bounds, "bounds")
    for metric, rows in sweep["ablation"].replace(fixed).groupby("metric", sort=False):
        changes = rows.rename(columns={end: end.replace("difference", f"{metric}_difference") for end in rows.columns})
        changes = changes.rename(columns={"mean": metric, "p_holm": f"{metric}_p_holm"}).drop(columns="metric")
        report.table(f"ablation_{metric}", f"Without one criterion: {_kind_of(metric)[0]}", _one_discipline(changes), "ablation")
    loads = sweep.about.get("loads")
    report.table("loads", "Loads", _frame(loads if isinstance(loads, list) else []), "loads")


def _one_discipline(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the column of the queue discipline where there is only one."""
    return rows if rows["queue_discipline"].nunique() > 1 else rows.drop(columns="queue_discipline")


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per policy, a column per metric with its interval."""
    return _pivoted(rows, "mean", {"": "mean", "_low": "low", "_high": "high"})


def _differences(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per policy but the reference, columns for the difference, its interval and p of each metric."""
    ends = {f"_difference{end}": f"difference{end}" for end in ("", "_low", "_high")}
    return _pivoted(rows, "difference", {**ends, "_p_holm": "p_holm"})


def _pivoted(rows: pd.DataFrame, needed: str, parts: Mapping[str, str]) -> pd.DataFrame:
    known = rows[rows[needed].notna()].drop_duplicates(["scheduler", "metric"])
    policies = list(dict.fromkeys(known["scheduler"]))
    wide = _frame({"scheduler": policy} for policy in policies)
    for metric in dict.fromkeys(known["metric"]):
        of_metric = known[known["metric"] == metric].set_index("scheduler").reindex(policies)
        for suffix, column in parts.items():
            wide[f"{metric}{suffix}"] = of_metric[column].to_numpy()
    return wide


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = _Parser(prog="report.py", description="Make the report of a run or of a comparison again.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of a run or of a comparison")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the report goes (FOLDER)")
    parser.add_argument("--png", action="store_true", help="write the figures as PNG of 300 dpi too")
    try:
        options = parser.parse_args(arguments)
        print(write_report(options.folder, options.output, options.png))
    except HarnessError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
