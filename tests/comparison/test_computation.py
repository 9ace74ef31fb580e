"""What a cell comes to: what its row is taken over, when a load counts as borne, and what a worker loads for it."""

import gc
import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cluster.simulated import SimulatedCluster
from comparison.bounds import clairvoyant_bound, fixed_deadlines_s
from comparison.cells import source_hashes
from comparison.computation import Window, bound_of, misses_allowed
from comparison.plan import Policy, known_verdicts
from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from main_pregenerated import main
from scenario import build_scenario
from scheduler import create_scheduler
from task import DISPATCHED, Outcome, TaskResult
from terminal.options import StopSignal
from utils import PROJECT_ROOT, random_stream

from .few_cells import cell, plan, result_of


def plainly_simulated(one) -> list[TaskResult]:
    """Every task of a cell's run, without collector and cell."""
    results: list[TaskResult] = []
    settings, scenario = build_scenario(one.settings, None, None)
    policy = create_scheduler(settings.scheduler, settings, random_stream(settings.seed, "policy"))
    with SimulatedCluster(one.profile, list(one.profile.nodes), settings, policy, results.append) as cluster:
        run_experiment(scenario.trace, cluster, DeadlineAdapter(settings), results.append)
    return results


def test_ten_minutes_lose_60_s_of_warm_up_and_10_s_of_cool_down_short_runs_their_share():
    assert Window.of(600) == (60, 590)
    assert Window.of(3600) == (60, 3590)
    assert Window.of(60) == (6, 59)


def test_row_is_taken_over_the_tasks_that_arrive_in_the_window():
    one = cell(scheduler="random", load=1.5)
    row = result_of(one)["row"]
    everything = [task for task in plainly_simulated(one) if task.outcome in DISPATCHED]
    tasks = [task for task in everything if 1.2 <= task.task.arrival_time_s < 11.8]
    missed = [task for task in tasks if task.response_time_s is None or task.response_time_s > task.task.fixed_deadline_s]
    assert 0 < len(tasks) < len(everything) and missed
    hard = [task for task in tasks if task.task.slo_class == "hard"]
    hard_met = [task for task in hard if task not in missed]
    power = {name: node.busy_w - node.idle_w for name, node in one.profile.nodes.items()}
    energy_j = math.fsum(power[task.assigned_node] * task.inference_time_s for task in tasks)
    responses = sorted(task.response_time_s for task in tasks if task.response_time_s is not None)
    assert row["tasks"] == len(tasks)
    assert row["missed"] == len(missed)
    assert row["failed"] == 0
    assert row["slo_compliance_rate"] == row["fixed_deadline_compliance_rate"] == pytest.approx(1 - len(missed) / len(tasks))
    assert row["slo_hard"] == row["fixed_hard"] == pytest.approx(len(hard_met) / len(hard))
    on_time = sum(task.outcome is Outcome.ON_TIME for task in tasks)
    assert row["adapted_deadline_compliance_rate"] == pytest.approx(on_time / len(tasks))
    assert row["above_idle_per_task_j"] == pytest.approx(energy_j / len(tasks))
    assert row["above_idle_per_on_time_task_j"] == pytest.approx(energy_j / (len(tasks) - len(missed)))
    assert row["response_p99_s"] == pytest.approx(responses[math.ceil(0.99 * len(responses)) - 1])
    assert row["response_mean_s"] == pytest.approx(np.mean(responses))
    assert row["scheduler"] == "random" and row["load"] == 1.5 and row["seed"] == 7


def test_utilisation_is_the_share_of_the_window_that_an_accelerator_was_busy_and_never_more_than_all_of_it():
    one = cell(scheduler="lowest_power", load=3.0)
    row = result_of(one)["row"]
    shares = {name: row[f"utilisation_{name}"] for name in one.profile.nodes}
    assert 0.5 < max(shares.values()) <= 1 + 1e-9
    for name in shares:
        half_s = one.profile.overhead_s(name) / 2
        busy_s = 0.0
        for task in plainly_simulated(one):
            if task.assigned_node == name and task.completion_time_s is not None:
                end_s = task.completion_time_s - half_s
                busy_s += max(0.0, min(end_s, 11.8) - max(end_s - task.inference_time_s, 1.2))
        assert shares[name] == pytest.approx(busy_s / 10.6)


def test_untrimmed_figures_and_scenario_are_those_of_a_single_run_with_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    options = ["--cluster", "simulated", "--duration", "12", "--seed", "7", "--scheduler", "topsis", "--quiet"]
    assert main([*options, "--output", str(tmp_path)]) == 0
    summary = json.loads(next(tmp_path.glob("*/experiment_summary_*.json")).read_text())
    row = result_of(cell(scheduler="topsis"))["row"]
    assert row["untrimmed_slo_compliance_rate"] == row["untrimmed_fixed_deadline_compliance_rate"]
    assert row["untrimmed_slo_compliance_rate"] == summary["fixed_deadline_compliance_rate"]
    assert row["untrimmed_above_idle_per_task_j"] == pytest.approx(summary["energy_j"]["above_idle_per_task"], rel=1e-12)
    assert row["scenario_sha256"] == summary["scenario_sha256"]


def test_summary_and_cell_agree_on_energy_and_times_where_tasks_go_unanswered(tmp_path, monkeypatch):
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    (tmp_path / "overload.yaml").write_text("load: 4.0\nrequests: {drain_timeout_s: 0.5}\n")
    options = ["--cluster", "simulated", "--config", str(tmp_path / "overload.yaml"), "--duration", "12", "--seed", "7"]
    assert main([*options, "--scheduler", "fastest_node", "--quiet", "--output", str(tmp_path)]) == 0
    summary = json.loads(next(tmp_path.glob("*/experiment_summary_*.json")).read_text())
    row = result_of(cell(scheduler="fastest_node", load=4.0, requests={"drain_timeout_s": 0.5}))["row"]
    dispatched = sum(summary["tasks"][outcome] for outcome in DISPATCHED)
    assert summary["unanswered"] > 50 and summary["warnings"][0].startswith(f"{summary['unanswered']} of {dispatched} ")
    assert summary["energy_j"]["above_idle_per_task"] == pytest.approx(row["untrimmed_above_idle_per_task_j"], rel=1e-12)
    assert summary["energy_j"]["above_idle_per_task"] > 1.05 * summary["energy_j"]["above_idle"] / dispatched
    assert summary["response_time_s"]["mean"] is summary["response_time_s"]["p99"] is None
    assert summary["response_time_s"]["p50"] > 0


def test_minutes_show_the_whole_run_and_average_to_its_compliance():
    one = cell(duration_s=130.0, load=0.2)
    result = result_of(one)
    assert [minute for minute, _ in result["minutes"]] == [0, 1, 2]
    tasks = [task for task in plainly_simulated(one) if task.outcome in DISPATCHED]
    for minute, rate in result["minutes"]:
        of_minute = [task for task in tasks if task.task.arrival_time_s // 60 == minute]
        assert rate == pytest.approx(sum(task.met(task.task.fixed_deadline_s) is True for task in of_minute) / len(of_minute))


def test_policy_without_topsis_has_no_rank_reversals_to_count():
    assert result_of(cell(scheduler="round_robin"))["row"]["rank_reversal_rate"] is None
    assert 0 <= result_of(cell(scheduler="topsis"))["row"]["rank_reversal_rate"] <= 1


def test_result_does_not_depend_on_what_the_worker_ran_before():
    one, other = cell(seed=7), cell(seed=8, load=0.5)
    first = result_of(one)
    result_of(other)
    assert result_of(one) == first
    assert result_of(cell(seed=7)) == first


def test_bound_is_over_the_tasks_that_the_rows_count_and_survives_the_file():
    one = cell("bound")
    _, scenario = build_scenario(one.settings, None, None)
    trace = scenario.trace
    counted = trace.in_coverage & (trace.arrival_time_s >= 1.2) & (trace.arrival_time_s < 11.8)
    models = np.array(trace.model_name.names)[trace.model_name.codes[counted]]
    due_s = fixed_deadlines_s(trace, one.settings)[counted]
    names = list(one.profile.nodes)
    tasks = (trace.arrival_time_s[counted], due_s, models.tolist(), trace.service_noise[counted])
    expected = clairvoyant_bound(*tasks, one.profile, names, until_s=12.0 + 60.0)
    assert bound_of(json.loads(json.dumps(result_of(one)))) == expected
    assert expected.tasks == result_of(cell())["row"]["tasks"]


@pytest.mark.parametrize(("tasks", "achievable"), [(1000, 1000), (1000, 973), (7, 0), (0, 0), (50, 49), (16384, 15992)])
def test_as_many_misses_are_allowed_as_leave_98_percent_of_the_achievable(tasks, achievable):
    allowed = misses_allowed(tasks, achievable)
    assert 100 * (tasks - allowed) >= 98 * achievable
    assert 100 * (tasks - allowed - 1) < 98 * achievable


@pytest.mark.parametrize(
    ("scheduler", "load", "borne"),
    [("earliest_completion", 0.5, True), ("earliest_completion", 6.0, False), ("random", 1.0, False)],
)
def test_limit_cell_and_full_run_agree_whether_a_load_is_borne(scheduler, load, borne):
    assert result_of(cell("limit", scheduler, load)) == {"meets": borne}
    row = result_of(cell("run", scheduler, load))["row"]
    one = plan(schedulers=[scheduler], loads=[load], seeds=[7])
    assert known_verdicts(one, [row]) == {(Policy(scheduler, "fifo"), 7): {load: borne}}


LOADED_BY_A_WORKER = """
import sys
import tracemalloc
from dataclasses import replace
from performance_profile import load_profile
from settings import load_settings
from comparison.cells import Cell, code_hash
from comparison.computation import run_cell

settings = load_settings(None).replace(duration_s=2.0, scheduler="topsis")
for kind in ("run", "bound", "limit"):
    ended = run_cell(Cell(kind, settings, load_profile(settings.performance_profile), code_hash("topsis")))
    assert ended.error is None, ended.error
for module in list(sys.modules.values()):
    print(module.__name__, getattr(module, "__file__", None) or "", sep="\\t")
"""


@pytest.fixture(scope="module")
def loaded():
    """File of every module that a process has loaded after it has run cells, by name."""
    told = subprocess.run(
        [sys.executable, "-c", LOADED_BY_A_WORKER], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    return dict(line.split("\t") for line in told.stdout.splitlines())


def test_every_module_that_a_worker_loads_is_hashed_or_known_not_to_bear_on_a_result(loaded):
    paths = {Path(file) for file in loaded.values() if file}
    own = {
        path.relative_to(PROJECT_ROOT).as_posix()
        for path in paths
        if path.is_relative_to(PROJECT_ROOT) and ".venv" not in path.parts
    }
    not_bearing = {"inference_request.py", "prometheus_collector.py", "report.py"}
    not_bearing |= {"terminal/__init__.py", "terminal/options.py", "terminal/run_summary.py"}
    assert own - set(source_hashes()) - not_bearing == set()
    assert {"comparison/computation.py", "cluster/simulated.py", "scheduler/topsis_scheduler.py"} <= own


def test_worker_loads_nothing_that_only_tables_and_figures_need(loaded):
    assert loaded.keys().isdisjoint({"pandas", "matplotlib", "jinja2", "comparison.tables"})


def test_limit_without_any_task_is_no_verdict():
    assert result_of(cell("limit", duration_s=0.001)) == {"meets": None}


def test_tasks_left_unanswered_cost_what_they_would_have_taken_and_answered_for_ever():
    requests = {"requests": {"drain_timeout_s": 0.5}}
    cut, whole = (result_of(cell(scheduler="fastest_node", load=4.0, **changes))["row"] for changes in (requests, {}))
    assert cut["unanswered"] > 50 and whole["unanswered"] == 0
    assert cut["above_idle_per_task_j"] == pytest.approx(whole["above_idle_per_task_j"])
    assert cut["missed"] >= whole["missed"]
    assert cut["response_mean_s"] is None and cut["response_p99_s"] is None
    assert whole["response_p99_s"] is not None and cut["response_p50_s"] == pytest.approx(whole["response_p50_s"], rel=0.3)


def test_memory_stays_flat_over_cells():
    def kept_after(seeds):
        for seed in seeds:
            for kind in ("run", "limit", "bound"):
                result_of(cell(kind, seed=seed, duration_s=6.0))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = kept_after(range(2))
        grown = kept_after(range(2, 7)) - first
    finally:
        tracemalloc.stop()
    assert grown < 100_000  # bytes; the tasks of one of these cells alone take more
