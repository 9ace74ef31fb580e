"""Deadlines that know when a device will leave the cell, and that soft tasks can wait a little when the cluster is full."""

from collections.abc import Callable, Iterable

from mobility.mobility_manager import Cell
from scheduler import Node
from settings import Settings
from task import Device, Task

Observe = Callable[[Task], Iterable[Node]]


class DeadlineAdapter:
    """Adapts the deadline of each task at its arrival.

    Args:
        settings: the experiment; `deadline_adaptation`, `exit_safety` and each class's `extension_factor` matter here.
    """

    def __init__(self, settings: Settings) -> None:
        self._enabled = settings.deadline_adaptation
        self._exit_safety = settings.exit_safety
        self._cell = Cell.of(settings.devices)
        self._extension_factor = {name: slo.extension_factor for name, slo in settings.slo_classes.items()}

    def adapt(self, task: Task, device: Device, observe: Observe) -> Task:
        """The task with its deadlines for this device and this state of the cluster.

        The budget is `exit_safety` times the device's time to exit. A base deadline beyond the budget shrinks to it: the answer
        must reach the device before it is gone. Otherwise a class that may be extended is, but only when no node is predicted
        to meet the base deadline, and never beyond the budget. The fixed deadline, min(base, budget), does not depend on
        the cluster: policies are compared on it.

        Args:
            task: as generated.
            device: its device at arrival.
            observe: gives the healthy nodes that serve the task, each filled for it as it is taken; asked only when it matters.

        Returns:
            A new task with `adapted_deadline_s` and `fixed_deadline_s` set.
        """
        base_s = task.base_deadline_s
        budget_s = self._exit_safety * self._cell.time_to_exit_s(device)
        if budget_s < base_s:
            return task._replace(adapted_deadline_s=budget_s if self._enabled else base_s, fixed_deadline_s=budget_s)
        factor = self._extension_factor[task.slo_class]
        if self._enabled and factor > 1 and not any(node.predicted_to_meet(base_s) for node in observe(task)):
            return task._replace(adapted_deadline_s=min(base_s * factor, budget_s))
        return task
