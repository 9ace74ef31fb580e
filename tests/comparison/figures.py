"""Cells with made-up figures, and bounds that can be worked out by hand."""

from dataclasses import dataclass

import pandas as pd

from comparison.load_limits import LoadLimit


def cell(scheduler="topsis", seed=42, load=1.0, queue="fifo", compliance=0.9, energy=0.08, **figures):
    """A row of cells.csv of 1,000 tasks; what is not given has some value that no test looks at."""
    known = {
        "scheduler": scheduler,
        "queue_discipline": queue,
        "load": load,
        "seed": seed,
        "tasks": 1000,
        "slo_compliance_rate": compliance,
        "slo_hard": 0.8,
        "fixed_deadline_compliance_rate": compliance,
        "fixed_hard": 0.8,
        "base_deadline_compliance_rate": compliance,
        "achievable_slo_rate": 0.95,
        "response_p50_s": 0.05,
        "response_p99_s": 0.3,
        "above_idle_per_task_j": energy,
        "above_idle_per_on_time_task_j": 0.1,
        "load_fairness": 0.7,
        "failed": 0,
        "unanswered": 0,
        "missed": round(1000 * (1 - compliance)),
        "rank_reversal_rate": None,
        "adapted_deadline_compliance_rate": compliance,
        "scenario_sha256": f"{load:04.1f}{seed}" * 8,
    }
    return {**known, **figures}


def cells(figures, load=1.0, queue="fifo", achievable=0.95):
    """Cells of some policies: per policy its compliance and its energy, one entry per seed."""
    return pd.DataFrame(
        [
            cell(scheduler, 42 + number, load, queue, compliance, energy, achievable_slo_rate=achievable)
            for scheduler, (compliances, energies) in figures.items()
            for number, (compliance, energy) in enumerate(zip(compliances, energies, strict=True))
        ]
    )


def row(table, **keys):
    """The one row of `table` with these fields."""
    for key, value in keys.items():
        table = table[table[key] == value]
    assert len(table) == 1
    return table.iloc[0]


THREE = {
    "earliest_completion": ([0.90, 0.92, 0.94], [0.09] * 3),
    "topsis": ([0.88, 0.91, 0.92], [0.07, 0.08, 0.09]),
    "random": ([0.5, 0.6, 0.7], [0.1] * 3),
}


@dataclass
class PricedBound:
    """A clairvoyant bound as comparison/bounds.py makes them."""

    tasks: int
    misses: int
    prices: list[tuple[float, float]]

    def energy_j(self, misses):
        return max(value - price * misses for price, value in self.prices)


BOUNDS = {(1.0, 42): PricedBound(1000, 30, [(0, 50.0), (0.5, 90.0)]), (1.0, 43): PricedBound(1000, 50, [(0, 60.0), (0.5, 110.0)])}


BELOW, ABOVE = LoadLimit(None, "below"), LoadLimit(None, "above")


def limits(*loads):
    """Limits of some seeds: a load, or BELOW or ABOVE."""
    return [load if isinstance(load, LoadLimit) else LoadLimit(load, "found") for load in loads]
