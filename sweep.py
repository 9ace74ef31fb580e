"""The cells of a comparison: what one is, how it is run in memory, on which workers, and the folder that keeps it.

A cell is one job in virtual time: a run of a policy, a run of a TOPSIS policy without one criterion, a run that only asks
whether a load is still borne, or the clairvoyant bound of a scenario. Its result is a function of its settings, the profile and
the source code; the hash of these is its key.
"""

import hashlib
import importlib
import importlib.util
import itertools
import json
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import joblib
import numpy as np
from numpy.typing import NDArray

from bounds import ClairvoyantBound, clairvoyant_bound, fixed_deadlines_s
from comparison import HIGHEST_LOAD, LOWEST_LOAD, SHARE_OF_ACHIEVABLE, LoadLimit, next_load
from deadline_adapter import DeadlineAdapter
from main_pregenerated import Scenario, StopSignal, build_scenario, run_experiment
from metric_collector import MetricCollector
from mobility.mobility_manager import Mobility
from performance_profile import PerformanceProfile
from run_figures import jain_index, mean, percentiles, ratio
from scheduler import create_scheduler
from scheduler.rank_reversal import RankReversalProbe
from scheduler.topsis_scheduler import TopsisScheduler
from scheduler.weight_ablation import ABLATED, CRITERIA, without
from settings import Settings
from simulated_cluster import SimulatedCluster
from task import DISPATCHED, TaskResult
from task_figures import TaskFigures
from task_generator import scenario_sha256
from utils import PROJECT_ROOT, HarnessError, UsageError, did_you_mean, random_stream, write_json_atomically

Kind = Literal["run", "ablation", "bound", "limit"]
Result = dict[str, Any]
"""What a cell came to, as JSON-able values."""

SOURCES = (
    "bounds.py",
    "cluster.py",
    "deadline_adapter.py",
    "main_pregenerated.py",
    "metric_collector.py",
    "mobility/*.py",
    "node_queue.py",
    "performance_profile.py",
    "run_figures.py",
    "scheduler/*.py",
    "settings.py",
    "simulated_cluster.py",
    "slo_monitor.py",
    "sweep.py",
    "task.py",
    "task_figures.py",
    "task_generator.py",
    "utils.py",
)
"""Files that bear on what a cell comes to."""
PACKAGES = ("numpy", "scipy")
"""Packages that bear on it."""

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


def canonical(content: Any) -> str:
    """JSON text that is equal for equal content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


@lru_cache(maxsize=1)
def source_hashes() -> Mapping[str, str]:
    """SHA-256 of every file of SOURCES, by its path in the checkout."""
    paths = sorted(path for pattern in SOURCES for path in PROJECT_ROOT.glob(pattern))
    return {path.relative_to(PROJECT_ROOT).as_posix(): _sha256(path.read_bytes()) for path in paths}


@lru_cache(maxsize=1)
def package_versions() -> Mapping[str, str]:
    """Version of every package of PACKAGES."""
    return {name: version(name) for name in PACKAGES}


@lru_cache
def policy_hash(scheduler: str) -> str | None:
    """SHA-256 of the file of a user's own policy; None for one of this project's, which is among the sources."""
    module_name, colon, _ = scheduler.partition(":")
    if not colon:
        return None
    file = importlib.import_module(module_name).__file__
    return _sha256(Path(file).read_bytes()) if file else None


@lru_cache
def code_hash(scheduler: str) -> str:
    """Hash of all code that bears on a cell of this policy."""
    return _sha256(canonical([dict(source_hashes()), dict(package_versions()), policy_hash(scheduler), SHARE_OF_ACHIEVABLE]))


@dataclass(frozen=True)
class Cell:
    """One job of a comparison; it can be sent to any worker.

    Attributes:
        kind: what is asked of it.
        settings: everything that is run, load, seed, policy and queue discipline included.
        profile: figures of the nodes.
        code: `code_hash()` of the policy where the sweep was planned.
        without: the criterion that an ablation leaves out.
    """

    kind: Kind
    settings: Settings
    profile: PerformanceProfile
    code: str
    without: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from the other cells of its sweep."""
        return {
            "kind": self.kind,
            "scheduler": self.settings.scheduler,
            "queue_discipline": self.settings.queue_discipline,
            "load": self.settings.load,
            "seed": self.settings.seed,
            "without": self.without,
        }

    @property
    def name(self) -> str:
        """The same for a person."""
        of = f"bound of load {self.settings.load:g}" if self.kind == "bound" else f"{self._policy}, load {self.settings.load:g}"
        return f"{of}, seed {self.settings.seed}"

    @property
    def _policy(self) -> str:
        without = f" without {self.without}" if self.without else ""
        return f"{self.settings.scheduler}{without}, {self.settings.queue_discipline}"

    @cached_property
    def settings_sha256(self) -> str:
        """Hash of the settings; where the profile's file stands does not bear on them, its content does."""
        return _sha256(canonical([plain_settings(self.settings), self.profile.model_dump(mode="json")]))

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits that only an equal cell has."""
        return _sha256(canonical([self.identity, self.settings_sha256, self.code]))[:32]


def plain_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON-able values, without the place of the profile's file."""
    return settings.model_dump(mode="json", exclude={"performance_profile"})


# One cell, in memory.


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
    except Exception as error:  # whatever a cell dies of ends the sweep with one line that names the cell
        what = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
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


def _world(settings: Settings) -> _World:
    key = settings.model_dump_json(include={"seed", "duration_s", "devices", "load", "models", "slo_classes", "exit_safety"})
    if _last.world is None or _last.key != key:
        _last.world = None
        _, scenario = build_scenario(settings, None, None)
        trace, window = scenario.trace, Window.of(settings.duration_s)
        counted = trace.in_coverage & (trace.arrival_time_s >= window.since_s) & (trace.arrival_time_s < window.before_s)
        _last.world = _World(scenario, scenario_sha256(settings, trace), fixed_deadlines_s(trace, settings), counted)
        _last.key = key
    return _last.world


def _run(cell: Cell) -> Result:
    """A policy's row of cells.csv and its compliance per minute."""
    settings, profile = cell.settings, cell.profile
    world, names = _world(settings), list(profile.nodes)
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
    above_idle_j = sum(node.above_idle_j or 0.0 for node in cluster.energy().values())
    window = Window.of(settings.duration_s)
    counted = dispatched.arriving(*window)
    utilisation = {name: _busy_s(dispatched.on_node(name), profile.overhead_s(name), window) / window.length_s for name in names}
    response = percentiles(counted["response_time_s"]) or dict.fromkeys(("mean", "p50", "p95", "p99"))
    row = {
        "scheduler": settings.scheduler,
        "queue_discipline": settings.queue_discipline,
        "load": settings.load,
        "seed": settings.seed,
        "tasks": len(counted),
        **_deadline_figures(counted, list(settings.slo_classes)),
        "achievable_slo_rate": mean(collector.achievable(counted)),
        "response_p50_s": response["p50"],
        "response_p99_s": response["p99"],
        **_energy_figures(counted, profile),
        "load_fairness": jain_index(list(utilisation.values())),
        "adapted_deadline_compliance_rate": ratio(len(counted.of(DISPATCHED[0])), len(counted)),
        "delivered_rate": ratio(_delivered(counted, world.scenario.mobility), len(counted)),
        "response_mean_s": response["mean"],
        "response_p95_s": response["p95"],
        "failed": len(counted.of(DISPATCHED[2])),
        "missed": _missed(counted),
        "rank_reversal_rate": probe.rate if probe else None,
        "untrimmed_slo_compliance_rate": mean(dispatched["met_fixed_deadline"]),
        "untrimmed_above_idle_per_task_j": ratio(above_idle_j, len(dispatched)),
        **{f"utilisation_{name}": share for name, share in utilisation.items()},
        "scenario_sha256": world.sha256,
    }
    return {"row": row, "minutes": _compliance_by_minute(dispatched)}


def _missed(tasks: TaskFigures) -> int:
    return len(tasks) - int(tasks["met_fixed_deadline"].sum())


def _delivered(tasks: TaskFigures, mobility: Mobility) -> int:
    """How many of the answers found their device in the cell."""
    answered = tasks.where(~np.isnan(tasks["completion_time_s"]))
    task_id, device_id = answered["task_id"].astype(np.int64), answered["device_id"].astype(np.int64)
    return int(mobility.covered(task_id, device_id, answered["completion_time_s"]).sum())


def _deadline_figures(tasks: TaskFigures, slo_classes: Sequence[str]) -> dict[str, float | None]:
    met = mean(tasks["met_fixed_deadline"])
    return {
        "slo_compliance_rate": met,
        **{f"slo_{name}": mean(tasks.in_class(name)["met_fixed_deadline"]) for name in slo_classes},
        "fixed_deadline_compliance_rate": met,
        "base_deadline_compliance_rate": mean(tasks["met_base_deadline"]),
    }


def _energy_figures(tasks: TaskFigures, profile: PerformanceProfile) -> dict[str, float | None]:
    """Energy above idle of the completed ones of `tasks`, joules per task and per task that met its fixed deadline."""
    above_idle_j = sum(
        (node.busy_w - node.idle_w) * float(np.nansum(tasks.on_node(name)["inference_time_s"]))
        for name, node in profile.nodes.items()
    )
    return {
        "above_idle_per_task_j": ratio(above_idle_j, len(tasks)),
        "above_idle_per_on_time_task_j": ratio(above_idle_j, len(tasks) - _missed(tasks)),
    }


def _busy_s(tasks: TaskFigures, overhead_s: float, window: Window) -> float:
    """Seconds within the window that the accelerator of a node was busy with `tasks`, all of that node.

    Half of a request's overhead lies behind its inference.
    """
    end_s = tasks["arrival_time_s"] + tasks["response_time_s"] - overhead_s / 2
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
    world = _world(cell.settings)
    trace, counted = world.scenario.trace, world.counted
    bound = clairvoyant_bound(
        trace.arrival_time_s[counted],
        world.fixed_deadline_s[counted],
        [trace.model_name.names[code] for code in trace.model_name.codes[counted].tolist()],
        trace.service_noise[counted],
        cell.profile,
        list(cell.profile.nodes),
        until_s=cell.settings.duration_s + cell.settings.requests.drain_timeout_s,
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
    """Whether the policy bears the load: compliance of at least SHARE_OF_ACHIEVABLE of the achievable one, over the window."""
    settings, profile = cell.settings, cell.profile
    world, names = _world(settings), list(profile.nodes)
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


# Where finished cells are kept.


class CellStore:
    """Folder with one file for each finished cell.

    Args:
        folder: made when the first cell is written.
        say: told in one line of a file that cannot be used.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say

    def read(self, cell: Cell) -> Result | None:
        """The result of a finished cell; None when it is to be run, also because its file is damaged or not its own."""
        path = self._path(cell)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            result: Result = content["result"]
            whole = content == self._content(cell, result)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            return result
        self._say(f"{path} is damaged or of another cell: {cell.name} is computed again")
        return None

    def write(self, cell: Cell, result: Result) -> None:
        """Keep the result of a finished cell.

        Raises:
            HarnessError: the disk is full, or the folder cannot be written any more.
        """
        try:
            self._folder.mkdir(exist_ok=True)
            write_json_atomically(self._path(cell), self._content(cell, result))
        except OSError as error:
            raise HarnessError(f"{self._folder} cannot be written any more: {error.strerror}") from None

    def _path(self, cell: Cell) -> Path:
        return self._folder / f"{cell.key}.json"

    @staticmethod
    def _content(cell: Cell, result: Result) -> dict[str, Any]:
        return {
            "key": cell.key,
            "identity": cell.identity,
            "settings_sha256": cell.settings_sha256,
            "result": result,
            "result_sha256": _sha256(canonical(result)),
        }


# Many cells, on many cores or machines.


class Workers:
    """Runs cells on the cores of this machine, or wherever another backend of joblib takes them.

    Args:
        jobs: how many cells are run at once; a cluster that runs already has its own number.
        backend: loky, threading, or another that joblib knows or that a package brings.
        dask_scheduler: address of a running Dask cluster; None: `dask` starts local workers.
        stop: the wish to stop, looked at while waiting for a cell.

    Raises:
        UsageError: there is no such backend, its package is not installed, or the Dask scheduler cannot be reached.
    """

    def __init__(self, jobs: int, backend: str, dask_scheduler: str | None, stop: StopSignal) -> None:
        require_backend(backend)
        self._jobs = jobs
        self._backend = backend
        self._dask_scheduler = dask_scheduler
        self._stop = stop
        self._parameters: dict[str, Any] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        with _deaf_to_ctrl_c():
            if self._backend == "dask":
                self._parameters["client"] = self._dask_client()
            elif self._backend == "loky":
                self._opened.callback(lambda: joblib.externals.loky.get_reusable_executor().shutdown())
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def results(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Result]]:
        """Each cell with its result, as they are finished.

        Raises:
            HarnessError: a cell could not be run, or the workers are lost.
            KeyboardInterrupt: the wish to stop came; cells that were running are lost.
        """
        by_key = {cell.key: cell for cell in cells}
        with _deaf_to_ctrl_c(), joblib.parallel_config(backend=self._backend, n_jobs=self._jobs, **self._parameters):
            parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs", max_nbytes=None)
            ended = parallel(joblib.delayed(run_cell)(cell) for cell in cells)
        try:
            while one := self._next(ended):
                if one.result is None:
                    raise HarnessError(one.error or "")
                yield by_key[one.key], one.result
        finally:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # joblib's, of cells that are given up
                ended.close()

    def _next(self, ended: Iterator[Ended]) -> Ended | None:
        try:
            with interruptible(self._stop):
                return next(ended, None)
        except Exception as error:  # a lost worker looks different on every backend; finished cells are kept whatever it was
            raise HarnessError(f"the workers of --backend {self._backend} are lost: {type(error).__name__}: {error}") from error

    def _dask_client(self) -> Any:
        distributed = importlib.import_module("distributed")
        logging.getLogger("distributed").setLevel(logging.ERROR)
        if self._dask_scheduler is None:
            local = distributed.LocalCluster(
                n_workers=self._jobs, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
            )
            self._opened.enter_context(local)
            return self._opened.enter_context(distributed.Client(local))
        try:
            client = self._opened.enter_context(distributed.Client(self._dask_scheduler, timeout=_DASK_PATIENCE_S))
            client.wait_for_workers(1, timeout=_DASK_PATIENCE_S)
        except (OSError, ValueError, TimeoutError) as error:
            self._opened.close()
            raise UsageError(f"--dask-scheduler: {self._dask_scheduler} cannot be reached, or has no worker: {error}") from None
        # A lambda travels as it is, without this module. Where sweep cannot be imported, joblib would wait for ever.
        found = {
            "the scheduler": client.run_on_scheduler(lambda: importlib.util.find_spec("sweep") is not None),
            **client.run(lambda: importlib.util.find_spec("sweep") is not None),
        }
        for place in (place for place, there in found.items() if not there):
            self._opened.close()
            raise UsageError(f"--dask-scheduler: {place} cannot import sweep: start it in the checkout, with PYTHONPATH=.")
        return client


@contextmanager
def interruptible(stop: StopSignal) -> Iterator[None]:
    """Inside, the wish to stop raises KeyboardInterrupt at once, also when it came before; outside it waits."""
    try:
        stop.tell(_interrupt)
        yield
    finally:
        stop.tell(_wait)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _wait() -> None:
    """The wish to stop is looked at in the next interruptible block."""


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Threads and processes started inside never see Ctrl-C: this process ends them without their tracebacks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # it unblocks the signal when it starts; from here on it runs
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_DASK_PATIENCE_S = 10
_PACKAGE_OF = {"dask": "distributed", "ray": "ray"}


def require_backend(name: str) -> None:
    """Refuse a backend that cannot be used.

    Raises:
        UsageError: it is unknown, with the nearest known one, its package is missing, or it hands results over only when all
            are there, so that an interrupted sweep would keep nothing.
    """
    known = list(dict.fromkeys([*joblib.parallel.BACKENDS, *joblib.parallel.EXTERNAL_BACKENDS, *_PACKAGE_OF]))
    if name not in known:
        raise UsageError(f"--backend: joblib knows no {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    package = _PACKAGE_OF.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise UsageError(f"--backend {name}: the package {package} is missing; install it with: python3 -m pip install {package}")
    if name == "ray":
        importlib.import_module("ray.util.joblib").register_ray()
    if name in joblib.parallel.BACKENDS and not joblib.parallel.BACKENDS[name].supports_return_generator:
        raise UsageError(
            f"--backend {name}: joblib gets results from it only when all are there; expected loky, threading or dask"
        )


# What a sweep is made of.


class Policy(NamedTuple):
    """What is compared."""

    scheduler: str
    queue_discipline: str


@dataclass(frozen=True)
class Plan:
    """What is swept; everything that bears on a cell follows from it and from the code.

    Attributes:
        settings: the experiment; policy, queue discipline, load and seed are the sweep's.
        profile: figures of the nodes.
        bounds: whether clairvoyant bounds are computed.
        limits: whether the highest loads are looked for.
        ablation: whether TOPSIS policies are run without each of their criteria.
    """

    settings: Settings
    profile: PerformanceProfile
    schedulers: Sequence[str]
    queue_disciplines: Sequence[str]
    loads: Sequence[float]
    seeds: Sequence[int]
    bounds: bool = True
    limits: bool = True
    ablation: bool = True

    @property
    def policies(self) -> list[Policy]:
        """Every scheduler with every queue discipline."""
        return list(itertools.starmap(Policy, itertools.product(self.schedulers, self.queue_disciplines)))

    @property
    def ablation_load(self) -> float:
        """The load nearest to 1."""
        return min(self.loads, key=lambda load: abs(load - 1))

    def cells(self) -> list[Cell]:
        """All cells but those of the search for the highest loads; long ones first, those of one scenario in a row."""
        cells = []
        for load, seed in itertools.product(sorted(self.loads, reverse=True), self.seeds):
            if self.bounds:
                cells.append(self._cell("bound", _ANY_POLICY, load, seed))
            cells += [self._cell("run", policy, load, seed) for policy in self.policies]
            if self.ablation and load == self.ablation_load:
                cells += self._ablation_cells(seed)
        return cells

    def in_order(self, cells: Iterable[Cell]) -> list[Cell]:
        """Cells in the order of the tables: by policy, queue discipline and load as listed, then by seed and criterion."""

        def position(cell: Cell) -> tuple[int, ...]:
            scheduler, queue = cell.settings.scheduler, cell.settings.queue_discipline
            policy = (self.schedulers.index(scheduler), self.queue_disciplines.index(queue)) if cell.kind != "bound" else (0, 0)
            criterion = CRITERIA.index(cell.without) if cell.without else 0
            return *policy, self.loads.index(cell.settings.load), cell.settings.seed, criterion

        return sorted(cells, key=position)

    def limit_cell(self, policy: Policy, load: float, seed: int) -> Cell:
        """Asks whether a policy bears a load."""
        return self._cell("limit", policy, load, seed)

    def _ablation_cells(self, seed: int) -> list[Cell]:
        policies = [policy for policy in self.policies if policy.scheduler in ABLATED]
        cells = []
        for policy, criterion in itertools.product(policies, CRITERIA):
            with suppress(UsageError):  # the only criterion that has a weight cannot be left out
                cells.append(self._cell("ablation", policy, self.ablation_load, seed, criterion))
        return cells

    def _cell(self, kind: Kind, policy: Policy, load: float, seed: int, criterion: str = "") -> Cell:
        settings = self.settings.replace(**policy._asdict(), load=load, seed=seed)
        if criterion:
            settings = without(settings, policy.scheduler, criterion)
        return Cell(kind, settings, self.profile, code_hash(policy.scheduler), criterion)


_ANY_POLICY = Policy("earliest_completion", "fifo")
"""Stands in the settings of a bound, on which no policy bears."""

Finish = Callable[[Sequence[Cell]], Mapping[str, Result]]
"""Runs those of some cells that are not finished; results of all of them by key."""


def find_limits(
    plan: Plan, verdicts: Mapping[tuple[Policy, int], dict[float, bool]], finish: Finish
) -> dict[tuple[Policy, int], LoadLimit]:
    """The highest load that each policy bears with each seed, found by bisection, one round for all at once.

    Args:
        plan: the sweep.
        verdicts: by policy and seed, which loads are known to be borne or not; more are added.
        finish: runs cells.
    """
    limits: dict[tuple[Policy, int], LoadLimit] = {}
    while len(limits) < len(verdicts):
        asked: dict[tuple[Policy, int], Cell] = {}
        for (policy, seed), known in verdicts.items():
            answer = next_load(known)
            if isinstance(answer, LoadLimit):
                limits[policy, seed] = answer
            else:
                asked[policy, seed] = plan.limit_cell(policy, answer, seed)
        results = finish(sorted(asked.values(), key=lambda cell: (-cell.settings.load, cell.settings.seed)))
        for who, cell in asked.items():
            verdicts[who][cell.settings.load] = results[cell.key]["meets"]
    return limits


def known_verdicts(plan: Plan, rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Policy, int], dict[float, bool]]:
    """Which loads the sweep's own rows say are borne, by policy and seed."""
    verdicts: dict[tuple[Policy, int], dict[float, bool]] = {who: {} for who in itertools.product(plan.policies, plan.seeds)}
    for row in rows:
        if LOWEST_LOAD <= row["load"] <= HIGHEST_LOAD and row["tasks"]:
            achievable = round(row["achievable_slo_rate"] * row["tasks"])
            borne = row["missed"] <= misses_allowed(row["tasks"], achievable)
            verdicts[Policy(row["scheduler"], row["queue_discipline"]), row["seed"]][row["load"]] = borne
    return verdicts
