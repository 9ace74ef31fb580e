"""The records that travel through an experiment, from the device that sends a task to the energy of the nodes.

They are named tuples: immutable like frozen dataclasses, and four times as cheap to make, which counts at 100,000 tasks/s. Where
every task passes, `from_fields` makes them at half the cost again.
"""

import math
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, TypeVar

Record = TypeVar("Record", bound=tuple[Any, ...])


def from_fields(record: type[Record]) -> Callable[[tuple[Any, ...]], Record]:
    """Maker of such records from a tuple of all their fields, in order, unchecked."""
    return partial(tuple.__new__, record)


class Device(NamedTuple):
    """An IoT device at one instant: position relative to the area's lower left corner, in metres, and velocity."""

    device_id: int
    device_type: str
    x_m: float
    y_m: float
    vx_mps: float
    vy_mps: float
    in_coverage: bool

    @property
    def speed_mps(self) -> float:
        """Speed, metres per second."""
        return math.hypot(self.vx_mps, self.vy_mps)

    @property
    def heading_deg(self) -> float | None:
        """Direction of motion, degrees from the x axis towards the y axis, 0 ≤ heading < 360; None at rest."""
        if self.vx_mps == 0 and self.vy_mps == 0:
            return None
        return math.degrees(math.atan2(self.vy_mps, self.vx_mps)) % 360 % 360  # twice: just below 0 rounds to 360


class Task(NamedTuple):
    """One inference request as a scheduler may see it; its true service time is not here.

    Deadlines are seconds after `arrival_time_s`, which is seconds after the start of the load. Until a task has been adapted,
    `adapted_deadline_s` and `fixed_deadline_s` equal `base_deadline_s`.
    """

    task_id: int
    device_id: int
    device_type: str
    model_name: str
    slo_class: str
    arrival_time_s: float
    base_deadline_s: float
    adapted_deadline_s: float
    fixed_deadline_s: float


class Arrival(NamedTuple):
    """One row of a trace: the task, its device at that instant, and the task's own standard normal noises.

    `overhead_noise` is None where request overheads do not vary.
    """

    task: Task
    device: Device
    service_noise: float
    overhead_noise: float | None = None


class Outcome(StrEnum):
    """How a generated task ended; each ends in exactly one."""

    ON_TIME = "on_time"
    LATE = "late"
    FAILED = "failed"
    SKIPPED = "skipped"
    UNFINISHED = "unfinished"

    __hash__ = str.__hash__  # Enum's own runs in Python, and outcomes are keys wherever tasks are counted


DISPATCHED = (Outcome.ON_TIME, Outcome.LATE, Outcome.FAILED)
"""The outcomes that count in a compliance rate."""


class TaskResult(NamedTuple):
    """What became of one task; times are seconds since the start of the load, None where the task never got that far."""

    task: Task
    device: Device
    service_noise: float
    outcome: Outcome
    assigned_node: str | None = None
    attempts: int = 0
    dispatch_time_s: float | None = None
    start_time_s: float | None = None
    completion_time_s: float | None = None
    server_queue_time_s: float | None = None
    inference_time_s: float | None = None
    error: str | None = None
    overhead_noise: float | None = None

    @property
    def response_time_s(self) -> float | None:
        """Completion minus arrival, seconds."""
        return None if self.completion_time_s is None else self.completion_time_s - self.task.arrival_time_s

    @property
    def waiting_time_s(self) -> float | None:
        """Start of the last attempt minus arrival, seconds."""
        return None if self.start_time_s is None else self.start_time_s - self.task.arrival_time_s

    @property
    def dispatch_lag_s(self) -> float | None:
        """How late the task entered its node's queue, seconds after its arrival."""
        return None if self.dispatch_time_s is None else self.dispatch_time_s - self.task.arrival_time_s

    def met(self, deadline_s: float) -> bool | None:
        """Whether the answer came within `deadline_s` of the arrival; None for a task that was not dispatched to its end."""
        if self.outcome not in DISPATCHED:
            return None
        response_s = self.response_time_s
        return response_s is not None and response_s <= deadline_s


class Decision(NamedTuple):
    """One decision of the scheduler, as it saw the nodes; figures by node, None for a node that was not offered."""

    task_id: int
    attempt: int
    decision_time_s: float
    selected_node: str
    nodes: dict[str, tuple[int, float | None, float, float | None]]
    """queue depth, power (W), predicted completion (s after arrival), closeness."""
    duration_s: float | None


class PowerSample(NamedTuple):
    """One reading of a node; None where the node has no such metric. `measured_s`: seconds that `energy_j` was counted over."""

    time_s: float
    power_w: float | None
    energy_j: float | None = None
    measured_s: float | None = None


class NodeEnergy(NamedTuple):
    """Energy of one node over a window, joules, None without a meter.

    `uncovered`: share of the window that was not measured, or lies far from any sample.
    """

    total_j: float | None
    above_idle_j: float | None
    uncovered: float
