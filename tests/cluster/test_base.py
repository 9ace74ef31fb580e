"""Node queues, predicted completions, placing, retrying and ending tasks: what every kind of cluster shares."""

import math
from collections import Counter
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import node_queue
from cluster.base import model_mismatches
from cluster.node_queue import NodeState, Request
from deadline_adapter import DeadlineAdapter
from experiment import run_experiment
from mobility.mobility_manager import MobilityManager
from scheduler import BaseScheduler, Node, create_scheduler
from task import Device, Outcome, PowerSample, TaskResult
from task_generator import generate_trace
from tests.helpers import DEVICE, FirstOffered, VirtualCluster, default_profile, default_settings, make_task, rng, small_profile
from utils import HarnessError

SERVICE_S = {"resnet50": 0.1, "vgg16": 0.3}
OVERHEAD_S = 0.02


def node_state(connections=2, discipline="fifo", overhead_s=OVERHEAD_S, busy_window_s=5.0):
    state = NodeState(Node("coral1", "coral", 4.0, 5.0), SERVICE_S, overhead_s, connections, discipline, busy_window_s)
    state.bring_in(frozenset(SERVICE_S))
    return state


def request(**task):
    return Request(make_task(**task), DEVICE, 0.0)


def predicted_s(state, now_s=0.0, margin=0.0, **task):
    return state.fill(make_task(arrival_s=now_s, **task), now_s, margin).predicted_completion_s


# Predicted completion, by hand from the formula of the design: start = max(max(t, slot) + o/2, free); free = start + s;
# slot = free + o/2, with o = 0.02 and s = 0.1 (resnet50) or 0.3 (vgg16).


def test_idle_node_answers_after_service_and_overhead():
    assert predicted_s(node_state()) == pytest.approx(0.12)  # 0.01 + 0.1 + 0.01


def test_transfer_of_a_request_hides_behind_the_inference_of_another_connection():
    state = node_state(connections=2)
    state.put(request())
    state.take(0.0)
    assert predicted_s(state) == pytest.approx(0.22)  # starts at free = 0.11, not at 0.12 + 0.01


def test_single_connection_sends_only_after_the_answer():
    state = node_state(connections=1)
    state.put(request())
    state.take(0.0)
    assert predicted_s(state) == pytest.approx(0.24)  # starts at slot 0.12 + 0.01


def test_third_request_waits_for_the_earliest_of_two_connections():
    state = node_state(connections=2)
    for _ in range(2):
        state.put(request())
        state.take(0.0)
    assert predicted_s(state) == pytest.approx(0.32)  # slots 0.12 and 0.22; max(0.12 + 0.01, free 0.21) = 0.21
    state.put(request())
    assert predicted_s(state, model="vgg16") == pytest.approx(0.62)  # after free 0.31: 0.31 + 0.3 + 0.01


def test_long_overhead_keeps_the_accelerator_waiting():
    state = node_state(connections=1, overhead_s=0.4)
    state.put(request())
    state.take(0.0)
    assert predicted_s(state) == pytest.approx(1.0)  # slot 0.2 + 0.1 + 0.2 = 0.5, then the same again


def test_waiting_tasks_that_arrived_later_do_not_delay_with_edf_but_do_with_fifo():
    for discipline, expected in (("fifo", 0.52), ("edf", 0.22)):
        state = node_state(discipline=discipline)
        state.put(request())
        state.take(0.0)
        state.put(request(task_id=1, model="vgg16", deadline_s=2.0))
        first = state.fill(make_task(task_id=2, deadline_s=1.0), 0.0, 0.0).predicted_completion_s
        assert first == pytest.approx(expected), discipline


def test_edf_replays_those_with_an_earlier_absolute_deadline():
    state = node_state(discipline="edf", connections=1)
    state.put(request())
    state.take(0.0)  # slot 0.12
    state.put(request(task_id=1, arrival_s=0.0, deadline_s=0.5))
    assert predicted_s(state, deadline_s=0.6) == pytest.approx(0.36)  # 0.24 of the one ahead, + 0.12
    assert predicted_s(state, deadline_s=0.4) == pytest.approx(0.24)
    late_arrival = state.fill(make_task(arrival_s=0.1, deadline_s=0.39), 0.1, 0.0)  # absolute deadline 0.49
    assert late_arrival.predicted_completion_s == pytest.approx(0.24 - 0.1)


def test_overdue_request_counts_as_ending_now():
    state = node_state(connections=1)
    state.put(request())
    state.take(0.0)
    assert predicted_s(state, now_s=0.5) == pytest.approx(0.12)  # slot = 0.5, free = 0.49: 0.51 + 0.1 + 0.01 - 0.5
    assert predicted_s(state, now_s=0.7) == pytest.approx(0.12)


def test_overdue_request_passes_its_delay_on_to_the_one_behind_it():
    state = node_state(connections=2)
    for _ in range(2):
        state.put(request())
        state.take(0.0)
    # at 0.15 the first counts as ended: free 0.14, second 0.24 and its slot 0.25, the new one 0.34 + 0.01.
    assert predicted_s(state, now_s=0.15) == pytest.approx(0.35 - 0.15)


def test_answer_resets_slot_and_accelerator():
    state = node_state(connections=2)
    first, second = request(), request(task_id=1)
    for waiting in (first, second):
        state.put(waiting)
        state.take(0.0)
    state.answered(first, 0.05, 0.03)  # sooner than expected: the accelerator was free at 0.04
    assert predicted_s(state, now_s=0.05) == pytest.approx(0.25 - 0.05)  # second until 0.14, then 0.24 + 0.01
    state.answered(second, 0.3, 0.2)  # later than expected
    assert predicted_s(state, now_s=0.3) == pytest.approx(0.12)


def test_request_that_was_given_up_is_not_waited_for():
    state = node_state(connections=1)
    lost = request()
    state.put(lost)
    state.take(0.0)
    state.gave_up(lost)
    assert predicted_s(state, now_s=0.01) == pytest.approx(0.12)
    assert state.queue_depth == 0


def test_accelerator_goes_on_with_a_request_that_was_abandoned():
    state = node_state(connections=1)
    state.put(request(model="vgg16"))
    state.abandon(state.take(0.0), 0.05)  # its inference lasts until 0.31
    assert state.queue_depth == 0
    assert predicted_s(state, now_s=0.05) == pytest.approx(0.31 + 0.1 + 0.01 - 0.05)
    assert predicted_s(state, now_s=0.3) == pytest.approx(0.31 + 0.1 + 0.01 - 0.3)  # its transfer is hidden
    assert predicted_s(state, now_s=0.4) == pytest.approx(0.12)
    assert state.busy_fraction(0.05) == pytest.approx(0.3 / 5.0)
    assert (state.untold_busy_s, state.abandoned) == (0.3, 1)


def test_request_behind_an_abandoned_one_waits_for_it_and_an_answer_says_that_it_is_over():
    state = node_state(connections=2)
    lost, second = request(model="vgg16"), request(task_id=1)
    for sent in (lost, second):
        state.put(sent)
        state.take(0.0)
    state.abandon(lost, 0.2)
    assert predicted_s(state, now_s=0.2) == pytest.approx(0.31 + 0.1 + 0.1 + 0.01 - 0.2)
    state.answered(second, 0.25, 0.1)
    assert predicted_s(state, now_s=0.25) == pytest.approx(0.12)


def test_abandoned_request_that_still_waited_at_the_server_is_withdrawn_there():
    state = node_state(connections=2)
    sent = [request(model="vgg16"), request(task_id=1)]
    for one in sent:
        state.put(one)
        state.take(0.0)
    for one in sent:
        state.abandon(one, 0.2)
    assert predicted_s(state, now_s=0.2) == pytest.approx(0.31 + 0.1 + 0.01 - 0.2)
    assert (state.untold_busy_s, state.abandoned) == (0.3, 1)


def test_what_is_not_answered_at_the_end_counts_as_far_as_it_got():
    state = node_state(connections=2)
    for task_id in range(2):
        state.put(request(task_id=task_id, model="vgg16"))
        state.take(0.0)
    state.count_unanswered(0.41)  # the first until 0.31, the second since then
    assert state.untold_busy_s == pytest.approx(0.4)
    assert state.abandoned == 2


def test_prediction_counts_from_the_arrival_and_margin_only_on_what_is_to_come():
    state = node_state()
    view = state.fill(make_task(arrival_s=1.0), 1.5, 0.1)
    assert view.predicted_completion_s == pytest.approx(0.62)
    assert view.completion_with_margin_s == pytest.approx(0.5 + 0.12 * 1.1)
    assert view.predicted_to_meet(0.633) and not view.predicted_to_meet(0.631)


def test_predicting_changes_nothing():
    state = node_state()
    state.put(request())
    before = predicted_s(state)
    for _ in range(3):
        predicted_s(state, model="vgg16")
    assert predicted_s(state) == before
    assert state.queue_depth == 1


@dataclass
class Replay:
    """The prediction by its definition: everything is replayed each time it is asked."""

    connections: int
    by_deadline: bool
    free_s: float = -math.inf
    waiting: list[Request] = field(default_factory=list)
    sent: list[tuple[Request, float]] = field(default_factory=list)

    def key(self, task):
        return task.arrival_time_s + task.adapted_deadline_s if self.by_deadline else 0.0

    def put(self, request):
        self.waiting.append(request)
        self.waiting.sort(key=lambda waiting: self.key(waiting.task))

    def predicted_end_s(self, task, now_s):
        half_s = OVERHEAD_S / 2
        free_s, slots = self.free_s, [now_s] * (self.connections - len(self.sent))
        for request, sent_s in self.sent:
            free_s = max(sent_s + half_s, free_s) + SERVICE_S[request.task.model_name]
            if free_s + half_s < now_s:
                free_s = now_s - half_s
            slots.append(free_s + half_s)
        ahead = [waiting.task for waiting in self.waiting if self.key(waiting.task) <= self.key(task)]
        for one in [*ahead, task]:
            earliest = min(slots)
            slots.remove(earliest)
            free_s = max(max(now_s, earliest) + half_s, free_s) + SERVICE_S[one.model_name]
            slots.append(free_s + half_s)
        return slots[-1]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "take", "answered", "gave_up", "abandon", "predict", "predict", "take_all"]),
        st.sampled_from(sorted(SERVICE_S)),
        st.floats(0.0, 2.0),
        st.floats(0.0, 0.4) | st.just(0.0),
        st.integers(0, 5),
    ),
    min_size=5,
    max_size=60,
)


@given(STEPS, st.sampled_from([1, 2, 3, 4, 9]), st.sampled_from(["fifo", "edf"]), st.sampled_from([2, 3, 256]))
def test_incremental_prediction_equals_a_naive_replay(steps, connections, discipline, largest_block):
    with patch.object(node_queue, "_LARGEST_BLOCK", largest_block):
        _require_predictions_of_a_replay(steps, connections, discipline, exact=largest_block > len(steps))


def _require_predictions_of_a_replay(steps, connections, discipline, exact):
    state = node_state(connections, discipline)
    naive = Replay(connections, discipline == "edf")
    now_s = 0.0
    for number, (step, model, deadline_s, elapsed_s, which) in enumerate(steps):
        now_s += elapsed_s
        task = make_task(number, now_s, deadline_s, model)
        if step == "put":
            new = Request(task, DEVICE, 0.0)
            state.put(new)
            naive.put(new)
        elif step == "take" and naive.waiting and len(naive.sent) < connections:
            taken = state.take(now_s)
            assert taken is naive.waiting.pop(0)
            naive.sent.append((taken, now_s))
        elif step in ("answered", "gave_up", "abandon") and naive.sent:
            ended, sent_s = naive.sent.pop(which % len(naive.sent))
            if step == "answered":
                state.answered(ended, now_s, 0.01)
                naive.free_s = now_s - OVERHEAD_S / 2
            elif step == "abandon":
                state.abandon(ended, now_s)
                start_s = max(sent_s + OVERHEAD_S / 2, naive.free_s)
                if start_s <= now_s:
                    naive.free_s = start_s + SERVICE_S[ended.task.model_name]
            else:
                state.gave_up(ended)
        elif step == "take_all":
            assert state.take_all_waiting() == naive.waiting
            naive.waiting.clear()
        view = state.fill(task, now_s, 0.0)
        expected_s = naive.predicted_end_s(task, now_s) - now_s
        assert view.predicted_completion_s == (expected_s if exact else pytest.approx(expected_s, abs=1e-9))
        assert view.queue_depth == state.queue_depth == len(naive.waiting) + len(naive.sent)
        assert state.has_waiting == bool(naive.waiting)


@pytest.mark.parametrize("discipline", ["fifo", "edf"])
def test_work_of_a_prediction_does_not_grow_with_the_queue(discipline, monkeypatch):
    replayed = []
    replay = node_queue._Block._replay

    def counting(self, free_s, connections_s, entries):
        replayed.append(len(entries))
        replay(self, free_s, connections_s, entries)

    monkeypatch.setattr(node_queue._Block, "_replay", counting)
    random, work = np.random.default_rng(3), []
    state = node_state(2, discipline)
    sent: list[Request] = []
    for number in range(8000):  # ten arrivals for each answer, deadlines all over the queue
        now_s = 0.01 * number
        if number % 10 == 0 and number >= 10:
            if len(sent) == 2:
                state.answered(sent.pop(0), now_s, 0.1)
            sent.append(state.take(now_s))
        new = Request(make_task(number, now_s, float(random.uniform(0.1, 100.0))), DEVICE, 0.0)
        state.fill(new.task, now_s, 0.1)
        state.put(new)
        if (number + 1) % 2000 == 0:
            work.append(sum(replayed))
            replayed.clear()
    assert state.queue_depth > 6000
    assert work[-1] < 1.5 * work[1]  # where all is replayed, it is 2.3 times


# The queue and the busy fraction.


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=30))
def test_fifo_serves_in_order_of_coming_and_edf_in_order_of_absolute_deadline(deadlines):
    for discipline in ("fifo", "edf"):
        state = node_state(discipline=discipline, connections=64)
        requests = [request(task_id=i, arrival_s=0.1 * i, deadline_s=deadline) for i, deadline in enumerate(deadlines)]
        for waiting in requests:
            state.put(waiting)
        order = [state.take(0.0) for _ in requests]
        expected = requests if discipline == "fifo" else sorted(requests, key=lambda r: r.task[5] + r.task[7])
        assert order == expected


def test_edf_serves_equal_deadlines_in_order_of_coming():
    state = node_state(discipline="edf")
    requests = [request(task_id=i) for i in range(5)]
    for waiting in requests:
        state.put(waiting)
    assert state.take_all_waiting() == requests


def test_busy_fraction_is_weighted_exponentially_in_time():
    state = node_state(busy_window_s=5.0)
    assert state.busy_fraction(0.0) == 0.0
    for now_s, inference_s in ((1.0, 0.5), (2.0, 1.0)):
        sent = request()
        state.put(sent)
        state.take(now_s)
        state.answered(sent, now_s, inference_s)
    # 0.5 s and 1 s of inference over a window of 5 s, the first 1 s older
    assert state.busy_fraction(2.0) == pytest.approx(0.5 / 5 * math.exp(-0.2) + 1.0 / 5)
    assert state.busy_fraction(7.0) == pytest.approx(state.busy_fraction(2.0) / math.e)


def test_node_that_is_always_busy_has_a_busy_fraction_near_one_and_schedulers_never_see_more():
    state = node_state(busy_window_s=5.0)
    seen = []
    for step in range(1, 600):
        sent = request()
        state.put(sent)
        state.take(0.1 * step)
        state.answered(sent, 0.1 * step, 0.1)
        seen.append(state.fill(make_task(), 0.1 * step, 0.0).busy_fraction)
    assert seen[-1] == pytest.approx(1.0, abs=0.02)
    assert max(seen) <= 1.0


# What nodes serve of what the scenario wants.

SCENARIO = ("mobilenet", "resnet50", "vgg16", "efficientnet")
ALL_PROFILED = small_profile({name: dict.fromkeys(SCENARIO, 10.0) for name in ("coral1", "hailo1")})


def mismatches(*listed, profile=ALL_PROFILED, models=SCENARIO):
    cluster = VirtualCluster(profile, default_settings(), FirstOffered(default_settings(), rng()))
    for node, names in zip(cluster.nodes, listed, strict=False):
        cluster._came_up(node, frozenset(names))
    return model_mismatches(cluster.nodes, models)


def test_nodes_that_serve_at_least_half_of_the_models_are_not_spoken_of():
    assert mismatches(SCENARIO, SCENARIO[:2]) == []
    assert mismatches((*SCENARIO, "lenet", "MobileNet"), SCENARIO) == []


def test_node_that_serves_none_or_few_is_named_with_its_names_and_ours():
    few, none = mismatches(["vgg16", "lenet"], [])[:2]
    assert few.startswith("coral1 can be given 1 of the 4 models of the scenario, mobilenet, resnet50, vgg16, efficientnet; ")
    assert few.endswith("; its /health lists lenet, vgg16")
    assert none.startswith("hailo1 can be given 0 of the 4 models") and none.endswith("its /health lists none")


@pytest.mark.parametrize("theirs", ["ResNet50", "RESNET50", "resnet-50", "resnet_50_v1", "tf_resnet50", "resnet"])
def test_name_that_is_much_like_ours_is_set_beside_it(theirs):
    (line,) = mismatches(["mobilenet", "vgg16", "efficientnet", theirs], SCENARIO)
    assert line.endswith(f"; '{theirs}' may be resnet50")


def test_model_that_no_node_can_be_given_is_named():
    assert mismatches(SCENARIO[:3], SCENARIO[1:3]) == ["no node can be given efficientnet: such tasks will fail"]
    assert mismatches(SCENARIO[1:3]) == ["no node can be given mobilenet, efficientnet: such tasks will fail"]


def test_model_that_the_node_has_and_the_profile_does_not_is_named():
    profile = small_profile({"coral1": {"resnet50": 10.0, "mobilenet": 5.0}, "hailo1": dict.fromkeys(SCENARIO, 10.0)})
    (line,) = mismatches(["mobilenet", "resnet50", "vgg16"], SCENARIO, profile=profile, models=SCENARIO[:3])
    assert line.endswith("; the profile has no latency of vgg16 there")


def test_names_of_others_are_shown_in_one_line():
    (line, *_) = mismatches(["a\nb\x1b[31m"], SCENARIO)
    assert line.isprintable()


# Placing and retrying, in virtual time.

TWO = small_profile({"coral1": {"resnet50": 100.0, "vgg16": 300.0}, "hailo1": {"resnet50": 50.0}}, overhead_ms=20.0)
TRIO = small_profile({name: {"resnet50": 100.0} for name in ("coral1", "hailo1", "jetson1")}, overhead_ms=20.0)


def virtual(profile=TWO, policy=FirstOffered, **arguments):
    settings = default_settings(**arguments.pop("settings", {}))
    return VirtualCluster(profile, settings, policy(settings, rng()), **arguments)


def test_tasks_are_answered_in_turn_and_judged_by_their_deadline():
    with virtual() as cluster:
        for task_id in range(3):
            cluster.place(make_task(task_id, deadline_s=0.25), DEVICE, 0.0)
        cluster.drain()
    assert [round(r.completion_time_s, 9) for r in cluster.results] == [0.12, 0.22, 0.32]
    assert [r.outcome for r in cluster.results] == [Outcome.ON_TIME, Outcome.ON_TIME, Outcome.LATE]
    assert [round(r.start_time_s, 9) for r in cluster.results] == [0.0, 0.0, 0.12]
    assert {(r.assigned_node, r.attempts, r.error) for r in cluster.results} == {("coral1", 1, None)}


def test_prediction_comes_true_when_service_times_are_the_means():
    with virtual() as cluster:
        for task_id in range(6):
            cluster.advance_to(0.03 * task_id)
            cluster.place(make_task(task_id, 0.03 * task_id), DEVICE, 0.0)
        cluster.drain()
    predicted = [decision.nodes["coral1"][2] for decision in cluster.decisions]
    assert predicted == pytest.approx([result.response_time_s for result in cluster.results])


def test_model_that_no_node_serves_fails_by_name_and_without_a_decision():
    with virtual() as cluster:
        cluster.place(make_task(model="lenet"), DEVICE, 0.0)
    (result,) = cluster.results
    assert (result.outcome, result.error, result.attempts) == (Outcome.FAILED, "no node serves lenet", 0)
    assert result.assigned_node is None and result.dispatch_time_s is None
    assert cluster.decisions == []


def test_only_healthy_nodes_that_serve_the_model_are_offered():
    with virtual() as cluster:
        for model in ("vgg16", "resnet50"):
            cluster.place(make_task(model=model), DEVICE, 0.0)
        cluster.take_out("coral1")
        cluster.place(make_task(), DEVICE, 0.0)
        cluster.place(make_task(model="vgg16"), DEVICE, 0.0)
    new_tasks = [sorted(decision.nodes) for decision in cluster.decisions if decision.attempt == 1]
    assert new_tasks == [["coral1"], ["coral1", "hailo1"], ["hailo1"]]


def test_deadline_can_be_met_where_a_healthy_node_that_serves_the_model_is_predicted_to_meet_it():
    with virtual(settings={"safety_margin": 0.1}) as cluster:
        answer_s = {name: predicted_with_margin_s(cluster.node(name)) for name in ("coral1", "hailo1")}
        assert answer_s["hailo1"] < answer_s["coral1"]
        assert cluster.can_meet(make_task(), answer_s["hailo1"])
        assert not cluster.can_meet(make_task(), 0.999 * answer_s["hailo1"])
        cluster.take_out("hailo1")
        assert cluster.can_meet(make_task(), answer_s["coral1"])
        assert not cluster.can_meet(make_task(), 0.999 * answer_s["coral1"])
        cluster.take_out("coral1")
        assert not cluster.can_meet(make_task(), 1e9)


@pytest.mark.parametrize("discipline", ["fifo", "edf"])
def test_long_queues_give_the_same_answer_as_replaying_each(discipline):
    rng = np.random.default_rng(5)
    answers = []
    with virtual(settings={"queue_discipline": discipline, "safety_margin": 0.1}) as cluster:
        for number in range(400):
            now_s = number * 0.05
            cluster.advance_to(now_s)
            deadline_s, model = float(rng.uniform(0.05, 3)), str(rng.choice(["resnet50", "vgg16"]))
            task = make_task(number, arrival_s=now_s, deadline_s=deadline_s, model=model)
            margins = [state.predicted_completion_s(task, now_s, 0.1)[1] for state in cluster.nodes if model in state.offers]
            answers.append(cluster.can_meet(task, deadline_s))
            assert answers[-1] == any(margin_s <= deadline_s for margin_s in margins)
            cluster.place(task, DEVICE, 0.0)
    assert 40 < sum(answers) < 360


def predicted_with_margin_s(state):
    """By the design's formula for an idle node: overhead and mean service, and a tenth on top."""
    return 1.1 * (TWO.overhead_s(state.name) + TWO.service_time_s(state.name)["resnet50"])


def test_old_power_sample_is_not_believed_but_its_age_is_known():
    power = {"coral1": PowerSample(0.0, 4.4), "hailo1": PowerSample(7.0, 5.5)}
    with virtual(power=power, settings={"power": {"max_age_s": 5.0}}) as cluster:
        cluster.advance_to(8.0)
        cluster.place(make_task(arrival_s=8.0), DEVICE, 0.0)
    coral, hailo = (cluster.node(name).view for name in ("coral1", "hailo1"))
    assert (coral.power_w, coral.power_age_s) == (None, 8.0)
    assert (hailo.power_w, hailo.power_age_s) == (5.5, 1.0)
    assert coral.current_power_w == TWO.nodes["coral1"].busy_w


def test_failed_attempt_goes_to_another_node_with_its_own_decision():
    fails = lambda node, task: "HTTP 500" if node == "coral1" else None  # noqa: E731
    with virtual(attempt_fails=fails) as cluster:
        cluster.place(make_task(), DEVICE, 0.0)
        cluster.drain()
    (result,) = cluster.results
    assert (result.outcome, result.assigned_node, result.attempts, result.error) == (Outcome.ON_TIME, "hailo1", 2, None)
    assert [(d.attempt, d.selected_node, sorted(d.nodes)) for d in cluster.decisions] == [
        (1, "coral1", ["coral1", "hailo1"]),
        (2, "hailo1", ["hailo1"]),
    ]


@pytest.mark.parametrize("max_attempts, tried", [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_task_is_tried_at_most_max_attempts_times_and_never_twice_on_a_node(max_attempts, tried):
    settings = {"requests": {"max_attempts": max_attempts}}
    with virtual(TRIO, attempt_fails=lambda node, task: "HTTP 500", settings=settings) as cluster:
        cluster.place(make_task(), DEVICE, 0.0)
        cluster.drain()
    (result,) = cluster.results
    assert (result.outcome, result.attempts) == (Outcome.FAILED, tried)
    assert [d.selected_node for d in cluster.decisions] == ["coral1", "hailo1", "jetson1"][:tried]
    assert result.error == f"{result.assigned_node}: HTTP 500"
    assert result.completion_time_s is None


@pytest.mark.parametrize("broken_at_s, outcome, attempts", [(0.49, Outcome.LATE, 2), (0.5, Outcome.FAILED, 1)])
def test_task_is_tried_again_only_while_its_deadline_leaves_room(broken_at_s, outcome, attempts):
    profile = small_profile({"coral1": {"vgg16": 2000.0}, "hailo1": {"vgg16": 100.0}})
    with virtual(profile) as cluster:
        cluster.at(broken_at_s, lambda: cluster.take_out("coral1"))
        cluster.place(make_task(model="vgg16", deadline_s=0.5), DEVICE, 0.0)
        cluster.drain()
    (result,) = cluster.results
    assert (result.outcome, result.attempts) == (outcome, attempts)


def test_taking_a_node_out_places_its_waiting_tasks_elsewhere_in_their_order():
    with virtual(TRIO) as cluster:
        cluster.at(0.05, lambda: cluster.take_out("coral1", "unplugged"))
        for task_id in range(5):
            cluster.place(make_task(task_id), DEVICE, 0.0)
        cluster.drain()
    again = [d for d in cluster.decisions if d.attempt == 2]
    assert [d.task_id for d in again] == [2, 3, 4, 0, 1]  # the waiting ones, then the two that were in flight
    assert {d.selected_node for d in again} == {"hailo1"}
    assert all(d.decision_time_s == 0.05 for d in again)
    assert Counter(r.outcome for r in cluster.results) == {Outcome.ON_TIME: 5}
    assert cluster.node("coral1").queue_depth == 0


def test_waiting_task_without_another_node_fails_and_says_which_node_is_out():
    with virtual() as cluster:
        cluster.at(0.05, lambda: cluster.take_out("coral1", "connection refused"))
        for task_id in range(3):
            cluster.place(make_task(task_id, model="vgg16"), DEVICE, 0.0)
        cluster.drain()
    assert [r.outcome for r in cluster.results] == [Outcome.FAILED] * 3
    assert cluster.results[0].error == "coral1 is out: connection refused"


def test_dispatch_time_is_that_of_the_first_placing():
    with virtual(TRIO) as cluster:
        cluster.at(0.05, lambda: cluster.take_out("coral1"))
        cluster.place(make_task(), DEVICE, 0.0)
        cluster.drain()
    (result,) = cluster.results
    assert result.dispatch_time_s == 0.0
    assert result.start_time_s == 0.05


class Raises(BaseScheduler):
    def schedule(self, task, nodes):
        raise ZeroDivisionError("no idea")


class Exits(BaseScheduler):
    def schedule(self, task, nodes):
        raise SystemExit(3)


class Interrupts(BaseScheduler):
    def schedule(self, task, nodes):
        raise KeyboardInterrupt


class EndsItself(BaseScheduler):
    def schedule(self, task, nodes):
        raise GeneratorExit


class Nameless:
    def __repr__(self):
        raise SystemExit(4)


class ReturnsNameless(BaseScheduler):
    def schedule(self, task, nodes):
        return Nameless()


class RaisesNameless(BaseScheduler):
    def schedule(self, task, nodes):
        class Odd(BaseException):
            def __str__(self):
                raise self

        raise Odd


class ReturnsName(BaseScheduler):
    def schedule(self, task, nodes):
        return nodes[0].name


class ReturnsNothing(BaseScheduler):
    def schedule(self, task, nodes):
        return None


class ScoresByWords(BaseScheduler):
    def schedule(self, task, nodes):
        nodes[-1].closeness = "high"
        return nodes[0]


class ScoresNameless(BaseScheduler):
    def schedule(self, task, nodes):
        nodes[0].closeness = Nameless()
        return nodes[0]


class ReturnsStranger(BaseScheduler):
    def schedule(self, task, nodes):
        return Node(nodes[0].name, "coral", 1.0, 2.0)


class ReturnsExcluded(BaseScheduler):
    """Goes on naming the node that has failed."""

    def __init__(self, settings, rng):
        super().__init__(settings, rng)
        self.first = None

    def schedule(self, task, nodes):
        self.first = self.first or nodes[0]
        return self.first


@pytest.mark.parametrize(
    "policy, says",
    [
        (Raises, "raised ZeroDivisionError: no idea"),
        (Exits, "raised SystemExit: 3 at "),
        (Interrupts, "raised KeyboardInterrupt:  at "),
        (EndsItself, "raised GeneratorExit:  at "),
        (RaisesNameless, "raised Odd: a Odd without a text at "),
        (ReturnsNameless, "returned a Nameless without a text, which is none of the nodes"),
        (ScoresByWords, "'high']: expected numbers or None"),
        (ScoresNameless, "left closeness a list without a text: expected numbers or None"),
        (ReturnsName, "returned 'coral1', which is none of the nodes"),
        (ReturnsNothing, "returned None, which is none of the nodes"),
        (ReturnsStranger, "which is none of the nodes"),
        (ReturnsExcluded, "which is none of the nodes"),
    ],
)
def test_policy_that_raises_or_returns_nonsense_stops_the_run_and_is_named(policy, says):
    with virtual(policy=policy, attempt_fails=lambda node, task: "HTTP 500") as cluster:
        cluster.place(make_task(7), DEVICE, 0.0)
        cluster.drain()
    assert cluster.stopping
    assert isinstance(cluster.failure, HarnessError)
    assert "scheduler power_aware_topsis" in str(cluster.failure) and says in str(cluster.failure)
    assert "task 7" in str(cluster.failure)
    (result,) = cluster.results
    assert result.outcome is Outcome.UNFINISHED


def test_first_reason_to_stop_is_kept():
    with virtual() as cluster:
        cluster.stop(HarnessError("disk full"))
        cluster.stop(HarnessError("something that followed from it"))
        cluster.stop()
    assert str(cluster.failure) == "disk full"


def test_stop_by_a_person_is_no_failure_and_leaves_open_tasks_unfinished():
    with virtual() as cluster:
        cluster.place(make_task(), DEVICE, 0.0)
        cluster.stop()
        assert not cluster.advance_to(1.0)
        cluster.drain()
    assert cluster.failure is None
    assert [(r.outcome, r.error) for r in cluster.results] == [(Outcome.UNFINISHED, "interrupted")]


def test_tasks_open_at_the_drain_timeout_are_late_or_failed_by_their_deadline():
    profile = small_profile({"coral1": {"vgg16": 1e6}})
    with virtual(profile, settings={"requests": {"drain_timeout_s": 2.0}}) as cluster:
        for task_id, deadline_s in enumerate([1.9, 2.1]):
            cluster.place(make_task(task_id, deadline_s=deadline_s, model="vgg16"), DEVICE, 0.0)
        cluster.drain()
    assert [(r.outcome, r.error) for r in cluster.results] == [
        (Outcome.LATE, "drain_timeout"),
        (Outcome.FAILED, "drain_timeout"),
    ]
    assert all(r.completion_time_s is None for r in cluster.results)


def test_answer_after_the_task_was_given_up_changes_nothing():
    with virtual(settings={"requests": {"drain_timeout_s": 0.05}}) as cluster:
        cluster.place(make_task(), DEVICE, 0.0)
        cluster.drain()
        cluster.advance_to(5.0)
    assert [r.outcome for r in cluster.results] == [Outcome.FAILED]


def test_experiment_runs_on_the_interface_of_the_cluster_alone():
    settings = default_settings(duration_s=20.0)
    trace = generate_trace(settings, MobilityManager(settings.devices, settings.seed))
    policy = create_scheduler("power_aware_topsis", settings, np.random.default_rng(1))
    skipped: list[TaskResult] = []
    with VirtualCluster(default_profile(), settings, policy) as cluster:
        run_experiment(trace, cluster, DeadlineAdapter(settings), skipped.append)
    ended = Counter(r.task.task_id for r in [*cluster.results, *skipped])
    assert ended == Counter(range(len(trace)))
    assert {r.outcome for r in skipped} <= {Outcome.SKIPPED}
    assert {d.task_id for d in cluster.decisions} == {r.task.task_id for r in cluster.results}
    on_time = sum(r.outcome is Outcome.ON_TIME for r in cluster.results)
    assert on_time / len(cluster.results) > 0.8  # the default load does not overload six nodes


def test_stopping_in_the_middle_leaves_the_tasks_to_come_unfinished():
    settings = default_settings(duration_s=20.0)
    trace = generate_trace(settings, MobilityManager(settings.devices, settings.seed))
    recorded: list[TaskResult] = []
    with VirtualCluster(default_profile(), settings, FirstOffered(settings, rng())) as cluster:
        cluster.at(10.0, cluster.stop)
        run_experiment(trace, cluster, DeadlineAdapter(settings), recorded.append)
    results = {r.task.task_id: r for r in [*cluster.results, *recorded]}
    assert len(results) == len(cluster.results) + len(recorded) == len(trace)
    after = [r for r in results.values() if r.task.arrival_time_s > 10.0]
    assert after and {r.outcome for r in after} == {Outcome.UNFINISHED}
    assert all(r.dispatch_time_s is None for r in after)


def test_device_out_of_coverage_is_skipped_without_a_decision():
    settings = default_settings(duration_s=60.0, devices={"placement": "area"})
    trace = generate_trace(settings, MobilityManager(settings.devices, settings.seed))
    skipped: list[TaskResult] = []
    with VirtualCluster(default_profile(), settings, FirstOffered(settings, rng())) as cluster:
        run_experiment(trace, cluster, DeadlineAdapter(settings), skipped.append)
    assert {r.task.task_id for r in skipped} == set(trace.task_id[~trace.in_coverage].tolist()) != set()
    assert all(isinstance(r.device, Device) and not r.device.in_coverage for r in skipped)
