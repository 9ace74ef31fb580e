"""What a run shows on the terminal: how it goes while it runs, and its summary at the end."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.base import Cluster
from measurement.repeats import METRICS, Repeats
from prometheus_collector import PrometheusCollector
from settings import Settings
from slo_monitor import SloMonitor
from task import Outcome
from utils import supervised_thread

_REFRESH_S = 0.5
_PLAIN_REFRESH_S = 10.0


class Progress:
    """Shows how the run goes: a live table on a terminal, a line now and then elsewhere, nothing when quiet."""

    def __init__(
        self, console: Console, cluster: Cluster, monitor: SloMonitor, power: PrometheusCollector, settings: Settings
    ) -> None:
        self._console = console
        self._cluster = cluster
        self._monitor = monitor
        self._power = power
        self._settings = settings
        self._closing = threading.Event()
        self._thread = supervised_thread("progress", self._run, cluster.stop)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        if not self._console.is_terminal:
            while not self._closing.wait(_PLAIN_REFRESH_S):
                self._console.print(self._headline(), highlight=False)
            return
        with Live(self._picture(), console=self._console, auto_refresh=False, transient=True) as live:
            while not self._closing.wait(_REFRESH_S):
                live.update(self._picture(), refresh=True)

    def _headline(self) -> str:
        count = self._monitor.count
        compliance = self._monitor.compliance_rate()
        outcomes = ", ".join(f"{outcome.value.replace('_', ' ')} {count(outcome)}" for outcome in Outcome if count(outcome))
        elapsed_s = max(0.0, self._cluster.now_s())
        return f"{elapsed_s:5.0f} of {self._settings.duration_s:.0f} s   SLO {_percent(compliance)}   {outcomes or 'no task yet'}"

    def _picture(self) -> Group:
        table = Table()
        for name in ("node", "queue", "power W"):
            table.add_column(name, justify="left" if name == "node" else "right")
        for node in self._cluster.nodes:
            sample = self._power.latest.get(node.name)
            power_w = sample.power_w if sample and self._power.is_up(node.name, self._settings.power.max_age_s) else None
            power = "–" if power_w is None else f"{power_w:.2f}"
            table.add_row(node.name if node.up else f"{node.name} (out)", str(node.queue_depth), power)
        return Group(Text(self._headline()), table)


def print_summary(console: Console, summary: Mapping[str, Any], folder: Path) -> None:
    """What a person wants to know first: can it be believed, how well did the policy do, where are the files."""
    for reason in summary["invalid_reasons"]:
        console.print(f"INVALID: {reason}", style="bold red", highlight=False, markup=False, soft_wrap=True)
    for reason in summary["energy_invalid_reasons"]:
        console.print(f"ENERGY INVALID: {reason}", style="bold red", highlight=False, markup=False, soft_wrap=True)
    for warning in summary["warnings"]:
        console.print(f"WARNING: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    tasks, energy = summary["tasks"], summary["energy_j"]
    by_class = _by_name(summary["slo_compliance_rate_by_class"], _percent)
    table = Table(
        title=Text(f"{_replay_of(summary)}{summary['scheduler']} on the {summary['cluster']} cluster, seed {_seed(summary)}"),
        show_header=False,
    )
    energy_name = "energy" if summary["energy_valid"] else "energy (not valid)"
    rows = {
        "valid": "yes" if summary["valid"] else "no",
        "tasks": ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in tasks.items()),
        "SLO (adapted deadline)": f"{_percent(summary['slo_compliance_rate'])}  ({by_class})",
        "against the fixed deadline": f"{_percent(summary['fixed_deadline_compliance_rate'])}  "
        f"(achievable {_percent(summary['achievable_slo_rate'])})",
        "delivered in the cell": _percent(summary["delivered_rate"])
        + (" (estimate)" if summary["delivered_rate_is_estimate"] else ""),
        "response time": _milliseconds(summary["response_time_s"]),
        "throughput": f"{summary['throughput_tasks_per_s'] or 0:.1f} tasks/s over {summary['window_s']:.1f} s",
        energy_name: f"{_joules(energy['total'])}, above idle {_joules(energy['above_idle'])}, "
        f"{_joules(energy['above_idle_per_task'])} per task",
        "busy": _by_name(summary["utilisation"], _percent),
        "load fairness (Jain)": "–" if summary["load_fairness"] is None else f"{summary['load_fairness']:.3f}",
        "dispatch lag": _milliseconds(summary["dispatch_lag_s"], digits=2),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table)
    console.print(Text(f"files: {folder}"), soft_wrap=True)


def print_repeats(console: Console, table: Sequence[Repeats], path: Path) -> None:
    """The table of several runs, and where it is."""
    counted = max(row.counted for row in table)
    title = f"{table[0].runs} runs, {counted} of them counted: means, 95 % intervals, spread"
    shown = Table(title=Text(title))
    for name in ("", "mean", "95 % interval", "least", "greatest"):
        shown.add_column(name, justify="right" if name else "left", overflow="fold")  # no digit is cut off
    for row in table:
        _, label, scale = METRICS[row.metric]
        values = (row.mean, row.low, row.high, row.least, row.greatest)
        mean, low, high, least, greatest = ("–" if math.isnan(value) else f"{value * scale:.2f}" for value in values)
        shown.add_row(label, mean, "–" if math.isnan(row.low) else f"{low} to {high}", least, greatest)
    console.print(shown)
    console.print(Text(f"table: {path}"), soft_wrap=True)
    advice = "in virtual time equal seeds give equal runs, and differences have intervals"
    console.print(Text(f"To compare policies, use compare_schedulers.py: {advice}."), soft_wrap=True)


def _replay_of(summary: Mapping[str, Any]) -> str:
    return f"replay of {summary['trace']['file']}: " if summary["trace"] else ""


def _seed(summary: Mapping[str, Any]) -> str:
    return "unknown" if summary["seed"] is None else str(summary["seed"])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _by_name(figures: Mapping[str, float | None], text: Callable[[float | None], str]) -> str:
    return ", ".join(f"{name} {text(value)}" for name, value in figures.items())


def _milliseconds(figures: Mapping[str, float | None] | None, digits: int = 1) -> str:
    """Some of the figures; '–' for one that is infinite, since too many tasks have no answer."""
    if figures is None:
        return "–"
    shown = ((name, figures[name]) for name in ("mean", "p50", "p95", "p99", "max"))
    return ", ".join(f"{name} –" if value is None else f"{name} {value * 1e3:.{digits}f}" for name, value in shown) + " ms"


def _joules(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} J" if abs(value) >= 100 else f"{value:.3g} J"
