"""One run of an experiment: dispatch each task at its arrival, measure, and write down what happened.

`run_experiment()` is the loop. `Run` holds what is the same on every cluster; `WallClock` and `measured_in_virtual_time()` hold
what is not.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from cluster.base import Cluster
from cluster.emulated import EmulatedNodes
from cluster.simulated import SimulatedCluster
from deadline_adapter import DeadlineAdapter
from inference_request import low_latency, placeholders
from measurement.live_metrics import HarnessMetrics
from measurement.summary import RunFacts, describe_run, versions
from metric_collector import MetricCollector, RunFolder
from performance_profile import PerformanceProfile
from prometheus_collector import PrometheusCollector
from scenario import Scenario
from settings import Settings
from slo_monitor import VIOLATION_COLUMNS, SloMonitor
from task import Arrival, Decision, Outcome, TaskResult
from task_generator import Trace, scenario_sha256
from utils import HarnessError, RowFiles, UsageError, write_failure, write_json_atomically


def run_experiment(trace: Trace, cluster: Cluster, adapter: DeadlineAdapter, record: Callable[[TaskResult], None]) -> None:
    """Dispatch every task of `trace` at its arrival time, whatever the nodes do, and let the last ones end.

    Args:
        trace: the load.
        cluster: where tasks run; its own clock decides what it means to wait.
        adapter: sets each task's deadline.
        record: told of every task that never reaches the cluster; the cluster tells of the others.
    """
    cluster.start_load()
    arrivals = trace.arrivals()
    for arrival in arrivals:
        task, device, service_noise, overhead_noise = arrival
        if not cluster.advance_to(task.arrival_time_s):
            arrivals = itertools.chain([arrival], arrivals)
            break
        with cluster.lock:
            if device.in_coverage:
                cluster.place(adapter.adapt(task, device, cluster.can_meet), device, service_noise, overhead_noise)
            else:
                record(_not_placed(arrival, Outcome.SKIPPED))
    cluster.advance_to(trace.duration_s)
    cluster.drain()
    for arrival in () if cluster.failure else arrivals:  # a run that failed has no summary to account for them
        record(_not_placed(arrival, Outcome.UNFINISHED))


def _not_placed(arrival: Arrival, outcome: Outcome) -> TaskResult:
    return TaskResult(arrival.task, arrival.device, arrival.service_noise, outcome, overhead_noise=arrival.overhead_noise)


AnyCluster = TypeVar("AnyCluster", bound=Cluster)
MakeCluster = Callable[[Callable[[TaskResult], None], Callable[[Decision], None]], AnyCluster]
"""Makes a cluster that tells of ended tasks and of decisions."""
Measured = Callable[[AnyCluster, Callable[[], None]], dict[str, Any]]
"""Given the entered cluster and the load, runs the load and gives what this kind of cluster adds to RunFacts."""


class Run(Generic[AnyCluster]):
    """One run with its files: what is the same on every cluster.

    Args:
        settings: the experiment.
        scenario: its outside world.
        kind: workers, emulated or simulated.
        profile: figures of the nodes.
        node_names: the nodes of the cluster.
        make_cluster: makes the cluster.
        folder: where the files go.
        flush_interval_s: how long rows of the files may wait in memory, seconds; None where no clock runs meanwhile.

    Raises:
        UsageError: a file cannot be made, or a worker's address is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        scenario: Scenario,
        kind: str,
        profile: PerformanceProfile,
        node_names: Sequence[str],
        make_cluster: MakeCluster[AnyCluster],
        folder: RunFolder,
        flush_interval_s: float | None = 0.1,
    ) -> None:
        self._settings = settings
        self._scenario = scenario
        self._kind = kind
        self._folder = folder
        self._collector = MetricCollector(
            settings,
            profile,
            node_names,
            scenario.mobility,
            write_result=lambda row: self._files.append(folder.results, row),
            write_decision=lambda row: self._files.append(folder.decisions, row),
        )
        self.warnings: list[str] = []
        """What the summary must say beside its numbers; anyone may add a sentence before the run ends."""
        self.monitor = SloMonitor(lambda row: self._files.append(folder.violations, row))
        self._metrics: HarnessMetrics | None = None
        self.cluster = make_cluster(self._record, self._decided)
        self._trace = _trace_of(scenario)
        self._profile = profile
        try:
            write_json_atomically(folder.settings, self._description())
            self._files = RowFiles(folder.columns(node_names, VIOLATION_COLUMNS), self._disk_failed, flush_interval_s)
        except OSError as error:
            raise write_failure(f"--output: {folder.path} cannot be written", error) from None

    def _description(self) -> dict[str, Any]:
        """What the run is made of, to be known from its start on."""
        sha256 = scenario_sha256(self._settings, self._scenario.trace)
        return {
            "experiment_id": self._folder.experiment_id,
            "started_at": datetime.now().astimezone().isoformat(),
            "cluster": self._kind,
            **describe_run(self._settings, sha256, self._profile.sha256, self._trace),
            "performance_profile": self._profile.model_dump(mode="json"),
            "versions": versions(),
        }

    def show_in(self, metrics: HarnessMetrics) -> None:
        """Tell `metrics` how the run goes."""
        self._metrics = metrics
        for node in self.cluster.nodes:
            metrics.watch_queue(node.name, lambda node=node: node.queue_depth)  # type: ignore[misc]

    def _record(self, result: TaskResult) -> None:
        self.monitor.observe(result)
        self._collector.record(result)
        if self._metrics:
            self._metrics.ended(result)

    def _decided(self, decision: Decision) -> None:
        self._collector.decided(decision)
        if self._metrics:
            self._metrics.decided(decision)

    def _disk_failed(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or error
        self.cluster.stop(HarnessError(f"{self._folder.path} cannot be written any more: {why}"))

    def _load(self) -> None:
        run_experiment(self._scenario.trace, self.cluster, DeadlineAdapter(self._settings), self._record)

    def measure(self, measured: Measured[AnyCluster]) -> dict[str, Any]:
        """Do the run and write its files; the summary, as it stands in its file.

        Raises:
            HarnessError: no node was ever up, the disk is full, or the policy failed.
        """
        try:
            with self.cluster:
                started = datetime.now().astimezone()
                added = measured(self.cluster, self._load)
            ended_s = min(added["window_s"], self._settings.duration_s)
            for row in self._collector.device_rows(self._scenario.device_ids, ended_s):
                self._files.append(self._folder.devices, row)
        finally:
            self._files.close()
        if self.cluster.failure:
            raise self.cluster.failure
        facts = RunFacts(
            experiment_id=self._folder.experiment_id,
            started_at=started.isoformat(),
            finished_at=datetime.now().astimezone().isoformat(),
            interrupted=self.cluster.stopping,
            cluster=self._kind,
            scheduler=self._settings.scheduler,
            settings=self._settings,
            scenario_sha256=scenario_sha256(self._settings, self._scenario.trace),
            performance_profile_sha256=self._profile.sha256,
            trace=self._trace,
            warnings=[*self._scenario.warnings, *self.warnings, *added.pop("warnings", ()), *self.cluster.warnings()],
            untold_busy_s={node.name: node.untold_busy_s for node in self.cluster.nodes},
            abandoned={node.name: node.abandoned for node in self.cluster.nodes},
            **added,
        )
        summary = self._collector.summarise(facts)
        try:
            write_json_atomically(self._folder.summary, summary)
        except OSError as error:
            raise HarnessError(f"{self._folder.summary} cannot be written: {error.strerror}") from error
        return summary


def _trace_of(scenario: Scenario) -> dict[str, Any] | None:
    """What a run's files say of the trace it replays."""
    replay = scenario.replay
    if replay is None:
        return None
    return {"file": str(replay.file), "sha256": replay.sha256, "seed": replay.seed, "load": replay.load}


@dataclass(frozen=True)
class WallClock:
    """How a run on the wall clock is measured.

    Attributes:
        settings: the experiment.
        power: the running poller of the nodes' power.
        nodes: the emulated nodes, if that is what runs.
        progress: shows how it goes while the load runs.
        say: prints a line.
        on_idle_power: told of the nodes' idle power before the load, watts by node.
    """

    settings: Settings
    power: PrometheusCollector
    nodes: EmulatedNodes | None
    progress: AbstractContextManager[object]
    say: Callable[[str], None]
    on_idle_power: Callable[[Mapping[str, float]], None] = lambda idle_w: None

    def measured(self, cluster: Cluster, load: Callable[[], None]) -> dict[str, Any]:
        """Run the load; window and energy by the meters, and how late emulated accelerators woke."""
        for name, why in cluster.unreachable_at_start.items():
            self.say(f"{name} cannot be reached: {why}")
        idle_w = self._idle_power_w(cluster)
        self.on_idle_power(idle_w)
        late_before = self.nodes.lateness() if self.nodes else None
        with low_latency(), self.progress:
            self.power.poll_now()
            _await_poll_instant(self.settings.power.poll_interval_s, lambda: cluster.stopping)
            load()
            window_s, end_s = cluster.now_s(), cluster.clock()
            down_periods = cluster.down_periods()
        self.power.poll_past(end_s, self.settings.power.max_age_s)
        late = self.nodes.lateness().since(late_before) if self.nodes and late_before else None
        power, start_s = self.power.history(), end_s - window_s
        return {
            "window_s": window_s,
            "energy": power.energy(start_s, end_s, idle_w),
            "impossible_energy": power.impossible(start_s, end_s, idle_w),
            "warnings": [
                *power.doubts(start_s, end_s, are_real=self.nodes is None),
                *(self.nodes.calibration_warnings() if self.nodes else ()),
            ],
            "idle_w": idle_w,
            "counted_busy_s": self.power.busy_s(end_s - window_s, end_s),
            "down_periods": down_periods,
            "unreachable_at_start": cluster.unreachable_at_start,
            "wake_late_p99_s": late.percentile_s(99) if late else None,
            "round_trip_s": {node: ms / 1e3 for node, ms in self.nodes.round_trip_ms.items()} if self.nodes else None,
            "host_metrics": self.power.host_metrics(end_s - window_s, end_s) if self.settings.power.host_metrics else None,
        }

    def _idle_power_w(self, cluster: Cluster) -> dict[str, float]:
        """Idle power by node, watts: measured before the load on real workers, the profile's elsewhere and without a meter."""
        idle_w = {node.name: node.idle_w for node in cluster.nodes}
        baseline_s = self.settings.power.idle_baseline_s
        if self.nodes is None and baseline_s > 0:
            self.say(f"measuring idle power for {baseline_s:g} s …")
            self.power.poll_now()
            start_s = cluster.clock()
            while cluster.clock() - start_s < baseline_s and not cluster.stopping:
                time.sleep(0.1)
            end_s = cluster.clock()
            self.power.poll_past(end_s, self.settings.power.max_age_s)
            measured_w = self.power.idle_power_w(start_s, end_s)
            unmeasured = [node for node in idle_w if node not in measured_w]
            if unmeasured and not cluster.stopping:
                self.say(f"idle power of {', '.join(unmeasured)} could not be measured: the profile's is taken")
            idle_w.update(measured_w)
        return idle_w


def _await_poll_instant(poll_interval_s: float, stopping: Callable[[], bool]) -> None:
    """Sleep until the next whole multiple of the poll interval, at least a whole second, on the wall clock, or the stop request.

    Meters, Prometheus and the poller keep to that clock: a policy that reads power then sees it at the same times in equal runs.
    """
    every_s = max(1, math.ceil(poll_interval_s))
    until_s = time.monotonic() + every_s - time.time() % every_s
    while (left_s := until_s - time.monotonic()) > 0 and not stopping():
        time.sleep(min(left_s, 0.1))


def measured_in_virtual_time(cluster: SimulatedCluster, load: Callable[[], None]) -> dict[str, Any]:
    """Run the load; window and exact energy."""
    load()
    idle_w = {node.name: node.idle_w for node in cluster.nodes}
    return {"window_s": cluster.now_s(), "energy": cluster.energy(), "idle_w": idle_w}


def choose_cluster(option: str, workers: Mapping[str, str]) -> tuple[str, str | None]:
    """Which cluster `--cluster` means, and the line that says so where `auto` chose the emulated one.

    Raises:
        UsageError: some of the workers have no address yet.
    """
    missing = placeholders(workers)
    if option == "auto" and missing and len(missing) == len(workers):
        return "emulated", "WORKERS in inference_request.py still holds its placeholders: running on local emulated nodes."
    if option in ("emulated", "simulated"):
        return option, None
    if missing:
        raise UsageError(f"WORKERS in inference_request.py: no address yet for {', '.join(missing)}")
    return "workers", None
