"""The page of a comparison: what it says, and what it makes of missing tables."""

import csv

import pytest

import report

from .folders import COMPARISON_FIGURES, figures_in
from .sweep_folder import OPTIONAL_TABLES, POLICIES, write_sweep


def test_comparison_shows_verdict_and_notes_before_its_figures(comparison_page):
    text = comparison_page.read_text()
    first = text.index("<figure")
    assert (
        text.index("At load 0.5, power_aware_topsis has the highest compliance")
        < text.index("Every figure is of simulated")
        < first
    )
    assert text.index("No real board was measured") < first


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_optional_tables_that_are_missing_leave_their_sections_out_and_that_is_said(tmp_path, quick, how):
    gone = {"without": OPTIONAL_TABLES if how == "missing" else (), "empty": OPTIONAL_TABLES}
    text = report.write_comparison_report(
        write_sweep(tmp_path, POLICIES[:2], loads=(1.0,), without=gone["without"], empty=gone["empty"]), png=False
    ).read_text()
    drawn_from = {"compliance_by_minute": "minutes", "pareto": "pareto", "load_limits": "load_limits", "ablation": "ablation"}
    assert figures_in(text) == COMPARISON_FIGURES - set(drawn_from)
    for table in drawn_from.values():
        assert f"left out, {table}.csv is not there or holds none" in text
    assert "bounds.csv, gaps.csv and pareto.csv are not there" in text


@pytest.mark.parametrize("table", ["frontier", "gaps"])
def test_a_table_that_adds_to_another_figure_can_be_missing_alone(tmp_path, quick, table):
    text = report.write_comparison_report(
        write_sweep(tmp_path, POLICIES[:1], loads=(1.0,), without=[table]), png=False
    ).read_text()
    assert len(figures_in(text)) >= len(COMPARISON_FIGURES) - 1


@pytest.mark.parametrize("table", ["cells", "comparison"])
def test_a_comparison_without_a_main_table_has_a_page(tmp_path, quick, table):
    text = report.write_comparison_report(
        write_sweep(tmp_path, POLICIES[:2], loads=(1.0,), without=[table]), png=False
    ).read_text()
    assert f"{table}.csv is not there" in text
    assert "pareto" in figures_in(text)


def test_a_comparison_of_one_policy_one_load_and_one_seed_has_a_page(tmp_path):
    folder = write_sweep(tmp_path, POLICIES[:1], loads=(1.0,), seeds=1)
    text = report.write_comparison_report(folder, png=False).read_text()
    assert figures_in(text) == COMPARISON_FIGURES
    assert "No differences" in text


def test_policies_without_a_closeness_have_no_rank_reversals(tmp_path, quick):
    folder = write_sweep(tmp_path, ("random", "round_robin"), loads=(1.0,))
    text = report.write_comparison_report(folder, png=False).read_text()
    assert "comparison.csv is not there or holds no rank_reversal_rate" in text


def test_two_queue_disciplines_have_tables_of_their_own(tmp_path, quick):
    folder = write_sweep(tmp_path, POLICIES[:2], loads=(1.0,), disciplines=("fifo", "edf"))
    report.write_comparison_report(folder, png=False)
    assert {"policies_load_1_fifo.csv", "policies_load_1_edf.csv"} <= {path.name for path in (tmp_path / "tables").iterdir()}


def test_table_of_policies_holds_what_comparison_csv_says(tmp_path, quick):
    folder = write_sweep(tmp_path, POLICIES[:3], loads=(1.0,))
    report.write_comparison_report(folder, png=False)
    with (folder / "tables" / "policies_load_1.csv").open() as shown, (folder / "comparison.csv").open() as given:
        means = {row["scheduler"]: float(row["response_p99_s"]) for row in csv.DictReader(shown)}
        assert means == {
            row["scheduler"]: pytest.approx(float(row["mean"]))
            for row in csv.DictReader(given)
            if row["metric"] == "response_p99_s"
        }
