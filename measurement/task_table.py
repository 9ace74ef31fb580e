"""What is kept of every task of a run for its summary: one row of numbers per task, looked at as columns."""

import itertools
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from task import DISPATCHED, Outcome, TaskResult

Floats = NDArray[np.float64]

_IDS = ("task_id", "device_id")
_KEPT = (
    "slo_class",
    "model_name",
    "assigned_node",
    "outcome",
    "arrival_time_s",
    "base_deadline_s",
    "fixed_deadline_s",
    "service_noise",
    "dispatch_time_s",
    "start_time_s",
    "completion_time_s",
    "inference_time_s",
    "overhead_noise",
)
_NAN = math.nan
_OUTCOME_CODE = {outcome: float(code) for code, outcome in enumerate(Outcome)}


class TaskFigures:
    """Columns of some tasks, arrays of shape (n,): floats, NaN where a task has no such figure, and the ids, which are integers.

    Columns: task_id, device_id; arrival_time_s, base_deadline_s, fixed_deadline_s, service_noise, dispatch_time_s, start_time_s,
    completion_time_s, inference_time_s, overhead_noise; dispatch_lag_s, waiting_time_s and response_time_s, which count from the
    arrival; met_fixed_deadline and met_base_deadline, 1 or 0, NaN for a task that was not dispatched to its end. Columns hold the
    tasks in the order in which they ended. Texts are asked for by `in_class`, `of_model`, `on_node` and `of`.
    """

    def __init__(
        self, columns: Mapping[str, NDArray[Any]], codes: dict[str, dict[str | None, float]], chosen: NDArray[np.int64]
    ) -> None:
        self._columns = columns
        self._codes = codes
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One column."""
        return self._columns[name][self._chosen]

    def where(self, chosen: NDArray[np.bool_]) -> "TaskFigures":
        """The tasks for which `chosen`, shape (n,), is true."""
        return TaskFigures(self._columns, self._codes, self._chosen[chosen])

    def of(self, *outcomes: Outcome) -> "TaskFigures":
        """The tasks that ended in one of these ways."""
        return self.where(_ended_in(self["outcome"], outcomes))

    def in_class(self, slo_class: str) -> "TaskFigures":
        """The tasks of one SLO class."""
        return self.where(self["slo_class"] == self._codes["slo_class"][slo_class])

    def has_model(self, model: str) -> NDArray[np.bool_]:
        """Which of the tasks are of one model, shape (n,)."""
        own: NDArray[np.bool_] = self["model_name"] == self._codes["model_name"][model]
        return own

    def of_model(self, model: str) -> "TaskFigures":
        """The tasks of one model."""
        return self.where(self.has_model(model))

    def on_node(self, node: str | None) -> "TaskFigures":
        """The tasks whose last attempt was on one node; None: those that were placed on none."""
        if node is None:
            return self.where(np.isnan(self["assigned_node"]))
        return self.where(self["assigned_node"] == self._codes["assigned_node"][node])

    @property
    def unanswered(self) -> "TaskFigures":
        """The tasks that were dispatched and have no answer: failed, or given up at the drain timeout."""
        return self.where(np.isnan(self["completion_time_s"])).of(*DISPATCHED)

    def arriving(self, since_s: float, before_s: float) -> "TaskFigures":
        """The tasks that arrived from `since_s` on and before `before_s`."""
        arrival_s = self["arrival_time_s"]
        return self.where((arrival_s >= since_s) & (arrival_s < before_s))

    def by_minute(self) -> Iterator["TaskFigures"]:
        """The tasks that arrived in each minute, from the first to the last that has some; one pass over all of them."""
        minute = np.floor(self["arrival_time_s"] / 60).astype(np.int64)
        order = np.argsort(minute, kind="stable")
        starts = np.searchsorted(minute[order], np.arange(minute.max(initial=-1) + 2))
        for first, last in itertools.pairwise(starts.tolist()):
            yield TaskFigures(self._columns, self._codes, self._chosen[order[first:last]])


class TaskLog:
    """Takes in every task as it ends and keeps its figures.

    Args:
        slo_classes: names of the SLO classes.
        models: names of the models.
        node_names: names of the nodes.
    """

    def __init__(self, slo_classes: Iterable[str], models: Iterable[str], node_names: Sequence[str]) -> None:
        self._class_code = _codes(slo_classes)
        self._model_code = _codes(models)
        self._node_code = _codes(node_names)
        self._ids = array("q")
        self._rows = array("d")

    def record(self, result: TaskResult) -> None:
        """Keep the figures of a task that has ended."""
        task, _, noise, outcome, node, _, dispatch_s, start_s, completion_s, _, inference_s, _, overhead_noise = result
        task_id, device_id, _, model, slo_class, arrival_s, base_deadline_s, _, fixed_deadline_s = task
        self._ids.extend((task_id, device_id))
        self._rows.extend(
            (
                self._class_code[slo_class],
                self._model_code[model],
                self._node_code[node],
                _OUTCOME_CODE[outcome],
                arrival_s,
                base_deadline_s,
                fixed_deadline_s,
                noise,
                _NAN if dispatch_s is None else dispatch_s,
                _NAN if start_s is None else start_s,
                _NAN if completion_s is None else completion_s,
                _NAN if inference_s is None else inference_s,
                _NAN if overhead_noise is None else overhead_noise,
            )
        )

    def figures(self) -> TaskFigures:
        """Columns of all tasks so far."""
        rows = np.array(self._rows).reshape(-1, len(_KEPT))
        ids = np.array(self._ids, dtype=np.int64).reshape(-1, len(_IDS))  # no floats: these hold no integer above 2^53
        columns: dict[str, NDArray[Any]] = {name: rows[:, position] for position, name in enumerate(_KEPT)}
        columns |= {name: ids[:, position] for position, name in enumerate(_IDS)}
        arrival_s = columns["arrival_time_s"]
        response_s = columns["completion_time_s"] - arrival_s
        dispatched = _ended_in(columns["outcome"], DISPATCHED)
        columns["dispatch_lag_s"] = columns["dispatch_time_s"] - arrival_s
        columns["waiting_time_s"] = columns["start_time_s"] - arrival_s
        columns["response_time_s"] = response_s
        for deadline in ("fixed_deadline", "base_deadline"):
            met = (response_s <= columns[f"{deadline}_s"]).astype(float)  # no answer, NaN, has met nothing
            columns[f"met_{deadline}"] = np.where(dispatched, met, np.nan)
        codes = {"slo_class": self._class_code, "model_name": self._model_code, "assigned_node": self._node_code}
        return TaskFigures(columns, codes, np.arange(len(rows)))


def _ended_in(codes: Floats, outcomes: Sequence[Outcome]) -> NDArray[np.bool_]:
    wanted = np.array([outcome in outcomes for outcome in Outcome])
    return wanted[codes.astype(np.int64)]


def _codes(names: Iterable[str]) -> dict[str | None, float]:
    """A number for each name, NaN for none."""
    return {None: math.nan, **{name: float(code) for code, name in enumerate(names)}}
