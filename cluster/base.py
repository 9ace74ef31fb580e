"""The cluster as the experiment sees it, and what every kind of cluster shares.

`Cluster` is the small interface that `run_experiment()` drives. Its subclasses differ only in their clock and in how a request
travels; placing, retrying and ending a task are the same code here.
"""

import re
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Real
from time import perf_counter
from types import MappingProxyType
from typing import Self

from cluster.node_queue import NodeState, Request
from performance_profile import PerformanceProfile
from scheduler import BaseScheduler, Node
from settings import Settings
from slo_monitor import verdict
from task import Decision, Device, Outcome, PowerSample, Task, TaskResult
from utils import HarnessError, StopRequested, printable, text_of

_ROUNDING_S = 1e-6
"""More than rounding makes of the sum of what waits in a queue."""
_LEAST_ALIKE = 3
"""Letters and digits of a model's name that tell it from others."""


def model_mismatches(nodes: Iterable[NodeState], models: Sequence[str]) -> list[str]:
    """A sentence on the models that no node can be given, and on each node that is up and can be given less than half of them.

    Also on nodes that list a model by a name much like one of these, or one of these that the profile has no latency of.

    Args:
        nodes: the nodes, those that are up with the models that they list.
        models: those of the scenario.
    """
    lines = []
    up = [node for node in nodes if node.up]
    for node in up:
        listed, missing = node.models, [model for model in models if model not in node.offers]
        alike = [
            f"{printable(theirs)!r} may be {ours}"
            for ours in missing
            for theirs in sorted(listed.difference(models))
            if _is_much_alike(ours, theirs)
        ]
        unknown = [f"the profile has no latency of {model} there" for model in missing if model in listed]
        if alike or unknown or 2 * len(missing) > len(models):
            lines.append(
                f"{node.name} can be given {len(models) - len(missing)} of the {len(models)} models of the scenario, "
                f"{', '.join(models)}; its /health lists {printable(', '.join(sorted(listed))) or 'none'}"
                + "".join(f"; {remark}" for remark in (*alike, *unknown))
            )
    if unserved := [model for model in models if not any(model in node.offers for node in up)]:
        lines.append(f"no node can be given {', '.join(unserved)}: such tasks will fail")
    return lines


def _is_much_alike(ours: str, theirs: str) -> bool:
    """Whether two names of models differ in case, signs or what stands around ours alone: resnet50, ResNet-50_v1, resnet."""
    ours, theirs = (re.sub(r"[\W_]", "", name).lower() for name in (ours, theirs))
    return ours in theirs or (len(theirs) >= _LEAST_ALIKE and ours.startswith(theirs))


class Cluster(ABC):
    """Nodes, their queues and the scheduler that fills them.

    One lock guards the state of the nodes. Whoever drives the cluster holds it over adapting and placing one task, so that
    nothing a decision sees changes in its middle.

    Args:
        profile: figures of the nodes.
        node_names: the nodes of this cluster, in the order in which schedulers see them; all must be in the profile.
        settings: the experiment.
        scheduler: the policy.
        power: latest power sample by node, read at each decision; times on `clock()`.
        on_end: told of every task that ends; called under the lock.
        on_decision: told of every decision; called under the lock.
        lock: guards the nodes; a null context where there is one thread only.
    """

    measures_decisions = True
    """Whether a decision's duration in wall-clock time means anything."""

    def __init__(
        self,
        profile: PerformanceProfile,
        node_names: Sequence[str],
        settings: Settings,
        scheduler: BaseScheduler,
        power: Mapping[str, PowerSample],
        on_end: Callable[[TaskResult], None],
        on_decision: Callable[[Decision], None] | None,
        lock: AbstractContextManager[object],
    ) -> None:
        self.lock = lock
        self.failure: HarnessError | None = None
        self._settings = settings
        self._scheduler = scheduler
        self._power = power
        self._on_end = on_end
        self._on_decision = on_decision
        self._open: dict[Request, None] = {}
        self._stop = False
        self.nodes = [
            NodeState(
                Node(name, figures.accelerator, figures.idle_w, figures.busy_w, overhead_j=profile.overhead_j(name)),
                profile.service_time_s(name),
                profile.overhead_s(name),
                settings.requests.connections_per_node,
                settings.queue_discipline,
                settings.power_aware_topsis.busy_window_s,
            )
            for name, figures in ((name, profile.nodes[name]) for name in node_names)
        ]
        self._serving: dict[str, tuple[list[NodeState], tuple[Node, ...]]] = {}
        self._fastest_first = {
            model: sorted(
                (state for state in self.nodes if model in profile.service_time_s(state.name)),
                key=lambda state: profile.overhead_s(state.name) + profile.service_time_s(state.name)[model],
            )
            for model in profile.latency
        }

    # What a kind of cluster brings.

    @abstractmethod
    def clock(self) -> float:
        """Seconds on the clock of the power samples."""

    @abstractmethod
    def now_s(self) -> float:
        """Seconds since the start of the load."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Bring the nodes up.

        Raises:
            HarnessError: no node is up.
        """

    @abstractmethod
    def start_load(self) -> None:
        """Set the load's clock to zero."""

    @abstractmethod
    def __exit__(self, *exc: object) -> None:
        """End what was started."""

    @abstractmethod
    def advance_to(self, time_s: float) -> bool:
        """Let time pass until `time_s`; False when the run is to stop."""

    @abstractmethod
    def drain(self) -> None:
        """Let the open tasks end; what is open after the drain timeout, or when the run is to stop, is ended here."""

    @abstractmethod
    def _work_arrived(self, node: NodeState) -> None:
        """A request waits at `node`: let a free connection send it."""

    # What all share.

    unreachable_at_start: Mapping[str, str] = MappingProxyType({})
    """Why a node could not be reached when the cluster was entered, by node."""

    def down_periods(self) -> list[tuple[str, float, float]]:
        """Each time a node was out during the load: its name, from and until when, seconds since the start of the load."""
        return []

    def warnings(self) -> list[str]:
        """What a reader of the results must know of the nodes, one sentence each; asked for when the load has ended."""
        return []

    def stop(self, failure: HarnessError | None = None) -> None:
        """Ask the run to stop, from any thread or signal handler; `failure` says why, where it is not a person's wish."""
        self.failure = self.failure or failure
        self._stop = True

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self._stop

    def can_meet(self, task: Task, deadline_s: float) -> bool:
        """Whether a healthy node is predicted to answer `task` within `deadline_s` of its arrival, with margin. Hold the lock."""
        now_s, margin, model = self.now_s(), self._settings.safety_margin, task.model_name
        left_s = task.arrival_time_s + deadline_s - now_s + _ROUNDING_S
        for state in self._fastest_first.get(model, ()):  # the first one's answer is mostly yes
            if (
                state.backlog_s <= left_s  # else no need to replay its queue
                and model in state.offers
                and state.predicted_completion_s(task, now_s, margin)[1] <= deadline_s
            ):
                return True
        return False

    def place(self, task: Task, device: Device, service_noise: float, overhead_noise: float | None = None) -> None:
        """Put a new task into the queue of the node that the scheduler chooses. Hold the lock."""
        request = Request(task, device, service_noise, overhead_noise)
        self._open[request] = None
        self._place(request)

    def _came_up(self, state: NodeState, models: frozenset[str]) -> None:
        """The node is up and has these models. Hold the lock."""
        state.bring_in(models)
        self._serving.clear()

    def _views_serving(self, model: str) -> tuple[list[NodeState], tuple[Node, ...]]:
        """The healthy nodes that serve `model`, in the cluster's order, and their views."""
        serving = self._serving.get(model)
        if serving is None:
            states = [state for state in self.nodes if model in state.offers]
            serving = self._serving[model] = states, tuple(state.view for state in states)
        return serving

    def _fill(self, states: Sequence[NodeState], task: Task) -> None:
        """Fill the views of the nodes with all that may be known of them now, for a decision about `task`."""
        now_s, clock_s = self.now_s(), self.clock()
        power, max_age_s, margin = self._power, self._settings.power.max_age_s, self._settings.safety_margin
        for state in states:
            node = state.fill(task, now_s, margin)
            sample = power.get(state.name)
            if sample is None:
                node.power_age_s = node.power_w = None
            else:
                sampled_s, power_w, _, _ = sample
                node.power_age_s = age_s = clock_s - sampled_s
                node.power_w = power_w if age_s <= max_age_s else None

    def _offered(self, request: Request) -> tuple[list[NodeState], tuple[Node, ...]]:
        """The nodes that may serve `request` now, and their views, filled unless nobody would look at them."""
        task, tried = request.task, request.tried
        states, views = self._views_serving(task.model_name)
        if tried:
            states = [state for state in states if state.name not in tried]
            views = tuple(state.view for state in states)
        if self._on_decision is None and not self._scheduler.looks_at_nodes:
            return states, views
        self._fill(states, task)
        return states, views

    def _place(self, request: Request) -> None:
        task = request.task
        states, offered = self._offered(request)
        if not offered:
            request.error = request.error or f"no node serves {task.model_name}"
            self._end(request, Outcome.FAILED)
            return
        # read before the policy may write there
        seen = [(view.queue_depth, view.power_w, view.predicted_completion_s) for view in offered] if self._on_decision else []
        decided_at_s = self.now_s()
        started = perf_counter() if self.measures_decisions else 0.0
        try:
            chosen = self._scheduler.schedule(task, offered)
            duration_s = perf_counter() - started if self.measures_decisions else None
        except StopRequested:
            raise
        except BaseException as error:  # the policy may be the user's own: whatever it raises ends the run and is named
            at = traceback.extract_tb(error.__traceback__)[-1]
            self._policy_failed(request, f"raised {type(error).__name__}: {text_of(error)} at {at.filename}:{at.lineno}")
            return
        state = next((state for state in states if state.view is chosen), None)
        if state is None:
            self._policy_failed(request, f"returned {text_of(chosen, repr)}, which is none of the nodes it was offered")
            return
        closeness = [state.view.closeness for state in states] if self._on_decision else []
        if not all(score is None or isinstance(score, (float, Real)) for score in closeness):
            self._policy_failed(request, f"left closeness {text_of(closeness, repr)}: expected numbers or None")
            return
        request.attempts += 1
        request.node_name = state.name
        request.start_time_s = None
        if request.dispatch_time_s is None:
            request.dispatch_time_s = self.now_s()
        state.put(request)
        self._work_arrived(state)
        if self._on_decision:
            nodes = {state.name: (*figures, score) for state, figures, score in zip(states, seen, closeness, strict=True)}
            self._on_decision(Decision(task.task_id, request.attempts, decided_at_s, state.name, nodes, duration_s))

    def _policy_failed(self, request: Request, how: str) -> None:
        request.error = f"scheduler {how}"
        self.stop(HarnessError(f"scheduler {self._settings.scheduler} {how} (task {request.task.task_id})"))

    def _answered(
        self, state: NodeState, request: Request, now_s: float, queue_time_s: float | None, inference_time_s: float
    ) -> None:
        """An answer came at `now_s`. Hold the lock."""
        state.answered(request, now_s, inference_time_s)
        outcome = verdict(request.task, now_s - request.task.arrival_time_s)
        self._end(request, outcome, now_s, queue_time_s, inference_time_s)

    def _attempt_failed(
        self, state: NodeState, request: Request, error: str, still_computed: bool = False, refused: bool = False
    ) -> None:
        """An attempt ended without an answer: place the task elsewhere, or end it. Hold the lock.

        A node that refused the request has cost no time: that is none of its `max_attempts`.
        """
        request.refusals += refused
        if still_computed:
            state.abandon(request, self.now_s())
        else:
            state.gave_up(request)
        request.error = error
        self._retry_or_fail(state, request)

    def _retry_or_fail(self, state: NodeState, request: Request) -> None:
        task = request.task
        request.tried += (state.name,)
        in_time = self.now_s() < task.arrival_time_s + task.adapted_deadline_s
        if in_time and request.attempts - request.refusals < self._settings.requests.max_attempts and request in self._open:
            self._place(request)
        else:
            self._end(request, Outcome.FAILED)

    def _take_out(self, state: NodeState, reason: str) -> None:
        """The node does not answer: offer it no more, and place what waits for it elsewhere. Hold the lock."""
        state.take_out()
        self._serving.clear()
        for request in state.take_all_waiting():
            request.error = f"{state.name} is out: {reason}"
            self._retry_or_fail(state, request)

    def _end(
        self,
        request: Request,
        outcome: Outcome,
        completion_time_s: float | None = None,
        queue_time_s: float | None = None,
        inference_time_s: float | None = None,
    ) -> None:
        """Record how a task ended, once; a later answer to a task that was given up changes nothing. Hold the lock."""
        if request not in self._open:
            return
        del self._open[request]
        self._on_end(request.ended(outcome, completion_time_s, queue_time_s, inference_time_s))

    def _end_all_open(self) -> None:
        """End what is still open: unfinished when the run was stopped, late or failed after the drain timeout. Hold the lock."""
        for request in list(self._open):
            deadline_s = request.task.arrival_time_s + request.task.adapted_deadline_s
            if self._stop:
                request.error = request.error or "interrupted"
                self._end(request, Outcome.UNFINISHED)
            else:
                request.error = "drain_timeout"
                self._end(request, Outcome.LATE if self.now_s() > deadline_s else Outcome.FAILED)
