"""What the benchmarks share: a figure with its target and what it stands beside."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Figure(NamedTuple):
    """One measured figure.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: its unit.
        target: the most it may be, or the least; None where it only stands for comparison.
        beside: what it is compared with, as (name, value in the same unit).
        at_least: whether the target is the least it may be.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    beside: tuple[str, float] | None = None
    at_least: bool = False


def median_figure(name: str, values: Sequence[float], unit: str, target: float | None = None) -> Figure:
    """The median of some repeats, which the name then counts."""
    return Figure(f"{name} (median of {len(values)})", statistics.median(values), unit, target)


def print_table(groups: Sequence[Callable[[], Sequence[Figure]]]) -> None:
    """Measure group after group and print one table; ratios are value / target and value / beside."""
    console = Console(width=150)
    table = Table("figure", "measured", "target", "of target", "beside", "ratio")
    for group in groups:
        for figure in group():
            beside = f"{figure.beside[0]}: {figure.beside[1]:.4g}" if figure.beside else ""
            table.add_row(
                figure.name,
                f"{figure.value:.4g} {figure.unit}",
                "" if figure.target is None else f"{'≥' if figure.at_least else '≤'} {figure.target:g}",
                "" if figure.target is None else f"{figure.value / figure.target:.2f}",
                beside,
                f"{figure.value / figure.beside[1]:.2f}" if figure.beside else "",
            )
            console.print(f"{figure.name}: {figure.value:.4g} {figure.unit}", highlight=False, style="dim")
    console.print(table)
