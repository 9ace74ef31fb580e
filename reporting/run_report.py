"""The page of one run."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from measurement.summary import times_of_all
from performance_profile import PerformanceProfile, load_profile
from reporting import run_plots as plots
from reporting.page import Page
from reporting.reading import header_of, list_at, mapping_at, number_of, read_json, read_table, rows_at
from task import DISPATCHED
from utils import UsageError

MOST_NODES = 12
"""Nodes that a figure of one run shows; the busiest where there are more."""

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


def write_page(folder: Path, output: Path, png: bool) -> Path:
    """Make the report of the run in `folder`; the path of its page.

    Raises:
        UsageError: the folder holds no readable summary, or the output cannot be written.
        HarnessError: the disk is full.
    """
    summary = _summary_of(folder)
    page, run = Page(output, png), _read_run(folder, summary)
    _draw_figures(run, page)
    _add_tables(run, page)
    profile = _profile_of(folder, run)
    if profile:
        _add_profile(profile, page)
    return page.write(
        "run.html",
        summary=summary,
        run=run,
        profile=profile,
        invalid_reasons=list_at(summary, "invalid_reasons"),
        energy_invalid_reasons=list_at(summary, "energy_invalid_reasons"),
        warnings=list_at(summary, "warnings"),
        compliance_by_class=mapping_at(summary, "slo_compliance_rate_by_class"),
        fixed_by_class=mapping_at(summary, "fixed_deadline_compliance_rate_by_class"),
    )


def _summary_of(folder: Path) -> dict[str, Any]:
    found = sorted(folder.glob("experiment_summary_*.json"))
    if len(found) != 1:
        kinds = "experiment_summary_<id>.json of a run or comparison.json of a comparison"
        raise UsageError(f"{folder}: expected one {kinds}, found {len(found) or 'neither'}")
    return read_json(found[0])


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
        return mapping_at(self.summary, "settings")

    @property
    def dispatched(self) -> pd.DataFrame:
        return self.tasks[self.tasks["outcome"].isin(DISPATCHED)]

    @property
    def duration_s(self) -> float:
        lengths_s = (number_of(self.settings.get("duration_s")), float(self.tasks["arrival_time_s"].max()))
        return next((length_s for length_s in lengths_s if length_s > 0), 1.0)

    @property
    def idle_w(self) -> dict[str, float]:
        return _numbers(mapping_at(self.summary, "idle_w"))

    @property
    def busy(self) -> dict[str, float]:
        """Busy share of the window by node."""
        return _numbers(mapping_at(self.summary, "utilisation"))

    def deadlines_s(self) -> dict[str, tuple[float, float]]:
        """Least and greatest base deadline by SLO class."""
        classes = mapping_at(self.settings, "slo_classes")
        ranges = {name: [number_of(end) for end in list_at(mapping_at(classes, name), "base_deadline_s")] for name in classes}
        return {name: (ends[0], ends[1]) for name, ends in ranges.items() if len(ends) == 2 and 0 < ends[0] <= ends[1]}


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """What is a number in a mapping."""
    numbers = {name: number_of(value) for name, value in content.items()}
    return {name: number for name, number in numbers.items() if not math.isnan(number)}


def _read_run(folder: Path, summary: Mapping[str, Any]) -> _Run:
    tasks = read_table(folder / "master_inference_results.csv", _RESULT_COLUMNS)
    tasks = tasks[tasks["arrival_time_s"].notna()]  # a row that was cut short
    decisions = _one_of(folder, "scheduling_decisions_*.csv")
    offered = [name.removeprefix("queue_depth_") for name in header_of(decisions) if name.startswith("queue_depth_")]
    served = tasks["assigned_node"][tasks["assigned_node"] != ""].value_counts()
    nodes = offered or list(mapping_at(summary, "utilisation")) or list(served.index)
    busiest = sorted(nodes, key=lambda node: -int(served.get(node, 0)))[:MOST_NODES]
    shown = [node for node in nodes if node in busiest]
    columns = [f"{kind}_{node}" for node in shown for kind in ("queue_depth", "power_w")]
    return _Run(
        summary,
        tasks,
        read_table(decisions, ["decision_time_s", *columns]),
        read_table(_one_of(folder, "devices_*.csv"), _DEVICE_COLUMNS),
        read_table(_one_of(folder, "slo_violations_*.csv"), _VIOLATION_COLUMNS),
        nodes,
        shown,
    )


def _one_of(folder: Path, pattern: str) -> Path:
    """The file of that kind; a name that does not exist where there is none."""
    return next(iter(sorted(folder.glob(pattern))), folder / pattern)


def _draw_figures(run: _Run, page: Page) -> None:
    energy, area = _energy_by_node(run), _numbers(mapping_at(run.settings, "devices"))
    by_minute = pd.DataFrame(
        {name: number_of(row.get(name)) for name in ("minute", "in_cell_share")} for row in rows_at(run.summary, "by_minute")
    ).reindex(columns=["minute", "in_cell_share"])
    figures = {
        "outcomes": lambda: plots.outcomes_over_time(run.tasks, by_minute.dropna(), run.duration_s),
        "response_times": lambda: plots.response_time_cdf(run.dispatched, run.deadlines_s()),
        "queue_depth": lambda: plots.queue_depth(run.decisions, run.shown, run.duration_s),
        "power": lambda: plots.power(run.decisions, run.shown, run.duration_s, run.idle_w),
        "nodes": lambda: plots.work_by_node(run.dispatched, run.shown, run.busy),
        "energy": lambda: plots.energy_by_node(energy[energy["node"].isin(run.shown)]),
        "map": lambda: plots.device_map(run.tasks, run.devices, area["area_side_m"], area["cell_radius_m"]),
    }
    missing = _missing(run, energy, area)
    for name, draw in figures.items():
        page.figure(name, missing[name], draw)


def _missing(run: _Run, energy: pd.DataFrame, area: Mapping[str, float]) -> dict[str, str]:
    """Why a figure cannot be drawn, by its name; '' where it can."""

    def unless(known: Any, reason: str) -> str:
        return "" if known else reason

    def seen(kind: str) -> bool:
        return bool(run.decisions[[name for name in run.decisions if name.startswith(kind)]].notna().any(axis=None))

    no_tasks = unless(len(run.tasks), "master_inference_results.csv holds no task")
    no_dispatched = no_tasks or unless(len(run.dispatched), "no task was dispatched to its end")
    no_decisions = unless(seen("queue_depth_"), "the file of decisions holds none")
    no_positions = no_tasks or unless(run.tasks["device_x_m"].notna().any(), "no positions are known")
    return {
        "outcomes": no_tasks,
        "response_times": no_dispatched,
        "queue_depth": no_decisions,
        "power": no_decisions or unless(seen("power_w_"), "no power was measured"),
        "nodes": no_dispatched or unless(run.shown, "no node is known"),
        "energy": unless(len(energy) and energy["above_idle_j"].notna().any(), "no energy by node is known"),
        "map": no_positions
        or unless(area.get("area_side_m", 0) > 0 and area.get("cell_radius_m", 0) > 0, "the settings name no area"),
    }


def _energy_by_node(run: _Run) -> pd.DataFrame:
    """Energy of each node, and what of it is idle power over the window."""
    total_j = _numbers(mapping_at(mapping_at(run.summary, "energy_j"), "by_node"))
    window_s = number_of(run.summary.get("window_s"))
    rows = []
    for node in run.nodes:
        node_j = total_j.get(node, math.nan)
        idle_j = run.idle_w.get(node, math.nan) * window_s
        rows.append({"node": node, "total_j": node_j, "above_idle_j": node_j - idle_j, "idle_j": idle_j})
    return pd.DataFrame(rows)


def _add_tables(run: _Run, page: Page) -> None:
    page.table("classes", "By SLO class", _by_class(run), "results")
    page.table("times", "Times", _times(run.summary), "results")
    page.table("nodes", "By node", _by_node(run), "results")
    violations = run.violations.groupby(["slo_class", "model_name"])
    worst = violations.agg(
        late=("outcome", lambda of: (of == "late").sum()), failed=("outcome", lambda of: (of == "failed").sum())
    )
    endless = run.violations["excess_s"].fillna(math.inf)  # a task that was never answered is over its deadline without end
    worst["excess_p50_s"] = endless.groupby([run.violations["slo_class"], run.violations["model_name"]]).median()
    page.table("violations", "Late and failed tasks", worst.astype(float).replace(math.inf, math.nan).reset_index(), "results")
    errors = run.tasks["error"][run.tasks["error"] != ""].value_counts().head(20)
    page.table("errors", "Why tasks failed", errors.rename_axis("error").reset_index(name="times"), "results")
    by_minute = pd.DataFrame(rows_at(run.summary, "by_minute"))
    minutes = by_minute.rename(columns={"slo_compliance_rate": "adapted_deadline_compliance_rate"})
    page.table("minutes", "By minute of arrival", minutes, "results")


def _by_class(run: _Run) -> pd.DataFrame:
    rows = []
    for name, of_class in run.dispatched.groupby("slo_class", sort=False):
        response_s = times_of_all(of_class["response_time_s"].to_numpy(dtype=float)) or {}
        rows.append(
            {
                "slo_class": name,
                "dispatched": len(of_class),
                **{outcome.value: int((of_class["outcome"] == outcome).sum()) for outcome in DISPATCHED},
                "adapted_deadline_compliance_rate": float((of_class["outcome"] == "on_time").mean()),
                "fixed_deadline_compliance_rate": float(of_class["met_fixed_deadline"].mean()),
                "response_p50_s": response_s.get("p50"),
                "response_p99_s": response_s.get("p99"),
            }
        )
    order = list(run.deadlines_s())
    return pd.DataFrame(sorted(rows, key=lambda row: order.index(row["slo_class"]) if row["slo_class"] in order else len(order)))


def _times(summary: Mapping[str, Any]) -> pd.DataFrame:
    kinds = ("response_time_s", "waiting_time_s", "inference_time_s", "dispatch_lag_s", "decision_duration_s")
    names = ("mean", "p50", "p90", "p95", "p99", "p999", "max")
    rows = []
    for kind in kinds:
        if figures := mapping_at(summary, kind):
            quantity = kind.removesuffix("_s").replace("_", " ")
            rows.append({"quantity": quantity, **{f"{name}_s": figures.get(name) for name in names}})
    return pd.DataFrame(rows)


def _by_node(run: _Run) -> pd.DataFrame:
    served = run.dispatched["assigned_node"].value_counts()
    energy = {row["node"]: row for row in _energy_by_node(run).to_dict("records")}
    return pd.DataFrame(
        {
            "node": node,
            "dispatched": int(served.get(node, 0)),
            "busy": run.busy.get(node),
            **{name: energy[node][name] for name in ("total_j", "above_idle_j", "idle_j")},
            "idle_w": run.idle_w.get(node),
        }
        for node in run.nodes
    )


def _profile_of(folder: Path, run: _Run) -> PerformanceProfile | None:
    """The profile that the run was made with; where its folder does not hold it, what stands now where the run's settings point.

    None where neither can be read.
    """
    with suppress(UsageError, ValueError):
        return PerformanceProfile.model_validate(read_json(folder / "settings.json").get("performance_profile"))
    with suppress(UsageError, ValueError):  # ValueError: no path at all
        return load_profile(Path(str(run.settings.get("performance_profile"))))
    return None


def _add_profile(profile: PerformanceProfile, page: Page) -> None:
    nodes = pd.DataFrame(
        {
            "node": name,
            "idle_w": node.idle_w,
            "busy_w": node.busy_w,
            "power_provenance": node.power_provenance,
            "request_overhead_s": node.request_overhead_ms / 1e3,
            "overhead_provenance": node.overhead_provenance,
            "overhead_cv": node.overhead_cv,
            "overhead_w": node.overhead_w,
        }
        for name, node in profile.nodes.items()
    )
    page.table("profile_nodes", "Performance profile: nodes", nodes, "profile")
    latency = pd.DataFrame(
        {
            "model_name": name,
            "least_mean_s": min(model.mean_ms.values(), default=math.nan) / 1e3,
            "greatest_mean_s": max(model.mean_ms.values(), default=math.nan) / 1e3,
            "provenance": model.provenance,
            "note": model.note,
        }
        for name, model in profile.latency.items()
    )
    page.table("profile_latency", "Performance profile: mean accelerator time", latency, "profile")
