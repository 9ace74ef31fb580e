"""The fidelity benchmark: what it compares, what it measures, and how it finds its load."""

import io
import math

import pandas as pd
import pytest
from rich.console import Console

from benchmarks import fidelity
from benchmarks.fidelity import (
    ALL,
    BUSY,
    Pair,
    Run,
    busiest_in_virtual_time,
    figures_of,
    furthest_off,
    load_that_keeps_busy,
    lone_requests,
    main,
    measure,
    median_of,
    overheads_ms,
    parse_options,
    read_run,
    round_trips_ms,
    tables,
    with_overheads,
)
from main_pregenerated import main as run_main
from performance_profile import load_profile
from task_generator import load_trace, save_trace
from tests.helpers import default_profile, default_settings, small_profile
from utils import HarnessError


def result(node, response_s=0.1, outcome="on_time", met_fixed=True, queue_s=0.0, inference_s=0.05):
    return {
        "assigned_node": node,
        "response_time_s": response_s,
        "server_queue_time_s": queue_s,
        "inference_time_s": inference_s,
        "start_time_s": 1.0,
        "completion_time_s": 1.0 + response_s - 0.001,
        "outcome": outcome,
        "met_fixed_deadline": met_fixed,
    }


def run_of(results, total_j=(30.0, 25.0), energy_valid=True, **summary):
    return Run(
        pd.DataFrame(results),
        {
            "valid": True,
            "invalid_reasons": [],
            "energy_valid": energy_valid,
            "energy_invalid_reasons": [] if energy_valid else ["a has no power data"],
            "utilisation": {"a": 0.4, "b": 0.2},
            "energy_j": {"by_node": dict(zip("ab", total_j, strict=True))},
            "idle_w": {"a": 2.0, "b": 2.0},
            "window_s": 10.0,
            "dispatch_lag_s": {"p99": 0.0011},
            "emulated_wake_late_p99_s": 0.00025,
            **summary,
        },
    )


RESULTS = [
    result("a", 0.1),
    result("a", 0.3, "late", met_fixed=False),
    result("b", 0.2, "on_time", met_fixed=False),
    result("b", math.nan, "failed", met_fixed=False),
    result(None, math.nan, "skipped", met_fixed=None),
]


def test_figures_of_a_run_by_hand():
    figures = figures_of(run_of(RESULTS))
    assert figures["tasks"].to_dict() == {ALL: 4, "a": 2, "b": 2}
    assert figures["missed_fixed"].to_dict() == {ALL: 0.75, "a": 0.5, "b": 1.0}
    assert figures["missed_adapted"].to_dict() == {ALL: 0.5, "a": 0.5, "b": 0.5}
    assert figures["response_mean"].to_dict() == pytest.approx({ALL: 0.2, "a": 0.2, "b": 0.2})
    assert figures["response_p95"].to_dict() == {ALL: 0.3, "a": 0.3, "b": 0.2}
    assert figures["above_idle"].to_dict() == {ALL: 15.0, "a": 10.0, "b": 5.0}
    assert figures["busy"].to_dict() == pytest.approx({ALL: 0.3, "a": 0.4, "b": 0.2})


def test_energy_that_is_not_valid_is_not_compared():
    assert figures_of(run_of(RESULTS, energy_valid=False))["above_idle"].isna().all()
    assert figures_of(run_of(RESULTS, total_j=(None, 25.0)))["above_idle"].isna().to_dict() == {ALL: True, "a": True, "b": False}


def test_differences_are_virtual_minus_emulated_in_points_or_percent_of_the_emulated():
    emulated = figures_of(run_of(RESULTS))
    simulated = figures_of(run_of([result("a", 0.2), *RESULTS[1:]], (32.0, 25.0), utilisation={"a": 0.43, "b": 0.2}))
    differences = Pair(emulated, simulated).differences()
    assert differences.loc["a", "response_mean"] == pytest.approx(25.0)
    assert differences.loc["a", "above_idle"] == pytest.approx(20.0)
    assert differences.loc["a", "busy"] == pytest.approx(3.0)
    assert differences.loc["b"].drop("tasks").abs().max() == 0
    assert differences.loc[ALL, "missed_fixed"] == 0


def test_a_node_without_tasks_has_nothing_to_compare():
    idle = figures_of(run_of([result("a")], total_j=(30.0, 20.0)))
    differences = Pair(idle, idle).differences()
    assert differences.loc["b"].isna().all() and not differences.loc["a"].isna().any()


def test_median_leaves_out_what_was_not_measured():
    frames = [pd.DataFrame({"busy": [value]}, index=[ALL]) for value in (1.0, math.nan, 4.0, 9.0)]
    assert median_of(frames).loc[ALL, "busy"] == 4.0


def test_tables_name_every_node_and_judge_by_the_target():
    emulated = figures_of(run_of(RESULTS))
    pairs = [Pair(emulated, emulated.assign(busy=emulated["busy"] + shift)) for shift in (0.01, 0.03, 0.05)]
    text = printed(*tables(pairs))
    (busy,) = [line for line in text.splitlines() if "busy fraction " in line]
    assert "+3.00 points" in busy and "+1.00 … +5.00" in busy and busy.rstrip(" │").endswith("no")
    (mean,) = [line for line in text.splitlines() if "response time, mean " in line]
    assert "200 ms" in mean and "≤ 5 %" in mean and mean.rstrip(" │").endswith("yes")
    assert {"a", "b"} <= {line.strip("│ ").split(" ")[0] for line in text.splitlines()}


def printed(*things):
    said = io.StringIO()
    Console(width=200, file=said).print(*things)
    return said.getvalue()


def test_overhead_is_the_median_of_what_is_neither_queue_nor_inference():
    results = [result("a", response_s, queue_s=0.02, inference_s=0.03) for response_s in (0.060, 0.062, 0.5)]
    assert overheads_ms(pd.DataFrame([*results, result("b", 0.09, inference_s=0.08)])) == pytest.approx({"a": 12.0, "b": 10.0})


def test_round_trip_leaves_out_what_the_harness_takes_before_it_sends():
    results = pd.DataFrame([result("a", 0.06), result("b", 0.09), result("b", math.nan, "failed")])
    assert round_trips_ms(results) == pytest.approx({"a": 9.0, "b": 39.0})


def test_the_node_furthest_off_is_named():
    assert furthest_off({"a": 10.0, "b": 8.0}, {"a": 9.0, "b": 11.0, "c": 0.0}) == ("b", -3.0)
    with pytest.raises(HarnessError, match="expected an answer of at least one node, found none"):
        furthest_off({}, {"a": 9.0})


def test_profile_takes_the_measured_overheads_and_keeps_the_rest():
    profile = small_profile({"a": {"resnet50": 10.0}, "b": {"resnet50": 20.0}}, overhead_ms=15.0)
    measured = with_overheads(profile, {"a": 1.5, "b": 2.5})
    assert [measured.overhead_s(node) for node in "ab"] == [0.0015, 0.0025]
    assert measured.latency == profile.latency and measured.nodes["a"].busy_w == profile.nodes["a"].busy_w


def test_a_node_without_measurement_is_refused():
    with pytest.raises(HarnessError, match="request overhead of b: expected a measurement, found none"):
        with_overheads(small_profile({"a": {"resnet50": 10.0}, "b": {"resnet50": 20.0}}), {"a": 1.5})


def test_virtual_time_gives_back_the_overheads_it_was_given(tmp_path):
    """The whole way of the measurement, on a cluster whose overheads are known."""
    settings, profile = default_settings(), default_profile()
    save_trace(lone_requests(settings, len(profile.nodes)), tmp_path / "trace.csv")
    options = ["--cluster", "simulated", "--scheduler", "round_robin", "--trace", str(tmp_path / "trace.csv"), "--no-report"]
    assert run_main([*options, "--quiet", "--output", str(tmp_path / "runs")]) == 0
    results = read_run(next((tmp_path / "runs").iterdir())).results
    assert (results["server_queue_time_s"] == 0).all()
    assert overheads_ms(results) == pytest.approx({name: node.request_overhead_ms for name, node in profile.nodes.items()})
    assert results["assigned_node"].value_counts().nunique() == 1


def test_lone_requests_are_a_trace_that_can_be_replayed(tmp_path):
    settings = default_settings()
    trace = lone_requests(settings, 2)
    save_trace(trace, tmp_path / "trace.csv")
    assert len(load_trace(tmp_path / "trace.csv", settings)) == len(trace)


def test_load_is_found_where_the_busiest_node_is_busy_enough():
    assert 0.3 * load_that_keeps_busy(lambda load: 0.3 * load) == pytest.approx(0.875, abs=0.005)


@pytest.mark.parametrize("busiest", [lambda load: 0.01 * load, lambda load: 1.0, lambda load: 0.5 if load < 2 else 0.95])
def test_no_load_that_keeps_the_busiest_node_so_busy_is_said(busiest):
    with pytest.raises(HarnessError, match="expected one in 0.25 to 6, found .* as the nearest"):
        load_that_keeps_busy(busiest)


def test_busiest_node_in_virtual_time_is_the_summary_s(tmp_path):
    settings = default_settings(duration_s=10.0, seed=3)
    options = ["--cluster", "simulated", "--duration", "10", "--seed", "3", "--no-report", "--quiet", "--output", str(tmp_path)]
    assert run_main(options) == 0
    utilisation = read_run(next(tmp_path.iterdir())).summary["utilisation"]
    assert busiest_in_virtual_time(settings, default_profile()) == pytest.approx(max(utilisation.values()))


class Scripted(fidelity.Bench):
    """Runs that are made up: emulated ones are valid for odd seeds only."""

    def _run(self, cluster, changes, *options):
        if "--trace" in options:
            return run_of([result(node, 0.06) for node in [*default_profile().nodes, "a", "b"]])
        seed = int(options[options.index("--seed") + 1])
        scenario = f"scenario {seed}" if changes["load"] == 0.5 or cluster == "emulated" else "another"
        valid = seed % 2 == 1 or cluster == "simulated"
        return run_of(
            RESULTS, scenario_sha256=scenario, valid=valid, invalid_reasons=[] if valid else ["the master was too busy"]
        )


@pytest.mark.parametrize(("repeats", "expected"), [(4, "median of the 2 valid of 4 repeats"), (1, "not measured, none of 1")])
def test_a_run_that_is_not_valid_is_said_and_not_counted(monkeypatch, repeats, expected):
    monkeypatch.setattr(fidelity, "Bench", Scripted)
    said = io.StringIO()
    measure(default_settings(), [0.5], repeats, Console(width=200, file=said))
    text = said.getvalue()
    assert expected in text
    assert "load 0.5, seed 0: emulated run NOT valid, not counted: the master was too busy" in text
    assert repeats == 1 or "seed 1: emulated run valid (p99: dispatched 1.10 ms late, accelerators woke 0.25 ms late)" in text
    assert "coral1  │ 10.00" in text


def test_the_profile_for_virtual_time_keeps_the_order_of_nodes_and_models(tmp_path):
    Scripted(default_settings(), 1, tmp_path, Console(file=io.StringIO())).measure_overheads()
    written, profile = load_profile(tmp_path / "profile.yaml"), default_profile()
    assert {node: written.overhead_s(node) for node in written.nodes} == pytest.approx(dict.fromkeys(profile.nodes, 0.01))
    assert list(written.nodes) == list(profile.nodes) and list(written.latency) == list(profile.latency)


def test_two_worlds_are_not_compared(monkeypatch):
    monkeypatch.setattr(fidelity, "Bench", Scripted)
    with pytest.raises(HarnessError, match="load 1, seed 0: expected the same scenario on both clusters, found two"):
        measure(default_settings(), [1.0], 1, Console(file=io.StringIO()))


def test_overheads_of_runs_that_are_not_valid_are_refused(monkeypatch):
    run = run_of([result("a")], valid=False, invalid_reasons=["the master was too busy"])
    monkeypatch.setattr(Scripted, "_run", lambda *arguments: run)
    monkeypatch.setattr(fidelity, "Bench", Scripted)
    with pytest.raises(HarnessError, match="request overheads: expected a valid measuring run, found none in 3"):
        measure(default_settings(), [0.5], 1, Console(file=io.StringIO()))


def test_a_run_that_ends_badly_is_named(tmp_path):
    bench = fidelity.Bench(default_settings(), 1, tmp_path, Console(file=io.StringIO()))
    with pytest.raises(
        HarnessError, match="simulated run: expected status 0, found 2: main_pregenerated.py: --scheduler: no policy"
    ):
        bench._run("simulated", {}, "--scheduler", "nobody", "--duration", "1")


def test_command_line():
    options = parse_options(["--loads", f"0.5,{BUSY},2"])
    assert (options.seconds, options.repeats, options.loads, options.scheduler) == (120, 5, [0.5, BUSY, 2], "power_aware_topsis")


@pytest.mark.parametrize("wrong", [["--loads", "0"], ["--loads", "much"], ["--repeats", "0"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as error:
        parse_options(wrong)
    assert error.value.code == 2 and wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--scheduler", "nobody"], ["--seconds", "0"]])
def test_wrong_values_are_one_line_and_status_2(wrong, capsys):
    assert main(wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1
