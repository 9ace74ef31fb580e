"""The wall-clock cluster: worker threads that POST each task to its node, over kept connections.

Edit WORKERS to name the pods of your cluster: `kubectl get pods -o wide` shows their addresses. Or leave it as it is, and let
`main_pregenerated.py --discover` ask the cluster for them.
"""

import gc
import logging
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from urllib3.exceptions import HTTPError
from urllib3.util import Url, parse_url

from cluster.base import Cluster
from cluster.http_client import (
    NO_MODELS,
    NO_QUEUE_TIME,
    Answer,
    Health,
    ModelAbsent,
    NodeClient,
    NodeError,
    NodeFault,
    NodeFull,
    NodeTimeout,
    NodeUnreachable,
    RequestRefused,
    wrong_answer,
    wrong_node,
)
from cluster.node_health import NodeHealth
from cluster.node_queue import NodeState, Request
from measurement.summary import LOST_LIMIT, outages
from performance_profile import PerformanceProfile
from scheduler import BaseScheduler
from settings import Settings
from task import Decision, PowerSample, TaskResult
from utils import HarnessError, UsageError, supervised_thread

WORKERS = {
    "coral1": "http://<coral1_pod_ip>:8080/infer",
    "coral2": "http://<coral2_pod_ip>:8080/infer",
    "jetson1": "http://<jetson1_pod_ip>:8080/infer",
    "jetson2": "http://<jetson2_pod_ip>:8080/infer",
    "hailo1": "http://<hailo1_pod_ip>:8080/infer",
    "hailo2": "http://<hailo2_pod_ip>:8080/infer",
}

logger = logging.getLogger(__name__)

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?")
_LONGEST_HOST_NAME = 253
_EARLY_S = 0.3e-3
_SWITCH_INTERVAL_S = 1e-4
_LONGEST_SLEEP_S = 0.1
_DRAIN_CHECK_S = 2e-3
_START_PATIENCE_S = 5.0
"""How long a first `/health` may take beyond its deadline: the look-up of a host name has none."""
_OTHER_MODEL_NAMES = "answers name models that the profile does not know: taken as other names of those asked for"


def placeholders(workers: Mapping[str, str]) -> list[str]:
    """Names of the workers whose address is still a placeholder."""
    return [name for name, url in workers.items() if isinstance(url, str) and ("<" in url or ">" in url)]


def require_worker_urls(workers: Mapping[str, str]) -> dict[str, Url]:
    """The workers' addresses, parsed.

    Raises:
        UsageError: one is no `http://host:port/path`, and the text names it, or there are none.
    """
    if not workers:
        raise UsageError("WORKERS: expected at least one node, found none")
    parsed: dict[str, Url] = {}
    for name, text in workers.items():
        try:
            url = parse_url(text) if isinstance(text, str) else Url()
        except HTTPError:
            url = Url()
        if url.scheme != "http" or not _is_host(url.host or "") or url.port == 0 or not url.path or url.path == "/":
            raise UsageError(f"WORKERS: {name}: expected an address such as http://10.42.1.7:8080/infer, found {text!r}")
        parsed[name] = url
    return parsed


def _is_host(text: str) -> bool:
    """Whether `text` is an IP address, IPv6 in brackets, or a name that can be one: what is all digits at its end is none."""
    try:
        if text.startswith("["):
            return bool(IPv6Address(text.strip("[]")))
        if text.removesuffix(".").rpartition(".")[2].isdecimal():
            return bool(IPv4Address(text))
    except ValueError:
        return False
    return len(text) <= _LONGEST_HOST_NAME and bool(_HOST_NAME.fullmatch(text))


def require_profiled(workers: Iterable[str], profile: PerformanceProfile) -> None:
    """Refuse workers of which the profile knows nothing.

    Raises:
        UsageError: the text names the first of them.
    """
    for name in workers:
        if name not in profile.nodes:
            raise UsageError(f"worker {name} is not in the performance profile, which knows {', '.join(profile.nodes)}")


def _require_plausible(answer: Answer, round_trip_s: float) -> None:
    """Refuse durations that do not fit into the round trip, beyond what two clocks may differ by."""
    claimed_s = (answer.queue_time_s or 0.0) + answer.inference_time_s
    if claimed_s > 1.05 * round_trip_s + 5e-3:
        raise NodeFault(f"claims {claimed_s:.6g} s of a round trip of {round_trip_s:.6g} s")


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


class WallClockCluster(Cluster):
    """A cluster on the master's monotonic clock."""

    _start_s = 0.0

    def clock(self) -> float:
        """The master's monotonic clock, seconds."""
        return time.monotonic()

    def now_s(self) -> float:
        """Seconds since the start of the load."""
        return time.monotonic() - self._start_s

    def start_load(self) -> None:
        """Set the load's clock to zero."""
        self._start_s = time.monotonic()

    def advance_to(self, time_s: float) -> bool:
        """Sleep until shortly before `time_s` and spin the rest, giving way to the other threads."""
        while not self.stopping:
            left_s = time_s - self.now_s()
            if left_s <= 0:
                return True
            time.sleep(min(left_s - _EARLY_S, _LONGEST_SLEEP_S) if left_s > _EARLY_S else 0)
        return False


class HttpCluster(WallClockCluster):
    """Nodes behind HTTP, on the wall clock; see `Cluster` for the arguments not named here.

    Args:
        workers: address of each node's `/infer`.
    """

    def __init__(
        self,
        workers: Mapping[str, str],
        profile: PerformanceProfile,
        settings: Settings,
        scheduler: BaseScheduler,
        power: Mapping[str, PowerSample],
        on_end: Callable[[TaskResult], None],
        on_decision: Callable[[Decision], None] | None = None,
    ) -> None:
        urls = require_worker_urls(workers)
        require_profiled(workers, profile)
        lock = threading.RLock()
        self._profile = profile
        super().__init__(profile, list(workers), settings, scheduler, power, on_end, on_decision, lock)
        self.unreachable_at_start: dict[str, str] = {}
        self._lock = lock
        self._work = {name: threading.Condition(lock) for name in workers}
        self._said = {name: Health(None, binary=False) for name in workers}
        self._not_served: dict[str, set[str]] = {name: set() for name in workers}
        self._refuses_all: set[str] = set()
        self._ever_served: dict[str, set[str]] = {name: set() for name in workers}
        self._remarks: dict[str, list[str]] = {}
        self._health = {name: NodeHealth(settings.requests.health_interval_s) for name in workers}
        self._changed = {name: threading.Event() for name in workers}
        self._load_end_s: float | None = None
        self._out_for = dict.fromkeys(workers, "no answer")
        self._answers = Counter[str]()
        self._failures = {name: Counter[str]() for name in workers}  # by reason
        self._served_by: dict[str, set[str]] = {}
        self._ever_withheld: dict[tuple[str, str], str] = {}
        self._closing = threading.Event()
        self._unchecked = set(workers)
        self._all_checked = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clients: list[NodeClient] = []
        for node in self.nodes:
            url = urls[node.name]
            self._add_thread(f"{node.name}-health", self._watch, node, NodeClient(url, settings.requests))
            for connection in range(settings.requests.connections_per_node):
                self._add_thread(f"{node.name}-{connection}", self._serve, node, NodeClient(url, settings.requests))

    def _add_thread(
        self, name: str, target: Callable[[NodeState, NodeClient], None], node: NodeState, client: NodeClient
    ) -> None:
        self._threads.append(supervised_thread(name, partial(target, node, client), self.stop))
        self._clients.append(client)

    def __enter__(self) -> Self:
        """Start the threads and wait until every node's `/health` has been asked once, or the run is to stop.

        Raises:
            HarnessError: no node is up.
        """
        for thread in self._threads:
            thread.start()
        patience_s = self._settings.requests.connect_timeout_s + _START_PATIENCE_S
        give_up_s = time.monotonic() + patience_s
        while not self._all_checked.wait(_LONGEST_SLEEP_S) and time.monotonic() < give_up_s:
            if self.stopping:
                return self
        with self._lock:
            self.unreachable_at_start |= dict.fromkeys(self._unchecked, f"/health was not answered within {patience_s:g} s")
        if not any(node.up for node in self.nodes):
            self.__exit__()
            raise HarnessError("no node is up: " + "; ".join(f"{name}: {why}" for name, why in self.unreachable_at_start.items()))
        return self

    def __exit__(self, *exc: object) -> None:
        """Break off what is still on its way, stop the threads and wait for them."""
        with self._lock:
            self._closing.set()
            for work in self._work.values():
                work.notify_all()
        for changed in self._changed.values():
            changed.set()
        for client in self._clients:
            client.abort()
        give_up_s = time.monotonic() + 2 * self._settings.requests.connect_timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=max(0.0, give_up_s - time.monotonic()))
                if thread.is_alive():
                    logger.warning("%s does not end", thread.name)

    def drain(self) -> None:
        """Wait for the open tasks, at most `drain_timeout_s`, then end what is left."""
        give_up_s = self.now_s() + self._settings.requests.drain_timeout_s
        while self._open and not self.stopping and self.now_s() < give_up_s:
            time.sleep(_DRAIN_CHECK_S)
        with self._lock:
            self._end_all_open()
            self._load_end_s = self.clock()
            for node in self.nodes:
                node.count_unanswered(self.now_s())

    def down_periods(self) -> list[tuple[str, float, float]]:
        """Each time a node was out during the load: its name, from and until when, seconds since the start of the load.

        From its last good answer on, whenever the outage was noticed.
        """
        with self._lock:
            end_s = self._load_end_s or self.clock()
            return [(name, *period) for name, health in self._health.items() for period in health.outages(self._start_s, end_s)]

    def warnings(self) -> list[str]:
        """What a reader of the results must know of the nodes, in one sentence each."""
        out = outages(self.down_periods())
        lines = [
            f"{name} was out {_times(outage['count'])}, {outage['down_s']:.1f} s in all; the last reason: {self._out_for[name]}"
            for name, outage in out.items()
        ]
        lines += [
            f"{name} answered {model} badly and was not offered it until a probe was good: {reason}"
            for (name, model), reason in self._ever_withheld.items()
        ]
        for name, reasons in self._failures.items():
            sent = self._answers[name] + reasons.total()
            if name not in out and reasons.total() > LOST_LIMIT * sent:
                lines.append(f"{name} served {self._answers[name]} of the {sent} requests sent to it; {_most_common(reasons)}")
        with self._lock:
            lines += [f"{', '.join(names)}: {what}" for what, names in self._remarks.items()]
        return lines

    def _remark(self, node: NodeState, what: str) -> None:
        """Warn, once, of what a node does otherwise than agreed. Hold the lock."""
        names = self._remarks.setdefault(what, [])
        if node.name not in names:
            names.append(node.name)
            logger.warning("%s: %s", node.name, what)

    def _work_arrived(self, node: NodeState) -> None:
        self._work[node.name].notify()

    def _serve(self, node: NodeState, client: NodeClient) -> None:
        """Life of one worker thread: send what waits for `node`, one request at a time."""
        try:
            client.connect()
        except NodeUnreachable as error:
            logger.debug("%s: %s", node.name, error)
        while (request := self._next(node)) is not None:
            self._attempt(node, client, request)
        client.close()

    def _next(self, node: NodeState) -> Request | None:
        with self._lock:
            while not self._closing.is_set():
                if node.has_waiting:
                    request = node.take(self.now_s())
                    if request in self._open:
                        return request
                    node.gave_up(request)
                else:
                    self._work[node.name].wait()
            return None

    def _attempt(self, node: NodeState, client: NodeClient, request: Request) -> None:
        """Send one request and see how it ends."""
        model = request.task.model_name
        try:
            client.connect()
            request.start_time_s = self.now_s()
            answer = client.infer(model, request.service_noise, self._said[node.name].binary, request.overhead_noise)
            completion_s = self.now_s()
            self._require_right(node, model, answer, completion_s - request.start_time_s)
        except NodeError as error:
            with self._lock:
                self._failed(node, request, error)
            return
        with self._lock:
            self._answers[node.name] += 1
            self._served(node, model)
            taken_s = self._profile.expected_s(node.name, model, request.service_noise, request.overhead_noise)
            self._health[node.name].answered_task(self._start_s + request.start_time_s, taken_s, self._start_s + completion_s)
            self._answered(node, request, completion_s, answer.queue_time_s, answer.inference_time_s)

    def _served(self, node: NodeState, model: str, probe: bool = False) -> None:
        """A good inference came. Hold the lock."""
        self._served_by.setdefault(model, set()).add(node.name)
        self._ever_served[node.name].add(model)
        self._clear(node, model, probe)

    def _clear(self, node: NodeState, model: str, probe: bool) -> None:
        """Nothing speaks against the node and this model there any more. Hold the lock."""
        health = self._health[node.name]
        was_withheld = model in health.withheld
        health.served(model, self.clock(), probe)
        if was_withheld and node.up:
            self._came_up(node, node.models | {model})

    def _require_right(self, node: NodeState, model: str, answer: Answer, round_trip_s: float) -> None:
        """Look whether an answer can be that of the node to a request for `model`.

        Raises:
            NodeFault: it cannot.
        """
        _require_plausible(answer, round_trip_s)
        if problem := wrong_answer(node.name, self._said[node.name], self._profile, model, answer):
            raise NodeFault(f"answer is not as agreed: {problem}")
        if answer.queue_time_s is None or answer.model not in (model, None):
            with self._lock:
                self._remark(node, NO_QUEUE_TIME if answer.queue_time_s is None else _OTHER_MODEL_NAMES)

    def _failed(self, node: NodeState, request: Request, error: NodeError) -> None:
        has_to_go_out = self._blame(node, request.task.model_name, error)
        still_computed = isinstance(error, NodeTimeout) and request in self._open
        if request in self._open:
            self._failures[node.name][str(error)] += 1
        refused = isinstance(error, RequestRefused | ModelAbsent)
        self._attempt_failed(node, request, f"{node.name}: {error}", still_computed, refused)
        if has_to_go_out:
            self._take_out(node, str(error))
            self._changed[node.name].set()  # the health thread now waits otherwise

    def _served_elsewhere(self, node: NodeState, model: str) -> bool:
        """Whether the last word of another node on this model was a good inference."""
        return bool(self._served_by.get(model, set()) - {node.name})

    def _is_not_served(self, node: NodeState, model: str, error: NodeError) -> bool:
        """Whether a refusal means that the node does not serve a model, which it is then offered no more. Hold the lock.

        That is so for a node that does not list its models and never answered a request for this one; one that refuses every
        model has another fault.
        """
        name, not_served = node.name, self._not_served[node.name]
        if error.status not in (400, 404) or self._said[name].models is not None or name in self._refuses_all:
            return False
        if model in self._ever_served[name]:
            return False
        not_served.add(model)
        if not_served >= self._profile.service_time_s(name).keys():
            self._refuses_all.add(name)
            not_served.clear()
            return False
        self._remark(node, f"does not serve {model}: {error}")
        if node.up:
            self._came_up(node, node.models - {model})
        return True

    def _blame(self, node: NodeState, model: str, error: NodeError) -> bool:
        """Count a failed inference against the node or the model there; whether the node has to go out. Hold the lock."""
        health = self._health[node.name]
        if isinstance(error, NodeUnreachable):
            health.lost()
            return True
        if self._is_not_served(node, model, error):
            return node.up and not node.offers
        lacks_model = isinstance(error, ModelAbsent)
        if isinstance(error, NodeFull) and not lacks_model:
            return False
        self._served_by.get(model, set()).discard(node.name)
        own_fault, elsewhere = isinstance(error, NodeFault), self._served_elsewhere(node, model)
        if health.refused(model, self.clock(), own_fault, lacks_model, elsewhere):
            return True
        if model in health.withheld and model in node.models:
            if (node.name, model) not in self._ever_withheld:
                logger.warning("%s is not offered %s for now: %s", node.name, model, error)
            self._ever_withheld[node.name, model] = str(error)
            self._came_up(node, node.models - {model})
        return node.up and not node.offers and not lacks_model  # a node without a model is no node that is out

    def _take_out(self, node: NodeState, reason: str) -> None:
        if self._closing.is_set():
            return  # we broke the connection off ourselves: that says nothing of the node
        health = self._health[node.name]
        self._out_for[node.name] = reason
        if health.went_out(self.clock(), offers_nothing=node.up and not node.offers) and _is_said(health.outage_count):
            again = f" (outage {health.outage_count})" if health.outage_count > 1 else ""
            logger.warning("%s is out%s: %s", node.name, again, reason)
        super()._take_out(node, reason)

    def _models(self, node: NodeState, said: Health) -> frozenset[str]:
        """What a node serves: what it says, or, where it says nothing, what the profile knows and it never refused."""
        if said.models is not None:
            return said.models
        return frozenset(self._profile.service_time_s(node.name).keys() - self._not_served[node.name])

    def _bring_in(self, node: NodeState, said: Health) -> None:
        """The node is up and says what it serves. Hold the lock."""
        health = self._health[node.name]
        self._said[node.name] = said
        self._came_up(node, self._models(node, said) - health.withheld)
        if health.came_back(self.clock()) and _is_said(health.outage_count):
            logger.warning("%s is back", node.name)

    def _watch(self, node: NodeState, client: NodeClient) -> None:
        """Life of a health thread: ask `/health` at every interval, believe it, and probe what was answered badly."""
        health, changed = self._health[node.name], self._changed[node.name]
        while not self._closing.is_set():
            try:
                self._ask(node, client)
            except NodeUnreachable as error:
                with self._lock:
                    if node.name in self._unchecked:
                        self.unreachable_at_start[node.name] = str(error)
                    self._take_out(node, str(error))
                    health.try_failed(self.clock())
            with self._lock:
                self._unchecked.discard(node.name)
                if not self._unchecked:
                    self._all_checked.set()
            while changed.wait(health.pause_s(self.clock())) and not self._closing.is_set():
                changed.clear()
        client.close()

    def _ask(self, node: NodeState, client: NodeClient) -> None:
        """Ask `/health`, and for an inference where that alone is not enough.

        Raises:
            NodeUnreachable: there was no good answer of `/health`, or none at all to a probe.
        """
        health = self._health[node.name]
        asked_s = self.clock()
        said = client.health()
        if problem := wrong_node(node.name, said, self._profile):
            raise NodeUnreachable(problem)
        service_time_s = self._profile.service_time_s(node.name)
        with self._lock:
            models = sorted(self._models(node, said) & service_time_s.keys(), key=lambda model: service_time_s[model])
            if said.models is None:
                self._remark(node, NO_MODELS)
            if health.went_out_after(asked_s):
                return
            if not health.distrusted or not models:
                self._bring_in(node, said)
        while (model := health.probe_of(models, self.clock())) is not None and not self._closing.is_set():
            if not self._probe(node, client, said, model):
                return

    def _probe(self, node: NodeState, client: NodeClient, said: Health, model: str) -> bool:
        """Ask for an inference of no task; whether its answer was good."""
        try:
            client.connect()
            sent_s = self.clock()
            answer = client.infer(model, 0.0, said.binary)
            self._require_right(node, model, answer, self.clock() - sent_s)
        except (NodeFault, NodeFull, RequestRefused) as error:
            logger.debug("probe of %s: %s", node.name, error)
            with self._lock:
                if self._is_not_served(node, model, error):
                    return False
                if not isinstance(error, RequestRefused | ModelAbsent) or self._served_elsewhere(node, model):
                    self._health[node.name].try_failed(self.clock(), probed=model)
                    return False
                self._clear(node, model, probe=True)  # no other node says otherwise: the fault is not the node's
        else:
            with self._lock:
                node.probed(self.now_s(), answer.inference_time_s)
                self._served(node, model, probe=True)
        with self._lock:
            if not node.up:
                self._bring_in(node, said)
        return True


def _most_common(reasons: Counter[str]) -> str:
    ((reason, count),) = reasons.most_common(1)
    return f"{count} times: {reason}" if count > 1 else f"among the reasons: {reason}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _is_said(count: int) -> bool:
    """Whether the so-many-th outage of a node is worth a line: each time that they have doubled."""
    return count & (count - 1) == 0
