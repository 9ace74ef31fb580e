"""What a scheduling policy is: given a task and the nodes that could serve it, it names one.

A policy knows tasks and nodes. It knows no HTTP, no Prometheus, no files and no clock, so the same code decides on real nodes,
on emulated ones and in virtual time. `Node` holds all that it may know; the true service time of a task is not among it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from settings import Settings
from task import Task

__all__ = ["BaseScheduler", "Node", "Task"]


@dataclass(slots=True, eq=False)
class Node:
    """One node as it stands at the moment of a decision, for the task to be placed; the cluster fills it before each one.

    Attributes:
        name: its key in `WORKERS`.
        accelerator: coral, jetson, hailo or another kind of the performance profile.
        idle_w: profile power with an idle accelerator, watts.
        busy_w: profile power with a busy accelerator, watts.
        overhead_j: profile energy above idle that receiving and answering a request takes here, joules.
        models: names of the models it serves.
        service_time_s: profile mean accelerator time of this task's model here, seconds.
        queue_depth: tasks waiting for it and in flight.
        predicted_completion_s: when this task would be answered from here, seconds after its arrival.
        completion_with_margin_s: the same with the safety margin on what is still to come.
        busy_fraction: how busy its accelerator was of late, 0 … 1.
        power_w: latest measured power, watts; None when there is no sample young enough to be believed.
        power_age_s: age of the latest sample, seconds; None when there never was one.
        closeness: a policy may leave its score of this node here; it is written to the decisions file.
    """

    name: str
    accelerator: str
    idle_w: float
    busy_w: float
    models: frozenset[str] = frozenset()
    service_time_s: float = 0.0
    queue_depth: int = 0
    predicted_completion_s: float = 0.0
    completion_with_margin_s: float = 0.0
    busy_fraction: float = 0.0
    power_w: float | None = None
    power_age_s: float | None = None
    closeness: float | None = None
    overhead_j: float = 0.0

    @property
    def current_power_w(self) -> float:
        """Latest measured power, or the profile's busy power where no measurement above 0 can be believed, watts."""
        return self.power_w if self.power_w is not None and self.power_w > 0 else self.busy_w

    @property
    def energy_above_idle_j(self) -> float:
        """What serving this task here costs above an idle node by the profile, joules."""
        return (self.busy_w - self.idle_w) * self.service_time_s + self.overhead_j

    def predicted_to_meet(self, deadline_s: float) -> bool:
        """Whether the task is expected, margin included, to be answered from here within `deadline_s` of its arrival."""
        return self.completion_with_margin_s <= deadline_s


class BaseScheduler(ABC):
    """A scheduling policy. A policy of your own derives from this and is named on the command line as `package.module:Class`.

    Args:
        settings: the experiment's settings.
        rng: the random stream "policy"; the only source of randomness a policy may use, so that runs repeat.
    """

    looks_at_nodes = True
    """False for a policy that reads nothing of a node but its name: the nodes it is offered may then not be filled."""

    def __init__(self, settings: Settings, rng: np.random.Generator) -> None:
        self.settings = settings
        self.rng = rng

    @abstractmethod
    def schedule(self, task: Task, nodes: Sequence[Node]) -> Node:
        """Choose a node for `task`.

        Args:
            task: the task, its deadline already adapted.
            nodes: the healthy nodes that serve its model, at least one, always in the same order.

        Returns:
            One of `nodes`.
        """


def earliest_completion(nodes: Sequence[Node]) -> Node:
    """The node with the least predicted completion; ties: the first."""
    return min(nodes, key=_predicted_completion)


def _predicted_completion(node: Node) -> float:
    return node.predicted_completion_s
