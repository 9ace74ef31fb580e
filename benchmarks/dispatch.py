"""How late tasks are dispatched: on the emulated cluster, over HTTP to servers that answer at once, and in process.

Every figure stands beside MLPerf LoadGen (server scenario) at the same rate in the same run, its system under test completing at
once: the latency it reports, from the scheduled time, is then how late it issued. In process both do the same; elsewhere LoadGen
only tells how quiet the machine was.
"""

import json
import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import yaml

from benchmarks.figures import Figure, median_figure
from cluster.node_queue import NodeState
from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from inference_request import WallClockCluster, low_latency
from metric_collector import MetricCollector, RunFolder
from performance_profile import PerformanceProfile, load_profile
from scenario import build_scenario
from scheduler import create_scheduler
from settings import Settings, load_settings
from slo_monitor import VIOLATION_COLUMNS, SloMonitor
from task import TaskResult
from utils import PROJECT_ROOT, RowFiles, random_stream

DEFAULT_RATE_PER_S = 31
HTTP_RATE_PER_S = 300
IN_PROCESS_RATE_PER_S = 1000
DEVICES = 100


class InstantCluster(WallClockCluster):
    """Nodes that complete a task the moment it is placed."""

    def __enter__(self) -> Self:
        """All nodes are up at once."""
        for node in self.nodes:
            self._came_up(node, frozenset(self._settings.models))
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to end."""

    def drain(self) -> None:
        """Nothing is ever open."""

    def _work_arrived(self, node: NodeState) -> None:
        now_s = self.now_s()
        self._answered(node, node.take(now_s), now_s, 0.0, 0.0)


def emulated(seconds: float, repeats: int) -> list[Figure]:
    """Default load on the emulated cluster: dispatch lag quiet and with the live display, wake lateness, memory."""
    quiet, live, loadgen_ms = [], [], []
    for seed in range(repeats):
        options = ["--duration", str(seconds), "--seed", str(seed)]
        quiet.append(run_harness([*options, "--quiet"]))
        live.append(run_harness(options, terminal=True))
        loadgen_ms += _loadgen_latency_p99_ms(seconds, DEFAULT_RATE_PER_S)
    at = f"default load, emulated, {seconds:g} s"
    return [
        _lag_figure(f"{at}, --quiet", [lag_p99_ms(summary) for summary, _ in quiet], 1.0, loadgen_ms),
        _lag_figure(f"{at}, live display", [lag_p99_ms(summary) for summary, _ in live], 2.0, loadgen_ms),
        median_figure(
            f"emulated accelerators' wake lateness p99 (bucket bound), {at}",
            [summary["emulated_wake_late_p99_s"] * 1e3 for summary, _ in quiet],
            "ms",
            1.0,
        ),
        median_figure(f"harness memory, {at}", [megabytes for _, megabytes in quiet + live], "MB", 250.0),
    ]


def http_at_once(seconds: float, repeats: int) -> list[Figure]:
    """300 tasks/s over HTTP to emulated servers whose service takes 10 µs and whose overhead is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        config = _constant_rate_config(Path(folder), HTTP_RATE_PER_S, at_once=True)
        options = ["--config", str(config), "--duration", str(seconds), "--quiet"]
        runs, loadgen_ms = [], []
        for seed in range(repeats):
            runs.append(run_harness([*options, "--seed", str(seed)])[0])
            loadgen_ms += _loadgen_latency_p99_ms(seconds, HTTP_RATE_PER_S)
    lost = sum(run["tasks"]["generated"] - run["tasks"]["on_time"] - run["tasks"]["late"] for run in runs)
    at = f"{HTTP_RATE_PER_S} tasks/s over HTTP, {seconds:g} s"
    return [
        _lag_figure(at, [lag_p99_ms(run) for run in runs], 5.0, loadgen_ms),
        Figure(f"tasks lost, {at}, {repeats} runs", lost, "tasks", 0.5),
    ]


def in_process(seconds: float, repeats: int) -> list[Figure]:
    """1,000 tasks/s to a cluster that completes at once, CSV writers on, beside MLPerf LoadGen at the same rate."""
    lags_ms, loadgen_ms = [], []
    for seed in range(repeats):
        lags_ms.append(_in_process_lag_p99_ms(seconds, seed))
        loadgen_ms += _loadgen_latency_p99_ms(seconds, IN_PROCESS_RATE_PER_S)
    at = f"{IN_PROCESS_RATE_PER_S} tasks/s in process, {seconds:g} s"
    return [_lag_figure(at, lags_ms, 1.0, loadgen_ms)]


def _lag_figure(at: str, lags_ms: Sequence[float], target_ms: float, loadgen_ms: Sequence[float]) -> Figure:
    """Median of the lags of some runs, beside the median of LoadGen's where it is installed."""
    figure = median_figure(f"dispatch lag p99, {at}", lags_ms, "ms", target_ms)
    return figure._replace(beside=("MLPerf LoadGen", statistics.median(loadgen_ms))) if loadgen_ms else figure


def lag_p99_ms(summary: dict[str, Any]) -> float:
    """Dispatch lag p99 of a run, milliseconds."""
    return float(summary["dispatch_lag_s"]["p99"]) * 1e3


def run_harness(options: Sequence[str], terminal: bool = False) -> tuple[dict[str, Any], float]:
    """Summary and peak memory (MB) of one run of main_pregenerated.py, on a terminal of its own where asked."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "main_pregenerated.py", "--output", folder, *options]
        ours, theirs = pty.openpty()
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=theirs if terminal else subprocess.DEVNULL)
        os.close(theirs)
        reader = threading.Thread(target=_read_to_the_end, args=(ours,))
        reader.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        reader.join()
        os.close(ours)
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
        summary = json.loads(next(Path(folder).glob("*/experiment_summary_*.json")).read_text())
    return summary, usage.ru_maxrss / 1024


def _read_to_the_end(terminal: int) -> None:
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:  # Linux says EIO when the last writer of a terminal has gone
        return


def _constant_rate_config(folder: Path, tasks_per_s: float, at_once: bool) -> Path:
    """Settings whose devices rest in the cell and send `tasks_per_s` together, to nodes that answer at once where asked."""
    types = {name: {"share": 0.0} for name in ("pedestrian", "vehicle", "drone")}
    fixed = {"share": 1.0, "tasks_per_s": tasks_per_s / DEVICES}
    config: dict[str, Any] = {"devices": {"count": DEVICES, "types": {**types, "fixed": fixed}}}
    if at_once:
        profile = load_profile(load_settings().performance_profile).model_dump(mode="json")
        for node in profile["nodes"].values():
            node["request_overhead_ms"] = 0.0
        for figures in profile["latency"].values():
            figures["mean_ms"] = dict.fromkeys(figures["mean_ms"], 0.01)
        (folder / "profile.yaml").write_text(yaml.safe_dump(profile))
        config["performance_profile"] = "profile.yaml"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def _in_process_lag_p99_ms(seconds: float, seed: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        settings = load_settings(_constant_rate_config(Path(name), IN_PROCESS_RATE_PER_S, at_once=False))
        settings = settings.replace(seed=seed, duration_s=seconds)
        profile = load_profile(settings.performance_profile)
        return _in_process_run(settings, profile, Path(name))


def _in_process_run(settings: Settings, profile: PerformanceProfile, output: Path) -> float:
    settings, scenario = build_scenario(settings, None, None)
    folder = RunFolder(output, datetime.now())
    names = list(profile.nodes)
    lags_s: list[float] = []
    files = RowFiles(folder.columns(names, VIOLATION_COLUMNS), on_error=lambda error: None)
    monitor = SloMonitor(lambda row: files.append(folder.violations, row))
    collector = MetricCollector(
        settings,
        profile,
        names,
        scenario.mobility,
        lambda row: files.append(folder.results, row),
        lambda row: files.append(folder.decisions, row),
    )

    def record(result: TaskResult) -> None:
        monitor.observe(result)
        collector.record(result)
        lags_s.append(result.dispatch_lag_s or 0.0)

    scheduler = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    lock = threading.RLock()
    cluster = InstantCluster(profile, names, settings, scheduler, {}, record, collector.decided, lock)
    with cluster, low_latency():
        run_experiment(scenario.trace, cluster, DeadlineAdapter(settings), record)
    files.close()
    if files.error:
        raise files.error
    lags_s.sort()
    return lags_s[int(len(lags_s) * 0.99)] * 1e3


def _loadgen_latency_p99_ms(seconds: float, rate_per_s: float) -> list[float]:
    """Latency p99 that LoadGen reports when its system under test completes at once; empty where it is not installed."""
    try:
        import mlperf_loadgen as loadgen
    except ImportError:
        return []
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate_per_s
    settings.min_duration_ms = settings.max_duration_ms = int(seconds * 1e3)
    settings.min_query_count = 1
    settings.server_target_latency_ns = 10**9
    system = loadgen.ConstructSUT(
        lambda samples: loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0) for sample in samples]),
        lambda: None,
    )
    library = loadgen.ConstructQSL(1, 1, lambda indices: None, lambda indices: None)
    with tempfile.TemporaryDirectory() as folder:
        output = loadgen.LogOutputSettings()
        output.outdir = folder
        log = loadgen.LogSettings()
        log.log_output = output
        log.enable_trace = False
        loadgen.StartTestWithLogSettings(system, library, settings, log)
        text = (Path(folder) / "mlperf_log_summary.txt").read_text()
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    match = re.search(r"99\.00 percentile latency \(ns\)\s*:\s*(\d+)", text)
    if match is None:
        raise RuntimeError(f"LoadGen printed no p99:\n{text}")
    return [int(match[1]) / 1e6]
