"""What a cell comes to, computed in memory on whichever worker has it."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.simulated import SimulatedCluster
from comparison.bounds import ClairvoyantBound, clairvoyant_bound, fixed_deadlines_s
from comparison.cells import Cell, Kind, Result, code_hash
from comparison.load_limits import SHARE_OF_ACHIEVABLE
from comparison.rank_reversal import RankReversalProbe
from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from measurement.summary import jain_index, mean, ratio, times_of_all
from measurement.task_table import TaskFigures
from metric_collector import MetricCollector
from performance_profile import PerformanceProfile
from scenario import Scenario, build_scenario
from scheduler import create_scheduler
from scheduler.topsis_scheduler import TopsisScheduler
from settings import Settings
from task import DISPATCHED, Outcome, TaskResult
from task_generator import scenario_sha256
from utils import HarnessError, StopRequested, random_stream, text_of

Bools = NDArray[np.bool_]

_ROUNDING_S = 1e-9
"""More than rounding makes of the sum of an arrival time and a deadline."""


class Window(NamedTuple):
    """Tasks that arrive in [since_s, before_s) count: the warm-up before and the cool-down after are left out; seconds."""

    since_s: float
    before_s: float

    @classmethod
    def of(cls, duration_s: float) -> "Window":
        """The window of a run: 60 s of warm-up and 10 s of cool-down, in short runs a tenth and a sixtieth."""
        return cls(min(60.0, duration_s / 10), duration_s - min(10.0, duration_s / 60))

    @property
    def length_s(self) -> float:
        """Its length, seconds."""
        return self.before_s - self.since_s


class Ended(NamedTuple):
    """What a worker says of a cell: its result, or why there is none."""

    key: str
    result: Result | None
    error: str | None = None


def run_cell(cell: Cell) -> Ended:
    """Run a cell on this worker; an error is told, not raised, since not every backend brings an exception home."""
    try:
        create_scheduler(cell.settings.scheduler, cell.settings, random_stream(cell.settings.seed, "policy"))
        if code_hash(cell.settings.scheduler) != cell.code:
            raise HarnessError("the source code on this worker is not that with which the sweep was planned")
        return Ended(cell.key, _RUN[cell.kind](cell))
    except StopRequested:
        raise
    except BaseException as error:  # whatever a cell dies of ends the sweep with one line that names the cell
        what = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {text_of(error)}"
        return Ended(cell.key, None, f"cell {cell.name}: {what}")


class _World(NamedTuple):
    scenario: Scenario
    sha256: str
    fixed_deadline_s: NDArray[np.float64]
    counted: Bools
    """Whether a task of the trace is dispatched and arrives in the window."""


class _LastWorld(threading.local):
    """The world of this thread's latest cell: the next one mostly has the same, and devices walk on as they are asked."""

    key = ""
    world: _World | None = None


_last = _LastWorld()


def _world(settings: Settings, profile: PerformanceProfile) -> _World:
    key = f"{profile.overhead_varies} " + settings.model_dump_json(
        include={"seed", "duration_s", "devices", "load", "models", "slo_classes", "exit_safety"}
    )
    if _last.world is None or _last.key != key:
        _last.world = None
        _, scenario = build_scenario(settings, None, None, profile.overhead_varies)
        trace, window = scenario.trace, Window.of(settings.duration_s)
        counted = trace.in_coverage & (trace.arrival_time_s >= window.since_s) & (trace.arrival_time_s < window.before_s)
        _last.world = _World(scenario, scenario_sha256(settings, trace), fixed_deadlines_s(trace, settings), counted)
        _last.key = key
    return _last.world


def _run(cell: Cell) -> Result:
    """A policy's row of cells.csv and its compliance per minute."""
    settings, profile = cell.settings, cell.profile
    world, names = _world(settings, profile), list(profile.nodes)
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    probe = None
    if isinstance(scheduler, TopsisScheduler) and type(scheduler).schedule is TopsisScheduler.schedule:
        probe = RankReversalProbe(scheduler)
    collector = MetricCollector(settings, profile, names, world.scenario.mobility)
    with SimulatedCluster(profile, names, settings, probe or scheduler, collector.record) as cluster:
        run_experiment(world.scenario.trace, cluster, DeadlineAdapter(settings), collector.record)
    if cluster.failure:
        raise cluster.failure
    dispatched = collector.tasks().of(*DISPATCHED)
    window = Window.of(settings.duration_s)
    counted = dispatched.arriving(*window)
    utilisation = {name: _busy_s(dispatched.on_node(name), profile, name, window) / window.length_s for name in names}
    unanswered = counted.unanswered
    answered = counted.where(~np.isnan(counted["completion_time_s"]))
    untrimmed_met = mean(dispatched["met_fixed_deadline"])
    met = mean(counted["met_fixed_deadline"])
    met_of_class = {name: mean(counted.in_class(name)["met_fixed_deadline"]) for name in settings.slo_classes}
    response: Mapping[str, float | None] = times_of_all(counted["response_time_s"]) or dict.fromkeys(
        ("mean", "p50", "p95", "p99")
    )
    row = {
        "scheduler": settings.scheduler,
        "queue_discipline": settings.queue_discipline,
        "load": settings.load,
        "seed": settings.seed,
        "tasks": len(counted),
        "slo_compliance_rate": met,
        **{f"slo_{name}": share for name, share in met_of_class.items()},
        "fixed_deadline_compliance_rate": met,
        "base_deadline_compliance_rate": mean(counted["met_base_deadline"]),
        "achievable_slo_rate": mean(collector.achievable(counted)),
        "response_p50_s": response["p50"],
        "response_p99_s": response["p99"],
        **_energy_figures(counted, collector),
        "load_fairness": jain_index(list(utilisation.values())),
        "adapted_deadline_compliance_rate": ratio(len(counted.of(Outcome.ON_TIME)), len(counted)),
        "delivered_rate": ratio(collector.delivered_count(answered), len(counted)),
        "response_mean_s": response["mean"],
        "response_p95_s": response["p95"],
        "failed": len(counted.of(Outcome.FAILED)),
        "unanswered": len(unanswered),
        "missed": _missed(counted),
        "rank_reversal_rate": probe.rate if probe else None,
        "untrimmed_slo_compliance_rate": untrimmed_met,
        "untrimmed_above_idle_per_task_j": _energy_figures(dispatched, collector)["above_idle_per_task_j"],
        **{f"utilisation_{name}": share for name, share in utilisation.items()},
        "scenario_sha256": world.sha256,
        **{f"fixed_{name}": share for name, share in met_of_class.items()},
        "untrimmed_fixed_deadline_compliance_rate": untrimmed_met,
        "performance_profile_sha256": profile.sha256,
    }
    return {"row": row, "minutes": _compliance_by_minute(dispatched)}


def _missed(tasks: TaskFigures) -> int:
    return len(tasks) - int(tasks["met_fixed_deadline"].sum())


def _energy_figures(tasks: TaskFigures, collector: MetricCollector) -> dict[str, float | None]:
    """Energy above idle of `tasks`, answered or not, joules per task and per task that met its fixed deadline."""
    above_idle_j = collector.above_idle_j(tasks)
    return {
        "above_idle_per_task_j": ratio(above_idle_j, len(tasks)),
        "above_idle_per_on_time_task_j": ratio(above_idle_j, len(tasks) - _missed(tasks)),
    }


def _busy_s(tasks: TaskFigures, profile: PerformanceProfile, node: str, window: Window) -> float:
    """Seconds within the window that the accelerator of a node was busy with `tasks`, all of that node.

    Half of a request's overhead lies behind its inference.
    """
    end_s = tasks["completion_time_s"] - profile.overhead_of_tasks_s(node, tasks["overhead_noise"]) / 2
    start_s = end_s - tasks["inference_time_s"]
    inside_s = np.minimum(end_s, window.before_s) - np.maximum(start_s, window.since_s)
    return float(np.nansum(np.maximum(inside_s, 0.0)))


def _compliance_by_minute(dispatched: TaskFigures) -> list[tuple[int, float]]:
    """Compliance with the fixed deadline of the tasks that arrived in each minute that had some."""
    minute = np.floor(dispatched["arrival_time_s"] / 60).astype(np.int64)
    tasks, met = np.bincount(minute), np.bincount(minute, weights=dispatched["met_fixed_deadline"])
    return [(number, float(met[number] / tasks[number])) for number in np.flatnonzero(tasks).tolist()]


def _bound(cell: Cell) -> Result:
    """What no policy can beat in this scenario."""
    world = _world(cell.settings, cell.profile)
    trace, counted = world.scenario.trace, world.counted
    bound = clairvoyant_bound(
        trace.arrival_time_s[counted],
        world.fixed_deadline_s[counted],
        [trace.model_name.names[code] for code in trace.model_name.codes[counted].tolist()],
        trace.service_noise[counted],
        cell.profile,
        list(cell.profile.nodes),
        until_s=cell.settings.duration_s + cell.settings.requests.drain_timeout_s,
        overhead_noise=None if trace.overhead_noise is None else trace.overhead_noise[counted],
    )
    return {**vars(bound), "prices": [list(pair) for pair in bound.prices]}


def bound_of(result: Result) -> ClairvoyantBound:
    """The bound that a cell's result holds."""
    return ClairvoyantBound(**{**result, "prices": tuple((price, value) for price, value in result["prices"])})


class _NotBorne(Exception):  # noqa: N818 - no error: ends a run whose verdict is known
    """More tasks have missed their deadline than a load that is borne allows."""


class _Verdict:
    """Counts the tasks that met their fixed deadline, and gives up as soon as too many have missed it, answered or not.

    Args:
        due_s: by when each task that counts must be answered, seconds after the start of the load.
        allowed: most misses.
        window: which tasks count.
    """

    def __init__(self, due_s: NDArray[np.float64], allowed: int, window: Window) -> None:
        self.allowed = allowed
        self.missed = len(due_s)
        self._due_s = np.sort(due_s)[::-1].tolist()
        self._window = window

    def record(self, result: TaskResult) -> None:
        """Take in a task that has ended."""
        task, answered_s = result.task, result.completion_time_s
        if answered_s is None:
            return
        if self._window.since_s <= task.arrival_time_s < self._window.before_s and result.met(task.fixed_deadline_s):
            self.missed -= 1
        due_s = self._due_s
        while due_s and due_s[-1] < answered_s - _ROUNDING_S:
            due_s.pop()
        if self.missed - len(due_s) > self.allowed:
            raise _NotBorne


def _limit(cell: Cell) -> Result:
    """Whether the policy bears the load: compliance of at least SHARE_OF_ACHIEVABLE of the achievable one, over the window.

    None where no task is dispatched in the window.
    """
    settings, profile = cell.settings, cell.profile
    world, names = _world(settings, profile), list(profile.nodes)
    if not world.counted.any():
        return {"meets": None}
    due_s = (world.scenario.trace.arrival_time_s + world.fixed_deadline_s)[world.counted]
    verdict = _Verdict(due_s, misses_allowed(len(due_s), _achievable(world, cell)), Window.of(settings.duration_s))
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    try:
        with SimulatedCluster(profile, names, settings, scheduler, verdict.record) as cluster:
            run_experiment(world.scenario.trace, cluster, DeadlineAdapter(settings), verdict.record)
    except _NotBorne:
        return {"meets": False}
    if cluster.failure:
        raise cluster.failure
    return {"meets": verdict.missed <= verdict.allowed}


def _achievable(world: _World, cell: Cell) -> int:
    """How many of the tasks that count could be met by an idle cluster, known before any is run."""
    trace, profile = world.scenario.trace, cell.profile
    model = trace.model_name
    columns = {
        "fixed_deadline_s": world.fixed_deadline_s,
        "service_noise": trace.service_noise,
        "overhead_noise": np.full(len(trace), np.nan) if trace.overhead_noise is None else trace.overhead_noise,
        "model_name": model.codes.astype(float),
    }
    codes: dict[str | None, float] = {name: float(code) for code, name in enumerate(model.names)}
    tasks = TaskFigures(columns, {"model_name": codes}, np.flatnonzero(world.counted))
    collector = MetricCollector(cell.settings, profile, list(profile.nodes), world.scenario.mobility)
    return int(collector.achievable(tasks).sum())


def misses_allowed(tasks: int, achievable: int) -> int:
    """Most misses among `tasks` with which a load counts as borne, when `achievable` of them could be met at all."""
    return math.floor(tasks - SHARE_OF_ACHIEVABLE * achievable + 1e-9)


_RUN: Mapping[Kind, Callable[[Cell], Result]] = {"run": _run, "ablation": _run, "bound": _bound, "limit": _limit}
