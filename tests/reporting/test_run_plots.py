"""The figures of a run: what they show."""

from typing import Any

import numpy as np
import pandas as pd

from reporting import run_plots
from reporting.style import drawn


def tasks(outcome="on_time", count=100):
    return pd.DataFrame(
        {
            "arrival_time_s": np.linspace(0, 99, count),
            "outcome": outcome,
            "slo_class": ["hard", "soft"] * (count // 2),
            "response_time_s": np.linspace(0.01, 0.5, count),
        }
    )


def bars_of(panel) -> list[Any]:
    return list(panel.patches)


def lines_of(panel):
    return [np.asarray(line.get_ydata(), dtype=float) for line in panel.get_lines() if np.size(line.get_xdata()) > 1]


def test_outcomes_are_counted_in_the_span_of_their_arrival():
    frame = pd.DataFrame({"arrival_time_s": [0.0, 4.9, 5.0, 99.9], "outcome": ["on_time", "late", "on_time", "skipped"]})
    in_cell = pd.DataFrame({"minute": [0, 1], "in_cell_share": [0.9, 0.8]})
    figure = run_plots.outcomes_over_time(frame, in_cell, 100.0)
    heights = [bar.get_height() for bar in bars_of(figure.axes[0])]
    assert sum(heights) == 4
    assert len(heights) == 3 * 20  # on time, late and skipped; spans of 5 s
    compliance = lines_of(figure.axes[1])[0]
    np.testing.assert_array_equal(compliance[:2], [0.5, 1.0])
    assert np.isnan(compliance[2:]).all()


def test_cdf_ends_below_one_where_tasks_had_no_answer():
    frame = tasks()
    frame.loc[frame.index[50:], "response_time_s"] = np.nan
    panel = run_plots.response_time_cdf(frame, {}).axes[0]
    assert [line.max() for line in lines_of(panel)] == [0.5, 0.5]


def test_cdf_of_tasks_without_any_answer_is_drawn():
    frame = tasks("failed").assign(response_time_s=np.nan)
    assert "<svg" in drawn(run_plots.response_time_cdf(frame, {"hard": (0.05, 0.15)}), "one", png=False).svg


def test_queue_depth_shows_mean_and_maximum_of_each_second():
    decisions = pd.DataFrame({"decision_time_s": [0.1, 0.9, 2.5], "queue_depth_a": [0.0, 4.0, 1.0]})
    panel = run_plots.queue_depth(decisions, ["a"], 3.0).axes[0]
    np.testing.assert_array_equal(lines_of(panel)[0], [2, 2, np.nan, np.nan, 1, 1])
    assert np.asarray(panel.collections[0].get_paths()[0].vertices)[:, 1].max() == 4


def test_power_of_a_node_without_a_meter_says_so():
    decisions = pd.DataFrame({"decision_time_s": [0.1, 1.9], "power_w_a": [3.0, 4.0], "power_w_b": [np.nan, np.nan]})
    figure = run_plots.power(decisions, ["a", "b"], 2.0, {"a": 2.0})
    said = [[text.get_text() for text in panel.texts] for panel in figure.axes]
    assert "no power measured" not in said[0]
    assert "no power measured" in said[1]


def test_work_by_node_shows_every_node_and_every_task():
    frame = pd.DataFrame({"assigned_node": ["a", "a", "b"], "model_name": ["x", "y", "x"]})
    figure = run_plots.work_by_node(frame, ["a", "b", "idle"], {"a": 0.5, "b": None})
    assert sum(bar.get_width() for bar in bars_of(figure.axes[0])) == 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "idle"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["50.0%", "–", "–"]


def test_map_is_thinned_and_keeps_skipped_tasks_apart():
    many = pd.DataFrame(
        {"device_x_m": np.arange(9000.0) % 500, "device_y_m": 250.0, "outcome": ["on_time", "on_time", "skipped"] * 3000}
    )
    devices = pd.DataFrame({"final_x_m": [1.0], "final_y_m": [2.0], "device_type": ["drone"]})
    panel = run_plots.device_map(many.sample(frac=1, random_state=1), devices, 500, 250).axes[0]
    by_label = {line.get_label(): np.size(line.get_xdata()) for line in panel.get_lines()}
    assert 1400 < by_label["task, dispatched"] + by_label["task, skipped (out of coverage)"] <= 1500
    assert by_label["drone, at the end"] == 1
