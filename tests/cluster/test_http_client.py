"""What the client of one node reads out of an answer, beside the durations, and out of /health."""

import gzip
import json
import socket
import threading
from contextlib import closing, contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from urllib3.util import Url, parse_url

from cluster.http_client import (
    LONGEST_BODY,
    Answer,
    Health,
    NodeClient,
    NodeError,
    NodeFault,
    NodeTimeout,
    NodeUnreachable,
    _answer,
    wrong_answer,
)
from inference_request import require_worker_urls
from tests.helpers import Reply, default_settings, scripted_server, small_profile


@contextmanager
def client_of(server, **timeouts):
    """A client of a scripted server, closed in the end."""
    requests = default_settings(requests={"connect_timeout_s": 5.0, "request_timeout_s": 5.0, **timeouts}).requests
    with closing(NodeClient(require_worker_urls({"coral1": f"{server.url}/infer"})["coral1"], requests)) as client:
        yield client


def asked_of(reply, ask):
    """What `ask` gets from a client whose node answers everything with `reply`."""
    with scripted_server(lambda asked: reply) as server, client_of(server) as client:
        client.connect()
        return ask(client)


def answered(fields):
    return asked_of(Reply(content=fields), lambda client: client.infer("resnet50", 0.0, True))


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        ({"model_switched": True}, True),
        ({"model_switched": False}, False),
        ({}, None),
        ({"model_switched": None}, None),
        ({"model_switched": "yes"}, None),
        ({"model_switched": 1}, None),
    ],
)
def test_switch_of_the_model_is_known_where_the_server_says_so(told, understood):
    answer = answered({"queue_time": 0.25, "inference_time": 0.5, **told})
    assert (answer.queue_time_s, answer.inference_time_s) == (0.25, 0.5)
    assert answer.model_switched is understood


@pytest.mark.parametrize("content", [[], "done", 1, {"queue_time": 0.25}, {"queue_time": -1, "inference_time": 0.5}])
def test_what_is_no_answer_is_the_node_s_fault(content):
    with pytest.raises(NodeFault):
        answered(content)


def health_told(fields):
    return asked_of(Reply(content={"models": ["resnet50"], **fields}), lambda client: client.health())


def test_health_says_who_answers_and_what_it_drives():
    health = health_told({"server": "coral1", "accelerator": "coral", "binary": True})
    assert health == (frozenset({"resnet50"}), True, "coral1", "coral")


@pytest.mark.parametrize("fields", [{}, {"server": None, "accelerator": None}, {"server": 1, "accelerator": ["coral"]}])
def test_health_that_does_not_say_who_answers_is_still_one(fields):
    assert health_told(fields) == (frozenset({"resnet50"}), False, None, None)


def test_health_that_is_no_mapping_is_none():
    with pytest.raises(NodeUnreachable, match="/health is not as agreed"):
        asked_of(Reply(content=["resnet50"]), lambda client: client.health())


# What must be in an answer.

RIGHT = {"server": "coral1", "model": "resnet50", "queue_time": 0.25, "inference_time": 0.5}


@pytest.mark.parametrize("name", ["inference_time", "queue_time"])
@pytest.mark.parametrize("value", ["0.001", "", True, False, None, [], {}, [0.1], -1e-9, 1e999, 10**400])
def test_durations_are_numbers_and_nothing_else(name, value):
    with pytest.raises(NodeFault, match=f"answer is not as agreed: {name}: expected seconds"):
        answered({**RIGHT, name: value})


@pytest.mark.parametrize("value", [0, 0.0, -0.0])
def test_inference_takes_time_and_a_queue_need_not(value):
    with pytest.raises(NodeFault, match="inference_time: expected seconds above 0"):
        answered({**RIGHT, "inference_time": value})
    assert answered({**RIGHT, "queue_time": value}).queue_time_s == 0


def test_missing_field_is_named_and_a_missing_queue_time_is_unknown():
    with pytest.raises(NodeFault, match='inference_time: expected seconds above 0, found none in .*"queue_time": 1'):
        answered({"queue_time": 1})
    assert answered({"inference_time": 1}) == Answer(None, 1.0, None, None, None)


@pytest.mark.parametrize("name", ["server", "model"])
@pytest.mark.parametrize("value", [1, True, ["resnet50"], {}])
def test_names_in_an_answer_are_text(name, value):
    with pytest.raises(NodeFault, match=f"{name}: expected text"):
        answered({**RIGHT, name: value})


@settings(max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists) | st.just({}), st.data())
def test_any_json_is_an_answer_or_a_fault_of_the_node(value, data):
    fields = data.draw(st.dictionaries(st.sampled_from([*RIGHT, "model_switched", "x"]), st.just(value)))
    try:
        answer = _answer(json.dumps({**RIGHT, **fields}).encode())
    except NodeFault:
        return
    assert answer.inference_time_s > 0 and (answer.queue_time_s is None or answer.queue_time_s >= 0)


PROFILE = small_profile({"coral1": {"resnet50": 1.0, "vgg16": 1.0}, "hailo1": {"resnet50": 1.0}})


@pytest.mark.parametrize(
    ("server", "model", "said", "problem"),
    [
        ("coral1", "resnet50", "coral1", None),
        (None, None, None, None),
        ("hailo1", "resnet50", None, "of the server hailo1, coral1 was asked"),
        ("hailo1", None, "rpi-5-kitchen", "of the server hailo1, coral1 was asked"),
        ("rpi-5-kitchen", None, "rpi-5-kitchen", None),
        ("pod-a", None, "pod-b", None),
        ("rpi-5-kitchen", None, "coral1", "of the server rpi-5-kitchen, coral1 was asked"),
        (None, "vgg16", None, "of the model vgg16, resnet50 was asked for"),
        (None, "resnet50_edgetpu.tflite", "coral1", None),
    ],
)
def test_answer_of_another_node_or_model_is_none(server, model, said, problem):
    answer = Answer(0.0, 0.001, None, server, model)
    found = wrong_answer("coral1", Health(None, True, said), PROFILE, "resnet50", answer)
    assert found is None if problem is None else problem in str(found)


def test_models_that_health_does_not_list_are_not_known():
    with scripted_server(lambda asked: Reply(content={"status": "ok"})) as server, client_of(server) as client:
        assert client.health() == Health(None, False, None, None)


@pytest.mark.parametrize("models", [None, "resnet50", {"resnet50": 1}, [1], [["resnet50"]]])
def test_models_of_health_are_a_list_of_names(models):
    with pytest.raises(NodeUnreachable, match="/health is not as agreed: models: expected a list of names"):
        health_told({"models": models})


# Names of models.


@pytest.mark.parametrize("model", ["mobilenet v2", "a/b", "50%", "what?", "#1", "모델 é", "a&model=b", "a+b", "x=y", "../infer"])
@pytest.mark.parametrize("binary", [True, False])
def test_model_of_any_name_is_asked_for_by_that_name(model, binary):
    with scripted_server(lambda asked: Reply(content=RIGHT)) as server, client_of(server) as client:
        client.infer(model, 0.0, binary)
        (asked,) = server.asked
    address = urlsplit(asked.path)
    named = parse_qs(address.query)["model"] if binary else [json.loads(asked.body)["model"]]
    assert (address.path, named) == ("/infer", [model])


# Exchanges that must end, and texts that must be harmless.


def raw(head, body=b""):
    return Reply(raw=b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)


BOMBS = {
    "brackets": Reply(content=b"[" * 60_000),
    "objects": Reply(content=b'{"inference_time":' * 3_500),
    "long body": Reply(content=b"1" * (LONGEST_BODY + 1)),
    "long digits": Reply(content=b'{"inference_time": 1' + b"0" * 60_000 + b"}"),
    "length of 10^15": raw(b"Content-Length: 1000000000000000", b"{}"),
    "length of many digits": raw(b"Content-Length: " + b"9" * 5000, b"[]"),
    "negative length": raw(b"Content-Length: -1", b"x"),
    "chunk of 10^15": raw(b"Transfer-Encoding: chunked", b"38d7ea4c68000\r\n{}"),
    "negative chunk": raw(b"Transfer-Encoding: chunked", b"-5\r\n{}\r\n0\r\n\r\n"),
    "endless trailer": raw(b"Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n" + b"X: 1\r\n" * 50_000),
    "endless 100": Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000),
    "long head": raw(b"\r\n".join(b"X-%d: " % n + b"1" * 3_000 for n in range(90)), b"{}"),
    "gzip": Reply(content=gzip.compress(b'{"queue_time": 0.1, "inference_time": 0.1}'), headers={"Content-Encoding": "gzip"}),
    "bad header": raw(b"\xff\x00\x1b: \xfe", b"[]"),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.timeout(20)
def test_answer_that_would_break_its_reader_is_the_node_s_fault(bomb):
    with scripted_server(lambda asked: bomb) as server, client_of(server) as client:
        for ask in (lambda: client.infer("resnet50", 0.0, True), client.health):
            with pytest.raises((NodeFault, NodeUnreachable)) as told:
                ask()
            assert str(told.value).isprintable() and len(str(told.value)) <= 200


@pytest.mark.parametrize("at", ["status", "head", "body"])
def test_deadline_is_of_the_whole_exchange_however_the_bytes_drip(at):
    begun = {
        "status": b"HTTP/1.1 2",
        "head": b"HTTP/1.1 200 OK\r\nX: ",
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
    }
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip():
        while not ended.is_set():
            connection, _ = listening.accept()
            with suppress(OSError), connection:
                connection.recv(65536)
                connection.sendall(begun[at])
                while not ended.wait(0.01):
                    connection.sendall(b"1")

    server = threading.Thread(target=drip)
    server.start()
    url = parse_url(f"http://127.0.0.1:{listening.getsockname()[1]}/infer")
    client = NodeClient(url, default_settings(requests={"connect_timeout_s": 0.2, "request_timeout_s": 0.2}).requests)
    with pytest.raises(NodeTimeout, match="no answer within 0.2 s"):
        client.infer("resnet50", 0.0, True)
    with pytest.raises(NodeUnreachable, match="no answer within 0.2 s"):
        client.health()
    ended.set()
    socket.create_connection(listening.getsockname()).close()
    server.join(10.0)
    assert not server.is_alive()
    listening.close()


@pytest.mark.parametrize("host", ["10.42..1.7", "a" * 64, "\udc80", "a\x00b"])
def test_address_that_breaks_its_look_up_is_an_unreachable_node(host):
    client = NodeClient(Url("http", host="placeholder", port=8080, path="/infer"), default_settings().requests)
    client._connection.host = host
    for ask in (client.connect, client.health):
        with pytest.raises(NodeUnreachable):
            ask()


@pytest.mark.parametrize("status", [200, 400, 404, 500, 503])
def test_what_a_server_says_is_shown_in_one_line_without_control_characters(status):
    evil = b"\x1b]0;owned\x07\x1b[2J\r\nvalid: yes\xe2\x80\xa8"
    with scripted_server(lambda asked: Reply(status, evil)) as server, client_of(server) as client:
        for ask in (lambda: client.infer("resnet50", 0.0, True), client.health):
            with pytest.raises(NodeError) as told:
                ask()
            assert str(told.value).isprintable() and "owned" in str(told.value)


# Kept connections.


def test_kept_connection_that_closes_as_a_request_goes_out_is_opened_once_more():
    closes = {3, 5}
    with (
        scripted_server(lambda asked: Reply(reset=True) if len(server.asked) in closes else Reply(content=RIGHT)) as server,
        client_of(server) as client,
    ):
        for _ in range(4):
            assert client.infer("resnet50", 0.0, True).inference_time_s == 0.5
        assert [asked.connection for asked in server.asked] == [0, 0, 0, 1, 1, 2]


def test_fresh_connection_that_closes_is_not_tried_again():
    with scripted_server(lambda asked: Reply(reset=True)) as server, client_of(server) as client:
        with pytest.raises(NodeUnreachable):
            client.infer("resnet50", 0.0, True)
        assert len(server.asked) == 1


@pytest.mark.parametrize("second", [Reply(reset=True), raw(b"Content-Length: 100", b"{"), Reply(raw=b"H")])
def test_request_is_sent_twice_at_most_and_not_after_a_byte_of_an_answer(second):
    replies = iter([Reply(content=RIGHT), second, second, Reply(content=RIGHT)])
    with scripted_server(lambda asked: next(replies)) as server, client_of(server) as client:
        client.infer("resnet50", 0.0, True)
        with pytest.raises(NodeUnreachable):
            client.infer("resnet50", 0.0, True)
        assert len(server.asked) == (3 if second.reset else 2)


def test_request_that_took_too_long_is_not_sent_again():
    never = threading.Event()
    replies = iter([Reply(content=RIGHT), Reply(after=never)])
    with scripted_server(lambda asked: next(replies)) as server, client_of(server, request_timeout_s=0.2) as client:
        client.infer("resnet50", 0.0, True)
        with pytest.raises(NodeTimeout):
            client.infer("resnet50", 0.0, True)
        assert len(server.asked) == 2


def test_client_that_was_broken_off_asks_nothing_more():
    with scripted_server(lambda asked: Reply(content=RIGHT)) as server, client_of(server) as client:
        client.infer("resnet50", 0.0, True)
        client.abort()
        for ask in (lambda: client.infer("resnet50", 0.0, True), client.connect, client.health):
            with pytest.raises(NodeUnreachable, match="broken off"):
                ask()
        assert len(server.asked) == 1


def test_proxies_of_the_environment_are_not_used_for_nodes(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert health_told({}).models == {"resnet50"}
    assert answered(RIGHT).inference_time_s == 0.5
