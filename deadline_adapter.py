"""Deadlines that know when a device will leave the cell, and that soft tasks can wait a little when the cluster is full."""

from collections.abc import Callable

from mobility.mobility_manager import Cell
from settings import Settings
from task import Device, Task

CanMeet = Callable[[Task, float], bool]


class DeadlineAdapter:
    """Adapts the deadline of each task at its arrival.

    Args:
        settings: the experiment; `deadline_adaptation`, `exit_safety` and each class's `extension_factor` matter here.
    """

    def __init__(self, settings: Settings) -> None:
        self._enabled = settings.deadline_adaptation
        self._exit_safety = settings.exit_safety
        self._time_to_exit_s = Cell.of(settings.devices).time_to_exit_s
        self._extension_factor = {name: slo.extension_factor for name, slo in settings.slo_classes.items()}

    def adapt(self, task: Task, device: Device, can_meet: CanMeet) -> Task:
        """The task with its deadlines for this device and this state of the cluster.

        The budget is `exit_safety` times the device's time to exit. A base deadline beyond the budget shrinks to it: the answer
        must reach the device before it is gone. Otherwise a class that may be extended is, but only when no node is predicted
        to meet the base deadline, and never beyond the budget. The fixed deadline, min(base, budget), does not depend on
        the cluster: policies are compared on it.

        Args:
            task: as generated.
            device: its device at arrival.
            can_meet: whether a healthy node is predicted to answer the task within so many seconds of its arrival; asked only
                when it matters.

        Returns:
            A new task with `adapted_deadline_s` and `fixed_deadline_s` set.
        """
        base_s = task.base_deadline_s
        budget_s = self._exit_safety * self._time_to_exit_s(device)
        if budget_s < base_s:
            return task._replace(adapted_deadline_s=budget_s if self._enabled else base_s, fixed_deadline_s=budget_s)
        factor = self._extension_factor[task.slo_class]
        if self._enabled and factor > 1 and not can_meet(task, base_s):
            return task._replace(adapted_deadline_s=min(base_s * factor, budget_s))
        return task
