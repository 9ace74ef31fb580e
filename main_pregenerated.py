"""Run one experiment: generate every task beforehand, dispatch each at its arrival, write down what happened.

    python3 main_pregenerated.py --duration 60 --seed 7

`run_experiment()` is the loop; the rest builds the parts, shows progress and reports.
"""

import os
import signal
import sys

if __name__ == "__main__":  # until main() has its own handlers: an end without a traceback, while the imports take their time
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: sys.exit(130))
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out

import argparse
import csv
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from rich.console import Console

from cluster import Cluster, model_mismatches
from command_line import EXIT_INTERRUPTED, OptionParser, StopSignal, count, interruptible, namespace, seconds, seed, stoppable
from comparison.repeats import Repeats, repeats_table
from console import Progress, print_repeats, print_summary
from deadline_adapter import DeadlineAdapter
from emulated_nodes import EmulatedNodes
from energy import PowerRange
from harness_metrics import HarnessMetrics, annotate_in_grafana, listed_target, targets_file, targets_folder
from inference_request import WORKERS, HttpCluster, low_latency, placeholders, require_profiled, require_worker_urls
from metric_collector import MetricCollector, RunFolder
from node_discovery import NAMESPACE, discover_workers
from performance_profile import PerformanceProfile, load_profile
from prometheus_collector import (
    OWN_METRICS,
    POWER_METRIC,
    NodeMetricsSource,
    PrometheusCollector,
    PrometheusSource,
    require_url,
)
from report import write_run_report
from run_figures import RunFacts, describe_run, versions
from scenario import Scenario, build_scenario, save_scenario
from scheduler import create_scheduler
from settings import PowerMetrics, Settings, load_settings, require_known_models
from simulated_cluster import SimulatedCluster, ignored_settings
from slo_monitor import VIOLATION_COLUMNS, SloMonitor
from task import Arrival, Decision, Outcome, TaskResult
from task_generator import Trace, scenario_sha256
from utils import HarnessError, RowFiles, UsageError, random_stream, write_failure, write_json_atomically, write_text_atomically

PROGRAM = "main_pregenerated.py"
DEFAULT_PROMETHEUS_URL = "http://127.0.0.1:30090"
_AWAIT_POWER_S = 20.0
_SHORTEST_LOOK_BACK_S = 15.0
"""Prometheus stores a scrape under the time at which it began once it has ended, which may be some polls later."""


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


@dataclass(frozen=True)
class _Command:
    """What the runs of one command share."""

    options: argparse.Namespace
    console: Console
    stop: StopSignal
    kind: str
    profile: PerformanceProfile
    workers: Mapping[str, str]

    def say(self, line: str) -> None:
        """Print a line as it stands."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def run(options: argparse.Namespace, console: Console, stop: StopSignal) -> int:
    """One experiment, or several equal ones, from options to files; the exit status.

    Raises:
        HarnessError: a run could not be done.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with interruptible(stop):
        settings = _settings_of(options)
        profile = load_profile(settings.performance_profile)
        require_known_models(settings, profile.latency)
        create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))  # refused now rather than later
        if options.prometheus_url:
            options.prometheus_url = require_url("--prometheus-url", options.prometheus_url)
        where = {"namespace": options.namespace} if options.namespace else {}
        workers = discover_workers(list(profile.nodes), say, lambda: stop.received, **where) if options.discover else WORKERS
        kind, notice = choose_cluster(options.cluster, workers)
        if kind == "workers":
            require_worker_urls(workers)
            require_profiled(workers, profile)
        if kind == "emulated" and settings.power.host_metrics and not options.prometheus_url:
            raise UsageError("power.host_metrics: emulated nodes have none of their own; give --prometheus-url")
        if options.repeat > 1 and kind == "simulated" and options.trace:
            raise UsageError("--repeat: a replay in virtual time gives the same numbers each time; leave --repeat or --trace out")
        settings, scenario = build_scenario(settings, options.trace, options.duration, profile.overhead_varies)
        if scenario.replay and scenario.replay.seed is not None and options.seed is None:
            settings = settings.replace(seed=scenario.replay.seed)  # a random policy draws what it drew in the run before
        last_settings = settings.replace(seed=settings.seed + options.repeat - 1) if kind == "simulated" else settings
        if options.save_trace:
            save_scenario(scenario, settings, options.save_trace)
    for line in (notice, *scenario.warnings):
        if line:
            say(line)
    command = _Command(options, console, stop, kind, profile, workers)
    summaries: dict[Path, dict[str, Any]] = {}
    for seed_ in range(settings.seed, last_settings.seed + 1) if kind == "simulated" else [settings.seed] * options.repeat:
        if seed_ != settings.seed:
            with interruptible(stop):
                settings, scenario = build_scenario(settings.replace(seed=seed_), None, None, profile.overhead_varies)
        folder, summary = _one_run(command, settings, scenario)
        summaries[folder.summary] = summary
        if summary["interrupted"]:
            return EXIT_INTERRUPTED
    if len(summaries) > 1:
        _finish_repeats(summaries, options.output, console)
    return 0


def _one_run(command: _Command, settings: Settings, scenario: Scenario) -> tuple[RunFolder, dict[str, Any]]:
    """One run with its files, its summary on the terminal and its report; its folder and summary."""
    folder = RunFolder(command.options.output, datetime.now().astimezone())
    with ExitStack() as stack:
        stack.callback(folder.remove_if_empty)
        measure = _measure_in_virtual_time if command.kind == "simulated" else _measure_on_wall_clock
        summary = measure(command, settings, scenario, folder, stack)
    print_summary(command.console, summary, folder.path)
    if not command.options.no_report:
        with interruptible(command.stop, by_earlier=False):
            command.say(f"report: {write_run_report(folder.path)}")
    if command.kind != "simulated" and (problem := annotate_in_grafana(summary, os.environ)):
        command.say(problem)
    return folder, summary


def _measure_in_virtual_time(
    command: _Command, settings: Settings, scenario: Scenario, folder: RunFolder, stack: ExitStack
) -> dict[str, Any]:
    """The summary of one run on the simulated cluster."""
    profile, names = command.profile, list(command.profile.nodes)
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    simulated = partial(SimulatedCluster, profile, names, settings, scheduler)
    one = Run(settings, scenario, command.kind, profile, names, simulated, folder, flush_interval_s=None)
    one.warnings += ignored_settings(settings)
    command.stop.tell(one.cluster.stop)
    return one.measure(measured_in_virtual_time)


def _measure_on_wall_clock(
    command: _Command, settings: Settings, scenario: Scenario, folder: RunFolder, stack: ExitStack
) -> dict[str, Any]:
    """The summary of one run on workers or emulated nodes; `stack` ends what it starts."""
    options, profile, stop = command.options, command.profile, command.stop
    emulated = command.kind == "emulated"
    targets = targets_folder()
    names = list(profile.nodes if emulated else command.workers)
    metrics = HarnessMetrics(settings, folder.experiment_id, command.kind, names)
    if options.metrics_port:
        stack.enter_context(metrics.served(options.metrics_port))
        if targets:
            stack.enter_context(listed_target(targets_file(targets, "harness"), f"127.0.0.1:{options.metrics_port}"))
    nodes_file = targets_file(targets, "emulated") if targets else None
    nodes = EmulatedNodes(profile, lambda: stop.received, nodes_file) if emulated else None
    workers = stack.enter_context(nodes).workers if nodes else command.workers
    power = stack.enter_context(_power_poller(options.prometheus_url, nodes, names, settings, profile, lambda: stop.received))
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    real = partial(HttpCluster, workers, profile, settings, scheduler, power.latest)
    one = Run(settings, scenario, command.kind, profile, names, real, folder)
    stop.tell(one.cluster.stop)
    power.on_death(one.cluster.stop)
    if options.metrics_port:
        one.show_in(metrics)
    if nodes_file and options.prometheus_url:
        _await_power(power, names, settings, lambda: stop.received)
    say_power_metrics(power.metrics(settings.power.max_age_s), command.say, OWN_METRICS if nodes else settings.power.metrics)
    progress = nullcontext() if options.quiet else Progress(command.console, one.cluster, one.monitor, power, settings)
    clock = WallClock(settings, power, nodes, progress, command.say, metrics.idle_power)

    def measured(cluster: HttpCluster, load: Callable[[], None]) -> dict[str, Any]:
        one.warnings += (mismatches := model_mismatches(cluster.nodes, settings.models))
        for line in mismatches:
            command.say(line)
        return clock.measured(cluster, load)

    return one.measure(measured)


def _finish_repeats(summaries: Mapping[Path, dict[str, Any]], output: Path, console: Console) -> None:
    """Put what several runs gave into one table, on the terminal, in a file, and in the summary of each.

    Raises:
        HarnessError: a file cannot be written.
    """
    table = repeats_table(list(summaries.values()))
    experiment_ids = [summary["experiment_id"] for summary in summaries.values()]
    path = output / f"repeats_{experiment_ids[0]}.csv"
    spread = {row.metric: _without_nan(row) for row in table}
    text = StringIO()
    csv.DictWriter(text, Repeats._fields, lineterminator="\n").writeheader()
    csv.writer(text, lineterminator="\n").writerows(_without_nan(row).values() for row in table)
    try:
        write_text_atomically(path, text.getvalue())
        for number, (file, summary) in enumerate(summaries.items(), start=1):
            write_json_atomically(
                file, {**summary, "repeat": {"number": number, "experiment_ids": experiment_ids, "metrics": spread}}
            )
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written: {error.strerror}") from error
    print_repeats(console, table, path)


def _without_nan(row: Repeats) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in row._asdict().items()}


def _power_poller(
    prometheus_url: str | None,
    nodes: EmulatedNodes | None,
    names: Sequence[str],
    settings: Settings,
    profile: PerformanceProfile,
    stopping: Callable[[], bool],
) -> PrometheusCollector:
    """A poller of a Prometheus server, or of the emulated nodes' own /metrics."""
    own, interval_s = settings.power, settings.power.poll_interval_s
    ranges = {name: PowerRange(*profile.power_range_w(name, own.plausible_factor)) for name in names}
    poller = partial(
        PrometheusCollector, nodes=names, interval_s=interval_s, delay_s=own.power_delay_s, power_ranges=ranges, stopping=stopping
    )
    if nodes and not prometheus_url:
        of_nodes = NodeMetricsSource(nodes.metrics_urls)
        return poller(of_nodes, read_busy=of_nodes.busy_s)
    source = PrometheusSource(
        prometheus_url or DEFAULT_PROMETHEUS_URL,
        names,
        window_s=max(10 * interval_s, _SHORTEST_LOOK_BACK_S),
        instances={node: urlsplit(url).netloc for node, url in nodes.metrics_urls.items()} if nodes else None,
        metrics=OWN_METRICS if nodes else own.metrics,
    )
    return poller(source, read_host=source.host_metrics if own.host_metrics else None, read_busy=source.busy_s)


def _await_power(power: PrometheusCollector, names: Sequence[str], settings: Settings, stopping: Callable[[], bool]) -> None:
    """Wait for power data of every node: Prometheus takes up the emulated nodes some seconds after they are listed."""
    max_age_s = settings.power.max_age_s
    power.poll_until(lambda: stopping() or all(power.is_up(name, max_age_s) for name in names), within_s=_AWAIT_POWER_S)


def say_power_metrics(
    found: Mapping[str, Sequence[str]], say: Callable[[str], None], expected: PowerMetrics = OWN_METRICS
) -> None:
    """Say which nodes have no power data and which have no counter; nothing where every node has its counter.

    Args:
        found: which of the two metrics each node has shown.
        say: prints a line.
        expected: names of metrics and nodes in Prometheus.
    """
    if without := [node for node, metrics in found.items() if not metrics]:
        values = [expected.nodes.get(node, node) for node in without]
        named = "the node's name" if values == without else ", ".join(values)
        metrics = " or ".join([*expected.energy_j, *expected.power_w])
        say(f'no power data of {", ".join(without)}: expected {metrics} with {named} in the label "{expected.label}"')
    if gauge_only := [node for node, metrics in found.items() if tuple(metrics) == (POWER_METRIC,)]:
        energy = " or ".join(expected.energy_j) or "energy counter"
        say(f"no {energy} of {', '.join(gauge_only)}: energy is the integral of {' or '.join(expected.power_w)}")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, found {text!r}")
    return int(text)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed.

    Raises:
        UsageError: an option is unknown or has a value that it cannot have.
    """
    parser = OptionParser(PROGRAM, "Run one experiment and write its files.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings that differ from config/experiment.yaml")
    parser.add_argument("--duration", type=seconds, metavar="S", help="length of the load in seconds (600, or the trace's)")
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of everything random (42)")
    parser.add_argument("--scheduler", metavar="NAME", help="policy, or package.module:Class (power_aware_topsis)")
    parser.add_argument(
        "--cluster",
        choices=("auto", "workers", "emulated", "simulated"),
        default="auto",
        help="the pods in WORKERS, local emulated nodes, nodes in virtual time; auto: emulated while WORKERS holds placeholders",
    )
    parser.add_argument(
        "--discover",
        action="store_true",
        help="take the workers from the ready pods of the cluster, or of `kubectl get pods -o json` on standard input",
    )
    parser.add_argument("--namespace", type=namespace, metavar="NAME", help=f"where --discover looks for the pods ({NAMESPACE})")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="replay this load instead of drawing one")
    parser.add_argument("--save-trace", type=Path, metavar="FILE", help="write the load to a file that --trace reads")
    parser.add_argument("--prometheus-url", metavar="URL", help=f"where power is read (workers: {DEFAULT_PROMETHEUS_URL})")
    parser.add_argument("--metrics-port", type=_port, metavar="N", help="serve the harness's own metrics while it runs (off)")
    parser.add_argument(
        "--output", type=Path, default=Path("results"), metavar="DIR", help="parent of the run's folder (results)"
    )
    parser.add_argument(
        "--repeat",
        type=count,
        default=1,
        metavar="N",
        help="do the run N times: the same load each time, or, on the simulated cluster, seeds N, N + 1, … (1)",
    )
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    options = parser.parse_args(arguments)
    if options.namespace and not options.discover:
        parser.error("--namespace: says where --discover looks; give --discover, too, or leave it out")
    if options.discover and options.cluster in ("emulated", "simulated"):
        parser.error(f"--discover: finds workers, and --cluster {options.cluster} has none; leave one of the two out")
    if options.cluster == "simulated":
        if options.metrics_port:
            parser.error("--metrics-port: a run in virtual time is over before a Prometheus sees it; leave it out")
        if options.prometheus_url:
            parser.error("--prometheus-url: power in virtual time is that of the profile; leave it out")
    return options


def _settings_of(options: argparse.Namespace) -> Settings:
    settings = load_settings(options.config)
    given = {"duration_s": options.duration, "seed": options.seed, "scheduler": options.scheduler}
    return settings.replace(**{key: value for key, value in given.items() if value is not None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return stoppable(PROGRAM, lambda stop: run(parse_options(arguments), Console(), stop))


if __name__ == "__main__":
    sys.exit(main())
