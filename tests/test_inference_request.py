"""The wall-clock cluster and its client against servers that answer as told: every way in which a request can end."""

import json
import re
import socket
import threading
import time
from base64 import b64decode
from contextlib import ExitStack, contextmanager, suppress

import pytest

import inference_request
from cluster import node_health
from cluster.http_client import IMAGE, NodeClient, NodeFault, NodeFull, NodeUnreachable, RequestRefused
from inference_request import WORKERS, HttpCluster, placeholders, require_worker_urls
from task import Decision, Outcome, TaskResult
from tests.helpers import (
    DEVICE,
    FirstOffered,
    Reply,
    default_settings,
    eventually,
    make_task,
    rng,
    scripted_server,
    small_profile,
)
from utils import HarnessError, UsageError

MODELS = ("resnet50", "vgg16")
ANSWER = {"server": "x", "queue_time": 0.00025, "inference_time": 0.0005, "result": "done", "top1": 1}
OK = Reply(content=ANSWER)
FULL = Reply(503, {"detail": "2 requests are waiting"}, {"Retry-After": "1"})
NAMES = ("coral1", "hailo1", "jetson1")


def healthy(models=MODELS, binary=True):
    return Reply(content={"status": "ok", "server": "x", "accelerator": "y", "models": list(models), "binary": binary})


class Node:
    """What one scripted node says; a list of answers is used up one by one, and its last one stays."""

    def __init__(self, infer=OK, health=None):
        self.infer = infer if isinstance(infer, list) else [infer]
        self.health = healthy() if health is None else health

    def __call__(self, asked):
        if asked.path == "/health":
            return self.health
        return self.infer.pop(0) if len(self.infer) > 1 else self.infer[0]


class Harness:
    """A cluster of scripted nodes, entered; `send` places a task and waits for its end."""

    def __init__(self, stack, scripts, **requests):
        self.servers = {name: stack.enter_context(scripted_server(script)) for name, script in scripts.items()}
        self.results: list[TaskResult] = []
        self.decisions: list[Decision] = []
        quick = {"connect_timeout_s": 5.0, "request_timeout_s": 10.0, "health_interval_s": 3600.0, "connections_per_node": 1}
        settings = default_settings(requests={**quick, **requests})
        self.policy = FirstOffered(settings, rng())
        self.cluster = HttpCluster(
            {name: f"{server.url}/infer" for name, server in self.servers.items()},
            small_profile({name: dict.fromkeys(MODELS, 10.0) for name in NAMES}),
            settings,
            self.policy,
            {},
            self.results.append,
            self.decisions.append,
        )
        self._task_id = 0

    def place(self, model="resnet50", deadline_s=60.0, noise=0.0):
        with self.cluster.lock:
            task = make_task(self._task_id, self.cluster.now_s(), deadline_s, model)
            self._task_id += 1
            self.cluster.place(task, DEVICE, noise)

    def send(self, **task):
        self.place(**task)
        self.cluster.drain()
        return self.results[-1]

    def up(self):
        with self.cluster.lock:
            return [node.name for node in self.cluster.nodes if node.up]

    def inferences(self, name):
        return [asked for asked in self.servers[name].asked if asked.method == "POST"]


@contextmanager
def harness(*scripts, **requests):
    with ExitStack() as stack:
        made = Harness(stack, dict(zip(NAMES, scripts, strict=False)), **requests)
        with made.cluster:
            made.cluster.start_load()
            yield made
            made.cluster.stop()
        for thread in made.cluster._threads:
            thread.join(10.0)
            assert not thread.is_alive()


def test_image_has_the_size_that_every_model_takes():
    assert len(IMAGE) == 150528 == 224 * 224 * 3


def test_binary_body_is_sent_where_health_announces_it():
    with harness(Node(health=healthy(binary=True))) as one:
        result = one.send(model="vgg16", noise=-1.25)
        (asked,) = one.inferences("coral1")
    assert (asked.path, asked.headers["Content-Type"]) == ("/infer?model=vgg16", "application/octet-stream")
    assert asked.body == IMAGE
    assert asked.headers["X-Service-Noise"] == "-1.25"
    assert result.outcome is Outcome.ON_TIME


@pytest.mark.parametrize("health", [healthy(binary=False), Reply(content={"models": ["resnet50"]})])
def test_json_is_sent_where_health_announces_nothing(health):
    with harness(Node(health=health)) as one:
        result = one.send(noise=0.1)
        (asked,) = one.inferences("coral1")
    assert (asked.path, asked.headers["Content-Type"]) == ("/infer", "application/json")
    body = json.loads(asked.body)
    assert body["model"] == "resnet50" and b64decode(body["input"]) == IMAGE
    assert float(asked.headers["X-Service-Noise"]) == 0.1
    assert result.outcome is Outcome.ON_TIME


def test_result_holds_the_durations_of_the_server_and_the_times_of_the_master():
    with harness(Node()) as one:
        result = one.send()
    assert (result.server_queue_time_s, result.inference_time_s) == (0.00025, 0.0005)
    times = (result.task.arrival_time_s, result.dispatch_time_s, result.start_time_s, result.completion_time_s)
    assert list(times) == sorted(times)
    assert (result.assigned_node, result.attempts, result.error) == ("coral1", 1, None)


def test_late_answer_counts_late():
    with harness(Node()) as one:
        assert one.send(deadline_s=1e-9).outcome is Outcome.LATE


def test_one_connection_is_kept_for_all_requests_of_a_thread():
    with harness(Node()) as one:
        for _ in range(5):
            assert one.send().outcome is Outcome.ON_TIME
        assert len({asked.connection for asked in one.inferences("coral1")}) == 1


@pytest.mark.parametrize("script", [Reply(content=ANSWER, headers={"Connection": "close"}), Reply(content=ANSWER, hangs_up=True)])
def test_server_that_closes_connections_between_requests_loses_no_task(script):
    with harness(Node(script), request_timeout_s=5.0) as one:
        for _ in range(5):
            assert one.send().outcome is Outcome.ON_TIME
            # The server ends its side only after its answer; what is tested is a connection that has been closed.
            assert eventually(lambda: len(one.servers["coral1"]._connections) == 1)  # the health thread's
        assert len({asked.connection for asked in one.inferences("coral1")}) == 5
        assert one.up() == ["coral1"]


def test_full_node_keeps_its_place_and_another_one_is_tried():
    with harness(Node(FULL), Node()) as one:
        results = [one.send() for _ in range(4)]
        assert {(r.outcome, r.assigned_node, r.attempts) for r in results} == {(Outcome.ON_TIME, "hailo1", 2)}
        assert one.up() == ["coral1", "hailo1"]
        assert one.policy.offers == [["coral1", "hailo1"], ["hailo1"]] * 4
        assert [(d.attempt, d.selected_node) for d in one.decisions] == [(1, "coral1"), (2, "hailo1")] * 4


def test_task_fails_when_every_node_is_full():
    with harness(Node(FULL), Node(FULL)) as one:
        result = one.send()
        assert one.up() == ["coral1", "hailo1"]
    assert (result.outcome, result.attempts) == (Outcome.FAILED, 2)
    assert result.error.startswith("hailo1: HTTP 503") and "2 requests are waiting" in result.error


@pytest.mark.usefixtures("no_probe")
def test_three_errors_in_a_row_take_a_node_out_and_each_task_is_tried_elsewhere():
    with harness(Node(Reply(500, {"detail": "inference failed"})), Node()) as one:
        for expected in (["coral1", "hailo1"], ["coral1", "hailo1"], ["hailo1"], ["hailo1"]):
            assert one.send().assigned_node == "hailo1"
            assert one.up() == expected
        assert len(one.inferences("coral1")) == 3


def test_errors_that_are_not_in_a_row_do_not_take_a_node_out():
    broken = Reply(500)
    with harness(Node([broken, broken, OK, broken, broken, OK, OK]), Node()) as one:
        nodes = [one.send().assigned_node for _ in range(7)]
        assert one.up() == ["coral1", "hailo1"]
    assert nodes == ["hailo1", "hailo1", "coral1", "hailo1", "hailo1", "coral1", "coral1"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        {"queue_time": 0.1},
        {"queue_time": 0.1, "inference_time": None},
        {"queue_time": 0.1, "inference_time": "soon"},
        {"queue_time": 0.1, "inference_time": [0.1]},
        b'{"queue_time": 0.1, "inference_time": NaN}',
        b'{"queue_time": 0.1, "inference_time": 1e999}',
        b'{"queue_time": Infinity, "inference_time": 0.1}',
        b'{"queue_time": 0.1, "inference_time": -0.1}',
        b'{"queue_time": 0.1, "inference_time": 1' + b"0" * 400 + b"}",
    ],
)
def test_answer_that_is_not_as_agreed_counts_as_an_error_of_the_node(content):
    with harness(Node(Reply(content=content)), Node(), drain_timeout_s=5.0) as one:
        result = one.send()
        assert one.up() == ["coral1", "hailo1"]
    assert (result.outcome, result.assigned_node, result.attempts) == (Outcome.ON_TIME, "hailo1", 2)


@pytest.fixture
def no_probe(monkeypatch):
    """A node that is out stays so for the test's time."""
    monkeypatch.setattr(node_health, "FIRST_PAUSE_S", 600.0)
    monkeypatch.setattr(node_health, "LONGEST_PAUSE_S", 600.0)
    monkeypatch.setattr(node_health, "LONGEST_PROBE_PAUSE_S", 600.0)


REFUSED = Reply(400, {"detail": "input: expected 150528 bytes"})
ABSENT = Reply(404, {"detail": "unknown model"})


def by_model(**replies):
    """What a node says to each model; `OK` where nothing else is given."""
    return lambda asked: healthy() if asked.path == "/health" else replies.get(asked.path.rpartition("=")[2], OK)


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize("refusal", [REFUSED, Reply(413), Reply(500)])
def test_node_whose_refusals_no_other_shares_goes_out_and_each_task_is_tried_elsewhere(refusal):
    with harness(Node(refusal), Node(), health_interval_s=3600.0) as one:
        results = [one.send() for _ in range(6)]
        assert one.up() == ["hailo1"]
        assert len(one.inferences("coral1")) == 3
    assert {(r.outcome, r.assigned_node) for r in results} == {(Outcome.ON_TIME, "hailo1")}
    assert [r.attempts for r in results] == [2, 2, 2, 1, 1, 1]


def test_node_that_has_none_of_its_models_after_all_is_given_none_but_is_not_out():
    with harness(Node(ABSENT), Node()) as one:
        results = [one.send(model=model) for model in MODELS * 6]
        assert one.up() == ["coral1", "hailo1"]
        assert one.cluster.down_periods() == []
        warnings = one.cluster.warnings()
    assert [line.startswith("coral1 answered ") for line in warnings] == [True, True, False]
    assert warnings[2].startswith("coral1 served 0 of the 6 requests sent to it")
    assert {(r.outcome, r.assigned_node) for r in results} == {(Outcome.ON_TIME, "hailo1")}


def test_node_that_keeps_a_request_waiting_is_out_meanwhile_however_good_its_health_is(monkeypatch):
    monkeypatch.setattr(node_health, "SILENT_S", 0.05)

    def slow(asked):
        if asked.path != "/health":
            time.sleep(0.15)
        return healthy() if asked.path == "/health" else OK

    with harness(slow, health_interval_s=0.01) as one:
        result = one.send()
        assert result.outcome is Outcome.ON_TIME and one.up() == ["coral1"]
        ((name, since_s, until_s),) = one.cluster.down_periods()
    assert (name, since_s, until_s) == ("coral1", pytest.approx(result.start_time_s), pytest.approx(result.completion_time_s))


@pytest.mark.parametrize("refusal", [REFUSED, ABSENT])
def test_request_that_all_nodes_refuse_takes_none_out(refusal):
    with harness(Node(refusal), Node(refusal)) as one:
        results = [one.send() for _ in range(8)]
        assert one.up() == ["coral1", "hailo1"]
        assert one.cluster.down_periods() == []
        assert [line.split(";")[0] for line in one.cluster.warnings()] == [
            f"{name} served 0 of the 8 requests sent to it" for name in ("coral1", "hailo1")
        ]
    assert {(r.outcome, r.attempts) for r in results} == {(Outcome.FAILED, 2)}
    assert all(r.error.startswith(f"hailo1: HTTP {refusal.status}") for r in results)


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize("refusal", [REFUSED, ABSENT])
def test_refusals_of_two_nodes_cost_no_attempt_so_that_a_third_one_is_asked(refusal):
    with harness(by_model(resnet50=refusal), by_model(resnet50=refusal), Node()) as one:
        results = [one.send() for _ in range(5)]
        assert "jetson1" in one.up()
    assert {(r.outcome, r.assigned_node) for r in results} == {(Outcome.ON_TIME, "jetson1")}
    assert [r.attempts for r in results] == [3, 3, 3, 1, 1]


@pytest.mark.usefixtures("no_probe")
def test_model_that_two_nodes_answer_with_errors_comes_to_the_third():
    with harness(by_model(resnet50=Reply(500)), by_model(resnet50=Reply(500)), Node()) as one:
        for _ in range(3):
            assert one.send().outcome is Outcome.FAILED  # two attempts
            assert one.send(model="vgg16").assigned_node == "coral1"
            one.policy.offers.clear()
        assert one.send().assigned_node == "jetson1"
        assert one.policy.offers == [["jetson1"]]


def test_refusal_of_the_only_node_is_its_last_word_and_it_stays():
    with harness(Node(REFUSED)) as one:
        results = [one.send() for _ in range(4)]
        assert one.up() == ["coral1"]
    assert {(r.outcome, r.attempts) for r in results} == {(Outcome.FAILED, 1)}
    assert results[0].error.startswith("coral1: HTTP 400") and "expected 150528 bytes" in results[0].error


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize("refusal", [REFUSED, ABSENT, Reply(500), Reply(content={"queue_time": 0.1})])
def test_model_that_one_node_alone_answers_badly_is_withheld_from_it_and_the_others_are_not(refusal, caplog):
    scripts = (by_model(resnet50=refusal), Node())
    with harness(*scripts, health_interval_s=3600.0) as one:
        for _ in range(5):
            assert one.send(model="resnet50").assigned_node == "hailo1"
            assert one.send(model="vgg16").assigned_node == "coral1"
        refused = [asked.path for asked in one.inferences("coral1") if "resnet50" in asked.path]
        assert len(refused) == 3 and one.up() == ["coral1", "hailo1"]
        assert one.cluster.nodes[0].offers == {"vgg16"}
        warning, told = one.cluster.warnings()
    assert warning.startswith("coral1 answered resnet50 badly and was not offered it until a probe was good: ")
    assert told.startswith("coral1 served 5 of the 8 requests sent to it; 3 times: ")
    assert sum("coral1 is not offered resnet50" in message for message in caplog.messages) == 1


def test_withheld_model_is_offered_again_after_a_good_probe():
    with harness(by_model(resnet50=ABSENT), Node(), health_interval_s=0.02) as one:
        for _ in range(3):
            one.send()
        assert one.cluster.nodes[0].offers == {"vgg16"}
        one.servers["coral1"].reply = Node()
        assert eventually(lambda: one.cluster.nodes[0].offers == set(MODELS))
        assert one.send().assigned_node == "coral1"


def test_node_out_by_bad_answers_comes_back_by_a_good_probe_and_not_by_health_alone():
    with harness(Node(Reply(500)), Node(), health_interval_s=0.01) as one:
        for _ in range(3):
            one.send()
        assert one.up() == ["hailo1"]
        probes_before = len(one.inferences("coral1"))
        assert eventually(lambda: len(one.inferences("coral1")) >= probes_before + 4)  # health is good all the time
        assert one.up() == ["hailo1"]
        served = {asked.path.rpartition("=")[2] for asked in one.inferences("coral1")[probes_before:]}
        assert served == set(MODELS)  # another model may do, one after another
        one.servers["coral1"].reply = Node()
        assert eventually(lambda: one.up() == ["coral1", "hailo1"])
        assert eventually(lambda: one.cluster.nodes[0].offers == set(MODELS))
        assert one.send().assigned_node == "coral1"
        assert len(one.results) == 4 == len({result.task.task_id for result in one.results})  # a probe is no task
        assert one.cluster.nodes[0].untold_busy_s >= ANSWER["inference_time"]


def test_node_that_answers_probes_alone_is_asked_ever_less_often():
    """Every probe is good, every task is not: it goes out again each time, and the pauses grow."""
    tasks = threading.Event()

    def script(asked):
        if asked.path == "/health":
            return healthy()
        return Reply(500) if tasks.is_set() else OK

    with harness(script, Node(), health_interval_s=0.01) as one:
        pauses_s = []
        for _ in range(4):
            tasks.set()
            while "coral1" in one.up():
                one.send()
            tasks.clear()
            with one.cluster.lock:
                pauses_s.append(one.cluster._health["coral1"].pause_s(one.cluster.clock()))
            assert eventually(lambda: "coral1" in one.up())
    assert pauses_s == pytest.approx([0.01, 0.02, 0.04, 0.08])


def test_outages_of_a_sick_node_are_told_in_few_lines(caplog):
    with harness(Node(Reply(reset=True)), Node(), health_interval_s=0.001, connect_timeout_s=5.0) as one:
        for _ in range(2):  # comes back by health alone: a broken connection may be anybody's
            assert eventually(lambda: "coral1" in one.up())
            one.send()
        count = len(one.cluster.down_periods())
        assert count == 2
        (line,) = one.cluster.warnings()
        assert line.startswith("coral1 was out 2 times, ")
        for number in range(60):
            with one.cluster.lock:
                one.cluster._take_out(one.cluster.nodes[1], f"reason {number}")
            assert eventually(lambda: "hailo1" in one.up())
    told = [message for message in caplog.messages if message.startswith("hailo1 is out")]
    assert len(told) == 6  # outages 1, 2, 4, 8, 16, 32
    assert told[-1] == "hailo1 is out (outage 32): reason 31"


def test_model_that_the_node_does_not_have_after_all_is_tried_elsewhere():
    with harness(Node(Reply(404, {"detail": "unknown model"})), Node()) as one:
        result = one.send()
        assert one.up() == ["coral1", "hailo1"]
    assert (result.outcome, result.assigned_node, result.attempts) == (Outcome.ON_TIME, "hailo1", 2)


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize(
    "broken",
    [
        Reply(reset=True),
        Reply(raw=b""),
        Reply(raw=b"this is no HTTP\r\n\r\n"),
        Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"),
        Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"),
        Reply(raw=b"HTTP/1.1 200 OK\r\n" + b"X-Header: 1\r\n" * 200 + b"\r\n"),
        Reply(raw=b"HTTP/1.1 200 OK\r\nX-Header: " + b"1" * 70000 + b"\r\n\r\n"),
    ],
    ids=["reset", "closed", "no HTTP", "cut off", "bad chunk", "too many headers", "too long a header"],
)
def test_broken_connection_takes_the_node_out_and_the_task_is_tried_elsewhere(broken):
    with harness(Node(broken), Node(), drain_timeout_s=5.0) as one:
        result = one.send()
        assert (result.outcome, result.assigned_node, result.attempts) == (Outcome.ON_TIME, "hailo1", 2)
        assert one.up() == ["hailo1"]
        assert one.send().attempts == 1


@pytest.mark.usefixtures("no_probe")
def test_node_that_does_not_answer_in_time_is_out():
    never = threading.Event()
    with harness(Node(Reply(after=never)), Node(), request_timeout_s=0.1) as one:
        result = one.send()
        assert (result.outcome, result.assigned_node, result.attempts) == (Outcome.ON_TIME, "hailo1", 2)
        assert one.up() == ["hailo1"]
        never.set()


def test_request_may_take_longer_than_connecting_may():
    never = threading.Event()
    slow_enough = {"connect_timeout_s": 0.2, "request_timeout_s": 30.0}
    with harness(Node(Reply(content=ANSWER, after=never)), **slow_enough) as one:
        one.place()
        assert eventually(lambda: len(one.inferences("coral1")) == 1)
        threading.Timer(0.6, never.set).start()  # three times the connect timeout, far below the request timeout
        one.cluster.drain()
        (result,) = one.results
    assert (result.outcome, result.error) == (Outcome.ON_TIME, None)


def test_node_is_out_from_a_refused_connection_until_its_health_answers_again():
    with harness(Node(), Node(), health_interval_s=0.02, connect_timeout_s=5.0) as one:
        assert one.send().assigned_node == "coral1"
        one.servers["coral1"].stop()
        result = one.send()
        assert (result.outcome, result.assigned_node) == (Outcome.ON_TIME, "hailo1")
        assert eventually(lambda: one.up() == ["hailo1"])
        one.servers["coral1"].start()
        assert eventually(lambda: one.up() == ["coral1", "hailo1"])
        assert one.send().assigned_node == "coral1"
        ((name, since_s, until_s),) = one.cluster.down_periods()
    assert name == "coral1" and 0.0 < since_s < until_s


def test_node_that_is_still_down_is_down_until_now():
    with harness(Node(Reply(reset=True)), Node()) as one:
        one.send()
        ((name, since_s, until_s),) = one.cluster.down_periods()
        assert name == "coral1" and since_s == 0.0 < until_s <= one.cluster.now_s()  # its last answer came before the load


def test_health_that_says_503_takes_the_node_out_and_its_waiting_tasks_elsewhere():
    gate = threading.Event()
    with harness(Node(Reply(content=ANSWER, after=gate)), Node(), health_interval_s=0.02) as one:
        one.place()
        assert eventually(lambda: len(one.inferences("coral1")) == 1)
        one.place()  # waits behind the first on the only connection
        assert len(one.decisions) == 2 and one.decisions[1].selected_node == "coral1"
        one.servers["coral1"].reply.health = Reply(503, {"detail": "the accelerator is gone"})
        assert eventually(lambda: one.results != [])
        gate.set()
        one.cluster.drain()
    waiting, first = one.results
    assert (waiting.assigned_node, waiting.attempts, waiting.outcome) == ("hailo1", 2, Outcome.ON_TIME)
    assert (first.assigned_node, first.attempts, first.outcome) == ("coral1", 1, Outcome.ON_TIME)


def test_node_is_offered_only_the_models_that_its_health_lists():
    with harness(Node(health=healthy(["resnet50"])), Node(health=healthy(["vgg16"]))) as one:
        assert one.send(model="vgg16").assigned_node == "hailo1"
        assert one.send(model="resnet50").assigned_node == "coral1"
        result = one.send(model="mobilenet")
    assert (result.outcome, result.error, result.attempts) == (Outcome.FAILED, "no node serves mobilenet", 0)


def test_models_that_appear_later_are_offered_later():
    with harness(Node(health=healthy(["resnet50"])), health_interval_s=0.02) as one:
        assert one.send(model="vgg16").outcome is Outcome.FAILED
        one.servers["coral1"].reply.health = healthy(["resnet50", "vgg16"])
        assert eventually(lambda: "vgg16" in one.cluster.nodes[0].models)
        assert one.send(model="vgg16").outcome is Outcome.ON_TIME


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "health, says",
    [
        (Reply(503, {"detail": "no Edge TPU"}), "/health says 503.*no Edge TPU"),
        (Reply(content=b"welcome"), "not as agreed.*welcome"),
        (Reply(content=[]), "not as agreed"),
        (Reply(content={"models": None}), "not as agreed"),
        (Reply(raw=b"this is no HTTP\r\n\r\n"), "."),
        (Reply(reset=True), "reset"),
    ],
)
def test_node_that_is_not_ready_at_the_start_is_named_and_the_others_serve(health, says):
    with harness(Node(health=health), Node()) as one:
        assert list(one.cluster.unreachable_at_start) == ["coral1"]
        assert re.search(says, one.cluster.unreachable_at_start["coral1"])
        assert one.send().assigned_node == "hailo1"
        ((name, since_s, _),) = one.cluster.down_periods()
        assert (name, since_s) == ("coral1", 0.0)


def test_no_node_up_ends_the_run_and_says_why_for_each():
    with ExitStack() as stack:
        one = Harness(stack, {"coral1": Node(health=Reply(503, {"detail": "no Edge TPU"})), "hailo1": Node()})
        one.servers["hailo1"].stop()
        with pytest.raises(HarnessError, match=r"^no node is up: ") as ended:
            one.cluster.__enter__()
        assert "hailo1: connection refused" in str(ended.value)
        assert re.search("coral1: .*no Edge TPU", str(ended.value))
        assert not any(thread.is_alive() for thread in one.cluster._threads)


def test_stop_while_the_nodes_are_asked_for_their_health_waits_for_none_and_runs_nothing():
    never = threading.Event()
    with ExitStack() as stack:
        one = Harness(stack, {"coral1": Node(health=Reply(after=never))}, connect_timeout_s=30.0)
        one.cluster.stop()
        with one.cluster:  # the only node has not answered, and never will
            one.cluster.start_load()
            assert not one.cluster.advance_to(0.0)
            one.cluster.drain()
        assert one.inferences("coral1") == []
        never.set()
        for thread in one.cluster._threads:
            thread.join(10.0)
            assert not thread.is_alive()


def test_outage_before_the_load_is_no_outage_of_the_load():
    with ExitStack() as stack:
        one = Harness(stack, {"coral1": Node(), "hailo1": Node()}, health_interval_s=0.02)
        with one.cluster:
            one.servers["coral1"].reply.health = Reply(503)
            assert eventually(lambda: one.up() == ["hailo1"])
            one.servers["coral1"].reply.health = healthy()
            assert eventually(lambda: one.up() == ["coral1", "hailo1"])
            one.cluster.start_load()
            assert one.cluster.down_periods() == []


def test_tasks_open_at_the_drain_timeout_are_late_or_failed_and_a_later_answer_changes_nothing():
    gate = threading.Event()
    with harness(Node(Reply(content=ANSWER, after=gate)), drain_timeout_s=0.2) as one:
        one.place(deadline_s=0.1)
        one.place(deadline_s=60.0)
        one.cluster.drain()
        assert [(r.outcome, r.error) for r in one.results] == [
            (Outcome.LATE, "drain_timeout"),
            (Outcome.FAILED, "drain_timeout"),
        ]
        gate.set()
        assert eventually(lambda: one.cluster.nodes[0].queue_depth == 0)
    assert len(one.results) == 2
    assert len(one.inferences("coral1")) == 1  # what waited was not sent after the end


def test_stop_in_the_middle_leaves_open_tasks_unfinished_and_ends_the_threads():
    gate = threading.Event()
    with harness(Node(Reply(content=ANSWER, after=gate))) as one:
        for _ in range(3):
            one.place()
        assert eventually(lambda: len(one.inferences("coral1")) == 1)
        one.cluster.stop()
        assert not one.cluster.advance_to(1e9)
        one.cluster.drain()
        assert [r.outcome for r in one.results] == [Outcome.UNFINISHED] * 3
        gate.set()
    assert len(one.results) == 3


def test_requests_broken_off_at_the_end_say_nothing_of_the_node(caplog):
    gate = threading.Event()
    with harness(Node(Reply(content=ANSWER, after=gate))) as one:
        one.place()
        assert eventually(lambda: len(one.inferences("coral1")) == 1)
        one.cluster.stop()
        one.cluster.drain()
        one.cluster.__exit__()
        gate.set()
    assert caplog.messages == []
    assert [r.outcome for r in one.results] == [Outcome.UNFINISHED]


@pytest.mark.parametrize(
    "says, why",
    [
        ({"server": "hailo1"}, "its address is that of hailo1"),
        ({"accelerator": "kind of hailo1"}, "its server drives 'kind of hailo1', the profile expects 'kind of coral1'"),
        ({"accelerator": "cpu"}, "its server drives 'cpu', the profile expects 'kind of coral1'"),
    ],
)
def test_server_of_another_node_is_not_taken_for_this_one(says, why):
    health = healthy()
    health.content.update(says)
    with harness(Node(health=health), Node()) as one:
        assert one.cluster.unreachable_at_start == {"coral1": why}
        assert one.send().assigned_node == "hailo1"


def test_threads_carry_the_name_of_their_node():
    with harness(Node(), Node(), connections_per_node=2) as one:
        names = {thread.name for thread in one.cluster._threads}
    assert names == {"coral1-0", "coral1-1", "coral1-health", "hailo1-0", "hailo1-1", "hailo1-health"}


def test_requests_travel_on_as_many_connections_as_the_settings_say():
    gate = threading.Event()
    with harness(Node(Reply(content=ANSWER, after=gate)), connections_per_node=3) as one:
        for _ in range(5):
            one.place()
        assert eventually(lambda: len(one.inferences("coral1")) == 3)
        assert one.cluster.nodes[0].queue_depth == 5
        gate.set()
        one.cluster.drain()
        assert [r.outcome for r in one.results] == [Outcome.ON_TIME] * 5


def test_advance_to_returns_not_before_its_time():
    with harness(Node()) as one:
        target_s = one.cluster.now_s() + 0.02
        assert one.cluster.advance_to(target_s)
        assert one.cluster.now_s() >= target_s
        assert one.cluster.advance_to(0.0)


# Servers that do not keep to all of the contract.


def unlisted(asked, infer):
    """What a server says that does not list its models, and tells no queue time unless `infer` does."""
    return Reply(content={"status": "ok"}) if asked.path == "/health" else infer(asked)


def told_once(caplog, text):
    return sum(text in message for message in caplog.messages) == 1


def test_server_without_models_and_queue_time_is_used_and_said_once(caplog):
    answer = Reply(content={"server": "coral-pod-7", "inference_time": 0.0005})
    with harness(lambda asked: unlisted(asked, lambda _: answer)) as one:
        results = [one.send(model=model) for model in ("resnet50", "vgg16", "resnet50")]
        warnings = one.cluster.warnings()
    assert [(r.outcome, r.server_queue_time_s, r.inference_time_s) for r in results] == [(Outcome.ON_TIME, None, 0.0005)] * 3
    assert [line.partition(":")[0] for line in warnings] == ["coral1"] * 2
    assert "/health lists no models" in warnings[0] and "no queue_time" in warnings[1]
    assert told_once(caplog, "/health lists no models") and told_once(caplog, "no queue_time")


@pytest.mark.parametrize("status", [400, 404])
def test_model_that_a_server_without_a_list_refuses_is_not_offered_to_it_again(status, caplog):
    def infer(asked):
        return Reply(status, {"detail": "no such model"}) if "vgg16" in str(asked.body) else OK

    with harness(lambda asked: unlisted(asked, infer), Node(), health_interval_s=0.02) as one:
        results = [one.send(model=model) for model in ("vgg16", "vgg16", "resnet50", "vgg16")]
        assert eventually(lambda: len(one.servers["coral1"].paths()) > 10)  # /health says again that it lists none
        results.append(one.send(model="vgg16"))
        assert one.up() == ["coral1", "hailo1"]
    assert [r.assigned_node for r in results] == ["hailo1", "hailo1", "coral1", "hailo1", "hailo1"]
    assert {r.outcome for r in results} == {Outcome.ON_TIME}
    assert sum("vgg16" in str(asked.body) for asked in one.inferences("coral1")) == 1
    assert told_once(caplog, "coral1: does not serve vgg16: HTTP ")
    assert any("coral1: does not serve vgg16" in line for line in one.cluster.warnings())


def test_server_without_a_list_that_refuses_every_model_is_out():
    with harness(lambda asked: unlisted(asked, lambda _: Reply(400, {"detail": "image: missing"})), Node()) as one:
        for model in MODELS * 6:
            assert one.send(model=model).outcome is Outcome.ON_TIME
        assert one.up() == ["hailo1"]


@pytest.mark.parametrize("invented", [{"inference_time": "0.001"}, {"model": "vgg16"}, {"server": "hailo1"}])
def test_invented_answer_counts_as_an_error_of_the_node(invented):
    with harness(Node(Reply(content={**ANSWER, **invented})), Node()) as one:
        result = one.send()
    assert (result.outcome, result.assigned_node) == (Outcome.ON_TIME, "hailo1")


def test_other_name_of_a_model_is_said_once(caplog):
    with harness(Node(Reply(content={**ANSWER, "model": "resnet50_edgetpu"}))) as one:
        assert [one.send().outcome for _ in range(3)] == [Outcome.ON_TIME] * 3
        assert len(one.cluster.warnings()) == 1
    assert told_once(caplog, "names models that the profile does not know") or told_once(caplog, "answers name models")


# Threads.


@pytest.mark.parametrize("ends_by", [ZeroDivisionError("by nought"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("method", ["infer", "health"])
def test_thread_that_dies_stops_the_run_and_is_named(monkeypatch, method, ends_by):
    with harness(Node(), health_interval_s=0.02) as one:
        assert one.send().outcome is Outcome.ON_TIME

        def die(*_):
            raise ends_by

        monkeypatch.setattr(NodeClient, method, die)
        one.place()
        assert eventually(lambda: one.cluster.failure is not None)
        assert not one.cluster.advance_to(1e9)
        one.cluster.drain()
    thread = "coral1-0" if method == "infer" else "coral1-health"
    assert f"the thread {thread} died of {type(ends_by).__name__}" in str(one.cluster.failure)
    assert one.results[-1].outcome in (Outcome.UNFINISHED, Outcome.ON_TIME)


@pytest.mark.timeout(30)
def test_health_that_hangs_before_its_deadline_begins_is_waited_for_no_longer_than_a_bound(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(inference_request, "_START_PATIENCE_S", 0.1)
    with ExitStack() as stack:
        stack.callback(never.set)
        one = Harness(stack, {"coral1": Node(), "hailo1": Node()}, connect_timeout_s=0.2)
        port = one.servers["coral1"].port

        def look_up(host, at, **options):
            if at == port:
                never.wait(20)
            return getaddrinfo(host, at, **options)

        getaddrinfo = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        with one.cluster:
            assert one.cluster.unreachable_at_start == {"coral1": "/health was not answered within 0.3 s"}
            one.cluster.start_load()
            assert one.send().assigned_node == "hailo1"
            never.set()


# The client alone.


@contextmanager
def client_of(script, connect_timeout_s=5.0, request_timeout_s=10.0):
    timeouts = {"connect_timeout_s": connect_timeout_s, "request_timeout_s": request_timeout_s}
    with scripted_server(script) as server:
        url = require_worker_urls({"coral1": f"{server.url}/some/path/infer"})["coral1"]
        client = NodeClient(url, default_settings(requests=timeouts).requests)
        try:
            yield client, server
        finally:
            client.close()


def test_health_is_asked_beside_infer():
    with client_of(lambda asked: healthy(["a", "b"])) as (client, server):
        health = client.health()
        assert (health.models, health.binary) == ({"a", "b"}, True)
        assert server.paths() == ["/some/path/health"]


@pytest.mark.parametrize(
    "status, error",
    [
        (503, NodeFull),
        (404, NodeFull),
        (500, NodeFault),
        (502, NodeFault),
        (400, RequestRefused),
        (413, RequestRefused),
        (302, NodeFault),
    ],
)
def test_status_tells_whose_fault_it_is(status, error):
    with client_of(lambda asked: Reply(status, {"detail": "why"})) as (client, _):
        client.connect()
        with pytest.raises(error, match=f"HTTP {status}.*why"):
            client.infer("resnet50", 0.0, True)


def test_noise_travels_without_loss():
    noise = -0.12345678901234567
    with client_of(lambda asked: OK) as (client, server):
        client.connect()
        answer = client.infer("resnet50", noise, True)
        assert float(server.asked[0].headers["X-Service-Noise"]) == noise
    assert (answer.queue_time_s, answer.inference_time_s) == (0.00025, 0.0005)


def test_noise_of_the_overhead_is_sent_where_overheads_vary():
    with client_of(lambda asked: OK) as (client, server):
        client.connect()
        for noise in (None, 0.12345678901234567):
            client.infer("resnet50", 0.0, True, noise)
        without, with_noise = (asked.headers for asked in server.asked)
    assert "X-Overhead-Noise" not in without
    assert float(with_noise["X-Overhead-Noise"]) == 0.12345678901234567
    with harness(Node(health=healthy(binary=True))) as one:
        with one.cluster.lock:
            one.cluster.place(make_task(), DEVICE, 0.0, -1.5)
        assert eventually(lambda: one.inferences("coral1"))
        assert one.inferences("coral1")[0].headers["X-Overhead-Noise"] == "-1.5"


def test_client_goes_on_after_a_timeout():
    never = threading.Event()
    node = Node([Reply(after=never), OK])
    with client_of(node, request_timeout_s=0.1) as (client, _):
        client.connect()
        with pytest.raises(NodeUnreachable, match=r"no answer within 0\.1 s"):
            client.infer("resnet50", 0.0, True)
        never.set()
        client.connect()
        assert client.infer("resnet50", 0.0, True).inference_time_s == 0.0005


# WORKERS.


def test_workers_as_published_hold_six_placeholders():
    assert list(WORKERS) == ["coral1", "coral2", "jetson1", "jetson2", "hailo1", "hailo2"] == placeholders(WORKERS)


def test_only_addresses_that_were_not_filled_in_are_placeholders():
    workers = {**WORKERS, "coral1": "http://10.42.1.7:8080/infer"}
    assert placeholders(workers) == ["coral2", "jetson1", "jetson2", "hailo1", "hailo2"]
    assert placeholders({"coral1": "http://10.42.1.7:8080/infer"}) == []


@pytest.mark.parametrize(
    "url", ["http://10.42.1.7:8080/infer", "http://coral1/infer", "http://[::1]:8080/infer", "http://coral_1.default.svc.:80/x"]
)
def test_worker_urls_that_make_sense_are_taken(url):
    assert require_worker_urls({"coral1": url})["coral1"].url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.42.1.7",
        "10.42.1.7:8080/infer",
        "https://10.42.1.7:8080/infer",
        "ftp://10.42.1.7/infer",
        "http://",
        "http:///infer",
        "http://10.42.1.7:8080",
        "http://10.42.1.7:8080/",
        "http://10.42.1.7:99999/infer",
        "http://10.42.1.7:port/infer",
        "http://[::1/infer",
        "http://10.42..1.7:8080/infer",
        "http://10.42.1:8080/infer",
        "http://10.42.1.700:8080/infer",
        "http://010.42.1.7:8080/infer",
        "http://10.42.1.7.:8080/infer.",
        "http://coral1..local/infer",
        "http://-coral1/infer",
        "http://coral 1/infer",
        f"http://{'a' * 64}/infer",
        f"http://{'a.' * 127}aaa/infer",
        "http://10.42.1.7:0/infer",
        "http://[fe80::1::2]/infer",
    ],
)
def test_malformed_worker_url_is_refused_by_name(url):
    with pytest.raises(UsageError, match=r"WORKERS: coral2: expected an address such as http://.*, found") as refused:
        require_worker_urls({"coral1": "http://10.42.1.7:8080/infer", "coral2": url})
    assert repr(url) in str(refused.value)


def test_worker_that_the_profile_does_not_know_is_refused_by_name():
    settings = default_settings()
    with pytest.raises(UsageError, match=r"^worker coral9 is not in the performance profile, which knows coral1"):
        HttpCluster(
            {"coral9": "http://10.42.1.7:8080/infer"},
            small_profile({"coral1": {"resnet50": 1.0}}),
            settings,
            FirstOffered(settings, rng()),
            {},
            lambda result: None,
        )


def test_model_that_the_profile_does_not_know_is_never_offered():
    with harness(Node(health=healthy(["resnet50", "unheard_of"])), Node()) as one:
        result = one.send(model="unheard_of")
    assert (result.outcome, result.error) == (Outcome.FAILED, "no node serves unheard_of")


def test_node_that_claims_more_time_than_passed_is_not_believed():
    lie = Reply(content={**ANSWER, "inference_time": 1e300})
    with harness(Node(lie), Node()) as one:
        result = one.send()
    assert (result.outcome, result.assigned_node, result.attempts) == (Outcome.ON_TIME, "hailo1", 2)


def test_answer_that_trickles_in_ends_with_the_request_timeout():
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def trickle():
        connection, _ = listening.accept()
        with suppress(OSError), connection:  # the client breaks it off
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not ended.wait(0.02):
                connection.sendall(b" ")

    server = threading.Thread(target=trickle)
    server.start()
    requests = default_settings(requests={"request_timeout_s": 0.3, "connect_timeout_s": 5.0}).requests
    client = NodeClient(
        require_worker_urls({"coral1": f"http://127.0.0.1:{listening.getsockname()[1]}/infer"})["coral1"], requests
    )

    client.connect()
    with pytest.raises(NodeUnreachable, match="no answer within 0.3 s"):
        client.infer("resnet50", 0.0, True)
    ended.set()
    server.join(10.0)
    assert not server.is_alive()
    listening.close()


def test_node_that_serves_nothing_and_only_says_it_is_full_is_told_beside_the_numbers():
    with harness(Node(FULL), Node([OK] * 5 + [FULL, OK])) as one:
        for _ in range(5):
            assert one.send().assigned_node == "hailo1"
        assert one.up() == ["coral1", "hailo1"]
        (line,) = one.cluster.warnings()
    assert line.startswith("coral1 served 0 of the 5 requests sent to it; 5 times: HTTP 503") and "2 requests are waiting" in line
