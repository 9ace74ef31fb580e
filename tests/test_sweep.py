"""Cells: what their rows are taken over, when two are the same, that no backend changes them, and what the store believes."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sweep
from bounds import clairvoyant_bound, fixed_deadlines_s
from comparison import LoadLimit
from deadline_adapter import DeadlineAdapter
from main_pregenerated import StopSignal, build_scenario, main, run_experiment
from scheduler import create_scheduler
from simulated_cluster import SimulatedCluster
from sweep import (
    Cell,
    CellStore,
    Plan,
    Policy,
    Window,
    Workers,
    bound_of,
    code_hash,
    find_limits,
    known_verdicts,
    misses_allowed,
    require_backend,
    run_cell,
)
from task import DISPATCHED, Outcome, TaskResult
from tests.helpers import default_profile, default_settings, small_profile
from utils import PROJECT_ROOT, HarnessError, UsageError, random_stream


def cell(kind="run", scheduler="earliest_completion", load=1.0, seed=7, duration_s=12.0, profile=None, **settings):
    changed = default_settings(scheduler=scheduler, load=load, seed=seed, duration_s=duration_s, **settings)
    return Cell(kind, changed, profile or default_profile(), code_hash(scheduler))


def result_of(one):
    ended = run_cell(one)
    assert ended.error is None, ended.error
    assert ended.key == one.key
    return ended.result


def plan(**changes):
    few = Plan(default_settings(duration_s=6.0), default_profile(), ["topsis", "random"], ["fifo"], [0.5, 1.0], [3, 4])
    return replace(few, **changes)


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
    assert row["slo_hard"] == pytest.approx(len(hard_met) / len(hard))
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
    assert row["untrimmed_slo_compliance_rate"] == summary["fixed_deadline_compliance_rate"]
    assert row["untrimmed_above_idle_per_task_j"] == pytest.approx(summary["energy_j"]["above_idle_per_task"], rel=1e-12)
    assert row["scenario_sha256"] == summary["scenario_sha256"]


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
    expected = clairvoyant_bound(
        trace.arrival_time_s[counted], due_s, models.tolist(), trace.service_noise[counted], one.profile, names
    )
    assert bound_of(json.loads(json.dumps(result_of(one)))) == expected
    assert expected.tasks == result_of(cell())["row"]["tasks"]


# The highest load.


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


def test_search_starts_from_what_is_known_and_asks_every_policy_and_seed_in_one_round():
    one = plan(schedulers=["topsis", "random"], seeds=[1, 2])
    limit_of = {"topsis": 1.3, "random": 0.1}
    rounds = []

    def finish(cells):
        rounds.append([(asked.settings.scheduler, asked.settings.seed, asked.settings.load) for asked in cells])
        assert all(asked.kind == "limit" for asked in cells)
        return {asked.key: {"meets": asked.settings.load <= limit_of[asked.settings.scheduler]} for asked in cells}

    known = {(policy, seed): {1.0: policy.scheduler == "topsis"} for policy in one.policies for seed in one.seeds}
    limits = find_limits(one, known, finish)
    assert sorted(rounds[0]) == [("random", 1, 0.25), ("random", 2, 0.25), ("topsis", 1, 2.0), ("topsis", 2, 2.0)]
    assert all(limits[Policy("random", "fifo"), seed] == LoadLimit(None, "below") for seed in (1, 2))
    found = limits[Policy("topsis", "fifo"), 1]
    assert found.kind == "found" and found.load is not None and 1.25 <= found.load <= 1.3
    assert not any(load == 1.0 for asked in rounds for _, _, load in asked)


# Which cells there are.


def test_plan_has_a_run_for_every_policy_load_and_seed_a_bound_for_every_scenario_and_the_ablation_nearest_to_load_1():
    cells = plan(queue_disciplines=["fifo", "edf"]).cells()
    kinds = [one.kind for one in cells]
    assert kinds.count("run") == 2 * 2 * 2 * 2
    assert kinds.count("bound") == 2 * 2
    ablated = [one for one in cells if one.kind == "ablation"]
    assert {one.settings.load for one in ablated} == {1.0} and {one.settings.scheduler for one in ablated} == {"topsis"}
    assert len(ablated) == 2 * 2 * 4 and {one.without for one in ablated} == {"slack", "performance", "power", "load"}
    assert len({one.key for one in cells}) == len(cells)
    fewer = plan(bounds=False, ablation=False).cells()
    assert {one.kind for one in fewer} == {"run"}


def test_ablation_takes_the_weight_out():
    of_slack = next(one for one in plan().cells() if one.without == "slack")
    assert of_slack.settings.topsis.weights.slack == 0
    assert of_slack.settings.topsis.weights.power == default_settings().topsis.weights.power


def test_tables_are_in_the_order_that_was_asked_for():
    ordered = plan(loads=[1.0, 0.5]).in_order(plan(loads=[1.0, 0.5]).cells())
    runs = [(one.settings.scheduler, one.settings.load, one.settings.seed) for one in ordered if one.kind == "run"]
    assert runs == [(name, load, seed) for name in ("topsis", "random") for load in (1.0, 0.5) for seed in (3, 4)]


# Keys.


def test_key_changes_with_everything_that_bears_on_a_cell():
    base = cell()
    others = [
        cell("limit"),
        cell(scheduler="random"),
        cell(load=1.1),
        cell(seed=8),
        cell(duration_s=13.0),
        cell(queue_discipline="edf"),
        cell(safety_margin=0.2),
        cell(profile=small_profile({"one": dict.fromkeys(default_settings().models, 10)})),
        replace(base, code="other"),
        replace(base, without="slack"),
    ]
    assert len({one.key for one in [base, *others]}) == 1 + len(others)
    assert all(len(one.key) == 32 and set(one.key) <= set("0123456789abcdef") for one in others)


def test_key_does_not_change_with_the_place_of_the_profile():
    assert cell(performance_profile=Path("elsewhere.yaml")).key == cell().key


def test_every_module_that_a_worker_imports_is_hashed_or_known_not_to_bear_on_a_result():
    program = "import sys, sweep; print(*(getattr(m, '__file__', None) or '' for m in sys.modules.values()), sep='\\n')"
    told = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    paths = {Path(line) for line in told.stdout.splitlines() if line}
    own = {
        path.relative_to(PROJECT_ROOT).as_posix()
        for path in paths
        if path.is_relative_to(PROJECT_ROOT) and ".venv" not in path.parts
    }
    not_bearing = {"comparison.py", "console.py", "emulated_nodes.py", "inference_request.py", "node_client.py"}
    not_bearing |= {"prometheus_collector.py", "report.py", "plots.py"}
    assert own - set(sweep.source_hashes()) - not_bearing == set()
    assert {"sweep.py", "simulated_cluster.py", "scheduler/topsis_scheduler.py"} <= own


# The store.


@pytest.fixture
def said():
    """What the store has told a person."""
    return []


@pytest.fixture
def store(tmp_path, said):
    return CellStore(tmp_path / "cells", said.append)


def test_store_gives_back_what_was_kept_and_nothing_of_a_cell_that_was_not(store, said):
    result = result_of(cell(load=0.2))
    store.write(cell(load=0.2), result)
    assert store.read(cell(load=0.2)) == json.loads(json.dumps(result))
    assert store.read(cell(load=0.3)) is None
    assert said == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"meets": true', '"meets": false'),
        lambda text: text.replace('"result"', '"other"'),
        lambda text: text.replace('"seed": 7', '"seed": 8'),
        lambda text: text.replace('"meets": true', '"meets": NaN'),
        lambda text: "\x00\xff" * 20,
    ],
)
def test_damaged_cell_file_is_named_and_not_believed(store, said, tmp_path, damage):
    one = cell("limit")
    store.write(one, {"meets": True})
    path = tmp_path / "cells" / f"{one.key}.json"
    path.write_text(damage(path.read_text()))
    assert store.read(one) is None
    assert len(said) == 1 and str(path) in said[0] and "computed again" in said[0]


def test_file_of_another_cell_under_this_name_is_not_believed(store, said, tmp_path):
    one, other = cell("limit"), cell("limit", seed=8)
    store.write(other, {"meets": True})
    (tmp_path / "cells" / f"{other.key}.json").rename(tmp_path / "cells" / f"{one.key}.json")
    assert store.read(one) is None and len(said) == 1


def test_store_that_cannot_write_says_so_in_one_line(tmp_path):
    (tmp_path / "cells").write_text("a file")
    with pytest.raises(HarnessError, match="cannot be written any more"):
        CellStore(tmp_path / "cells", print).write(cell("limit"), {"meets": True})


# Workers.


def swept(jobs, backend, address=None):
    cells = plan(seeds=[3], bounds=False, ablation=False).cells()
    with Workers(jobs, backend, address, StopSignal()) as workers:
        return {one.key: result for one, result in workers.results(cells)}


@pytest.mark.parametrize(("jobs", "backend"), [(2, "loky"), (2, "threading")])
def test_results_are_the_same_on_every_backend_and_number_of_jobs(jobs, backend):
    assert swept(jobs, backend) == swept(1, "loky")


def test_results_are_the_same_on_a_running_dask_cluster():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what distributed leaves open or deprecated is not ours
        distributed = pytest.importorskip("distributed")
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            on_dask = swept(1, "dask", cluster.scheduler_address)
    assert on_dask == swept(1, "loky")


def test_dask_scheduler_that_cannot_be_reached_is_refused(monkeypatch):
    distributed = pytest.importorskip("distributed")

    def refuse(address, timeout):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(UsageError, match="--dask-scheduler: tcp://nowhere:1 cannot be reached"):
        Workers(1, "dask", "tcp://nowhere:1", StopSignal()).__enter__()


@pytest.mark.parametrize(("jobs", "backend"), [(1, "loky"), (2, "loky"), (2, "threading")])
def test_cell_that_fails_ends_the_sweep_with_a_line_that_names_it(jobs, backend):
    broken = replace(cell(load=0.2), code="of another time")
    cells = [cell(load=0.2), broken, *(cell(load=0.2, seed=seed) for seed in range(20, 26))]
    line = "cell earliest_completion, fifo, load 0.2, seed 7: the source code"
    with Workers(jobs, backend, None, StopSignal()) as workers, pytest.raises(HarnessError, match=line) as told:
        list(workers.results(cells))
    assert "\n" not in str(told.value)


def test_wish_to_stop_ends_the_wait_for_the_next_cell():
    stop = StopSignal()
    with Workers(1, "loky", None, stop) as workers:
        results = workers.results([cell(load=0.2, seed=seed) for seed in range(3)])
        next(results)
        stop._on_signal(2, None)
        with pytest.raises(KeyboardInterrupt):
            next(results)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("loki", "did you mean loky"),
        ("multiprocessing", "only when all are there"),
        ("", "joblib knows no ''"),
    ],
)
def test_backend_that_cannot_be_used_is_refused(name, told):
    with pytest.raises(UsageError, match=told):
        require_backend(name)


@pytest.mark.parametrize(("name", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_backend_whose_package_is_missing_is_refused_with_what_to_install(monkeypatch, name, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"--backend {name}: the package {package} is missing; install it"):
        require_backend(name)
