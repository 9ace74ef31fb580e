"""What the harness shows of itself: its metrics page, target files by which Prometheus finds it, a note of the run in Grafana."""

import html
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import urllib3
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    start_http_server,
)

from measurement.http_exchange import WrongAnswer, exchange
from settings import Settings
from task import Decision, Outcome, TaskResult
from utils import PROJECT_ROOT, UsageError, write_json_atomically

logger = logging.getLogger(__name__)

TARGETS_VARIABLE = "MONITOR_TARGETS"
_DEFAULT_TARGETS = PROJECT_ROOT / ".cache" / "monitor" / "targets"
_FILE_OF_A_PROCESS = re.compile(r"\.?(?:emulated|harness)-([1-9][0-9]{0,8})\.json(?:\.tmp)?")
_LONGEST_ANSWER = 1 << 16
_NOT_GRAFANA = "it answered, but not as Grafana does"
_LAG_BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_RESPONSE_BUCKETS_S = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0, 5.0, 10.0)


class HarnessMetrics:
    """The metrics of one run. Those who tell it hold the cluster's lock; a scrape builds its text in a thread of its own.

    Args:
        settings: the experiment.
        experiment_id: name of the run's folder.
        cluster: workers or emulated.
        node_names: the nodes of the cluster.
    """

    def __init__(self, settings: Settings, experiment_id: str, cluster: str, node_names: list[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        run = Info("harness_run", "The run that is going on.", registry=registry)
        run.info(
            {
                "experiment_id": experiment_id,
                "scheduler": settings.scheduler,
                "cluster": cluster,
                "seed": str(settings.seed),
            }
        )
        if (budget_w := settings.power_aware_topsis.power_budget_w) is not None:
            Gauge("harness_power_budget_watts", "Power budget of the offered nodes together.", registry=registry).set(budget_w)
        tasks = Counter("harness_tasks", "Tasks that ended.", ("outcome", "slo_class"), registry=registry)
        self._tasks = {
            (outcome, slo_class): tasks.labels(outcome.value, slo_class)
            for slo_class in settings.slo_classes
            for outcome in Outcome
        }
        decisions = Counter("harness_decisions", "Decisions for a node.", ("node",), registry=registry)
        self._decisions = {name: decisions.labels(name) for name in node_names}
        self._lag = Histogram(
            "harness_dispatch_lag_seconds",
            "From a task's arrival to its place in a node's queue.",
            buckets=_LAG_BUCKETS_S,
            registry=registry,
        )
        self._response = Histogram(
            "harness_response_seconds",
            "From a task's arrival to its answer.",
            buckets=_RESPONSE_BUCKETS_S,
            registry=registry,
        )
        self._queue_depth = Gauge("harness_queue_depth", "Tasks waiting and in flight.", ("node",), registry=registry)
        self._idle = Gauge(
            "harness_node_idle_watts",
            "Idle power that energy above idle is taken against.",
            ("node",),
            registry=registry,
        )

    def watch_queue(self, node: str, depth: Callable[[], float]) -> None:
        """Ask for the queue depth of a node at every scrape."""
        self._queue_depth.labels(node).set_function(depth)

    def ended(self, result: TaskResult) -> None:
        """Take in a task that has ended."""
        self._tasks[result.outcome, result.task.slo_class].inc()
        if (lag_s := result.dispatch_lag_s) is not None:
            self._lag.observe(lag_s)
        if (response_s := result.response_time_s) is not None:
            self._response.observe(response_s)

    def decided(self, decision: Decision) -> None:
        """Take in a decision of the scheduler."""
        self._decisions[decision.selected_node].inc()

    def idle_power(self, idle_w: Mapping[str, float]) -> None:
        """Take in the idle power of each node, watts."""
        for node, power_w in idle_w.items():
            self._idle.labels(node).set(power_w)

    @contextmanager
    def served(self, port: int) -> Iterator[None]:
        """Serve the page on `port` of every address of this machine: Prometheus asks from a pod, not from here.

        Raises:
            UsageError: the port cannot be had.
        """
        try:
            server, thread = start_http_server(port, "0.0.0.0", self.registry)
        except OSError as error:
            raise UsageError(f"--metrics-port: port {port} cannot be served: {error.strerror}; free it or take another") from None
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def targets_folder() -> Path | None:
    """Where a Prometheus looks for target files: MONITOR_TARGETS, else the folder of `make monitor`; None where there is none.

    A folder that is named and not there is warned of.
    """
    named = os.environ.get(TARGETS_VARIABLE)
    if named == "":
        return None
    folder = _DEFAULT_TARGETS if named is None else Path(named)
    if os.path.isdir(folder):
        return folder
    if named is not None:
        logger.warning("%s: %s is no folder, so Prometheus will not find this run", TARGETS_VARIABLE, folder)
    return None


def targets_file(folder: Path, kind: str) -> Path:
    """Target file of this process, so that two runs at once have one each.

    Args:
        folder: where Prometheus looks.
        kind: emulated or harness.
    """
    return folder / f"{kind}-{os.getpid()}.json"


def write_targets(file: Path, labels_of: Mapping[str, Mapping[str, str]]) -> None:
    """Write a target file of Prometheus (`file_sd`), whole or not at all; one that cannot be written is only warned of.

    What killed runs left in the folder goes first.

    Args:
        file: where Prometheus looks for it.
        labels_of: labels of each target, by its host:port.
    """
    remove_targets_of_the_dead(file.parent)
    groups = [{"targets": [address], "labels": dict(labels)} for address, labels in labels_of.items()]
    try:
        write_json_atomically(file, groups)
    except OSError as error:
        logger.warning("%s cannot be written, so Prometheus will not find its targets: %s", file, error.strerror)


def remove_targets(file: Path) -> None:
    """Take a target file away; one that is gone already is no matter, one that cannot be removed is only warned of."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be removed, so Prometheus keeps its targets: %s", file, error.strerror)


def remove_targets_of_the_dead(folder: Path) -> None:
    """Take away the target files whose process, named in the file's name, does not run on this machine any more."""
    try:
        files = list(folder.iterdir())
    except OSError:  # no folder, or another's: then there is nothing to clear here, and who writes there warns
        return
    for file in files:
        if (named := _FILE_OF_A_PROCESS.fullmatch(file.name)) and not _runs(int(named[1])):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:  # it is asked again every second
                logger.debug("%s cannot be removed, so Prometheus keeps its targets: %s", file, error.strerror)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another person's
        return True
    return True


@contextmanager
def listed_target(file: Path, address: str) -> Iterator[None]:
    """A target file with one target, there while the block runs."""
    write_targets(file, {address: {}})
    try:
        yield
    finally:
        remove_targets(file)


def annotate_in_grafana(summary: Mapping[str, Any], environment: Mapping[str, str], timeout_s: float = 5.0) -> str | None:
    """Mark a finished run on the time axis of Grafana's dashboards, where GRAFANA_URL says there is one.

    Args:
        summary: of the run.
        environment: holds GRAFANA_URL and GRAFANA_TOKEN, a service account token that may write annotations.
        timeout_s: longest wait for Grafana, seconds.

    Returns:
        Why there is no annotation, in one line without the token; None where there is one, or none was asked for.
    """
    url, token = environment.get("GRAFANA_URL", ""), environment.get("GRAFANA_TOKEN", "")
    if not url:
        return None
    if not token:
        return "no annotation in Grafana: GRAFANA_URL is set and GRAFANA_TOKEN is not"
    if not (token.isascii() and token.isprintable()):
        return "no annotation in Grafana: GRAFANA_TOKEN holds a character that no token has, such as a line break"
    try:
        address = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        address = urllib3.util.Url()
    where = address.netloc
    if address.scheme not in ("http", "https") or not where:
        return "no annotation in Grafana: GRAFANA_URL is no address such as http://127.0.0.1:30300"
    verdict = "valid" if summary["valid"] else "not valid"
    note = {
        "time": _unix_ms(summary["started_at"]),
        "timeEnd": _unix_ms(summary["finished_at"]),
        "tags": ["edge-harness", verdict, summary["scheduler"], summary["cluster"]],
        "text": html.escape(_verdict(summary, verdict)),
    }
    told: SimpleQueue[str | None] = SimpleQueue()
    post = partial(_post, f"{url.rstrip('/')}/api/annotations", note, token, timeout_s)
    Thread(target=lambda: told.put(post()), name="grafana", daemon=True).start()
    try:
        problem = told.get(timeout=timeout_s)
    except Empty:  # looking up the name of the host may take longer than all of the exchange
        problem = f"no answer within {timeout_s:g} s"
    return None if problem is None else f"no annotation in Grafana at {where}: {problem}".replace(token, "…")


def _post(url: str, note: Mapping[str, Any], token: str, timeout_s: float) -> str | None:
    """Send an annotation; what went wrong, None where the answer holds its id."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        status, _, body = exchange("POST", url, timeout_s, headers, json.dumps(note).encode(), _LONGEST_ANSWER)
    except WrongAnswer:
        return _NOT_GRAFANA
    except OSError as error:
        return str(error)
    if status != 200:
        return f"it answered {status}"
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    return None if isinstance(answer, dict) and "id" in answer else _NOT_GRAFANA


def _verdict(summary: Mapping[str, Any], verdict: str) -> str:
    """What the annotation says of a run."""
    compliance, energy_j = summary["slo_compliance_rate"], summary["energy_j"]["above_idle_per_task"]
    seed = "unknown" if summary["seed"] is None else summary["seed"]
    name = f"{summary['experiment_id']}: {summary['scheduler']}, seed {seed}, {summary['cluster']} cluster"
    return "; ".join(
        [
            f"{name}: {verdict}",
            "no task dispatched" if compliance is None else f"SLO compliance {compliance:.1%}",
            "no energy above idle" if energy_j is None else f"{energy_j:.3g} J above idle per task",
            *summary["invalid_reasons"],
            *summary["energy_invalid_reasons"],
        ]
    )


def _unix_ms(stamp: str) -> int:
    return round(datetime.fromisoformat(stamp).timestamp() * 1e3)
