"""How true virtual time is: the same trace on the emulated cluster, with real processes over HTTP, and in virtual time.

    python3 -m benchmarks.fidelity --seconds 120 --repeats 5

What a request costs on this machine beside queue and inference is measured first, node by node, and given to the simulation as
the `request_overhead_ms` of a profile of its own; nothing is tuned. Differences are virtual time minus emulated.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table

from cluster.simulated import SimulatedCluster
from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from measurement.summary import percentiles
from performance_profile import PerformanceProfile, load_profile
from scenario import build_scenario
from scheduler import create_scheduler
from settings import Settings, load_settings
from task import DISPATCHED, TaskResult
from task_generator import Names, Trace, save_trace
from terminal.options import exit_status, positive
from utils import PROJECT_ROOT, HarnessError, random_stream

ALL = "all nodes"
BUSY = "busy"
BUSIEST = (0.85, 0.90)
"""Busy fraction of the busiest node at the load called BUSY."""
LOADS_SEARCHED = (0.25, 6.0)

_SEARCH_STEPS = 12
_CLOSE_ENOUGH = 0.005
_REQUESTS_PER_NODE = 24
_APART_S = 0.2
_MEASURING_RUNS = 3


class Figure(NamedTuple):
    """One compared figure.

    Attributes:
        key: its column.
        name: what it is.
        unit: of the figure itself, after `scale`.
        scale: from the unit of the result files to `unit`.
        relative: whether the difference is a share of the emulated figure (in %), else it is in percentage points.
        target: the most that the median difference may be, either way; None: there is none.
    """

    key: str
    name: str
    unit: str
    scale: float
    relative: bool
    target: float | None

    def difference(self, emulated: "pd.Series[float]", simulated: "pd.Series[float]") -> "pd.Series[float]":
        """Virtual time minus emulated, % or percentage points."""
        return 100 * (simulated / emulated - 1 if self.relative else simulated - emulated)

    @property
    def difference_unit(self) -> str:
        """Unit of the difference."""
        return "%" if self.relative else "points"


_BUSY = Figure("busy", "busy fraction", "%", 100.0, False, 2.0)
FIGURES = (
    Figure("tasks", "tasks", "", 1.0, True, None),
    Figure("missed_fixed", "missed the fixed deadline", "%", 100.0, False, 1.0),
    Figure("missed_adapted", "missed the adapted deadline", "%", 100.0, False, 1.0),
    Figure("response_mean", "response time, mean", "ms", 1e3, True, 5.0),
    Figure("response_p50", "response time, p50", "ms", 1e3, True, None),
    Figure("response_p95", "response time, p95", "ms", 1e3, True, 5.0),
    Figure("response_p99", "response time, p99", "ms", 1e3, True, None),
    Figure("above_idle", "energy above idle", "J", 1.0, True, 5.0),
    _BUSY,
)


class Run(NamedTuple):
    """What a run of main_pregenerated.py left: a row per task, and the summary."""

    results: pd.DataFrame
    summary: dict[str, Any]


class Pair(NamedTuple):
    """Figures of the same trace on both clusters: FIGURES by column, ALL and the nodes by row."""

    emulated: pd.DataFrame
    simulated: pd.DataFrame

    def differences(self) -> pd.DataFrame:
        """FIGURES by column, their differences; NaN for a node that had no task on the emulated cluster."""
        emulated = self.emulated.where(self.emulated["tasks"] > 0)
        return pd.DataFrame({f.key: f.difference(emulated[f.key], self.simulated[f.key]) for f in FIGURES})


def figures_of(run: Run) -> pd.DataFrame:
    """FIGURES (shares, seconds, joules) by column; by row those of all dispatched tasks and those of each node.

    A failed task counts with the node that it was last sent to. The busy fraction of ALL is the mean of the nodes'. Energy is
    the meters' over the window, minus idle power times the window; NaN where the run says that it is not valid.
    """
    summary = run.summary
    tasks = run.results[run.results["outcome"].isin([outcome.value for outcome in DISPATCHED])]
    nodes = list(summary["utilisation"])
    groups = {ALL: tasks, **{node: tasks[tasks["assigned_node"] == node] for node in nodes}}
    figures = pd.DataFrame.from_dict({name: _task_figures(group) for name, group in groups.items()}, orient="index")
    above_idle = {node: _above_idle_j(summary, node) for node in nodes}
    busy = summary["utilisation"]
    figures["above_idle"] = pd.Series({ALL: sum(above_idle.values()), **above_idle})
    figures["busy"] = pd.Series({ALL: statistics.mean(busy.values()), **busy})
    return figures


def _task_figures(tasks: pd.DataFrame) -> dict[str, float]:
    response_s = percentiles(tasks["response_time_s"].to_numpy(dtype=float)) or {}
    return {
        "tasks": len(tasks),
        "missed_fixed": 1 - _share(tasks["met_fixed_deadline"].astype(bool)),
        "missed_adapted": 1 - _share(tasks["outcome"] == "on_time"),
        **{f"response_{name}": response_s.get(name, math.nan) for name in ("mean", "p50", "p95", "p99")},
    }


def _share(holds: "pd.Series[bool]") -> float:
    return float(holds.mean()) if len(holds) else math.nan


def _above_idle_j(summary: Mapping[str, Any], node: str) -> float:
    total_j = summary["energy_j"]["by_node"][node]
    if total_j is None or not summary["energy_valid"]:
        return math.nan
    return float(total_j - summary["idle_w"][node] * summary["window_s"])


def overheads_ms(results: pd.DataFrame) -> dict[str, float]:
    """Median over each node's requests of what the response took beside queue and inference, milliseconds.

    It holds what the harness takes before it sends; this is the request overhead only where each request was alone.
    """
    return _medians_ms(results["response_time_s"] - results["server_queue_time_s"] - results["inference_time_s"], results)


def round_trips_ms(results: pd.DataFrame) -> dict[str, float]:
    """Median over each node's requests of the round trip beside queue and inference, milliseconds, however many there were."""
    round_trip_s = results["completion_time_s"] - results["start_time_s"]
    return _medians_ms(round_trip_s - results["server_queue_time_s"] - results["inference_time_s"], results)


def _medians_ms(values_s: "pd.Series[float]", results: pd.DataFrame) -> dict[str, float]:
    medians_s = values_s.groupby(results["assigned_node"]).median().dropna()
    return {str(node): 1e3 * float(value) for node, value in medians_s.items()}


def furthest_off(measured: Mapping[str, float], given: Mapping[str, float]) -> tuple[str, float]:
    """The node whose figure is furthest from the one given for it, and how far, signed; nodes of both only.

    Raises:
        HarnessError: no node is in both.
    """
    off = {node: value - given[node] for node, value in measured.items() if node in given}
    if not off:
        raise HarnessError("round trips: expected an answer of at least one node, found none")
    node = max(off, key=lambda name: abs(off[name]))
    return node, off[node]


def with_overheads(profile: PerformanceProfile, measured_ms: Mapping[str, float]) -> PerformanceProfile:
    """The profile with the request overheads that were measured.

    Raises:
        HarnessError: a node of the profile was not measured.
    """
    content = profile.model_dump(mode="json")
    for name, node in content["nodes"].items():
        if name not in measured_ms:
            raise HarnessError(f"request overhead of {name}: expected a measurement, found none")
        node["request_overhead_ms"], node["overhead_provenance"] = measured_ms[name], "measured"
    return PerformanceProfile.model_validate(content)


def lone_requests(settings: Settings, nodes: int) -> Trace:
    """Tasks so far apart that each is alone, from a device at rest in the centre; taken in turn, each node gets as many."""
    n = nodes * _REQUESTS_PER_NODE
    centre_m = settings.devices.area_side_m / 2
    return Trace(
        duration_s=n * _APART_S,
        task_id=np.arange(n),
        device_id=np.zeros(n, dtype=np.int64),
        device_type=Names.of(["fixed"] * n),
        model_name=Names.of([settings.models[0]] * n),
        slo_class=Names.of([next(iter(settings.slo_classes))] * n),
        arrival_time_s=np.arange(n, dtype=np.float64) * _APART_S,
        base_deadline_s=np.ones(n),
        position_m=np.full((2, n), centre_m),
        velocity_mps=np.zeros((2, n)),
        in_coverage=np.ones(n, dtype=bool),
        service_noise=np.zeros(n),
    )


def load_that_keeps_busy(busiest: Callable[[float], float]) -> float:
    """The load at which the busiest node is in the middle of BUSIEST, by bisection.

    Args:
        busiest: busy fraction of the busiest node at a load.

    Raises:
        HarnessError: no load in LOADS_SEARCHED comes within BUSIEST.
    """
    aim = sum(BUSIEST) / 2
    low, high = LOADS_SEARCHED
    tried: dict[float, float] = {}
    for _ in range(_SEARCH_STEPS):
        load = round((low + high) / 2, 3)
        tried[load] = busiest(load)
        if abs(tried[load] - aim) <= _CLOSE_ENOUGH:
            break
        low, high = (load, high) if tried[load] < aim else (low, load)
    best = min(tried, key=lambda load: abs(tried[load] - aim))
    if not BUSIEST[0] <= tried[best] <= BUSIEST[1]:
        raise HarnessError(
            f"load that keeps the busiest node {BUSIEST[0]:.0%} to {BUSIEST[1]:.0%} busy: expected one in"
            f" {LOADS_SEARCHED[0]:g} to {LOADS_SEARCHED[1]:g}, found {tried[best]:.1%} at {best:g} as the nearest"
        )
    return best


def busiest_in_virtual_time(settings: Settings, profile: PerformanceProfile) -> float:
    """Busy fraction of the busiest node over one run in virtual time, from the start of the load to the end of the drain."""
    settings, scenario = build_scenario(settings, None, None, profile.overhead_varies)
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    busy_s = dict.fromkeys(profile.nodes, 0.0)

    def record(result: TaskResult) -> None:
        if result.assigned_node is not None and result.inference_time_s is not None:
            busy_s[result.assigned_node] += result.inference_time_s

    cluster = SimulatedCluster(profile, list(profile.nodes), settings, scheduler, record)
    with cluster:
        run_experiment(scenario.trace, cluster, DeadlineAdapter(settings), record)
    return max(busy_s.values()) / cluster.now_s()


class Bench:
    """Runs main_pregenerated.py on both clusters and says how it goes.

    Args:
        settings: the experiment; its load is replaced.
        repeats: repeats of each load, each with a seed of its own from 0 on.
        folder: for what the runs read and write.
        console: where to say it.
    """

    def __init__(self, settings: Settings, repeats: int, folder: Path, console: Console) -> None:
        self._settings = settings
        self._seeds = range(repeats)
        self._folder = folder
        self._console = console
        self._profile = load_profile(settings.performance_profile)
        self._round_trips_ms: dict[str, float] = {}

    def measure_overheads(self) -> None:
        """Measure the request overhead of every node and let virtual time have it.

        Raises:
            HarnessError: no measuring run was valid.
        """
        trace = self._folder / "lone_requests.csv"
        save_trace(lone_requests(self._settings, len(self._profile.nodes)), trace)
        for _ in range(_MEASURING_RUNS):
            run = self._run("emulated", {}, "--scheduler", "round_robin", "--trace", str(trace))
            if self._is_valid("requests one at a time", run):
                break
        else:
            raise HarnessError(f"request overheads: expected a valid measuring run, found none in {_MEASURING_RUNS}")
        measured_ms, self._round_trips_ms = overheads_ms(run.results), round_trips_ms(run.results)
        given, self._profile = self._profile, with_overheads(self._profile, measured_ms)
        self._console.print(_overhead_table(given, measured_ms))
        content = yaml.safe_dump(self._profile.model_dump(mode="json"), sort_keys=False)  # policies see the nodes in this order
        (self._folder / "profile.yaml").write_text(content)

    def busy_load(self) -> float:
        """The load at which the busiest node of all seeds' runs in virtual time is, on average, as busy as BUSIEST says."""

        def busiest(load: float) -> float:
            runs = [self._settings.replace(load=load, seed=seed) for seed in self._seeds]
            return statistics.mean(busiest_in_virtual_time(settings, self._profile) for settings in runs)

        load = load_that_keeps_busy(busiest)
        self._console.print(f"load {load:g}: the busiest node is {busiest(load):.1%} busy in virtual time")
        return load

    def compare(self, load: float) -> list[Pair]:
        """The pairs of runs at one load whose emulated run was valid.

        Raises:
            HarnessError: the two runs of a pair did not meet the same world.
        """
        pairs = []
        for seed in self._seeds:
            options = ("--seed", str(seed), "--duration", str(self._settings.duration_s), "--scheduler", self._settings.scheduler)
            emulated = self._run("emulated", {"load": load}, *options)
            simulated = self._run("simulated", {"load": load, "performance_profile": "profile.yaml"}, *options)
            if emulated.summary["scenario_sha256"] != simulated.summary["scenario_sha256"]:
                raise HarnessError(f"load {load:g}, seed {seed}: expected the same scenario on both clusters, found two")
            if self._is_valid(f"load {load:g}, seed {seed}", emulated):
                node, off_ms = furthest_off(round_trips_ms(emulated.results), self._round_trips_ms)
                self._say(f"  its round trips beside those of the requests one at a time: at most {off_ms:+.2f} ms ({node})")
                pairs.append(Pair(figures_of(emulated), figures_of(simulated)))
        return pairs

    def _is_valid(self, name: str, run: Run) -> bool:
        summary = run.summary
        if not summary["valid"]:
            self._say(f"{name}: emulated run NOT valid, not counted: {'; '.join(summary['invalid_reasons'])}")
        elif not summary["energy_valid"]:
            self._say(f"{name}: emulated run valid, its energy not: {'; '.join(summary['energy_invalid_reasons'])}")
        else:
            lag_ms, woke_ms = summary["dispatch_lag_s"]["p99"] * 1e3, summary["emulated_wake_late_p99_s"] * 1e3
            self._say(f"{name}: emulated run valid (p99: dispatched {lag_ms:.2f} ms late, accelerators woke {woke_ms:g} ms late)")
        return bool(summary["valid"])

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, style="dim")

    def _run(self, cluster: str, changes: Mapping[str, Any], *options: str) -> Run:
        config = self._folder / "config.yaml"
        config.write_text(yaml.safe_dump(dict(changes)))
        with tempfile.TemporaryDirectory(dir=self._folder) as output:
            command = [sys.executable, "main_pregenerated.py", "--cluster", cluster, "--quiet", "--no-report"]
            command += ["--config", str(config), "--output", output, *options]
            ended = subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            said = ended.stderr.strip().splitlines()
            if ended.returncode != 0:
                raise HarnessError(
                    f"{cluster} run: expected status 0, found {ended.returncode}: {(said or ['nothing said'])[-1]}"
                )
            for line in said:
                self._say(f"  {cluster} run: {line}")
            return read_run(next(Path(output).iterdir()))


def read_run(folder: Path) -> Run:
    """What the run in `folder` left."""
    summary = json.loads(next(folder.glob("experiment_summary_*.json")).read_text())
    return Run(pd.read_csv(folder / "master_inference_results.csv"), summary)


def tables(pairs: Sequence[Pair]) -> tuple[Table, Table]:
    """Medians over the pairs: the figures of all nodes beside their targets, and the differences node by node."""
    differences = [pair.differences() for pair in pairs]
    medians = median_of(differences)
    emulated, simulated = median_of([pair.emulated for pair in pairs]), median_of([pair.simulated for pair in pairs])
    overall = Table("all nodes", "emulated", "virtual time", "difference", "least … most", "target", "met")
    for figure in FIGURES:
        key, unit = figure.key, figure.difference_unit
        spread = [float(difference.loc[ALL, key]) for difference in differences]
        overall.add_row(
            figure.name,
            *(f"{frame.loc[ALL, key] * figure.scale:.4g} {figure.unit}" for frame in (emulated, simulated)),
            _signed(float(medians.loc[ALL, key]), unit),
            f"{_signed(min(spread))} … {_signed(max(spread))}",
            *_judged(float(medians.loc[ALL, key]), figure.target, unit),
        )
    nodes = medians.drop(ALL)
    furthest = str(nodes["busy"].abs().idxmax())
    busy = float(nodes.loc[furthest, "busy"])
    judged = _judged(busy, _BUSY.target, _BUSY.difference_unit)
    overall.add_row(f"{_BUSY.name}, the node furthest off", furthest, "", _signed(busy, _BUSY.difference_unit), "", *judged)
    by_node = Table("node", "tasks", "busy", *(f"{f.name}, {f.difference_unit}" for f in FIGURES))
    for node, row in nodes.iterrows():
        own = (f"{emulated.loc[node, 'tasks']:.0f}", f"{emulated.loc[node, 'busy']:.1%}")
        by_node.add_row(str(node), *own, *(_signed(float(row[figure.key])) for figure in FIGURES))
    return overall, by_node


def median_of(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Median of each cell over frames of the same shape, NaN left out; NaN where nothing is left."""
    return pd.concat(frames).groupby(level=0, sort=False).median()


def _signed(difference: float, unit: str = "") -> str:
    return "none" if math.isnan(difference) else f"{difference:+.2f} {unit}".rstrip()


def _judged(difference: float, target: float | None, unit: str) -> tuple[str, str]:
    if target is None:
        return "", ""
    return f"≤ {target:g} {unit}", "yes" if abs(difference) <= target else "no"


def _overhead_table(profile: PerformanceProfile, measured_ms: Mapping[str, float]) -> Table:
    table = Table("node", "request overhead measured, ms", "profile, ms", "difference, ms")
    for node, figures in profile.nodes.items():
        measured, own = measured_ms[node], figures.request_overhead_ms
        table.add_row(node, f"{measured:.2f}", f"{own:.2f}", f"{measured - own:+.2f}")
    return table


def measure(settings: Settings, loads: Sequence[float | str], repeats: int, console: Console) -> None:
    """Measure overheads and every load, and print it all.

    Raises:
        HarnessError: a run could not be done.
    """
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, repeats, Path(folder), console)
        console.print(f"policy {settings.scheduler}, runs of {settings.duration_s:g} s, {repeats} repeats of each load")
        bench.measure_overheads()
        for wanted in loads:
            load = bench.busy_load() if isinstance(wanted, str) else wanted
            pairs = bench.compare(load)
            if not pairs:
                console.print(f"load {load:g}: not measured, none of {repeats} emulated runs was valid")
                continue
            console.print(f"load {load:g}, {settings.scheduler}: median of the {len(pairs)} valid of {repeats} repeats")
            for table in tables(pairs):
                console.print(table)


def _load(text: str) -> float | str:
    if text.strip() == BUSY:
        return BUSY
    return positive(text, f"multiples of the default load above 0, or {BUSY!r}")


def _loads(text: str) -> list[float | str]:
    return [_load(part) for part in text.split(",")]


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="length of each run (120)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each load, each with its own seed (5)")
    parser.add_argument(
        "--loads",
        type=_loads,
        default=[0.5, BUSY],
        metavar="L,…",
        help=f"loads; {BUSY}: the one that keeps the busiest node {BUSIEST[0]:.0%}% to {BUSIEST[1]:.0%}% busy (0.5,{BUSY})",
    )
    parser.add_argument("--scheduler", default="power_aware_topsis", metavar="NAME", help="the policy (power_aware_topsis)")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"argument --repeats: expected at least 1, found {options.repeats}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parse_options(arguments)

    def run() -> int:
        settings = load_settings().replace(duration_s=options.seconds, scheduler=options.scheduler)
        create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))  # a wrong name is said at once
        measure(settings, options.loads, options.repeats, Console(width=150))
        return 0

    return exit_status("benchmarks.fidelity", run)


if __name__ == "__main__":
    sys.exit(main())
