"""The result files of a run and its summary: what every figure is taken over is said at the function that makes it."""

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from measurement.summary import (
    RunFacts,
    achievable_text,
    busy_estimated,
    busy_s,
    busy_warnings,
    describe_run,
    energy_invalid_reasons,
    energy_summary,
    exceeds_achievable,
    impossible_reasons,
    invalid_reasons,
    jain_index,
    mean,
    outages,
    percentiles,
    ratio,
    times_of_all,
    unanswered_warning,
    versions,
    with_finite_numbers,
)
from measurement.task_table import TaskFigures, TaskLog
from mobility.mobility_manager import Mobility
from performance_profile import PerformanceProfile
from settings import Settings
from task import DISPATCHED, Decision, Outcome, TaskResult
from utils import UsageError, write_failure

_TIMING_ERROR_S = 5e-3
"""What a response time of an emulated node may be off by: calibration, wake-up, clock."""
_QUICKEST_NODE, _LUCK_SIGMAS = 0.8, 3.0
"""A real node may be quicker than its profile by this factor, and an inference shorter than its mean by so many sigmas."""

RESULT_COLUMNS = (
    "task_id",
    "device_id",
    "device_type",
    "device_speed_mps",
    "device_x_m",
    "device_y_m",
    "model_name",
    "slo_class",
    "arrival_time_s",
    "base_deadline_s",
    "adapted_deadline_s",
    "assigned_node",
    "attempts",
    "dispatch_time_s",
    "start_time_s",
    "completion_time_s",
    "dispatch_lag_s",
    "waiting_time_s",
    "server_queue_time_s",
    "inference_time_s",
    "response_time_s",
    "outcome",
    "met_fixed_deadline",
    "met_base_deadline",
    "delivered",
    "error",
    "device_heading_deg",
)

DEVICE_COLUMNS = (
    "device_id",
    "device_type",
    "speed_mps",
    "final_x_m",
    "final_y_m",
    "in_coverage",
    "tasks_generated",
    "tasks_skipped",
    "final_heading_deg",
)

Row = Sequence[object]
Floats = NDArray[np.float64]


def decision_columns(node_names: Sequence[str]) -> tuple[str, ...]:
    """Header of the decisions file."""
    seen = [
        f"{figure}_{node}" for node in node_names for figure in ("queue_depth", "power_w", "predicted_completion_s", "closeness")
    ]
    return ("task_id", "attempt", "decision_time_s", "scheduler", "selected_node", *seen, "decision_duration_s")


class RunFolder:
    """Folder `<output>/<experiment_id>/` of one run and the names of its files; the id is made unique.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, output: Path, started: datetime) -> None:
        stamp = started.strftime("%Y%m%d_%H%M%S")
        for suffix in itertools.chain([""], (f"_{number}" for number in itertools.count(2))):
            self.experiment_id = stamp + suffix
            self.path = output / self.experiment_id
            try:
                self.path.mkdir(parents=True)
                break
            except FileExistsError:
                if not output.is_dir():
                    raise UsageError(f"--output: {output} is no folder") from None
            except OSError as error:
                raise write_failure(f"--output: {self.path} cannot be made", error) from None
        self.results = self.path / "master_inference_results.csv"
        self.violations = self.path / f"slo_violations_{self.experiment_id}.csv"
        self.decisions = self.path / f"scheduling_decisions_{self.experiment_id}.csv"
        self.devices = self.path / f"devices_{self.experiment_id}.csv"
        self.settings = self.path / "settings.json"
        self.summary = self.path / f"experiment_summary_{self.experiment_id}.json"

    def remove_if_empty(self) -> None:
        """Leave nothing behind of a run that never got as far as its files."""
        with suppress(OSError):  # not empty, or gone already
            self.path.rmdir()

    def columns(self, node_names: Sequence[str], violation_columns: Sequence[str]) -> dict[Path, Sequence[str]]:
        """Header of each CSV file."""
        return {
            self.results: RESULT_COLUMNS,
            self.violations: violation_columns,
            self.decisions: decision_columns(node_names),
            self.devices: DEVICE_COLUMNS,
        }


class MetricCollector:
    """Takes in every result and decision, writes their rows, and draws up the summary at the end.

    Args:
        settings: the experiment.
        profile: figures of the nodes.
        node_names: the nodes of the cluster.
        mobility: where devices are, to tell whether an answer was delivered.
        write_result: takes one row of RESULT_COLUMNS.
        write_decision: takes one row of `decision_columns()`.
    """

    def __init__(
        self,
        settings: Settings,
        profile: PerformanceProfile,
        node_names: Sequence[str],
        mobility: Mobility,
        write_result: Callable[[Row], None] | None = None,
        write_decision: Callable[[Row], None] | None = None,
    ) -> None:
        self._settings = settings
        self._profile = profile
        self._node_names = tuple(node_names)
        self._mobility = mobility
        self._write_result = write_result
        self._write_decision = write_decision
        self._log = TaskLog(settings.slo_classes, settings.models, self._node_names)
        self._decision_duration_s = array("d")

    def record(self, result: TaskResult) -> None:
        """Take in a task that has ended."""
        self._log.record(result)
        if self._write_result:
            self._write_result(self._row(result))

    def _row(self, result: TaskResult) -> Row:
        task, device = result.task, result.device
        return (
            task.task_id,
            task.device_id,
            task.device_type,
            device.speed_mps,
            device.x_m,
            device.y_m,
            task.model_name,
            task.slo_class,
            task.arrival_time_s,
            task.base_deadline_s,
            task.adapted_deadline_s if result.attempts or result.outcome in DISPATCHED else None,
            result.assigned_node,
            result.attempts,
            result.dispatch_time_s,
            result.start_time_s,
            result.completion_time_s,
            result.dispatch_lag_s,
            result.waiting_time_s,
            result.server_queue_time_s,
            result.inference_time_s,
            result.response_time_s,
            result.outcome,
            result.met(task.fixed_deadline_s),
            result.met(task.base_deadline_s),
            self._delivered(result),
            result.error,
            device.heading_deg,
        )

    def decided(self, decision: Decision) -> None:
        """Take in a decision of the scheduler."""
        if decision.duration_s is not None:
            self._decision_duration_s.append(decision.duration_s)
        if self._write_decision:
            row: list[object] = [
                decision.task_id,
                decision.attempt,
                decision.decision_time_s,
                self._settings.scheduler,
                decision.selected_node,
            ]
            for node in self._node_names:
                row.extend(decision.nodes.get(node, (None, None, None, None)))
            row.append(decision.duration_s)
            self._write_decision(row)

    def device_rows(self, device_ids: Sequence[int], time_s: float) -> list[Row]:
        """Rows of DEVICE_COLUMNS, the devices as they are at `time_s`."""
        figures = self._log.figures()
        generated = Counter(figures["device_id"].tolist())
        skipped = Counter(figures.of(Outcome.SKIPPED)["device_id"].tolist())
        rows: list[Row] = []
        for device_id in device_ids:
            device = self._mobility.device(device_id, time_s)
            rows.append(
                (
                    device_id,
                    device.device_type,
                    device.speed_mps,
                    device.x_m,
                    device.y_m,
                    device.in_coverage,
                    generated[device_id],
                    skipped[device_id],
                    device.heading_deg,
                )
            )
        return rows

    def tasks(self) -> TaskFigures:
        """Figures of all tasks that have ended."""
        return self._log.figures()

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite for that becomes null, with a reason
    def summarise(self, facts: RunFacts) -> dict[str, Any]:
        """The summary of the run, ready to be written as JSON; its keys are explained in the README."""
        figures = self._log.figures()
        dispatched = figures.of(*DISPATCHED)
        completed = figures.where(~np.isnan(figures["response_time_s"]))
        on_time = figures.of(Outcome.ON_TIME)
        lag_s = percentiles(figures["dispatch_lag_s"])
        # in virtual time an answer that never came is one of a hopeless queue: a result, not a fault
        lost = len(figures.of(Outcome.FAILED)) if facts.cluster == "simulated" else len(dispatched) - len(completed)
        estimate = facts.cluster == "workers"
        reasons = invalid_reasons(facts, lag_s, len(dispatched), lost)
        reasons += impossible_reasons(self.met_the_impossible(dispatched, estimate), len(dispatched))
        achievable = self.achievable(dispatched, estimate)
        fixed_rate, achievable_rate = mean(dispatched["met_fixed_deadline"]), mean(achievable)
        beaten = []
        if fixed_rate is not None and achievable_rate is not None and fixed_rate > achievable_rate:
            beaten = [achievable_text(fixed_rate, achievable_rate)]
        if exceeds_achievable(int(dispatched["met_fixed_deadline"].sum()), int(achievable.sum()), len(dispatched)):
            reasons += beaten
            beaten = []
        energy_reasons = energy_invalid_reasons(facts.energy, facts.impossible_energy)
        unanswered = figures.unanswered
        told_s = {node: float(completed.on_node(node)["inference_time_s"].sum()) for node in self._node_names}
        utilisation = {
            node: spent_s / facts.window_s if facts.window_s > 0 else 0.0 for node, spent_s in busy_s(facts, told_s).items()
        }
        by_class = {name: (dispatched.in_class(name), on_time.in_class(name)) for name in self._settings.slo_classes}
        adapted_rate = ratio(len(on_time), len(dispatched))
        adapted_rates = {name: ratio(len(good), len(all_)) for name, (all_, good) in by_class.items()}
        skipped = len(figures.of(Outcome.SKIPPED))
        summary = {
            "experiment_id": facts.experiment_id,
            "started_at": facts.started_at,
            "finished_at": facts.finished_at,
            "interrupted": facts.interrupted,
            "valid": not reasons,
            "invalid_reasons": reasons,
            "energy_valid": not energy_reasons,
            "energy_invalid_reasons": energy_reasons,
            "warnings": [
                *facts.warnings,
                *busy_warnings(facts),
                *unanswered_warning(len(unanswered), len(dispatched)),
                *beaten,
            ],
            "cluster": facts.cluster,
            **describe_run(self._settings, facts.scenario_sha256, facts.performance_profile_sha256, facts.trace),
            "tasks": {"generated": len(figures), **{outcome.value: len(figures.of(outcome)) for outcome in Outcome}},
            "unanswered": len(unanswered),
            "slo_compliance_rate": adapted_rate,
            "slo_compliance_rate_by_class": adapted_rates,
            "slo_violations_by_class": {name: len(all_) - len(good) for name, (all_, good) in by_class.items()},
            "adapted_deadline_compliance_rate": adapted_rate,
            "adapted_deadline_compliance_rate_by_class": adapted_rates,
            "fixed_deadline_compliance_rate": fixed_rate,
            "fixed_deadline_compliance_rate_by_class": {
                name: mean(all_["met_fixed_deadline"]) for name, (all_, _) in by_class.items()
            },
            "base_deadline_compliance_rate": mean(dispatched["met_base_deadline"]),
            "achievable_slo_rate": achievable_rate,
            "achievable_slo_rate_is_estimate": estimate,
            "delivered_rate": ratio(self.delivered_count(completed), len(dispatched)),
            "delivered_rate_is_estimate": facts.guesses_paths,
            "in_cell_share_is_estimate": facts.guesses_paths,
            "response_time_s": times_of_all(dispatched["response_time_s"]),
            "waiting_time_s": times_of_all(dispatched["waiting_time_s"]),
            "inference_time_s": percentiles(completed["inference_time_s"]),
            "throughput_tasks_per_s": ratio(len(completed), facts.window_s),
            "window_s": facts.window_s,
            "energy_j": energy_summary(facts.energy, len(dispatched), len(on_time), self._not_drawn_j(facts, dispatched)),
            "idle_w": dict(facts.idle_w),
            "load_fairness": jain_index(list(utilisation.values())),
            "utilisation": utilisation,
            "utilisation_estimated": busy_estimated(facts),
            "coverage_skip_rate": ratio(skipped, len(figures)),
            "dispatch_lag_s": lag_s,
            "decision_duration_s": percentiles(np.array(self._decision_duration_s)),
            "emulated_wake_late_p99_s": facts.wake_late_p99_s,
            "emulated_round_trip_s": facts.round_trip_s,
            "outages": outages(facts.down_periods),
            "host_metrics": facts.host_metrics,
            "by_minute": self._by_minute(figures),
            "versions": versions(),
        }
        return with_finite_numbers(summary)

    def _delivered(self, result: TaskResult) -> bool | None:
        """Whether the device was still in the cell when its answer came; None for a task that was not dispatched to its end."""
        if result.completion_time_s is None:
            return False if result.outcome in DISPATCHED else None
        return self._mobility.still_covered(result.device, result.task.arrival_time_s, result.completion_time_s)

    def delivered_count(self, completed: TaskFigures) -> int:
        """How many of the answers of completed tasks found their device in the cell."""
        return int(self._mobility.covered(completed["task_id"], completed["device_id"], completed["completion_time_s"]).sum())

    def achievable(self, tasks: TaskFigures, estimate: bool = False) -> NDArray[np.bool_]:
        """For each task, whether the best idle node could meet its fixed deadline.

        Each task takes its own service noise, or, for an `estimate`, the profile's mean.
        """
        return self._on_idle_nodes_s(tasks, estimate) <= tasks["fixed_deadline_s"]

    def met_the_impossible(self, tasks: TaskFigures, estimate: bool = False) -> int:
        """How many tasks met a fixed deadline that no node can meet: none, unless answers are invented or the profile is wrong.

        There is a margin. Where each task's own times are known it is what clocks and calibrations may be off by. An `estimate`
        leaves out the request overhead, of which the profile holds an upper bound, and lets every inference be as short as a very
        lucky one on a node that is quicker than the profile says.
        """
        met = tasks.where(tasks["met_fixed_deadline"] == 1)

        def lucky_s(node: str, model: str, own: NDArray[np.bool_]) -> Floats:
            return _QUICKEST_NODE * self._service_time_s(node, model, np.full(int(own.sum()), -_LUCK_SIGMAS), False)

        least_s = self._least_s(met, lucky_s) if estimate else self._on_idle_nodes_s(met, False) - _TIMING_ERROR_S
        return int((least_s > met["fixed_deadline_s"]).sum())

    def _on_idle_nodes_s(self, tasks: TaskFigures, estimate: bool) -> Floats:
        """What each task takes from arrival to answer on the best idle node, shape (n,), seconds."""
        service_noise = np.zeros(len(tasks)) if estimate else tasks["service_noise"]
        overhead_noise = np.full(len(tasks), np.nan) if estimate else tasks["overhead_noise"]

        def taken_s(node: str, model: str, own: NDArray[np.bool_]) -> Floats:
            overhead_s = self._profile.overhead_of_tasks_s(node, overhead_noise[own])
            return overhead_s + self._service_time_s(node, model, service_noise[own], estimate)

        return self._least_s(tasks, taken_s)

    def _least_s(self, tasks: TaskFigures, taken_s: Callable[[str, str, NDArray[np.bool_]], Floats]) -> Floats:
        """The least of what each task takes on the nodes that serve its model, shape (n,), seconds; infinite where none does.

        Args:
            tasks: the tasks.
            taken_s: given a node, a model and a mask of the tasks, shape (n,), what those tasks take there.
        """
        least_s = np.full(len(tasks), np.inf)
        for model in self._settings.models:
            own = tasks.has_model(model)
            for node in self._node_names:
                if self._serves(node, model):
                    least_s[own] = np.minimum(least_s[own], taken_s(node, model, own))
        return least_s

    def _serves(self, node: str, model: str) -> bool:
        return model in self._profile.service_time_s(node)

    def _service_time_s(self, node: str, model: str, service_noise: Floats, estimate: bool) -> Floats:
        """What tasks of a model take on a node, by their own noise, shape (n,); for an `estimate`, the profile's mean."""
        mean_s, sigma = self._profile.service_time_s(node)[model], 0.0 if estimate else self._profile.sigma(node)
        service_s: Floats = mean_s * np.exp(sigma * service_noise - sigma**2 / 2)
        return service_s

    def above_idle_j(self, tasks: TaskFigures, estimate: bool = False) -> float:
        """Energy above idle that `tasks` take, answered or not, on the node that they were given to: not serving saves nothing.

        A task that was placed on no node takes the mean of the nodes that could serve it.

        Args:
            tasks: dispatched tasks.
            estimate: take the profile's mean instead of each task's own service noise.
        """
        energy_j = sum(each for node in self._node_names for each in self._energies_j(node, tasks.on_node(node), estimate))
        nowhere = tasks.on_node(None)
        for model in self._settings.models if len(nowhere) else ():
            serving = [node for node in self._node_names if self._serves(node, model)]
            of_model = nowhere.of_model(model)
            energy_j += sum(each for node in serving for each in self._energies_j(node, of_model, estimate)) / max(
                1, len(serving)
            )
        return energy_j

    def _energies_j(self, node: str, tasks: TaskFigures, estimate: bool) -> Iterator[float]:
        """Energy above idle that the tasks of each model take on a node, joules."""
        figures = self._profile.nodes[node]
        for model in (model for model in self._settings.models if self._serves(node, model)):
            of_model = tasks.of_model(model)
            service_s = self._service_time_s(node, model, of_model["service_noise"], estimate)
            overhead_noise = np.full(len(of_model), np.nan) if estimate else of_model["overhead_noise"]
            overhead_s = self._profile.overhead_of_tasks_s(node, overhead_noise)
            yield (figures.busy_w - figures.idle_w) * float(service_s.sum()) + figures.overhead_w * float(overhead_s.sum())

    def _not_drawn_j(self, facts: RunFacts, dispatched: TaskFigures) -> float:
        """What the tasks without an answer would have taken beyond what was drawn, joules above idle.

        In virtual time what was drawn holds a part of that: of the requests that were being served at the end.
        """
        unanswered = dispatched.unanswered
        if not len(unanswered):
            return 0.0
        if facts.cluster == "simulated":
            return self.above_idle_j(dispatched) - sum(node.above_idle_j or 0.0 for node in facts.energy.values())
        return self.above_idle_j(unanswered, estimate=True)

    def _by_minute(self, figures: TaskFigures) -> list[dict[str, Any]]:
        """Figures of the tasks that arrived in each minute; the in-cell share is that of the devices."""
        rows = []
        for number, tasks in enumerate(figures.by_minute()):
            dispatched = tasks.of(*DISPATCHED)
            end_s = min((number + 1) * 60.0, self._settings.duration_s)
            lag = percentiles(tasks["dispatch_lag_s"])
            rows.append(
                {
                    "minute": number,
                    "dispatched": len(dispatched),
                    "slo_compliance_rate": ratio(len(tasks.of(Outcome.ON_TIME)), len(dispatched)),
                    "in_cell_share": self._mobility.in_cell_share(number * 60.0, end_s),
                    "dispatch_lag_p99_s": lag["p99"] if lag else None,
                }
            )
        return rows
