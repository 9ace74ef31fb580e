"""Names of the figures, changing the folder of a run, and looking at what a report wrote."""

import csv
import json
import re
from pathlib import Path
from typing import Any

RUN_FIGURES = {"outcomes", "response_times", "queue_depth", "power", "nodes", "energy", "map"}
COMPARISON_FIGURES = {
    "attainment",
    "pareto",
    "energy_over_load",
    "response_over_load",
    "load_limits",
    "compliance_by_minute",
    "rank_reversal",
    "ablation",
    "utilisation",
}


JUNK: tuple[Any, ...] = (
    3,
    -1,
    True,
    "x",
    "\ud800",
    [],
    [1, 2],
    [[1]],
    ["a", None],
    {"a": None},
    {"a": "x"},
    [{"a": {}}],
    float("nan"),
    10**400,
)
"""What a damaged file may hold where something else belongs."""


def summary_of(folder: Path) -> Path:
    (path,) = folder.glob("experiment_summary_*.json")
    return path


def change_summary(folder: Path, **changes) -> None:
    path = summary_of(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_rows(path: Path, change) -> None:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in map(change, reader) if row is not None]
        names = reader.fieldnames or []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def figures_in(page: str) -> set[str]:
    return set(re.findall(r'<figure id="(\w+)">', page))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
