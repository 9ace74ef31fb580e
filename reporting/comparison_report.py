"""The page of a comparison."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from comparison.gaps import FRONTIER_COLUMNS, GAP_COLUMNS
from comparison.tables import (
    ABLATION_COLUMNS,
    COMPARISON_COLUMNS,
    COMPLIANCE,
    FAMILY,
    KEYS,
    LOAD_LIMIT_COLUMNS,
    PARETO_COLUMNS,
    by_fixed_deadline,
)
from reporting import comparison_plots as plots
from reporting.page import Page
from reporting.reading import header_of, list_at, mapping_at, number_of, read_json, read_table, rows_at
from reporting.style import looks
from reporting.tables import kind_of
from utils import UsageError

_POLICY = ("scheduler", "queue_discipline")
_SWEEP_COLUMNS = {
    "cells": (*KEYS, "achievable_slo_rate", "performance_profile_sha256"),
    "minutes": (*KEYS, "minute", "fixed_deadline_compliance_rate"),
    "comparison": COMPARISON_COLUMNS,
    "pareto": PARETO_COLUMNS,
    "bounds": (
        *("load", "seed", "tasks", "miss_rate_per_task_minimum", "miss_rate_bound", "energy_per_task_minimum_j"),
        *("energy_bound_j", "energy_bound_at_fewest_misses_j"),
    ),
    "gaps": GAP_COLUMNS,
    "frontier": FRONTIER_COLUMNS,
    "load_limits": LOAD_LIMIT_COLUMNS,
    "ablation": ABLATION_COLUMNS,
}
"""Columns of the tables that a comparison leaves in its folder, as far as the report shows them."""


def write_page(folder: Path, output: Path, png: bool, mixed_profiles: bool = False) -> Path:
    """Make the report of the comparison in `folder`; the path of its page.

    Raises:
        UsageError: the folder holds no readable comparison.json, its runs had different profiles and may not, or the output
            cannot be written.
        HarnessError: the disk is full.
    """
    about = read_json(folder / "comparison.json")
    page, sweep = Page(output, png), _read_comparison(folder, about)
    profiles = [sha256 for sha256 in sweep["cells"]["performance_profile_sha256"].unique() if sha256]
    if len(profiles) > 1 and not mixed_profiles:
        raise UsageError(
            f"{folder / 'cells.csv'}: expected runs with one performance profile, found {len(profiles)}"
            f" ({', '.join(sha256[:12] for sha256 in profiles)}); compare runs of one, or give --mixed-profiles"
        )
    _draw_figures(sweep, page)
    _add_tables(sweep, page)
    said = {name: list_at(about, name) for name in ("verdict", "notes")}
    return page.write("comparison.html", about=about, policies=sweep.policies(), family=FAMILY, **said)


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
        return self.tables["cells"].groupby(list(KEYS), sort=False)[columns].mean().reset_index()

    def trim_s(self) -> tuple[float, float, float]:
        """Length of a run, of its warm-up and of its cool-down, in seconds."""
        duration_s = number_of(mapping_at(self.about, "settings").get("duration_s"))
        if not duration_s > 0:
            duration_s = 60 * (float(self.tables["minutes"]["minute"].max()) + 1)
        trimmed_s = (number_of(self.about.get(name)) for name in ("warm_up_s", "cool_down_s"))
        warm_up_s, cool_down_s = (0.0 if math.isnan(length_s) else length_s for length_s in trimmed_s)
        return duration_s, warm_up_s, cool_down_s

    def without(self, name: str, column: str) -> str:
        """Why a table cannot be drawn: it has no row with a figure in `column`; '' where it has."""
        return "" if self.tables[name][column].notna().any() else f"{name}.csv is not there or holds none"

    @property
    def capacity(self) -> dict[float, float | None]:
        """Dispatched load as a fraction of the cluster's capacity, by load."""
        rows = rows_at(self.about, "loads")
        fractions = {number_of(row.get("load")): number_of(row.get("fraction_of_capacity")) for row in rows}
        return {load: None if math.isnan(fraction) else fraction for load, fraction in fractions.items()}


def _read_comparison(folder: Path, about: Mapping[str, Any]) -> _Comparison:
    busy = [name for name in header_of(folder / "cells.csv") if name.startswith("utilisation_")]
    tables = {name: read_table(folder / f"{name}.csv", columns) for name, columns in _SWEEP_COLUMNS.items() if name != "cells"}
    tables["cells"] = read_table(folder / "cells.csv", (*_SWEEP_COLUMNS["cells"], *busy))
    tables = {name: table[table["load"].notna()] if "load" in table else table for name, table in tables.items()}  # cut short
    for name in ("comparison", "ablation"):
        tables[name] = by_fixed_deadline(tables[name])
    return _Comparison(about, tables, [name.removeprefix("utilisation_") for name in busy])


def _draw_figures(sweep: _Comparison, page: Page) -> None:
    table, cells, frontier = sweep["comparison"], sweep["cells"], sweep["frontier"].dropna()
    look = looks(sweep.policies())
    over_load = partial(plots.over_load, table, look=look, capacity=sweep.capacity)
    achievable = cells.groupby("load")["achievable_slo_rate"].agg(lambda of_seeds: of_seeds.mean(skipna=False))
    achievable = achievable.dropna().reset_index()
    bound = frontier if len(frontier) else None
    busy = sweep.utilisation()
    page.figure(
        "attainment",
        sweep.without_metric(COMPLIANCE),
        lambda: plots.attainment(table, achievable, look, sweep.capacity),
    )
    page.figure("pareto", sweep.without("pareto", "miss_rate"), lambda: plots.pareto(sweep["pareto"], bound, look))
    page.figure(
        "energy_over_load",
        sweep.without_metric("above_idle_per_task_j"),
        lambda: over_load({"above_idle_per_task_j": ""}, 1e3, "energy above idle per task, mJ"),
    )
    page.figure(
        "response_over_load",
        sweep.without_metric("response_p50_s"),
        lambda: over_load({"response_p50_s": "p50", "response_p99_s": "p99"}, 1e3, "response time, ms", log=True),
    )
    page.figure("load_limits", sweep.without("load_limits", "seeds"), lambda: plots.load_limits(sweep["load_limits"], look))
    page.figure(
        "compliance_by_minute",
        sweep.without("minutes", "fixed_deadline_compliance_rate"),
        lambda: plots.compliance_by_minute(sweep["minutes"], *sweep.trim_s(), look),
    )
    page.figure(
        "utilisation",
        "" if sweep.nodes and busy.notna().any(axis=None) else "cells.csv is not there or holds no utilisation",
        lambda: plots.utilisation(busy, sweep.nodes, look),
    )
    page.figure(
        "rank_reversal",
        sweep.without_metric("rank_reversal_rate"),
        lambda: over_load({"rank_reversal_rate": ""}, 100, "rank reversals, % of probed decisions"),
    )
    page.figure("ablation", sweep.without("ablation", "difference"), lambda: plots.ablation(sweep["ablation"], look))


def _add_tables(sweep: _Comparison, page: Page) -> None:
    table = sweep["comparison"]
    many = table["queue_discipline"].nunique() > 1
    for (load, discipline), rows in table.groupby(["load", "queue_discipline"]):
        name = f"load_{load:g}_{discipline}" if many else f"load_{load:g}"
        title = f"load {load:g}, {discipline}" if many else f"load {load:g}"
        page.table(f"policies_{name}", f"Policies at {title}: mean (95 % interval)", _wide(rows), "policies")
        page.table(
            f"differences_{name}", f"Differences to the reference at {title} (95 % interval)", _differences(rows), "differences"
        )
    page.table("load_limits", "Highest load", _one_discipline(sweep["load_limits"][[*_POLICY, "text"]]), "limits")
    for name, title in (("pareto", "Energy and misses"), ("gaps", "How far each policy is from the possible")):
        page.table(name, title, _one_discipline(sweep[name].sort_values("load", kind="stable")), "bounds")
    bounds = sweep["bounds"].groupby("load").mean().drop(columns="seed").reset_index()
    page.table("bounds", "Clairvoyant bounds, mean over the seeds", bounds, "bounds")
    for metric, rows in sweep["ablation"].groupby("metric", sort=False):
        changes = rows.rename(columns={end: end.replace("difference", f"{metric}_difference") for end in rows.columns})
        changes = changes.rename(columns={"mean": metric, "p_holm": f"{metric}_p_holm"}).drop(columns="metric")
        page.table(f"ablation_{metric}", f"Without one criterion: {kind_of(metric)[0]}", _one_discipline(changes), "ablation")
    page.table("loads", "Loads", pd.DataFrame(rows_at(sweep.about, "loads")), "loads")


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
    wide = pd.DataFrame({"scheduler": policy} for policy in policies)
    for metric in dict.fromkeys(known["metric"]):
        of_metric = known[known["metric"] == metric].set_index("scheduler").reindex(policies)
        for suffix, column in parts.items():
            wide[f"{metric}{suffix}"] = of_metric[column].to_numpy()
    return wide
