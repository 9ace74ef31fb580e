"""SLO verdicts, running counts of them, and the log of violations."""

from collections import Counter
from collections.abc import Callable, Sequence

from task import Outcome, Task, TaskResult

VIOLATION_COLUMNS = (
    "task_id",
    "device_id",
    "slo_class",
    "model_name",
    "assigned_node",
    "adapted_deadline_s",
    "response_time_s",
    "excess_s",
    "outcome",
    "arrival_time_s",
    "completion_time_s",
)


_ON_TIME, _LATE = Outcome.ON_TIME, Outcome.LATE  # to look a member up in its class takes longer than the verdict


def verdict(task: Task, response_time_s: float) -> Outcome:
    """On time or late, for an answer that came `response_time_s` after the task's arrival."""
    return _ON_TIME if response_time_s <= task.adapted_deadline_s else _LATE


class SloMonitor:
    """Counts outcomes by SLO class while the run goes on, and logs each violation.

    Args:
        log_violation: takes one row of VIOLATION_COLUMNS for each late or failed task.
    """

    def __init__(self, log_violation: Callable[[Sequence[object]], None] | None = None) -> None:
        self._log_violation = log_violation
        self._counts: Counter[tuple[str, Outcome]] = Counter()

    def observe(self, result: TaskResult) -> None:
        """Take note of a task that has ended."""
        task = result.task
        self._counts[task.slo_class, result.outcome] += 1
        if self._log_violation and result.outcome in (Outcome.LATE, Outcome.FAILED):
            response_s = result.response_time_s
            self._log_violation(
                (
                    task.task_id,
                    task.device_id,
                    task.slo_class,
                    task.model_name,
                    result.assigned_node,
                    task.adapted_deadline_s,
                    response_s,
                    None if response_s is None else response_s - task.adapted_deadline_s,
                    result.outcome,
                    task.arrival_time_s,
                    result.completion_time_s,
                )
            )

    def count(self, outcome: Outcome, slo_class: str | None = None) -> int:
        """Tasks that ended so, of one class or of all."""
        counts = self._counts.copy()
        return sum(n for (name, ended), n in counts.items() if ended is outcome and slo_class in (None, name))

    def compliance_rate(self, slo_class: str | None = None) -> float | None:
        """on_time / (on_time + late + failed), of one class or of all; None before any has ended."""
        on_time = self.count(Outcome.ON_TIME, slo_class)
        dispatched = on_time + self.violations(slo_class)
        return on_time / dispatched if dispatched else None

    def violations(self, slo_class: str | None = None) -> int:
        """Late and failed tasks, of one class or of all."""
        return self.count(Outcome.LATE, slo_class) + self.count(Outcome.FAILED, slo_class)
