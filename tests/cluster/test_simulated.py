"""The cluster in virtual time: as an independent model has it, exact energy, stale power, the same files for the same seed."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cluster.simulated import Accelerator, SimulatedCluster
from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from main_pregenerated import main
from measurement.energy import PowerRange
from metric_collector import MetricCollector
from mobility.mobility_manager import MobilityManager
from scheduler import SCHEDULERS, create_scheduler
from task import DISPATCHED, Outcome, PowerSample, TaskResult
from task_generator import generate_trace
from tests.helpers import (
    DEVICE,
    FirstOffered,
    VirtualCluster,
    default_profile,
    default_settings,
    make_task,
    rng,
    small_profile,
    true_overhead_s,
    with_node_figures,
)
from utils import random_stream

SMALL = small_profile({"coral1": {"resnet50": 100.0}})


def world(scheduler: str, discipline: str, overhead_varies: bool = False):
    settings = default_settings(duration_s=20.0, load=2.0, scheduler=scheduler, queue_discipline=discipline, seed=3)
    return settings, generate_trace(settings, MobilityManager(settings.devices, settings.seed), overhead_varies)


@pytest.mark.parametrize("overhead_cv", [0.0, 0.4])
@pytest.mark.parametrize("discipline", ["fifo", "edf"])
@pytest.mark.parametrize("scheduler", sorted(set(SCHEDULERS) - {"power_aware_topsis", "lowest_power"}))
def test_tasks_end_as_in_an_independent_model_of_the_same_nodes(scheduler, discipline, overhead_cv):
    settings, trace = world(scheduler, discipline, overhead_varies=overhead_cv > 0)
    profile = with_node_figures(default_profile(), overhead_cv=overhead_cv)
    results: list[TaskResult] = []
    policy = create_scheduler(scheduler, settings, random_stream(3, "policy"))
    simulated = SimulatedCluster(profile, list(profile.nodes), settings, policy, results.append)
    independent = VirtualCluster(profile, settings, create_scheduler(scheduler, settings, random_stream(3, "policy")))
    with simulated:
        run_experiment(trace, simulated, DeadlineAdapter(settings), results.append)
    with independent:
        run_experiment(trace, independent, DeadlineAdapter(settings), independent.results.append)
    assert len(results) == len(trace)
    expected = {result.task.task_id: result for result in independent.results}
    for result in results:
        other = expected[result.task.task_id]
        assert (result.outcome, result.assigned_node) == (other.outcome, other.assigned_node)
        assert result.completion_time_s == pytest.approx(other.completion_time_s)


def test_energy_is_idle_power_and_busy_seconds_exactly():
    settings, trace = world("power_aware_topsis", "fifo")
    profile = default_profile()
    results: list[TaskResult] = []
    policy = create_scheduler(settings.scheduler, settings, rng())
    cluster = SimulatedCluster(profile, list(profile.nodes), settings, policy, results.append)
    with cluster:
        run_experiment(trace, cluster, DeadlineAdapter(settings), results.append)
    for name, energy in cluster.energy().items():
        busy_s = sum(result.inference_time_s or 0.0 for result in results if result.assigned_node == name)
        figures = profile.nodes[name]
        assert energy.above_idle_j == pytest.approx((figures.busy_w - figures.idle_w) * busy_s)
        assert energy.total_j == pytest.approx(figures.idle_w * cluster.now_s() + (figures.busy_w - figures.idle_w) * busy_s)


def test_power_is_the_mean_of_a_second_and_is_seen_late():
    settings = default_settings(power={"power_delay_s": 0.5})
    profile = small_profile({"coral1": {"resnet50": 400.0}}, idle_w=2.0, busy_w=5.0)
    cluster = SimulatedCluster(profile, ["coral1"], settings, FirstOffered(settings, rng()), lambda result: None)
    seen = cluster._samples
    with cluster:
        cluster.place(make_task(0, 0.0), DEVICE, 0.0)
        cluster.advance_to(1.4)
        assert seen["coral1"] == PowerSample(0.0, 2.0)
        cluster.advance_to(1.6)
        assert seen["coral1"].time_s == 1.0 and seen["coral1"].power_w == pytest.approx(2.0 + 3.0 * 0.4)
        cluster.advance_to(2.5)
        assert seen["coral1"].time_s == 2.0 and seen["coral1"].power_w == pytest.approx(2.0)


def test_stop_request_ends_any_stretch_of_virtual_time():
    settings = default_settings()
    cluster = SimulatedCluster(SMALL, ["coral1"], settings, FirstOffered(settings, rng()), lambda result: cluster.stop())
    with cluster:
        cluster.place(make_task(), DEVICE, 0.0)
        assert not cluster.advance_to(1e12)  # a power sample each second
    assert cluster.now_s() < 2.0


def test_host_draws_overhead_power_for_each_request_that_it_receives_or_answers():
    settings = default_settings(power={"power_delay_s": 0.0})
    profile = small_profile({"coral1": {"resnet50": 400.0}}, overhead_ms=200.0, idle_w=2.0, busy_w=5.0, overhead_w=1.5)
    cluster = SimulatedCluster(profile, ["coral1"], settings, FirstOffered(settings, rng()), lambda result: None)
    with cluster:
        for task_id in range(2):  # received together until 0.1 s, served until 0.5 and 0.9 s, answered until 0.6 and 1.0 s
            cluster.place(make_task(task_id, 0.0), DEVICE, 0.0)
        drawn = {}
        for at_s in (0.05, 0.1, 0.5, 0.55, 1.0, 2.0):
            cluster.advance_to(at_s)
            drawn[at_s] = cluster.energy()["coral1"].above_idle_j
    assert drawn == pytest.approx({0.05: 0.15, 0.1: 0.3, 0.5: 1.5, 0.55: 1.725, 1.0: 3.0, 2.0: 3.0})
    assert cluster._samples["coral1"].power_w == pytest.approx(2.0)
    assert cluster.nodes[0].fill(make_task(), 2.0, 0.0).energy_above_idle_j == pytest.approx(1.5)  # the same for each task


def test_power_of_as_many_requests_as_a_node_has_connections_is_power_that_it_can_draw():
    settings = default_settings(requests={"connections_per_node": 8}, power={"poll_interval_s": 0.1, "power_delay_s": 0.0})
    profile = small_profile({"coral1": {"resnet50": 1.0}}, overhead_ms=1000.0, idle_w=2.0, busy_w=5.0, overhead_w=1.5)
    cluster = SimulatedCluster(profile, ["coral1"], settings, FirstOffered(settings, rng()), lambda result: None)
    with cluster:
        for task_id in range(8):
            cluster.place(make_task(task_id, 0.0), DEVICE, 0.0)
        cluster.advance_to(0.2)
    power_w = cluster._samples["coral1"].power_w
    assert power_w is not None and power_w == pytest.approx(2.0 + 8 * 1.5)
    assert PowerRange(*profile.power_range_w("coral1", 1.0, connections=8)).includes(power_w)
    assert not PowerRange(*profile.power_range_w("coral1", 1.0, connections=2)).includes(power_w)


@pytest.mark.parametrize("overhead_cv", [0.0, 0.5])
def test_energy_drawn_with_overhead_power_is_that_which_the_tasks_take(overhead_cv):
    scheduler = "minimum_energy"
    settings, trace = world(scheduler, "fifo", overhead_varies=True)
    profile = with_node_figures(default_profile(), overhead_w=2.0, overhead_cv=overhead_cv)
    collector = MetricCollector(settings, profile, list(profile.nodes), MobilityManager(settings.devices, settings.seed))
    policy = create_scheduler(scheduler, settings, rng())
    cluster = SimulatedCluster(profile, list(profile.nodes), settings, policy, collector.record)
    with cluster:
        run_experiment(trace, cluster, DeadlineAdapter(settings), collector.record)
    tasks = collector.tasks().of(*DISPATCHED)
    assert {float(noise) for noise in tasks["overhead_noise"]} <= {arrival.overhead_noise for arrival in trace.arrivals()}
    drawn_j = sum(energy.above_idle_j or 0.0 for energy in cluster.energy().values())
    expected_j = 0.0
    for name, figures in profile.nodes.items():
        of_node = tasks.on_node(name)
        expected_j += (figures.busy_w - figures.idle_w) * of_node["inference_time_s"].sum()
        expected_j += 2.0 * sum(true_overhead_s(profile, name, noise) for noise in of_node["overhead_noise"].tolist())
    assert drawn_j == pytest.approx(expected_j)
    assert collector.above_idle_j(tasks) == pytest.approx(expected_j)


def test_overheads_that_vary_keep_their_mean_and_move_nothing_where_no_node_has_an_overhead_cv():
    settings, trace = world("random", "fifo", overhead_varies=True)
    _, plain = world("random", "fifo")

    def ended(profile, of_trace):
        results: list[TaskResult] = []
        policy = create_scheduler("random", settings, random_stream(3, "policy"))
        with SimulatedCluster(profile, list(profile.nodes), settings, policy, results.append) as cluster:
            run_experiment(of_trace, cluster, DeadlineAdapter(settings), results.append)
        return results

    without = ended(default_profile(), plain)
    assert [result._replace(overhead_noise=None) for result in ended(default_profile(), trace)] == without
    varying = ended(with_node_figures(default_profile(), overhead_cv=0.5), trace)
    overheads_s = [
        (result.completion_time_s or 0)
        - (result.start_time_s or 0)
        - (result.server_queue_time_s or 0)
        - (result.inference_time_s or 0)
        for result in varying
        if result.assigned_node == "jetson1"
    ]
    assert len(overheads_s) > 150
    assert np.mean(overheads_s) == pytest.approx(0.023, abs=3 * 0.5 * 0.023 / math.sqrt(len(overheads_s)))
    assert np.std(overheads_s) / np.mean(overheads_s) == pytest.approx(0.5, abs=0.15)


def test_replay_without_overhead_noise_says_so_where_the_profile_lets_overheads_vary(tmp_path):
    content = default_profile().model_dump(mode="json")
    content["nodes"]["jetson1"]["overhead_cv"] = 0.4
    (tmp_path / "profile.yaml").write_text(json.dumps(content))
    config = tmp_path / "experiment.yaml"
    config.write_text("performance_profile: profile.yaml")
    plain, own = tmp_path / "plain.csv", tmp_path / "own.csv"
    _simulated_run(tmp_path / "0", "--duration", "5", "--no-report", "--save-trace", str(plain))
    drawn = _simulated_run(tmp_path / "1", "--duration", "5", "--no-report", "--save-trace", str(own), "--config", str(config))
    summaries = [
        _summary(_simulated_run(tmp_path / trace.stem, "--trace", str(trace), "--no-report", "--config", str(config)))
        for trace in (plain, own)
    ]
    assert ["overhead_noise" in " ".join(summary["warnings"]) for summary in summaries] == [True, False]
    assert summaries[1]["scenario_sha256"] == _summary(drawn)["scenario_sha256"] != summaries[0]["scenario_sha256"]
    assert [row.rsplit(",", 1)[0] for row in own.read_text().splitlines()] == plain.read_text().splitlines()


def test_accelerator_counts_only_the_busy_seconds_that_have_passed():
    accelerator = Accelerator(lambda task, noise: 2.0, 1.0, 3.0)
    assert accelerator.serve(make_task(), 0.0, 1.0) == (1.0, 3.0)
    assert accelerator.serve(make_task(), 0.0, 1.5) == (3.0, 5.0)
    assert [accelerator.busy_s(until_s) for until_s in (0.5, 2.0, 4.0, 9.0)] == [0.0, 1.0, 3.0, 4.0]
    assert accelerator.energy_j(10.0) == (18.0, 8.0)


def test_same_seed_gives_the_same_files_to_the_byte(tmp_path):
    contents = []
    for name in ("first", "second"):
        folder = _simulated_run(tmp_path / name, "--duration", "30", "--no-report")
        assert {path.suffix for path in folder.iterdir()} == {".csv", ".json"}
        csv = {path.name.replace(folder.name, "ID"): path.read_bytes() for path in folder.glob("*.csv")}
        contents.append((csv, _summary(folder)))
    assert contents[0] == contents[1]
    summary = contents[0][1]
    assert summary["cluster"] == "simulated" and summary["valid"] and summary["decision_duration_s"] is None
    assert summary["dispatch_lag_s"]["max"] == 0
    assert summary["tasks"]["generated"] == sum(summary["tasks"][outcome] for outcome in Outcome)


POLICIES = """
from scheduler import BaseScheduler

class Reader(BaseScheduler):
    def schedule(self, task, nodes):
        return nodes[task.task_id % 6]

class Writer(BaseScheduler):
    def schedule(self, task, nodes):
        chosen = nodes[task.task_id % 6]
        nodes[0].name, nodes[1].name = "coral2", "coral1"
        for node in nodes:
            node.idle_w, node.busy_w, node.accelerator, node.models = 1e9, 0, None, frozenset()
            node.queue_depth = node.completion_with_margin_s = -5
            node.predicted_completion_s = node.power_w = float("nan")
        for node in nodes[2:]:
            del node.name, node.idle_w, node.queue_depth, node.power_w
        task._asdict()["adapted_deadline_s"] = 1e9
        for written in (self.settings.slo_classes, self.settings.models, self.settings.devices.types):
            written.clear()
        return chosen
"""


def test_policy_that_writes_into_what_it_is_given_changes_nothing_but_its_own_choice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "writing_policies.py").write_text(POLICIES)
    contents = []
    for policy in ("Reader", "Writer"):
        path = f"writing_policies:{policy}"
        folder = _simulated_run(tmp_path / policy, "--duration", "8", "--no-report", "--scheduler", path)
        texts = {file.name.replace(folder.name, "ID"): file.read_text() for file in sorted(folder.iterdir())}
        unlike = rf"{folder.name}|{path}|.*(started|finished)_at.*"
        contents.append({name: re.sub(unlike, "", text) for name, text in texts.items()})
    assert contents[0] == contents[1]
    assert "scheduling_decisions_ID.csv" in contents[0]


def test_report_stands_beside_the_results(tmp_path):
    folder = _simulated_run(tmp_path, "--duration", "5")
    assert folder.name in (folder / "report.html").read_text(encoding="utf-8")
    assert list((folder / "figures").glob("*.svg")) and list((folder / "tables").glob("*.csv"))


def test_repeated_run_has_a_folder_for_each_seed_and_one_table(tmp_path):
    output = tmp_path / "results"
    arguments = ["--cluster", "simulated", "--duration", "20", "--quiet", "--no-report", "--output", str(output)]
    assert main([*arguments, "--seed", "5", "--repeat", "3"]) == 0
    (path,) = output.glob("repeats_*.csv")
    summaries = [_summary(folder) for folder in sorted(output.glob("2*/"))]
    table = pd.read_csv(path, index_col="metric").loc["fixed_deadline_compliance_rate"]
    rates = [summary["fixed_deadline_compliance_rate"] for summary in summaries]
    assert [summary["seed"] for summary in summaries] == [5, 6, 7] and len(set(rates)) > 1
    assert table["mean"] == pytest.approx(sum(rates) / 3) and (table["least"], table["greatest"]) == (min(rates), max(rates))
    single = _summary(_simulated_run(tmp_path / "single", "--duration", "20", "--no-report"))
    repeat = summaries[0].pop("repeat")
    assert summaries[0] == single and repeat["number"] == 1 and len(repeat["experiment_ids"]) == 3
    assert repeat["metrics"]["fixed_deadline_compliance_rate"]["mean"] == pytest.approx(table["mean"])


def test_replay_in_virtual_time_cannot_be_repeated(tmp_path, capsys):
    trace = tmp_path / "load.csv"
    _simulated_run(tmp_path / "results", "--duration", "5", "--no-report", "--save-trace", str(trace))
    assert main(["--cluster", "simulated", "--trace", str(trace), "--repeat", "2", "--output", str(tmp_path / "none")]) == 2
    assert "--repeat: a replay in virtual time gives the same numbers each time" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def _simulated_run(output: Path, *options: str) -> Path:
    """The folder of a run with seed 5."""
    assert main(["--cluster", "simulated", "--seed", "5", "--quiet", *options, "--output", str(output)]) == 0
    (folder,) = output.iterdir()
    return folder


def _summary(folder: Path) -> dict[str, Any]:
    summary = json.loads(next(folder.glob("experiment_summary_*.json")).read_text())
    return {key: value for key, value in summary.items() if key not in ("experiment_id", "started_at", "finished_at")}
