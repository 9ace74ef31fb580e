"""The figures of a comparison: what they show."""

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from reporting.comparison_plots import attainment, compliance_by_minute, load_limits, over_load, pareto
from reporting.style import drawn, looks

POLICIES = [("topsis", "fifo"), ("random", "fifo"), ("topsis", "edf"), ("random", "edf")]


def comparison(loads=(0.5, 1.0), metric="fixed_deadline_compliance_rate", seeds=10):
    rows = [
        {"scheduler": scheduler, "queue_discipline": discipline, "load": load, "metric": metric, "mean": 0.9 - load / 10}
        for scheduler, discipline in POLICIES
        for load in loads
    ]
    frame = pd.DataFrame(rows)
    half = 0.01 if seeds > 1 else np.nan
    return frame.assign(low=frame["mean"] - half, high=frame["mean"] + half)


def test_text_is_taken_literally():
    look = looks([("$\\frac{1}{0}$ <script> & --> 試", "fifo")])
    rows = pd.DataFrame(
        [
            {
                "scheduler": next(iter(look))[0],
                "queue_discipline": "fifo",
                "load": 1.0,
                "metric": "m",
                "mean": 1,
                "low": 0,
                "high": 2,
            }
        ]
    )
    text = drawn(over_load(rows, {"m": ""}, 1, "value", look, {}), "one", png=False).svg
    ElementTree.fromstring(text)
    assert "<script" not in text


@pytest.mark.parametrize("seeds", [1, 10])
def test_attainment_draws_every_policy_with_its_interval_if_it_has_one(seeds):
    achievable = pd.DataFrame({"load": [0.5, 1.0], "achievable_slo_rate": [0.97, 0.97]})
    figure = attainment(comparison(seeds=seeds), achievable, looks(POLICIES), {0.5: 0.2, 1.0: 0.4})
    panel = figure.axes[0]
    assert len(panel.containers) == len(POLICIES)
    bars = [segment for bar in panel.containers for segment in bar[2][0].get_segments()]
    lengths = [segment[1][1] - segment[0][1] for segment in bars]
    np.testing.assert_allclose(lengths, 0.02 if seeds > 1 else 0.0, atol=1e-12)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0.5\n20%", "1\n40%"]


def test_policies_at_a_single_load_stand_side_by_side():
    panel = over_load(comparison((1.0,)), {"fixed_deadline_compliance_rate": ""}, 1, "share", looks(POLICIES), {}).axes[0]
    assert len({float(bar[0].get_xdata()[0]) for bar in panel.containers}) == len(POLICIES)


def test_pareto_joins_and_rings_the_front_only():
    points = pd.DataFrame(
        {
            "scheduler": ["topsis", "random"],
            "queue_discipline": "fifo",
            "load": 1.0,
            **{"miss_rate": [0.1, 0.2], "miss_rate_low": [0.09, 0.19], "miss_rate_high": [0.11, 0.21]},
            "above_idle_per_task_j": [0.1, 0.2],
            "above_idle_per_task_j_low": [0.09, 0.19],
            "above_idle_per_task_j_high": [0.11, 0.21],
            "on_front": [1.0, 0.0],
        }
    )
    panel = pareto(points, None, looks(POLICIES[:2])).axes[0]
    front = panel.get_lines()[0]
    np.testing.assert_allclose(np.asarray(front.get_xydata()), np.array([[0.1, 100.0]]))


def test_a_limit_that_was_not_found_is_told_in_words():
    limits = pd.DataFrame(
        {
            "scheduler": ["topsis", "random"],
            "queue_discipline": "fifo",
            **{"mean": [1.5, np.nan], "low": [1.4, np.nan], "high": [1.6, np.nan]},
            "text": ["1.50 (1.40 to 1.60)", "not reached"],
        }
    )
    panel = load_limits(limits, looks(POLICIES[:2])).axes[0]
    assert [text.get_text() for text in panel.texts] == ["1.50", "not reached"]


def test_what_is_trimmed_is_shaded():
    minutes = pd.DataFrame(
        {"scheduler": "topsis", "queue_discipline": "fifo", "load": 1.0, "minute": [0, 1], "fixed_deadline_compliance_rate": 0.9}
    )
    panel = compliance_by_minute(minutes, 120.0, 12.0, 2.0, looks(POLICIES[:1])).axes[0]
    bars: list[Any] = list(panel.patches)
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in bars]
    np.testing.assert_allclose(spans, [(0, 0.2), (118 / 60, 2)])
