"""All cells of a comparison run, and what they came to as tables in its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cluster.simulated import ignored_settings
from comparison.bounds import ClairvoyantBound, capacity_tasks_per_s
from comparison.cells import Cell, Result
from comparison.computation import Window, bound_of
from comparison.gaps import frontier, gaps
from comparison.load_limits import LoadLimit
from comparison.plan import Finish, Plan, find_limits, known_verdicts
from comparison.record import Sweep, write_json
from comparison.tables import ablation, compared, load_limits, pareto, reference_of
from comparison.wording import notes, verdict
from utils import HarnessError, write_text_atomically


class Finished(NamedTuple):
    """What all cells of a sweep came to."""

    cells: pd.DataFrame
    minutes: pd.DataFrame
    without: pd.DataFrame
    bounds: dict[tuple[float, int], ClairvoyantBound]
    limits: dict[tuple[str, str], list[LoadLimit]]


def run_sweep(plan: Plan, finish: Finish) -> Finished:
    """Run every cell of a sweep, those that its highest loads ask for too."""
    cells = plan.cells()
    results = finish(cells)
    of_kind: dict[str, list[tuple[Cell, Result]]] = {"run": [], "ablation": [], "bound": []}
    for cell in plan.in_order(cells):
        of_kind[cell.kind].append((cell, results[cell.key]))
    rows = [result["row"] for _, result in of_kind["run"]]
    limits = find_limits(plan, known_verdicts(plan, rows), finish) if plan.limits else {}
    return Finished(
        pd.DataFrame(rows),
        _minutes(of_kind["run"]),
        pd.DataFrame([{**result["row"], "without": cell.without} for cell, result in of_kind["ablation"]]),
        {(cell.settings.load, cell.settings.seed): bound_of(result) for cell, result in of_kind["bound"]},
        {policy: [limits[policy, seed] for seed in plan.seeds] for policy in plan.policies if plan.limits},
    )


def _minutes(runs: Sequence[tuple[Cell, Result]]) -> pd.DataFrame:
    """Compliance with the fixed deadline in each minute of arrival, mean over seeds, nothing trimmed: minutes.csv."""
    keys = ["scheduler", "queue_discipline", "load", "minute"]
    rows = [
        (*(result["row"][key] for key in keys[:-1]), minute, rate) for _, result in runs for minute, rate in result["minutes"]
    ]
    table = pd.DataFrame(rows, columns=[*keys, "fixed_deadline_compliance_rate"])
    return table.groupby(keys, sort=False, as_index=False).mean()


def write_tables(sweep: Sweep, done: Finished) -> dict[str, Any]:
    """Write every table of a sweep, and comparison.json last; its content.

    Raises:
        HarnessError: runs of one load and seed have met different scenarios, or the disk is full.
    """
    gap_table = gaps(done.cells, done.bounds) if done.bounds else None
    limit_table = load_limits(done.limits) if done.limits else None
    tables = {
        "cells": done.cells,
        "minutes": done.minutes,
        "comparison": compared(done.cells, reference_of(sweep.plan.schedulers)),
        "pareto": pareto(done.cells),
        "bounds": _bound_table(done.bounds) if done.bounds else None,
        "gaps": gap_table,
        "frontier": frontier(done.bounds) if done.bounds else None,
        "load_limits": limit_table,
        "ablation": ablation(done.cells, done.without) if len(done.without) else None,
    }
    for name, table in tables.items():
        if table is not None:
            _write_table(sweep.folder / f"{name}.csv", table)
    content = _content(sweep, done.cells, verdict(done.cells, gap_table, limit_table))
    write_json(sweep.folder / "comparison.json", content)
    return content


def _content(sweep: Sweep, cells: pd.DataFrame, shown: Sequence[str]) -> dict[str, Any]:
    """What comparison.json holds; `shown` is the verdict."""
    record, plan, settings = sweep.record, sweep.plan, sweep.plan.settings
    window = Window.of(settings.duration_s)
    cool_down_s = settings.duration_s - window.before_s
    capacity_per_s = capacity_tasks_per_s(
        plan.profile, list(plan.profile.nodes), settings.models, settings.requests.connections_per_node
    )
    loads = _loads(cells, window.length_s, capacity_per_s)
    said = ignored_settings(settings)
    if plan.earlier_profile:
        said.append("Runs with two performance profiles are compared: a difference may be theirs and not the policies'.")
    return {
        "sweep_id": record.sweep_id,
        "created_at": record.created_at,
        "verdict": list(shown),
        "performance_profile_sha256": plan.profile.sha256,
        "warnings": said,
        "notes": said
        + notes(
            seeds=len(plan.seeds),
            duration_s=settings.duration_s,
            warm_up_s=window.since_s,
            cool_down_s=cool_down_s,
            schedulers=plan.schedulers,
            loads=loads,
            capacity_tasks_per_s=capacity_per_s,
        ),
        "options": record.options.model_dump(mode="json"),
        "settings": record.settings,
        "reference": reference_of(plan.schedulers),
        "warm_up_s": window.since_s,
        "cool_down_s": cool_down_s,
        "capacity_tasks_per_s": capacity_per_s,
        "loads": loads,
        "versions": {**record.versions, **record.packages},
        "git_commit": record.git_commit,
    }


def _bound_table(bounds: Mapping[tuple[float, int], ClairvoyantBound]) -> pd.DataFrame:
    """Shares of the tasks, and joules above idle per task: bounds.csv."""
    rows = [
        {
            "load": load,
            "seed": seed,
            "tasks": bound.tasks,
            "miss_rate_per_task_minimum": bound.misses_per_task_minimum / bound.tasks,
            "miss_rate_bound": bound.misses / bound.tasks,
            "energy_per_task_minimum_j": bound.energy_per_task_minimum_j / bound.tasks,
            "energy_bound_j": bound.energy_j(bound.tasks) / bound.tasks,
            "energy_bound_at_fewest_misses_j": bound.energy_j(bound.misses) / bound.tasks,
        }
        for (load, seed), bound in bounds.items()
        if bound.tasks
    ]
    return pd.DataFrame(rows)


def _loads(cells: pd.DataFrame, window_s: float, capacity_per_s: float) -> list[dict[str, float | None]]:
    """Tasks per second that were dispatched at each load, mean over seeds, and as a share of what the cluster can serve.

    The share is None where no node serves one of the models, and the capacity is 0 for that.
    """
    rates = cells.groupby("load", sort=False)["tasks"].mean() / window_s
    return [
        {
            "load": float(load),
            "dispatched_tasks_per_s": float(rate),
            "fraction_of_capacity": float(rate / capacity_per_s) if capacity_per_s else None,
        }
        for load, rate in rates.items()
    ]


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV whole or not at all; floats in the shortest form that reads back as the same number, flags as true or false."""
    flags = {name: table[name].map({True: "true", False: "false"}) for name in table.columns if table[name].dtype == bool}
    try:
        write_text_atomically(path, table.assign(**flags).to_csv(index=False, lineterminator="\n"))
    except OSError as error:
        raise HarnessError(f"{path} cannot be written: {error.strerror}") from None
