"""The world of a run and its replay: a saved trace leads back to the same devices, and a bare one says what it cannot know."""

import hashlib
import json
from pathlib import Path

import pytest

from cluster.simulated import ignored_settings
from main_pregenerated import main
from report import write_run_report
from scenario import Replay, Scenario, build_scenario, meta_path, save_scenario
from settings import load_settings
from task_generator import load_trace, scenario_sha256
from tests.helpers import default_settings
from utils import PROJECT_ROOT, HarnessError, UsageError

ESTIMATES = "delivered_rate and in_cell_share are estimates: "


@pytest.fixture(scope="module")
def drawn():
    settings = default_settings(duration_s=20.0, seed=7, load=0.5, devices={"count": 40})
    return build_scenario(settings, None, None)


@pytest.fixture
def trace(drawn, tmp_path):
    path = tmp_path / "trace.csv"
    save_scenario(drawn[1], drawn[0], path)
    return path


def replay_of(scenario: Scenario) -> Replay:
    assert scenario.replay
    return scenario.replay


def edited_meta(trace, **changes):
    path = meta_path(trace)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_replay_has_the_devices_the_load_and_the_length_of_the_run_that_was_saved(drawn, trace):
    settings, scenario = drawn
    again, replayed = build_scenario(default_settings(seed=99), trace, None)
    assert (again.duration_s, again.load, again.devices) == (20.0, 0.5, settings.devices)
    assert replay_of(replayed).seed == 7 and replay_of(replayed).is_exact and not replayed.warnings
    assert replay_of(replayed).sha256 == hashlib.sha256(trace.read_bytes()).hexdigest()
    assert list(replayed.device_ids) == list(range(40))
    assert scenario_sha256(again, replayed.trace) == scenario_sha256(settings, scenario.trace)
    for device_id in range(40):
        assert replayed.mobility.device(device_id, 19.5) == scenario.mobility.device(device_id, 19.5)


def test_replay_can_be_cut_and_saved_again(trace, tmp_path):
    settings, cut = build_scenario(default_settings(), trace, 12.5)
    assert settings.duration_s == 12.5 and replay_of(cut).is_exact
    save_scenario(cut, settings, tmp_path / "cut.csv")
    again, replayed = build_scenario(default_settings(), tmp_path / "cut.csv", None)
    assert (again.duration_s, replay_of(replayed).seed, replay_of(replayed).load) == (12.5, 7, 0.5)


def test_sparse_trace_does_not_shorten_the_window(tmp_path):
    settings, scenario = build_scenario(default_settings(duration_s=60.0, load=0.002), None, None)
    assert len(scenario.trace) > 0 and scenario.trace.arrival_time_s[-1] < 59
    save_scenario(scenario, settings, tmp_path / "sparse.csv")
    assert build_scenario(default_settings(), tmp_path / "sparse.csv", None)[0].duration_s == 60.0


def test_trace_alone_is_replayed_with_estimates(trace):
    meta_path(trace).unlink()
    settings, replayed = build_scenario(default_settings(devices={"count": 40}, load=0.5), trace, None)
    assert not replay_of(replayed).is_exact and (replay_of(replayed).seed, replay_of(replayed).load) == (None, None)
    assert replayed.warnings == [f"{ESTIMATES}{trace}.meta.json: no such file"]
    assert settings.duration_s == load_trace(trace, settings).duration_s


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"trace_sha256": "0" * 64}, "is of another trace: expected trace_sha256 "),
        ({"seed": 8}, "does not fit the trace: its seed and devices lead to other positions"),
        ({"seed": "seven"}, "seed: expected a valid integer, found 'seven'"),
        ({"duration_s": 1.0}, "does not fit the trace"),
        ({"more": 1}, "unknown key more"),
    ],
)
def test_meta_file_that_does_not_fit_is_left_aside_with_a_word(trace, changes, why):
    edited_meta(trace, **changes)
    _, replayed = build_scenario(default_settings(devices={"count": 40}, load=0.5), trace, None)
    (warning,) = replayed.warnings
    assert warning.startswith(f"{ESTIMATES}{trace}.meta.json") and why in warning
    assert not replay_of(replayed).is_exact


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"seed": NaN}'])
def test_damaged_meta_file_is_left_aside_with_a_word(trace, text):
    meta_path(trace).write_text(text)
    _, replayed = build_scenario(default_settings(devices={"count": 40}, load=0.5), trace, None)
    assert len(replayed.warnings) == 1 and not replay_of(replayed).is_exact


def test_replay_has_the_area_and_the_cell_of_the_run_that_was_saved(tmp_path):
    devices = {"placement": "area", "area_side_m": 1200.0, "cell_radius_m": 280.0}
    settings, scenario = build_scenario(default_settings(duration_s=2.0, seed=5, devices=devices), None, None)
    save_scenario(scenario, settings, tmp_path / "t.csv")
    again, replayed = build_scenario(default_settings(), tmp_path / "t.csv", None)
    assert again.devices == settings.devices and not replayed.warnings
    assert scenario_sha256(again, replayed.trace) == scenario_sha256(settings, scenario.trace)


def test_unknown_seed_is_not_written_beside_a_trace_that_is_saved_again(trace, tmp_path):
    meta_path(trace).unlink()
    settings, replayed = build_scenario(default_settings(devices={"count": 40}), trace, None)
    again = tmp_path / "again.csv"
    meta_path(again).write_text("of an earlier trace")
    save_scenario(replayed, settings, again)
    assert again.read_bytes() == trace.read_bytes() and not meta_path(again).exists()


@pytest.mark.parametrize(
    ("factor", "start_s", "hints"),
    [
        (1.0, 0.0, []),
        (10.0, 0.0, []),
        (1000.0, 0.0, ["is it in milliseconds there?"]),
        (1.0, 300.0, ["times start at 0, the start of the load"]),
        (1.0, 86400.0, ["is it in milliseconds there?", "times start at 0, the start of the load"]),
    ],
)
def test_times_that_are_not_seconds_from_the_start_are_met_with_a_hint(trace, factor, start_s, hints):
    header, *lines = trace.read_text().splitlines()
    at = header.split(",").index("arrival_time_s")
    rows = [line.split(",") for line in lines]
    moved = [",".join([*row[:at], repr(float(row[at]) * factor + start_s), *row[at + 1 :]]) for row in rows]
    trace.write_text("\n".join([header, *moved]))
    _, replayed = build_scenario(default_settings(devices={"count": 40}, load=0.5), trace, None)
    _, *found = replayed.warnings
    assert len(found) == len(hints) and all(hint in warning for hint, warning in zip(hints, found, strict=True))


def test_full_disk_and_a_wrong_place_are_one_clear_line(drawn, tmp_path, monkeypatch):
    settings, scenario = drawn
    with pytest.raises(HarnessError, match="--save-trace: /dev/full cannot be written: No space left"):
        save_scenario(scenario, settings, Path("/dev/full"))
    meta_path(tmp_path / "t.csv").mkdir()
    with pytest.raises(UsageError, match=r"--save-trace: .*t\.csv\.meta\.json cannot be written"):
        save_scenario(scenario, settings, tmp_path / "t.csv")


def run(tmp_path, capsys, *options):
    """The summary, the settings.json and the terminal of a run in virtual time, and the bytes of its table of tasks."""
    before = set(tmp_path.glob("results/*"))
    assert main(["--cluster", "simulated", "--quiet", "--output", str(tmp_path / "results"), *map(str, options)]) == 0
    (folder,) = set(tmp_path.glob("results/*")) - before
    summary = json.loads(next(folder.glob("experiment_summary_*.json")).read_text())
    tasks = (folder / "master_inference_results.csv").read_bytes()
    return summary, json.loads((folder / "settings.json").read_text()), capsys.readouterr().out, tasks, folder


def test_replay_is_the_same_world_and_says_that_it_is_a_replay(tmp_path, capsys):
    trace = tmp_path / "trace.csv"
    first, _, _, tasks, _ = run(
        tmp_path, capsys, "--duration", "8", "--seed", "7", "--scheduler", "random", "--no-report", "--save-trace", trace
    )
    again, begun, out, tasks_again, folder = run(tmp_path, capsys, "--scheduler", "random", "--trace", trace)
    assert tasks_again == tasks
    for key in ("delivered_rate", "scenario_sha256", "seed", "window_s", "performance_profile_sha256", "policy_seed"):
        assert again[key] == first[key]
    assert [minute["in_cell_share"] for minute in again["by_minute"]] == [row["in_cell_share"] for row in first["by_minute"]]
    assert first["trace"] is None and not first["delivered_rate_is_estimate"] and not again["delivered_rate_is_estimate"]
    assert again["trace"] == {
        "file": str(trace),
        "sha256": hashlib.sha256(trace.read_bytes()).hexdigest(),
        "seed": 7,
        "load": 1.0,
    }
    assert "replay of" in out and "seed 7" in out
    assert f"replay of {trace}: random on the simulated cluster, seed 7" in (folder / "report.html").read_text()
    assert begun["trace"] == again["trace"] and begun["settings"] == again["settings"]


def test_replay_of_a_bare_trace_knows_neither_seed_nor_load(tmp_path, capsys):
    trace = tmp_path / "trace.csv"
    run(tmp_path, capsys, "--duration", "8", "--seed", "7", "--no-report", "--save-trace", trace)
    meta_path(trace).unlink()
    summary, _, out, _, folder = run(tmp_path, capsys, "--seed", "3", "--trace", trace)
    assert (summary["seed"], summary["settings"]["seed"], summary["settings"]["load"]) == (None, None, None)
    assert summary["policy_seed"] == 3
    assert summary["delivered_rate_is_estimate"] and summary["in_cell_share_is_estimate"]
    assert any(warning.startswith(ESTIMATES) for warning in summary["warnings"])
    assert "seed unknown" in out and "(estimate)" in out
    page = (folder / "report.html").read_text()
    assert "seed unknown" in page and "(estimate)" in page and "an estimate" in page


def test_profile_and_settings_are_in_the_folder_from_the_start(tmp_path, capsys):
    summary, begun, _, _, _ = run(tmp_path, capsys, "--duration", "2", "--no-report", "--scheduler", "topsis")
    for key in ("seed", "scheduler", "settings", "scenario_sha256", "performance_profile_sha256", "cluster", "experiment_id"):
        assert begun[key] == summary[key]
    assert begun["performance_profile"]["nodes"]["coral1"]["idle_w"] == 4.56


def test_report_shows_the_profile_of_the_run_and_not_what_the_file_holds_by_now(tmp_path, capsys):
    profile = tmp_path / "profile.yaml"
    text = (PROJECT_ROOT / "config" / "performance_profile.yaml").read_text()
    profile.write_text(text.replace("idle_w: 4.56", "idle_w: 3.21"))
    (tmp_path / "c.yaml").write_text("performance_profile: profile.yaml\n")
    *_, folder = run(tmp_path, capsys, "--duration", "2", "--no-report", "--config", tmp_path / "c.yaml")
    profile.write_text(text)
    write_run_report(folder)
    table = (folder / "tables" / "profile_nodes.csv").read_text()
    assert "coral1,3.21,5.35" in table and "4.56" not in table


def test_settings_that_virtual_time_ignores_are_named(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("requests: {max_attempts: 1, request_timeout_s: 0.3, drain_timeout_s: 5}\n")
    summary, *_ = run(tmp_path, capsys, "--duration", "2", "--no-report", "--config", config)
    (warning,) = summary["warnings"]
    assert warning.startswith("virtual time does not model requests.max_attempts, requests.request_timeout_s:")
    assert run(tmp_path, capsys, "--duration", "2", "--no-report")[0]["warnings"] == []


def test_default_settings_are_none_that_virtual_time_ignores():
    assert ignored_settings(load_settings()) == []
