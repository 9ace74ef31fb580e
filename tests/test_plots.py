"""The figures: what they show, their formats, and that they repeat."""

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import plots

POLICIES = [("topsis", "fifo"), ("random", "fifo"), ("topsis", "edf"), ("random", "edf")]


def comparison(loads=(0.5, 1.0), metric="slo_compliance_rate", seeds=10):
    rows = [
        {"scheduler": scheduler, "queue_discipline": discipline, "load": load, "metric": metric, "mean": 0.9 - load / 10}
        for scheduler, discipline in POLICIES
        for load in loads
    ]
    frame = pd.DataFrame(rows)
    half = 0.01 if seeds > 1 else np.nan
    return frame.assign(low=frame["mean"] - half, high=frame["mean"] + half)


def tasks(outcome="on_time", count=100):
    return pd.DataFrame(
        {
            "arrival_time_s": np.linspace(0, 99, count),
            "outcome": outcome,
            "slo_class": ["hard", "soft"] * (count // 2),
            "response_time_s": np.linspace(0.01, 0.5, count),
        }
    )


def drawn_svg(figure: Figure, name="one") -> str:
    return plots.drawn(figure, name, png=False).svg


def bars_of(panel) -> list[Any]:
    return list(panel.patches)


def lines_of(panel):
    return [np.asarray(line.get_ydata(), dtype=float) for line in panel.get_lines() if np.size(line.get_xdata()) > 1]


def test_no_two_policies_of_a_sweep_look_alike():
    policies = [(f"policy{number}", discipline) for discipline in ("fifo", "edf") for number in range(9)]
    chosen = plots.looks(policies).values()
    assert len({(look.colour, look.marker, look.face, str(look.line)) for look in chosen}) == len(policies)
    assert len({look.label for look in chosen}) == len(policies)


def test_a_long_name_is_shortened_from_its_front():
    assert plots.shortened("my.own.package.of.policies.module:VeryGoodScheduler", 20).endswith("VeryGoodScheduler")
    assert len(plots.shortened("x" * 100, 20)) == 20


def test_svg_and_png_repeat_byte_by_byte():
    once, again = (plots.drawn(plots.response_time_cdf(tasks(), {"hard": (0.05, 0.15)}), "cdf", png=True) for _ in range(2))
    assert once == again
    assert once.png is not None and once.png.startswith(b"\x89PNG")


def test_ids_of_two_figures_in_one_page_do_not_meet_and_every_reference_is_kept():
    found = []
    for name in ("first", "second"):
        text = drawn_svg(plots.response_time_cdf(tasks(), {"hard": (0.05, 0.15)}), name)
        ids = re.findall(r'\bid="([^"]+)"', text)
        references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
        assert references and {one or other for one, other in references} <= set(ids)
        assert len(ids) == len(set(ids))
        found.append(set(ids))
    assert not found[0] & found[1]


def test_svg_is_well_formed_and_says_no_date_and_no_place_outside():
    text = drawn_svg(plots.response_time_cdf(tasks(), {"hard": (0.05, 0.15)}))
    ElementTree.fromstring(text)
    assert "<dc:date>" not in text
    assert not re.search(r'href="(?!#)', text)


def test_text_is_taken_literally():
    look = plots.looks([("$\\frac{1}{0}$ <script> & --> 試", "fifo")])
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
    text = drawn_svg(plots.over_load(rows, {"m": ""}, 1, "value", look, {}))
    ElementTree.fromstring(text)
    assert "<script" not in text


def test_outcomes_are_counted_in_the_span_of_their_arrival():
    frame = pd.DataFrame({"arrival_time_s": [0.0, 4.9, 5.0, 99.9], "outcome": ["on_time", "late", "on_time", "skipped"]})
    in_cell = pd.DataFrame({"minute": [0, 1], "in_cell_share": [0.9, 0.8]})
    figure = plots.outcomes_over_time(frame, in_cell, 100.0)
    heights = [bar.get_height() for bar in bars_of(figure.axes[0])]
    assert sum(heights) == 4
    assert len(heights) == 3 * 20  # on time, late and skipped; spans of 5 s
    compliance = lines_of(figure.axes[1])[0]
    np.testing.assert_array_equal(compliance[:2], [0.5, 1.0])
    assert np.isnan(compliance[2:]).all()


def test_cdf_ends_below_one_where_tasks_had_no_answer():
    frame = tasks()
    frame.loc[frame.index[50:], "response_time_s"] = np.nan
    panel = plots.response_time_cdf(frame, {}).axes[0]
    assert [line.max() for line in lines_of(panel)] == [0.5, 0.5]


def test_cdf_of_tasks_without_any_answer_is_drawn():
    frame = tasks("failed").assign(response_time_s=np.nan)
    assert "<svg" in drawn_svg(plots.response_time_cdf(frame, {"hard": (0.05, 0.15)}))


def test_queue_depth_shows_mean_and_maximum_of_each_second():
    decisions = pd.DataFrame({"decision_time_s": [0.1, 0.9, 2.5], "queue_depth_a": [0.0, 4.0, 1.0]})
    panel = plots.queue_depth(decisions, ["a"], 3.0).axes[0]
    np.testing.assert_array_equal(lines_of(panel)[0], [2, 2, np.nan, np.nan, 1, 1])
    assert np.asarray(panel.collections[0].get_paths()[0].vertices)[:, 1].max() == 4


def test_power_of_a_node_without_a_meter_says_so():
    decisions = pd.DataFrame({"decision_time_s": [0.1, 1.9], "power_w_a": [3.0, 4.0], "power_w_b": [np.nan, np.nan]})
    figure = plots.power(decisions, ["a", "b"], 2.0, {"a": 2.0})
    said = [[text.get_text() for text in panel.texts] for panel in figure.axes]
    assert "no power measured" not in said[0]
    assert "no power measured" in said[1]


def test_work_by_node_shows_every_node_and_every_task():
    frame = pd.DataFrame({"assigned_node": ["a", "a", "b"], "model_name": ["x", "y", "x"]})
    figure = plots.work_by_node(frame, ["a", "b", "idle"], {"a": 0.5, "b": None})
    assert sum(bar.get_width() for bar in bars_of(figure.axes[0])) == 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "idle"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["50.0%", "–", "–"]


def test_map_is_thinned_and_keeps_skipped_tasks_apart():
    many = pd.DataFrame(
        {"device_x_m": np.arange(9000.0) % 500, "device_y_m": 250.0, "outcome": ["on_time", "on_time", "skipped"] * 3000}
    )
    devices = pd.DataFrame({"final_x_m": [1.0], "final_y_m": [2.0], "device_type": ["drone"]})
    panel = plots.device_map(many.sample(frac=1, random_state=1), devices, 500, 250).axes[0]
    by_label = {line.get_label(): np.size(line.get_xdata()) for line in panel.get_lines()}
    assert 1400 < by_label["task, dispatched"] + by_label["task, skipped (out of coverage)"] <= 1500
    assert by_label["drone, at the end"] == 1


@pytest.mark.parametrize("seeds", [1, 10])
def test_attainment_draws_every_policy_with_its_interval_if_it_has_one(seeds):
    achievable = pd.DataFrame({"load": [0.5, 1.0], "achievable_slo_rate": [0.97, 0.97]})
    figure = plots.attainment(comparison(seeds=seeds), achievable, plots.looks(POLICIES), {0.5: 0.2, 1.0: 0.4})
    panel = figure.axes[0]
    assert len(panel.containers) == len(POLICIES)
    bars = [segment for bar in panel.containers for segment in bar[2][0].get_segments()]
    lengths = [segment[1][1] - segment[0][1] for segment in bars]
    np.testing.assert_allclose(lengths, 0.02 if seeds > 1 else 0.0, atol=1e-12)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0.5\n20%", "1\n40%"]


def test_policies_at_a_single_load_stand_side_by_side():
    panel = plots.over_load(comparison((1.0,)), {"slo_compliance_rate": ""}, 1, "share", plots.looks(POLICIES), {}).axes[0]
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
    panel = plots.pareto(points, None, plots.looks(POLICIES[:2])).axes[0]
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
    panel = plots.load_limits(limits, plots.looks(POLICIES[:2])).axes[0]
    assert [text.get_text() for text in panel.texts] == ["1.50", "not reached"]


def test_what_is_trimmed_is_shaded():
    minutes = pd.DataFrame(
        {"scheduler": "topsis", "queue_discipline": "fifo", "load": 1.0, "minute": [0, 1], "fixed_deadline_compliance_rate": 0.9}
    )
    panel = plots.compliance_by_minute(minutes, 120.0, 12.0, 2.0, plots.looks(POLICIES[:1])).axes[0]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in bars_of(panel)]
    np.testing.assert_allclose(spans, [(0, 0.2), (118 / 60, 2)])
