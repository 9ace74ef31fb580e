"""What is said of waits behind gauges and behind others."""

from datetime import UTC, datetime

import pytest

from node_profiling.meter import NodeRecord, Sample
from node_profiling.tables import remarks
from performance_profile import Measurement, remeasured
from tests.helpers import small_profile


@pytest.fixture
def said():
    """Gives what is said of a node whose record has these counts."""

    def said(**counts):
        old = small_profile({"hailo1": {"mobilenet": 10.0}})
        record = NodeRecord("hailo1", True, {"mobilenet": [Sample(0.02, 0.01, None)] * 2}, **counts)
        how = Measurement(
            measured_at=datetime(2026, 3, 4, tzinfo=UTC),
            cluster="workers",
            nodes=["hailo1"],
            models=["mobilenet"],
            requests=2,
            warm_up=0,
            order="mixed",
            seed=42,
        )
        new = remeasured(old, how, {"hailo1": record.means()}, {}, {})
        return "\n".join(remarks(old, new, [record], {}, []))

    return said


def test_waits_that_gauges_explain_are_told_as_such(said):
    text = said(gauge_waits_s=[0.004, 0.008])
    assert "hailo1 let 2 requests wait, 6 ms on average, never two within a second: for its device's gauges" in text
    assert "not always alone" not in text


def test_waits_that_gauges_do_not_explain_are_those_behind_others(said):
    text = said(waited=2, refused=1)
    assert "hailo1 was not always alone: it refused 1 requests and let 2 wait behind others" in text
    assert "gauges" not in text


def test_node_that_was_alone_is_not_mentioned(said):
    text = said()
    assert "alone" not in text and "gauges" not in text
