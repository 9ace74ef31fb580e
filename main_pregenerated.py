"""Run one experiment: generate every task beforehand, dispatch each at its arrival, write down what happened.

    python3 main_pregenerated.py --duration 60 --seed 7

`run_experiment()` is the loop; the rest builds the parts, shows progress and reports.
"""

import signal
import sys

if __name__ == "__main__":  # until main() has its own handlers: an end without a traceback, while the imports take their time
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: sys.exit(130))

import argparse
import gc
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from cluster import Cluster
from console import Progress, print_summary
from deadline_adapter import DeadlineAdapter
from emulated_nodes import EmulatedNodes
from inference_request import WORKERS, HttpCluster, placeholders, require_worker_urls
from metric_collector import DEVICE_COLUMNS, RESULT_COLUMNS, MetricCollector, RunFacts, decision_columns
from mobility.mobility_manager import Mobility, MobilityManager
from performance_profile import PerformanceProfile, load_profile
from prometheus_collector import NodeMetricsSource, PrometheusCollector, PrometheusSource, require_url
from scheduler import BaseScheduler, create_scheduler
from settings import Settings, load_settings, require_known_models
from slo_monitor import VIOLATION_COLUMNS, SloMonitor
from task import Arrival, Outcome, TaskResult
from task_generator import Trace, generate_trace, load_trace, recorded_mobility, save_trace, scenario_sha256
from utils import HarnessError, Interrupted, RowFiles, UsageError, random_stream, write_failure, write_json_atomically

logger = logging.getLogger(__name__)

DEFAULT_PROMETHEUS_URL = "http://127.0.0.1:30090"
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_SWITCH_INTERVAL_S = 1e-4


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
        if not cluster.advance_to(arrival.task.arrival_time_s):
            arrivals = itertools.chain([arrival], arrivals)
            break
        with cluster.lock:
            if arrival.device.in_coverage:
                task = adapter.adapt(arrival.task, arrival.device, cluster.observe)
                cluster.place(task, arrival.device, arrival.service_noise)
            else:
                record(_not_placed(arrival, Outcome.SKIPPED))
    cluster.advance_to(trace.duration_s)
    cluster.drain()
    for arrival in arrivals:
        record(_not_placed(arrival, Outcome.UNFINISHED))


def _not_placed(arrival: Arrival, outcome: Outcome) -> TaskResult:
    return TaskResult(arrival.task, arrival.device, arrival.service_noise, outcome)


@dataclass(frozen=True)
class Scenario:
    """The outside world of a run."""

    trace: Trace
    mobility: Mobility
    device_ids: Sequence[int]


def build_scenario(settings: Settings, trace_file: Path | None, duration_s: float | None) -> tuple[Settings, Scenario]:
    """The world of the run, drawn from the seed or read from `trace_file`; settings whose duration is the trace's.

    Raises:
        UsageError: the trace file cannot be run.
    """
    if trace_file is None:
        mobility = MobilityManager(settings.devices, settings.seed)
        return settings, Scenario(generate_trace(settings, mobility), mobility, range(mobility.device_count))
    trace = load_trace(trace_file, settings)
    if duration_s is not None and duration_s < trace.duration_s:
        trace = trace.before(duration_s)
    if not len(trace):
        raise UsageError(f"--duration: {trace_file} holds no task before {duration_s:g} s")
    settings = settings.replace(duration_s=trace.duration_s)
    return settings, Scenario(trace, recorded_mobility(settings, trace), sorted(set(trace.device_id.tolist())))


class RunFolder:
    """Folder `<output>/<experiment_id>/` of one run and the names of its files; the id is made unique.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, output: Path, started: datetime) -> None:
        stamp = started.strftime("%Y%m%d_%H%M%S")
        for suffix in itertools.chain([""], (f"_{number}" for number in itertools.count(2))):
            self.experiment_id = stamp + suffix
            self.path = output / self.experiment_id
            try:
                self.path.mkdir(parents=True)
                break
            except FileExistsError:
                if not output.is_dir():
                    raise UsageError(f"--output: {output} is no folder") from None
            except OSError as error:
                raise write_failure(f"--output: {self.path} cannot be made", error) from None
        self.results = self.path / "master_inference_results.csv"
        self.violations = self.path / f"slo_violations_{self.experiment_id}.csv"
        self.decisions = self.path / f"scheduling_decisions_{self.experiment_id}.csv"
        self.devices = self.path / f"devices_{self.experiment_id}.csv"
        self.summary = self.path / f"experiment_summary_{self.experiment_id}.json"

    def remove_if_empty(self) -> None:
        """Leave nothing behind of a run that never got as far as its files."""
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def columns(self, node_names: Sequence[str]) -> dict[Path, Sequence[str]]:
        """Header of each CSV file."""
        return {
            self.results: RESULT_COLUMNS,
            self.violations: VIOLATION_COLUMNS,
            self.decisions: decision_columns(node_names),
            self.devices: DEVICE_COLUMNS,
        }


class StopSignal:
    """Turns SIGINT and SIGTERM into a wish that is looked at where stopping is safe."""

    def __init__(self) -> None:
        self.received = False
        self._tell: Callable[[], None] | None = None

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def tell(self, stop: Callable[[], None]) -> None:
        """Call `stop`, from the signal handler, when the wish comes; at once if it has come."""
        self._tell = stop
        if self.received:
            stop()

    def _on_signal(self, number: int, frame: object) -> None:
        self.received = True
        if self._tell:
            self._tell()


@contextmanager
def low_latency() -> Iterator[None]:
    """Let the dispatching thread get the interpreter quickly: short switch interval, no garbage collection of what is old."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval_s)


class Run:
    """One run on the wall clock: the parts, wired together.

    Args:
        settings: the experiment.
        scenario: its outside world.
        kind: workers or emulated.
        workers: address of each node's `/infer`.
        profile: figures of the nodes.
        scheduler: the policy.
        power: poller of the nodes' power.
        folder: where the files go.

    Raises:
        UsageError: a file cannot be made, or a worker's address is wrong.
    """

    def __init__(
        self,
        settings: Settings,
        scenario: Scenario,
        kind: str,
        workers: Mapping[str, str],
        profile: PerformanceProfile,
        scheduler: BaseScheduler,
        power: PrometheusCollector,
        folder: RunFolder,
    ) -> None:
        self._settings = settings
        self._scenario = scenario
        self._kind = kind
        self._profile = profile
        self._power = power
        self._folder = folder
        names = list(workers)
        self._collector = MetricCollector(
            settings,
            profile,
            names,
            scenario.mobility,
            write_result=lambda row: self._files.append(folder.results, row),
            write_decision=lambda row: self._files.append(folder.decisions, row),
        )
        self.monitor = SloMonitor(lambda row: self._files.append(folder.violations, row))
        self.cluster = HttpCluster(workers, profile, settings, scheduler, power.latest, self._record, self._collector.decided)
        try:
            self._files = RowFiles(folder.columns(names), self._disk_failed)
        except OSError as error:
            raise write_failure(f"--output: {folder.path} cannot be written", error) from None

    def _record(self, result: TaskResult) -> None:
        self.monitor.observe(result)
        self._collector.record(result)

    def _disk_failed(self, error: OSError) -> None:
        self.cluster.stop(HarnessError(f"{self._folder.path} cannot be written any more: {error.strerror}"))

    def measure(self, nodes: EmulatedNodes | None, progress: Progress | None, say: Callable[[str], None]) -> dict[str, Any]:
        """Do the run and write its files.

        Args:
            nodes: the emulated nodes, if that is what runs.
            progress: shows how it goes.
            say: prints a line.

        Returns:
            The summary, as it stands in its file.

        Raises:
            HarnessError: no node was ever up, the disk is full, or the policy failed.
        """
        try:
            with self.cluster:
                for name, why in self.cluster.unreachable_at_start.items():
                    say(f"{name} cannot be reached: {why}")
                idle_w = self._idle_power_w(say)
                started = datetime.now().astimezone()
                late_before = nodes.lateness() if nodes else None
                with low_latency(), progress or nullcontext():
                    self._power.poll()
                    run_experiment(self._scenario.trace, self.cluster, DeadlineAdapter(self._settings), self._record)
                    end_s = self.cluster.clock()
                    window_s = self.cluster.now_s()
                    down_periods = self.cluster.down_periods()
                self._power.poll()
                late = nodes.lateness().since(late_before) if nodes and late_before else None
            for row in self._collector.device_rows(self._scenario.device_ids, min(window_s, self._settings.duration_s)):
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
            window_s=window_s,
            energy=self._power.energy(end_s - window_s, end_s, idle_w),
            idle_w=idle_w,
            down_periods=down_periods,
            unreachable_at_start=self.cluster.unreachable_at_start,
            wake_late_p99_s=late.percentile_s(99) if late else None,
            host_metrics=self._power.host_metrics(end_s - window_s, end_s) if self._settings.power.host_metrics else None,
        )
        summary = self._collector.summarise(facts)
        try:
            write_json_atomically(self._folder.summary, summary)
        except OSError as error:
            raise HarnessError(f"{self._folder.summary} cannot be written: {error.strerror}") from error
        return summary

    def _idle_power_w(self, say: Callable[[str], None]) -> dict[str, float]:
        """Idle power by node, watts: measured before the load on real workers, the profile's elsewhere and without a meter."""
        idle_w = {node.name: node.view.idle_w for node in self.cluster.nodes}
        baseline_s = self._settings.power.idle_baseline_s
        if self._kind == "workers" and baseline_s > 0:
            say(f"measuring idle power for {baseline_s:g} s …")
            self._power.poll()
            start_s = self.cluster.clock()
            while self.cluster.clock() - start_s < baseline_s and not self.cluster.stopping:
                time.sleep(0.1)
            self._power.poll()
            idle_w.update(self._power.idle_power_w(start_s, self.cluster.clock()))
        return idle_w


def choose_cluster(option: str, workers: Mapping[str, str]) -> tuple[str, str | None]:
    """Which cluster `--cluster` means, and the line that says so where `auto` chose the emulated one.

    Raises:
        UsageError: some of the workers have no address yet.
    """
    missing = placeholders(workers)
    if option == "auto" and missing and len(missing) == len(workers):
        return "emulated", "WORKERS in inference_request.py still holds its placeholders: running on local emulated nodes."
    if option != "emulated" and missing:
        raise UsageError(f"WORKERS in inference_request.py: no address yet for {', '.join(missing)}")
    return ("emulated" if option == "emulated" else "workers"), None


def run(options: argparse.Namespace, console: Console, stop: StopSignal) -> int:
    """One experiment from options to files; the exit status.

    Raises:
        HarnessError: the run could not be done.
    """
    settings = _settings_of(options)
    profile = load_profile(settings.performance_profile)
    require_known_models(settings, profile.latency)
    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    kind, notice = choose_cluster(options.cluster, WORKERS)
    prometheus_url = require_url("--prometheus-url", options.prometheus_url) if options.prometheus_url else None
    if kind == "workers":
        require_worker_urls(WORKERS)
    settings, scenario = build_scenario(settings, options.trace, options.duration)
    if options.save_trace:
        save_trace(scenario.trace, options.save_trace)
    folder = RunFolder(options.output, datetime.now().astimezone())

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    if notice:
        say(notice)
    with ExitStack() as stack:
        stack.callback(folder.remove_if_empty)
        nodes = None
        workers: Mapping[str, str] = WORKERS
        if kind == "emulated":
            nodes = stack.enter_context(EmulatedNodes(profile, lambda: stop.received))
            workers = nodes.workers
        power = stack.enter_context(_power_poller(prometheus_url, nodes, list(workers), settings))
        one = Run(settings, scenario, kind, workers, profile, scheduler, power, folder)
        stop.tell(one.cluster.stop)
        progress = None if options.quiet else Progress(console, one.cluster, one.monitor, power, settings)
        summary = one.measure(nodes, progress, say)
    print_summary(console, summary, folder.path)
    return EXIT_INTERRUPTED if summary["interrupted"] else 0


def _power_poller(
    prometheus_url: str | None, nodes: EmulatedNodes | None, names: Sequence[str], settings: Settings
) -> PrometheusCollector:
    """A poller of a Prometheus server, or of the emulated nodes' own /metrics."""
    interval_s = settings.power.poll_interval_s
    if nodes and not prometheus_url:
        return PrometheusCollector(NodeMetricsSource(nodes.metrics_urls), names, interval_s)
    source = PrometheusSource(prometheus_url or DEFAULT_PROMETHEUS_URL, names, window_s=10 * interval_s)
    return PrometheusCollector(source, names, interval_s, source.host_metrics if settings.power.host_metrics else None)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed.

    Raises:
        UsageError: an option is unknown or has a value that it cannot have.
    """
    parser = _Parser(prog="main_pregenerated.py", description="Run one experiment and write its files.", allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings that differ from config/experiment.yaml")
    parser.add_argument("--duration", type=_seconds, metavar="S", help="length of the load in seconds (600, or the trace's)")
    parser.add_argument("--seed", type=_seed, metavar="N", help="seed of everything random (42)")
    parser.add_argument("--scheduler", metavar="NAME", help="policy, or package.module:Class (power_aware_topsis)")
    parser.add_argument(
        "--cluster",
        choices=("auto", "workers", "emulated"),
        default="auto",
        help="the pods in WORKERS, or local emulated nodes; auto: emulated while WORKERS holds its placeholders",
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="replay this load instead of drawing one")
    parser.add_argument("--save-trace", type=Path, metavar="FILE", help="write the load to a file that --trace reads")
    parser.add_argument("--prometheus-url", metavar="URL", help=f"where power is read (workers: {DEFAULT_PROMETHEUS_URL})")
    parser.add_argument(
        "--output", type=Path, default=Path("results"), metavar="DIR", help="parent of the run's folder (results)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {text!r}")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^64 - 1, found {text!r}")
    return int(text)


def _settings_of(options: argparse.Namespace) -> Settings:
    settings = load_settings(options.config)
    given = {"duration_s": options.duration, "seed": options.seed, "scheduler": options.scheduler}
    return settings.replace(**{key: value for key, value in given.items() if value is not None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop = StopSignal()
    stop.install()
    try:
        return run(parse_options(arguments), Console(), stop)
    except UsageError as error:
        print(f"main_pregenerated.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    except Interrupted as error:
        print(f"main_pregenerated.py: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except HarnessError as error:
        print(f"main_pregenerated.py: {error}", file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
