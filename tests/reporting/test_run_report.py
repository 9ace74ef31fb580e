"""The page of a run: what it says, and what it makes of old, empty and damaged folders."""

import csv
import json

import pytest

import report

from .folders import JUNK, RUN_FIGURES, change_rows, change_summary, figures_in, summary_of


def test_run_page_says_first_what_was_measured_and_how_well(finished_run, run_page):
    text, summary = run_page.read_text(), json.loads(summary_of(finished_run).read_text())
    top = text[: text.index("<figure")]
    assert "Valid run" in top
    assert "No real board was measured" in top
    for share in (summary["slo_compliance_rate"], summary["achievable_slo_rate"]):
        assert f"{100 * share:.1f} %" in top
    assert f"{1e3 * summary['energy_j']['above_idle_per_task']:.1f} mJ" in top


def test_class_table_agrees_with_the_summary(finished_run, run_page):
    summary = json.loads(summary_of(finished_run).read_text())
    with (run_page.parent / "tables" / "classes.csv").open() as file:
        rows = {row["slo_class"]: row for row in csv.DictReader(file)}
    for rate in ("adapted_deadline_compliance_rate", "fixed_deadline_compliance_rate"):
        assert {name: float(row[rate]) for name, row in rows.items()} == pytest.approx(summary[f"{rate}_by_class"])
    assert sum(int(row["late"]) for row in rows.values()) == summary["tasks"]["late"]


def test_a_run_on_real_workers_claims_them(run_folder, quick):
    change_summary(run_folder, cluster="workers")
    text = report.write_run_report(run_folder).read_text()
    assert "Real workers" in text and "No real board" not in text


def test_an_invalid_run_says_so_with_its_reasons_before_anything_else(run_folder, quick):
    change_summary(
        run_folder,
        valid=False,
        invalid_reasons=["dispatch lag p99 9.1 ms"],
        energy_valid=False,
        energy_invalid_reasons=["no meter on hailo1"],
        interrupted=True,
        warnings=["hailo1 was measured without its meter's counter"],
    )
    text = report.write_run_report(run_folder).read_text()
    top = text[text.index('id="verdict"') : text.index("</section>")]
    assert "Valid run" not in top
    for said in ("INVALID run", "dispatch lag p99 9.1 ms", "ENERGY INVALID", "no meter on hailo1", "interrupted", "counter"):
        assert said in top


def test_an_interrupted_run_shows_its_unfinished_tasks(run_folder, quick):
    def unfinished(row):
        late = float(row["arrival_time_s"]) > 5
        gone = dict.fromkeys(("assigned_node", "response_time_s", "met_fixed_deadline", "delivered"), "")
        return {**row, **gone, "outcome": "unfinished"} if late else row

    change_rows(run_folder / "master_inference_results.csv", unfinished)
    assert figures_in(report.write_run_report(run_folder).read_text()) == RUN_FIGURES


@pytest.mark.parametrize("left", ["none", "skipped"])
def test_a_run_that_dispatched_nothing_has_a_page(run_folder, left):
    empty = dict.fromkeys(("assigned_node", "response_time_s", "met_fixed_deadline"), "")
    change_rows(
        run_folder / "master_inference_results.csv",
        lambda row: {**row, **empty, "outcome": "skipped"} if left == "skipped" else None,
    )
    for kind in ("scheduling_decisions", "slo_violations"):
        change_rows(next(run_folder.glob(f"{kind}_*.csv")), lambda row: None)
    change_summary(
        run_folder, slo_compliance_rate=None, response_time_s=None, load_fairness=None, by_minute=[], energy_j={"by_node": None}
    )
    text = report.write_run_report(run_folder).read_text()
    assert figures_in(text) == ({"outcomes", "map"} if left == "skipped" else set())
    assert "left out, no task was dispatched" in text or "holds no task" in text


def test_a_run_whose_tasks_all_failed_has_a_page(run_folder):
    failed = {**dict.fromkeys(("response_time_s", "delivered"), ""), "outcome": "failed", "error": "no node serves <vgg16>"}
    change_rows(run_folder / "master_inference_results.csv", lambda row: {**row, **failed, "met_fixed_deadline": "false"})
    text = report.write_run_report(run_folder).read_text()
    assert figures_in(text) == RUN_FIGURES
    assert "no node serves &lt;vgg16&gt;" in text


def test_times_of_unanswered_tasks_are_dashes_and_the_page_warns_of_them_first(run_folder, quick):
    gone = dict.fromkeys(("response_time_s", "completion_time_s", "delivered"), "")
    change_rows(
        run_folder / "master_inference_results.csv",
        lambda row: {**row, **gone, "outcome": "failed", "met_fixed_deadline": "false"} if row["slo_class"] == "hard" else row,
    )
    change_rows(next(run_folder.glob("slo_violations_*.csv")), lambda row: {**row, "excess_s": ""})
    times = {"mean": None, "p50": 0.0351, "p90": 0.2, "p95": None, "p99": None, "p999": None, "max": None}
    change_summary(run_folder, unanswered=42, warnings=["42 of 300 dispatched tasks have no answer"], response_time_s=times)
    page = report.write_run_report(run_folder)
    text = page.read_text()
    assert text.index("42 of 300 dispatched tasks have no answer") < text.index("<figure")
    assert "<b>35.1 ms</b>" in text and "p95 –, p99 – ms" in text and "nan" not in text[: text.index("<figure")]
    tables = {}
    for name, key in (("classes", "slo_class"), ("violations", "model_name")):
        with (page.parent / "tables" / f"{name}.csv").open() as file:
            tables[name] = {row[key]: row for row in csv.DictReader(file)}
    assert tables["classes"]["hard"]["response_p50_s"] == "" != tables["classes"]["soft"]["response_p50_s"]
    assert {row["excess_p50_s"] for row in tables["violations"].values()} == {""}


def test_nodes_without_a_meter_leave_out_their_power(run_folder, quick):
    change_rows(
        next(run_folder.glob("scheduling_decisions_*.csv")),
        lambda row: {name: "" if name.startswith("power_w_") else value for name, value in row.items()},
    )
    change_summary(run_folder, energy_j={"total": None, "by_node": {"hailo1": None, "coral1": 55.0}}, idle_w={"hailo1": 5.0})
    text = report.write_run_report(run_folder).read_text()
    assert figures_in(text) == RUN_FIGURES - {"power", "energy"}
    assert "no power was measured" in text


def test_null_and_missing_keys_of_an_old_summary_become_dashes(run_folder, quick):
    path = summary_of(run_folder)
    keys = json.loads(path.read_text())
    for content in ({}, dict.fromkeys(keys), {**dict.fromkeys(keys), "tasks": keys["tasks"], "settings": keys["settings"]}):
        path.write_text(json.dumps(content))
        text = report.write_run_report(run_folder).read_text()
        assert "does not say whether this run is valid" in text
        assert "– %" in text


def test_a_folder_with_the_summary_alone_has_a_page(run_folder, quick):
    for path in run_folder.glob("*.csv"):
        path.unlink()
    text = report.write_run_report(run_folder).read_text()
    assert "Valid run" in text
    assert figures_in(text) == {"energy"}


def test_damaged_tables_are_read_as_far_as_they_go(run_folder, quick):
    results = run_folder / "master_inference_results.csv"
    results.write_bytes(results.read_bytes()[:-50] + b'\n1,2,3\n,,,"x\n')
    next(run_folder.glob("devices_*.csv")).write_bytes(b"\xff\xfe\x00")
    assert "outcomes" in figures_in(report.write_run_report(run_folder).read_text())


@pytest.mark.parametrize(
    "damage",
    [
        {"by_minute": 3},
        {"by_minute": [1, [2], {"minute": "x", "in_cell_share": None}]},
        {"settings": {"slo_classes": {"a": None}}},
        {"settings": {"slo_classes": {"hard": {"base_deadline_s": [None, "x"]}, "soft": {"base_deadline_s": 3}}}},
        {"settings": {"duration_s": "x", "devices": {"area_side_m": "x", "cell_radius_m": -1}, "performance_profile": "\0"}},
        {"invalid_reasons": 5, "energy_valid": False, "energy_invalid_reasons": 5},
        {"idle_w": {"hailo1": "x"}, "utilisation": {"hailo1": [1]}, "window_s": "x", "energy_j": {"by_node": {"hailo1": {}}}},
    ],
)
def test_damaged_values_of_a_summary_leave_the_rest_of_the_page(run_folder, quick, damage):
    change_summary(run_folder, **damage)
    text = report.write_run_report(run_folder).read_text()
    assert {"outcomes", "response_times", "queue_depth", "nodes"} <= figures_in(text)


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: ascii(junk)[:20])
def test_a_summary_of_nothing_but_junk_has_a_page(run_folder, quick, junk):
    path = summary_of(run_folder)
    summary = json.loads(path.read_text())
    path.write_text(json.dumps({**dict.fromkeys(summary, junk), "settings": dict.fromkeys(summary["settings"], junk)}))
    assert "outcomes" in figures_in(report.write_run_report(run_folder).read_text())


def test_many_nodes_are_shown_by_their_busiest(run_folder, quick):
    names = [f"node{number}" for number in range(30)]
    header = ["task_id", "decision_time_s", *(f"{kind}_{name}" for name in names for kind in ("queue_depth", "power_w"))]
    with next(run_folder.glob("scheduling_decisions_*.csv")).open("w") as file:
        csv.writer(file).writerows([header, [0, 1.0, *[1.5] * 60]])
    change_rows(run_folder / "master_inference_results.csv", lambda row: {**row, "assigned_node": "node29"})
    change_summary(run_folder, utilisation={name: 0.1 for name in names})
    text = report.write_run_report(run_folder).read_text()
    assert "12 of 30 nodes" in text
    assert len((run_folder / "tables" / "nodes.csv").read_text().splitlines()) == 31


def test_files_of_an_earlier_report_do_not_stay(run_folder, quick):
    report.write_run_report(run_folder, png=True)
    assert {path.stem for path in (run_folder / "figures").glob("*.png")} == RUN_FIGURES
    next(run_folder.glob("devices_*.csv")).unlink()
    change_summary(run_folder, energy_j=None)
    report.write_run_report(run_folder)
    assert not list((run_folder / "figures").glob("*.png"))
    assert not (run_folder / "figures" / "energy.svg").exists()
