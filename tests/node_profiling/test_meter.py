"""Measuring one node: figures by hand, the order of the models, and every way in which a node spoils its measurement."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.http_client import Answer, NodeClient, NodeFault, NodeFull, NodeUnreachable, RequestRefused
from node_profiling import meter
from node_profiling.meter import NodeMeter, NodeRecord, Sample, Spread, cv_by_accelerator, planned_requests, pooled_cv, spread_of
from terminal.options import StopSignal
from tests.helpers import small_profile
from utils import HarnessError, Interrupted

MODELS = ["mobilenet", "resnet50", "vgg16"]


# Figures.


def test_spread_of_five_durations_is_what_the_hand_computes():
    # Deviations -2, -1, 0, 1, 2: variance 10 / 4; the 97.5 % point of Student's t with 4 degrees of freedom is 2.776 (tables).
    spread = spread_of([0.010, 0.012, 0.014, 0.013, 0.011])
    assert (spread.count, spread.p50, spread.p99, spread.largest) == (5, 12.0, 14.0, 14.0)
    assert spread.mean == pytest.approx(12.0)
    assert spread.std == pytest.approx(math.sqrt(2.5))
    assert spread.half_width == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=1e-3)
    assert spread.cv == pytest.approx(math.sqrt(2.5) / 12)


def test_outlier_stays_in_the_mean_and_is_seen_as_the_largest():
    spread = spread_of([0.010] * 199 + [0.210])
    assert spread.mean == pytest.approx(11.0)
    assert (spread.p50, spread.p99, spread.largest) == pytest.approx((10.0, 10.0, 210.0))


def test_equal_durations_have_no_spread():
    spread = spread_of([0.005, 0.005, 0.005])
    assert (spread.mean, spread.half_width, spread.std, spread.cv) == pytest.approx((5.0, 0.0, 0.0, 0.0))


def with_cv(mean, cv):
    return Spread(10, mean, 1.0, mean * cv, mean, mean, mean)


def test_pooled_cv_is_the_root_mean_square_whatever_the_means():
    assert pooled_cv([with_cv(10, 0.03), with_cv(400, 0.04)]) == pytest.approx(math.sqrt((0.0009 + 0.0016) / 2))
    assert pooled_cv([with_cv(10, 0.03)]) == pytest.approx(0.03)


def test_record_tells_inference_overhead_and_switches_apart():
    samples = {
        "mobilenet": [Sample(0.015, 0.010, True), Sample(0.019, 0.012, False), Sample(0.020, 0.014, True)],
        "resnet50": [Sample(0.050, 0.040, None), Sample(0.050, 0.042, None)],
    }
    record = NodeRecord("coral1", True, samples)
    assert {model: spread.mean for model, spread in record.inference().items()} == pytest.approx(
        {"mobilenet": 12, "resnet50": 41}
    )
    assert record.overhead().mean == pytest.approx((5 + 7 + 6 + 10 + 8) / 5)
    assert record.inference_ms("mobilenet", switched=True) == [10.0, 14.0]
    assert record.inference_ms("mobilenet", switched=False) == [12.0]
    assert record.inference_ms("resnet50", switched=True) == record.inference_ms("resnet50", switched=False) == []
    overhead_ms, mean_ms = record.means()
    assert overhead_ms == pytest.approx(7.2)
    assert mean_ms == pytest.approx({"mobilenet": 12, "resnet50": 41})


def spent(name, *models, cv=0.1):
    """A record whose models all have this coefficient of variation: two durations, as far from their mean on either side."""
    off = cv / math.sqrt(2)
    return NodeRecord(name, True, {model: [Sample(1, 0.01 * (1 + sign * off), None) for sign in (-1, 1)] for model in models})


@pytest.fixture
def profile():
    """Two nodes of kind a that serve two models, one of which the third, of kind b, lacks."""
    made = small_profile({"a1": {"x": 1.0, "y": 2.0}, "a2": {"x": 1.0, "y": 2.0}, "b1": {"x": 1.0}}, cv=0.5)
    kinds = {name: figures.model_copy(update={"accelerator": name[0]}) for name, figures in made.nodes.items()}
    return made.model_copy(update={"nodes": kinds, "cv": {"a": 0.5, "b": 0.5}})


def test_cv_is_pooled_over_the_nodes_and_models_of_an_accelerator(profile):
    records = [spent("a1", "x", "y", cv=0.3), spent("a2", "x", "y", cv=0.4), spent("b1", "x", cv=0.1)]
    expected = {"a": math.sqrt((0.09 + 0.16) / 2), "b": 0.1}
    assert cv_by_accelerator(records, profile, {}) == pytest.approx(expected)
    assert cv_by_accelerator(records[1:2], profile, {}) == pytest.approx({"a": 0.4})


def test_no_cv_comes_of_a_part_of_the_models_that_an_accelerator_serves(profile):
    assert cv_by_accelerator([spent("a1", "x"), spent("a2", "x"), spent("b1", "x")], profile, {}) == pytest.approx({"b": 0.1})
    assert cv_by_accelerator([spent("a1", "x")], profile, {"a1": ["y"]}) == {}  # a2 serves it, for all that is known
    absent = {"a1": ["y"], "a2": ["y"]}
    assert cv_by_accelerator([spent("a1", "x")], profile, absent) == pytest.approx({"a": 0.1})


# Order.


def test_mix_holds_every_model_equally_often_after_a_mixed_warm_up():
    plan = planned_requests(MODELS, 50, 4, "mixed", np.random.default_rng(1))
    assert [counts for _, counts in plan] == [False] * 12 + [True] * 150
    assert Counter(plan) == {(model, counts): 50 if counts else 4 for model in MODELS for counts in (False, True)}


def test_mix_switches_models_as_often_as_chance_does():
    # Of two neighbours in a random order of n of each of m models, the share that differs is n(m - 1) / (nm - 1).
    plan = [model for model, _ in planned_requests(MODELS, 400, 0, "mixed", np.random.default_rng(2))]
    share = np.mean([before != after for before, after in zip(plan, plan[1:], strict=False)])
    assert share == pytest.approx(400 * 2 / 1199, abs=4 * math.sqrt(2 / 9 / 1199))


def test_mix_is_the_same_for_the_same_seed_and_another_for_another():
    plans = [planned_requests(MODELS, 20, 2, "mixed", np.random.default_rng(seed)) for seed in (7, 7, 8)]
    assert plans[0] == plans[1] != plans[2]


def test_groups_come_one_after_the_other_each_with_its_warm_up():
    plan = planned_requests(["mobilenet", "vgg16"], 3, 1, "grouped", np.random.default_rng(0))
    expected = [(model, counts) for model in ("mobilenet", "vgg16") for counts in (False, True, True, True)]
    assert plan == expected


# One node, on a clock that only its answers move.


class Node(NodeClient):
    """Answers each request with the next of `script`: an answer and its round trip, an error, or what a call gives of these."""

    def __init__(self, script):
        self.now_s = 100.0
        self.asked = []
        self._script = iter(script)

    def monotonic(self):
        return self.now_s

    def connect(self) -> None:
        """It is open."""

    def infer(self, model, service_noise, binary, overhead_noise=None):
        self.asked.append((model, service_noise, binary))
        item = next(self._script)
        item = item() if callable(item) else item
        if isinstance(item, Exception):
            raise item
        answer, round_trip_s = item
        self.now_s += round_trip_s
        return answer


def reply(inference_s=0.010, round_trip_s=0.015, queue_s=0.0, switched=None):
    return Answer(queue_s, inference_s, switched), round_trip_s


@pytest.fixture
def measured(monkeypatch):
    """Measures a node that answers as the script says, with as many requests of one model as it has entries."""

    def measure(script, warm_up=0, stop=None):
        script = list(script)
        node = Node(script)
        monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=node.monotonic))
        plan = planned_requests(["mobilenet"], len(script) - warm_up, warm_up, "mixed", np.random.default_rng(0))
        sent: list[None] = []
        one = NodeMeter("coral1", node, True, stop or StopSignal())
        record = one.measure(["mobilenet"], plan, np.random.default_rng(3), lambda: sent.append(None))
        assert len(sent) == len(script)
        return record, node

    return measure


def test_counted_requests_are_kept_and_the_warm_up_is_not(measured):
    record, node = measured([reply(9.0, 9.5), reply(0.010, 0.015, 0.0001, True), reply(0.030, 0.037, 0.0002, False)], warm_up=1)
    first, second = record.samples["mobilenet"]
    assert (first.inference_time_s, first.model_switched) == (0.010, True)
    assert (second.inference_time_s, second.model_switched) == (0.030, False)
    assert [first.round_trip_s, second.round_trip_s] == pytest.approx([0.015, 0.037])
    assert record.means().overhead_ms == pytest.approx(6.0)
    assert (record.name, record.binary, record.refused, record.waited, record.gauge_waits_s) == ("coral1", True, 0, 0, [])
    assert [(model, binary) for model, _, binary in node.asked] == [("mobilenet", True)] * 3


def test_noise_of_the_requests_is_drawn_from_the_given_stream(measured):
    _, node = measured([reply()] * 4)
    assert [noise for _, noise, _ in node.asked] == list(np.random.default_rng(3).standard_normal(4))


def test_few_refused_or_delayed_requests_are_counted_and_told(measured):
    waits = [reply(queue_s=0.0021, round_trip_s=0.02)] * 2
    record, _ = measured([NodeFull("HTTP 503"), *waits, *[reply(queue_s=0.0019)] * 3])
    assert (record.refused, record.waited, record.gauge_waits_s) == (1, 1, [0.0021])
    assert len(record.samples["mobilenet"]) == 5


def test_node_that_serves_others_too_is_given_up(measured):
    full = NodeFull("HTTP 503: 64 requests are waiting")
    with pytest.raises(HarnessError, match="coral1 refused 3 requests and let 0 wait .*64 requests are waiting.* measured alone"):
        measured([reply(), full, full, full, reply()])
    with pytest.raises(HarnessError, match="refused 0 requests and let 3 wait behind others; the last one waited 5 ms"):
        measured([reply(queue_s=0.005, round_trip_s=0.02)] * 5)
    with pytest.raises(HarnessError, match="one wait a second of up to 100 ms is not counted, .* gauges"):
        measured([reply(queue_s=0.005, round_trip_s=0.02)] * 5)


class Queue:
    """A device in front of which requests of somebody else, and readings of its gauges, come between those that are measured.

    Args:
        inference_s: of the measured requests.
        gauges_s: a reading of the gauges, a second after the one before, between two inferences.
        others: (arrival, inference) of the requests of somebody else, in seconds, by arrival.
    """

    TRAVEL_S = 0.001

    def __init__(self, inference_s=0.020, gauges_s=0.0, others=()):
        self._inference_s = inference_s
        self._gauges_s = gauges_s
        self._others = list(others)
        self._due_s = 0.0
        self._free_s = 0.0
        self._sent_s = 0.0

    def __call__(self):
        received_s = self._sent_s + self.TRAVEL_S
        while (gauges_s := max(self._free_s, self._due_s)) < received_s or self._others and self._others[0][0] < received_s:
            if self._others and self._others[0][0] < gauges_s:
                arrived_s, inference_s = self._others.pop(0)
                self._free_s = max(self._free_s, arrived_s) + inference_s
            else:
                self._free_s = gauges_s + self._gauges_s
                self._due_s = self._free_s + 1.0
        begun_s = max(self._free_s, received_s)
        self._free_s = begun_s + self._inference_s
        round_trip_s = self._free_s + self.TRAVEL_S - self._sent_s
        self._sent_s += round_trip_s
        return reply(self._inference_s, round_trip_s, begun_s - received_s)


@pytest.mark.parametrize(("inference_s", "gauges_s"), [(0.020, 0.006), (0.002, 0.006), (0.020, 0.060), (0.344, 0.006)])
def test_reading_of_gauges_is_no_use_by_others_whatever_it_takes_beside_an_inference(measured, inference_s, gauges_s):
    device = Queue(inference_s, gauges_s)
    record, _ = measured(device() for _ in range(1000))
    assert (record.refused, record.waited) == (0, 0)
    assert record.gauge_waits_s and max(record.gauge_waits_s) <= gauges_s
    waits_ms = sum(record.gauge_waits_s) * 1e3
    assert record.means().overhead_ms == pytest.approx(2 + waits_ms / 1000, abs=0.1)  # what travels, and the waits


@pytest.mark.parametrize(
    ("rate_hz", "inference_s"),
    [(3.0, 0.020), (0.5, 0.344)],  # short ones that come often, long ones that come seldom
)
def test_requests_of_others_are_noticed_beside_the_gauges(measured, rate_hz, inference_s):
    arrivals_s = np.cumsum(np.random.default_rng(5).exponential(1 / rate_hz, 400))
    device = Queue(0.020, 0.006, [(at_s, inference_s) for at_s in arrivals_s])
    with pytest.raises(HarnessError, match="coral1 refused 0 requests and let 11 wait behind others"):
        measured(device() for _ in range(1000))


def test_wait_that_is_longer_than_any_reading_of_gauges_is_counted(measured):
    record, _ = measured([reply(queue_s=0.101, round_trip_s=0.2), reply(), reply()])
    assert (record.waited, record.gauge_waits_s) == (1, [])


def test_a_hundredth_of_many_requests_may_be_disturbed(measured):
    disturbed = [NodeFull("HTTP 503")] * 5
    assert measured([*disturbed, *[reply()] * 495])[0].refused == 5
    with pytest.raises(HarnessError, match="refused 6 requests"):
        measured([*disturbed, NodeFull("HTTP 503"), *[reply()] * 494])


def test_model_with_a_single_answer_has_no_spread_and_is_refused(measured):
    with pytest.raises(HarnessError, match="coral1 answered 1 counted requests of mobilenet, at least 2 are needed"):
        measured([NodeFull("HTTP 503"), NodeFull("HTTP 503"), reply()])


@pytest.mark.parametrize(
    "error", [NodeUnreachable("no answer within 10 s"), NodeFault("HTTP 500: broken"), RequestRefused("HTTP 400: too small")]
)
def test_request_without_an_answer_ends_the_measurement(measured, error):
    # Leaving it out would leave out the slowest of all.
    with pytest.raises(HarnessError, match=f"^coral1, mobilenet: {error}; nothing was written"):
        measured([reply(), error, reply()])


@pytest.mark.parametrize("answer", [reply(0.0), reply(0.0151, 0.015), reply(0.012, 0.015, 0.004), reply(0.5, 0.0)])
def test_durations_that_cannot_be_are_refused(measured, answer):
    with pytest.raises(HarnessError, match="which cannot be"):
        measured([reply(), answer])


def test_clocks_may_differ_in_pace_a_little(measured):
    record, _ = measured([reply(0.0100005, 0.010), reply(0.010, 0.012)])
    assert record.means().overhead_ms == pytest.approx((2 - 0.0005) / 2)


@pytest.mark.parametrize(("round_trip_s", "told"), [(1.51, "1500"), (0.009995, "-0.005")])
def test_overhead_beyond_all_reason_is_refused(measured, round_trip_s, told):
    with pytest.raises(HarnessError, match=f"a request overhead of {told} ms cannot be; nothing was written"):
        measured([reply(0.010, round_trip_s)] * 2)


def test_wish_to_stop_is_heard_before_the_next_request(measured):
    stop = StopSignal()
    stop.received = True
    with pytest.raises(Interrupted, match="interrupted while coral1 was measured; nothing was written"):
        measured([reply()] * 2, stop=stop)


def test_request_that_the_wish_to_stop_broke_off_is_no_failure_of_the_node(measured):
    stop = StopSignal()

    def break_off():
        stop.received = True
        return NodeUnreachable("connection broke")

    with pytest.raises(Interrupted):
        measured([reply(), break_off, reply()], stop=stop)
