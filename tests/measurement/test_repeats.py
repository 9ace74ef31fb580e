"""What several equal runs gave, in one table."""

import math

import pytest

from measurement.repeats import METRICS, repeats_table


def summary(compliance, p99_s=0.2, joules=10.0, valid=True, energy_valid=True):
    response = None if p99_s is None else {"mean": None, "p50": 0.03, "p95": 0.1, "p99": p99_s}
    return {
        "valid": valid,
        "energy_valid": energy_valid,
        "fixed_deadline_compliance_rate": compliance,
        "adapted_deadline_compliance_rate": compliance,
        "response_time_s": response,
        "energy_j": {"above_idle": joules, "above_idle_per_task": joules / 100, "above_idle_per_on_time_task": joules / 90},
        "load_fairness": 0.5,
    }


def row_of(metric, *summaries):
    return {row.metric: row for row in repeats_table(summaries)}[metric]


def test_mean_interval_and_spread_over_the_runs():
    row = row_of("fixed_deadline_compliance_rate", summary(0.9), summary(0.92), summary(0.94))
    assert (row.runs, row.counted, row.least, row.greatest) == (3, 3, 0.9, 0.94)
    assert row.mean == pytest.approx(0.92) and row.sd == pytest.approx(0.02)
    # Student's t at 97.5 % with 2 degrees of freedom: 4.302653
    assert row.high - row.mean == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)


def test_runs_that_are_not_valid_do_not_count():
    runs = summary(0.9), summary(0.92), summary(0.1, valid=False), summary(0.94, joules=1e6, energy_valid=False)
    assert row_of("adapted_deadline_compliance_rate", *runs).counted == 3
    energy = row_of("above_idle_j", *runs)
    assert (energy.counted, energy.greatest) == (2, 10.0)


def test_a_metric_that_one_run_leaves_undefined_has_no_mean():
    row = row_of("response_p99_s", summary(0.9), summary(0.92, p99_s=None))
    assert row.counted == 1 and all(math.isnan(value) for value in row[3:])


def test_no_valid_run_gives_a_table_without_values():
    table = repeats_table([summary(0.9, valid=False)] * 2)
    assert [row.metric for row in table] == list(METRICS) and all(math.isnan(row.mean) and not row.counted for row in table)
