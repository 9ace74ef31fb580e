"""Starts and stops the local emulated inference servers: one process per node, on free loopback ports.

Each server gets its slice of the performance profile on its standard input, and ends when that pipe closes: no server outlives
the harness, however the harness ends.
"""

import json
import logging
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import urllib3

from cluster.http_client import model_query
from measurement.live_metrics import remove_targets, write_targets
from measurement.power_sources import samples_of
from performance_profile import PerformanceProfile
from utils import PROJECT_ROOT, HarnessError, Interrupted

logger = logging.getLogger(__name__)

_LATENESS = "emulated_wake_lateness_seconds_bucket"
_START_TIMEOUT_S = 60.0
_CALIBRATION_REQUESTS = 12
_CALIBRATION_REPEATS = 3
_OUTLIER_MS = 0.5
"""A local round trip so much longer than that of most nodes is measured again."""
_LARGEST_ROUND_TRIP_MS = 2.0
"""A longer one is measured again too, and told if it stays: what was measured is hardly the connection alone."""
_IMAGE = bytes(224 * 224 * 3)
_BINARY = {"Content-Type": "application/octet-stream"}


class Lateness(NamedTuple):
    """How late the emulated accelerators woke: for each node, how many sleeps were late by at most a bound in seconds."""

    sleeps_up_to: dict[str, dict[float, float]]

    def since(self, earlier: "Lateness") -> "Lateness":
        """What was added after `earlier`, for the nodes that both know."""
        nodes = self.sleeps_up_to.keys() & earlier.sleeps_up_to.keys()
        return Lateness(
            {
                node: {at: n - earlier.sleeps_up_to[node].get(at, 0.0) for at, n in self.sleeps_up_to[node].items()}
                for node in nodes
            }
        )

    def percentile_s(self, percent: float) -> float | None:
        """Smallest bound that `percent` of all nodes' sleeps did not exceed, seconds; None without sleeps.

        Sleeps beyond the largest finite bound count as that bound.
        """
        together: dict[float, float] = {}
        for counts in self.sleeps_up_to.values():
            for bound, n in counts.items():
                together[bound] = together.get(bound, 0.0) + n
        total = together.pop(math.inf, 0.0)
        if not total:
            return None
        bounds = sorted(together)
        return next((bound for bound in bounds if together[bound] >= total * percent / 100), bounds[-1])


class EmulatedNodes:
    """Six local servers that answer with the measured latency and power of the real nodes; a context manager.

    Args:
        profile: figures of the nodes; every node of the profile gets a server.
        stopping: asked again and again while the servers start; True gives up.
        targets_file: where a Prometheus looks for its targets: there while the servers run.

    Attributes:
        round_trip_ms: what the local connection to each node was measured to take; the node holds requests so much shorter.
    """

    def __init__(
        self,
        profile: PerformanceProfile,
        stopping: Callable[[], bool] = lambda: False,
        targets_file: Path | None = None,
    ) -> None:
        self._profile = profile
        self._stopping = stopping
        self._targets_file = targets_file
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self.round_trip_ms: dict[str, float] = {}
        self._http = urllib3.PoolManager(timeout=5.0, retries=False)

    @property
    def workers(self) -> dict[str, str]:
        """Address of `/infer` by node, as in WORKERS."""
        return {node: f"http://127.0.0.1:{port}/infer" for node, port in self._ports.items()}

    @property
    def metrics_urls(self) -> dict[str, str]:
        """Address of `/metrics` by node."""
        return {node: f"http://127.0.0.1:{port}/metrics" for node, port in self._ports.items()}

    def __enter__(self) -> Self:
        """Start all servers, wait until they accept, and tell each how long the local connection takes by itself.

        Raises:
            HarnessError: a server did not start.
            Interrupted: `stopping` said so.
        """
        try:
            for node in self._profile.nodes:
                self._start(node)
            deadline_s = time.monotonic() + _START_TIMEOUT_S
            for node, process in self._processes.items():
                self._ports[node] = self._announced_port(node, process, deadline_s)
            for node in self._profile.nodes:
                self._calibrate(node)
            self._repeat_outliers()
            if self._targets_file:
                write_targets(self._targets_file, {f"127.0.0.1:{port}": {"node": node} for node, port in self._ports.items()})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop all servers, whatever becomes of the target file; a second call does nothing."""
        try:
            if self._targets_file:
                remove_targets(self._targets_file)
        finally:
            self._stop()

    def _stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        self._processes.clear()

    def lateness(self) -> Lateness:
        """How late the accelerators woke since they were started, read from the `/metrics` of the servers that answer."""
        by_node: dict[str, dict[float, float]] = {}
        for node, url in self.metrics_urls.items():
            try:
                text = self._http.request("GET", url).data.decode()
                by_node[node] = {float(labels["le"]): value for _, labels, value in samples_of(text, (_LATENESS,))}
            except (urllib3.exceptions.HTTPError, ValueError) as error:
                logger.warning("emulated node %s does not say how late it woke: %s", node, error)
        return Lateness(by_node)

    def _start(self, node: str) -> None:
        paths = (str(PROJECT_ROOT / "docker"), os.environ.get("PYTHONPATH"))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            process = self._processes[node] = subprocess.Popen(
                [sys.executable, "-m", "emulated_inference_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the harness, which then stops the servers in its own order
            )
            _pipe(process.stdin).write(json.dumps(self._profile.emulation_slice(node)).encode() + b"\n")
            _pipe(process.stdin).flush()
        except OSError as error:
            raise HarnessError(f"emulated node {node} cannot be started: {error}") from error

    def _announced_port(self, node: str, process: subprocess.Popen[bytes], deadline_s: float) -> int:
        """Port that the server says it listens on."""
        output = _pipe(process.stdout)
        os.set_blocking(output.fileno(), False)
        line = b""
        while not line.endswith(b"\n"):
            if self._stopping():
                raise Interrupted("stopped while the emulated nodes were starting")
            if process.poll() is not None:
                raise HarnessError(f"emulated node {node} ended with status {process.returncode} while it was starting")
            if time.monotonic() > deadline_s:
                raise HarnessError(f"emulated node {node} was not ready within {_START_TIMEOUT_S:g} s")
            line += output.read() or b""
            time.sleep(0.01)
        return int(json.loads(line)["port"])

    def _calibrate(self, node: str) -> None:
        """Measure what the local connection takes of the request overhead, and let the node hold requests so much shorter."""
        figures = self._profile.nodes[node]
        self._tell_round_trip(node, figures.request_overhead_ms)  # nothing is left to hold while it is measured
        service_time_s = self._profile.service_time_s(node)
        model = min(service_time_s, key=lambda name: service_time_s[name])
        round_trips_ms = [self._round_trip_ms(node, model) for _ in range(_CALIBRATION_REQUESTS)]
        self.round_trip_ms[node] = statistics.median(round_trips_ms)
        self._tell_round_trip(node, min(self.round_trip_ms[node], figures.request_overhead_ms))

    def _repeat_outliers(self) -> None:
        """Calibrate again where the machine seems to have been busy with something else."""
        limit_ms = min(statistics.median(self.round_trip_ms.values()) + _OUTLIER_MS, _LARGEST_ROUND_TRIP_MS)
        for node in self.round_trip_ms:
            repeats = 0
            while self.round_trip_ms[node] > limit_ms and repeats < _CALIBRATION_REPEATS:
                self._calibrate(node)
                repeats += 1

    def calibration_warnings(self) -> list[str]:
        """What a reader of the results must know of the calibration."""
        long = [f"{node} {ms:.1f}" for node, ms in self.round_trip_ms.items() if ms > _LARGEST_ROUND_TRIP_MS]
        if not long:
            return []
        return [
            f"calibration: expected local round trips of at most {_LARGEST_ROUND_TRIP_MS:g} ms, measured {', '.join(long)} ms:"
            " the answers may come earlier than those of the nodes that are emulated; repeat the run on an idle machine"
        ]

    def _round_trip_ms(self, node: str, model: str) -> float:
        """Duration of one request beside queue and inference, milliseconds."""
        sent_s = time.monotonic()
        answer = self._post(node, self.workers[node] + model_query(model), body=_IMAGE, headers=_BINARY)
        elapsed_s = time.monotonic() - sent_s
        return (elapsed_s - float(answer["queue_time"]) - float(answer["inference_time"])) * 1e3

    def _tell_round_trip(self, node: str, round_trip_ms: float) -> None:
        self._post(node, self.workers[node].replace("/infer", "/calibration"), json={"local_round_trip_ms": round_trip_ms})

    def _post(self, node: str, url: str, **content: Any) -> dict[str, Any]:
        try:
            response = self._http.request("POST", url, **content)
        except urllib3.exceptions.HTTPError as error:
            raise HarnessError(f"emulated node {node} does not answer: {error}") from error
        if response.status != 200:
            raise HarnessError(f"emulated node {node} refused its calibration: {response.data.decode()}")
        return dict(response.json())


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    """A pipe of a process that was started with one."""
    if pipe is None:
        raise HarnessError("an emulated node was started without its pipes")
    return pipe
