"""The HTTP contract of every inference server, over real sockets. Valid Python 3.6."""

import base64
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any, Dict

import pytest

from inference_server import Accelerator, AcceleratorGone, OutOfMemory, create_app
from tests.docker.servers import DOCKER, PATIENCE_S, Client, FakeBackend, opened

SIZE = 224 * 224 * 3
IMAGE = b"\7" + bytes(SIZE - 1)
LARGEST = 320 * 1024
JSON = {"Content-Type": "application/json"}
BINARY = {"Content-Type": "application/octet-stream"}


class WatchedAccelerator(Accelerator):
    """Says when a request has reached the queue."""

    def __init__(self, backend):
        super().__init__(lambda: backend, queue_capacity=2)
        self.submitted = threading.Semaphore(0)
        self.futures = []
        opened(self)

    def submit(self, model, image, headers):
        self.futures.append(super().submit(model, image, headers))
        self.submitted.release()
        return self.futures[-1]


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def accelerator(backend):
    accelerator = WatchedAccelerator(backend)
    yield accelerator
    backend.gate.set()
    accelerator.close()


@pytest.fixture
def client(accelerator, backend, run_app):
    yield run_app(create_app("fake1", accelerator))
    backend.gate.set()


def json_request(**changes):
    fields: Dict[str, Any] = {"model": "resnet50", "input": base64.b64encode(IMAGE).decode()}
    fields.update(changes)
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def assert_matches(pattern, text):
    assert re.search(pattern, text), text


def test_both_forms_of_a_request_give_the_same(client):
    binary = client.infer(IMAGE)
    in_json = client.request("POST", "/infer", json_request(), JSON)
    for answer in (binary, in_json):
        assert answer.status == 200
        assert set(answer.json) == {
            "server",
            "model",
            "start_time",
            "end_time",
            "inference_time",
            "queue_time",
            "result",
            "top1",
            "model_switched",
        }
        assert (answer.json["server"], answer.json["model"]) == ("fake1", "resnet50")
        assert (answer.json["result"], answer.json["top1"]) == ("done", 7)


def test_content_type_may_have_parameters_and_capitals(client):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.request("POST", "/infer", json_request(), headers).status == 200


@pytest.mark.parametrize(
    "body, names",
    [
        (b"", "body: expected JSON"),
        (b"{", "body: expected JSON"),
        (b"\xff\xfe", "body: expected JSON"),
        (b"[" * 100000, "body: expected JSON"),
        (b"[]", "body: expected a JSON object, got an array"),
        (b"null", "body: expected a JSON object, got null"),
        (json_request(model=...), "model: expected"),
        (json_request(model=3), "model: .* got a number"),
        (json_request(model=None), "model: .* got null"),
        (json_request(input=...), "input: expected"),
        (json_request(input=[1, 2]), "input: .* got an array"),
        (json_request(input=True), "input: .* got a boolean"),
        (json_request(input="%%%%"), "input: expected standard base64"),
        (json_request(input="AAA"), "input: expected standard base64"),
        (json_request(input="ä"), "input: expected standard base64"),
        (json_request(input="AAAA"), "input: expected 150528 bytes .* got 3"),
        (json_request(input=""), "input: expected 150528 bytes .* got 0"),
        ('{"model": "resnet50", "input": ' + 300000 * "7" + "}", "input: .* got a number"),
    ],
)
def test_malformed_json_names_the_field_and_what_was_expected(client, backend, body, names):
    answer = client.request("POST", "/infer", body, JSON)
    assert answer.status == 400
    assert_matches(names, answer.json["detail"])
    assert backend.calls == []


@pytest.mark.parametrize(
    "path, body, headers, names",
    [
        ("/infer?model=resnet50", IMAGE[1:], BINARY, "body: expected 150528 bytes .* got 150527"),
        ("/infer?model=resnet50", IMAGE + b"\0", BINARY, "body: .* got 150529"),
        ("/infer", IMAGE, BINARY, "model: expected in the query"),
        ("/infer?model=", IMAGE, BINARY, "model: expected in the query"),
        ("/infer?model=resnet50", IMAGE, {}, "Content-Type: .*application/octet-stream, got none"),
        ("/infer", json_request(), {"Content-Type": "text/plain"}, "Content-Type: .* got 'text/plain'"),
    ],
)
def test_malformed_binary_names_the_field_and_what_was_expected(client, path, body, headers, names):
    answer = client.request("POST", path, body, headers)
    assert answer.status == 400
    assert_matches(names, answer.json["detail"])


@pytest.mark.parametrize("model", ["vgg16", "", "\ud800", "x" * 10000])
def test_unknown_model_is_told_the_known_ones(client, model):
    answer = client.request("POST", "/infer", json_request(model=model), JSON)
    assert answer.status == 404
    assert "resnet50, mobilenet" in answer.json["detail"]
    assert len(answer.json["detail"]) < 300


def test_absent_model_is_told_why(client):
    answer = client.infer(IMAGE, model="vgg16")
    assert answer.status == 404
    assert answer.json["detail"].endswith("got 'vgg16': no file for this device")


def test_device_without_memory_asks_to_come_again(client, backend):
    backend.failure = OutOfMemory("vgg16 needs 600 MB")
    answer = client.infer(IMAGE)
    assert (answer.status, answer.json["detail"]) == (503, "vgg16 needs 600 MB")
    assert "Retry-After" in answer.headers
    assert client.infer(IMAGE).status == 200


def test_server_answers_before_its_device_is_open(run_app):
    may_open = threading.Event()

    def make():
        assert may_open.wait(PATIENCE_S)
        return FakeBackend()

    accelerator = Accelerator(make)
    client = run_app(create_app("fake1", accelerator))
    health, infer, livez = client.get("/health"), client.infer(IMAGE), client.get("/livez")
    assert (health.status, infer.status, livez.status) == (503, 503, 200)
    assert "being opened" in health.json["detail"]
    assert "Retry-After" in infer.headers
    may_open.set()
    opened(accelerator)
    assert (client.get("/health").status, client.infer(IMAGE).status) == (200, 200)
    accelerator.close()


def test_body_of_the_largest_size_is_read_and_a_larger_one_is_not(client):
    assert client.infer(bytes(LARGEST)).status == 400
    for size in (LARGEST + 1, 4 * 1024 * 1024):
        answer = client.infer(bytes(size))
        assert (answer.status, answer.json["detail"][:36]) == (413, "body: expected at most 327680 bytes,")
    assert client.infer(IMAGE).status == 200
    assert client.request("POST", "/infer", json_request(input=9 * SIZE * "A"), JSON).status == 413
    assert client.request("POST", "/infer", json_request(), JSON).status == 200


@pytest.mark.parametrize("announced", [b"Content-Length: 327681", b"Transfer-Encoding: chunked"])
def test_too_large_a_body_is_refused_before_it_has_ended(client, announced):
    with socket.create_connection(("127.0.0.1", client.port), PATIENCE_S) as connection:
        head = b"POST /infer?model=resnet50 HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        connection.sendall(head + announced + b"\r\n\r\n")
        if b"chunked" in announced:
            connection.sendall(b"50001\r\n" + bytes(LARGEST + 1) + b"\r\n")
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_body_that_does_not_end_is_given_up(client, monkeypatch):
    monkeypatch.setattr("inference_server.inference_call.BODY_TIMEOUT_S", 0.05)
    with socket.create_connection(("127.0.0.1", client.port), PATIENCE_S) as connection:
        head = b"POST /infer?model=resnet50 HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        connection.sendall(head + b"Content-Length: 150528\r\n\r\n" + IMAGE[1:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # to the end: the server closes
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"it has not ended yet" in answer
    assert client.infer(IMAGE).status == 200


def unfinished(port, sent):
    """A connection whose request has a body that does not end."""
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    head = b"POST /infer?model=resnet50 HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    connection.sendall(head + b"Content-Length: 300000\r\n\r\n" + sent)
    return connection


def test_bodies_that_do_not_end_hold_a_bounded_sum_of_memory(client, monkeypatch):
    monkeypatch.setattr("inference_server.inference_call.MAX_BODIES_BYTES", 1 << 20)
    held = [unfinished(client.port, bytes(290000)) for _ in range(8)]  # three fit
    waiting = list(held)
    while len(waiting) > 3:
        readable, _, _ = select.select(waiting, [], [], PATIENCE_S)
        assert readable
        for connection in readable:
            waiting.remove(connection)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
            assert b"the bodies that are being received hold 1 MiB" in answer.read()
    assert client.infer(IMAGE).status == 200
    assert client.get("/health").status == 200
    monkeypatch.setattr("inference_server.inference_call.MAX_BODIES_BYTES", 1 << 18)
    for connection in held:
        connection.close()
    deadline_s = time.monotonic() + PATIENCE_S
    while client.infer(IMAGE).status != 200:  # only with nothing held: as soon as the server has seen that they are gone
        assert time.monotonic() < deadline_s


@pytest.mark.parametrize("line", [b"X: " + 70000 * b"x", 7000 * b"X: xxxxx\r\n", b"X: " + 1000000 * b"x"])
def test_head_without_an_end_is_refused(client, line):
    with socket.create_connection(("127.0.0.1", client.port), PATIENCE_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        refused = b""
        try:
            for _ in range(100):
                connection.sendall(line)
            refused = connection.recv(12)
        except ConnectionError:
            pass  # closed before all was sent
        assert refused in (b"", b"HTTP/1.1 400")
        connection.settimeout(PATIENCE_S)
    assert client.get("/health").status == 200


@pytest.mark.parametrize(
    "lines, reason",
    [
        (10000 * b"X: x\r\n", b"headers: expected at most 100, got 1000"),
        (101 * b"X: x\r\n", b"headers: expected at most 100, got 10"),
        (b"X: " + 66000 * b"x" + b"\r\n", b"request line and headers: expected at most 65536 bytes, got 66"),
        (50 * (b"X: " + 1400 * b"x" + b"\r\n"), b"request line and headers: expected at most 65536 bytes, got 7"),
    ],
)
def test_head_that_is_too_long_is_refused_also_when_it_comes_in_one_piece(client, lines, reason):
    with socket.create_connection(("127.0.0.1", client.port), PATIENCE_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # to the end: the server closes
    assert answer.startswith(b"HTTP/1.1 400")
    assert reason in answer or b"longer than 64 KiB" in answer
    assert client.get("/health").status == 200


def test_head_of_an_ordinary_size_is_taken(client):
    headers = {f"X-{number}": "x" * 500 for number in range(90)}
    assert client.request("GET", "/health", None, headers).status == 200


def test_full_queue_asks_to_come_again(client, accelerator, backend):
    backend.gate.clear()
    for _ in range(3):
        accelerator.submit("resnet50", IMAGE, {})
    answer = client.infer(IMAGE)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert "2 requests are waiting" in answer.json["detail"]
    assert client.get("/health").status == 200
    assert "inference_queue_full_total 1.0" in client.get("/metrics").text.splitlines()


def test_lost_accelerator_is_not_ready_but_alive(client, backend):
    backend.failure = AcceleratorGone("unplugged")
    answers = [client.infer(IMAGE), client.infer(IMAGE), client.get("/health")]
    assert [answer.status for answer in answers] == [503, 503, 503]
    assert all("unplugged" in answer.json["detail"] for answer in answers)
    assert "Retry-After" in answers[0].headers
    assert client.get("/livez").status == 200
    assert "inference_queue_full_total 0.0" in client.get("/metrics").text.splitlines()


def test_failed_inference_is_short_for_the_client_and_whole_in_the_log(client, backend, caplog):
    backend.failure = RuntimeError("bad tensor")
    answer = client.infer(IMAGE)
    assert (answer.status, answer.json) == (500, {"detail": "inference failed: RuntimeError"})
    assert "bad tensor" in caplog.text
    assert "Traceback" in caplog.text
    assert client.infer(IMAGE).status == 200


@pytest.mark.parametrize(
    "method, path, status", [("GET", "/", 404), ("GET", "/infer/", 404), ("GET", "/infer", 405), ("POST", "/health", 405)]
)
def test_errors_of_the_framework_look_like_ours(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status == status
    assert isinstance(answer.json["detail"], str)


def test_failure_of_a_handler_looks_like_ours(accelerator, run_app):
    app = create_app("fake1", accelerator)
    accelerator.health_problem = None
    answer = run_app(app).get("/health")
    assert (answer.status, answer.json) == (500, {"detail": "internal error: TypeError"})


def test_health_answers_while_an_inference_runs(client, accelerator, backend):
    backend.gate.clear()
    future = accelerator.submit("resnet50", IMAGE, {})
    assert backend.begun.acquire(timeout=PATIENCE_S)
    answer = client.get("/health")
    assert not future.done()
    assert answer.status == 200
    assert answer.json == {
        "status": "ok",
        "server": "fake1",
        "accelerator": "fake",
        "models": ["resnet50", "mobilenet"],
        "binary": True,
        "absent": {"vgg16": "no file for this device"},
        "details": {"driver": "1.2.3"},
    }


def test_liveness_ends_with_an_inference_older_than_the_watchdog(accelerator, backend, run_app):
    strict = run_app(create_app("fake1", accelerator, watchdog_s=0.0))
    assert strict.get("/livez").status == 200
    backend.gate.clear()
    accelerator.submit("resnet50", IMAGE, {})
    assert backend.begun.acquire(timeout=PATIENCE_S)
    assert strict.get("/livez").status == strict.get("/health").status == 503
    assert run_app(create_app("fake1", accelerator, watchdog_s=3600.0)).get("/livez").status == 200
    backend.gate.set()


def test_request_whose_client_went_away_is_not_computed(client, accelerator, backend):
    backend.gate.clear()
    accelerator.submit("resnet50", b"\1" + IMAGE, {})
    assert backend.begun.acquire(timeout=PATIENCE_S)
    assert accelerator.submitted.acquire(timeout=PATIENCE_S)

    leaver = socket.create_connection(("127.0.0.1", client.port), PATIENCE_S)
    head = "POST /infer?model=mobilenet HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    leaver.sendall((head + f"Content-Length: {SIZE}\r\n\r\n").encode() + IMAGE)
    assert accelerator.submitted.acquire(timeout=PATIENCE_S)
    withdrawn = threading.Event()
    accelerator.futures[-1].add_done_callback(lambda future: withdrawn.set())
    leaver.close()
    assert withdrawn.wait(PATIENCE_S)

    backend.gate.set()
    assert client.infer(b"\2" + IMAGE[1:]).json["top1"] == 2
    assert backend.calls == [("resnet50", 1), ("resnet50", 2)]


def test_metrics_count_requests_and_time_inferences(client, accelerator, backend):
    client.infer(IMAGE)
    client.infer(IMAGE[1:])
    client.infer(IMAGE, model="nonsense")
    backend.gate.clear()
    accelerator.submit("resnet50", IMAGE, {})
    accelerator.submit("resnet50", IMAGE, {})
    for _ in range(2):
        assert backend.begun.acquire(timeout=PATIENCE_S)
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'inference_requests_total{code="200",model="resnet50"} 1.0' in lines
    assert 'inference_requests_total{code="400",model="resnet50"} 1.0' in lines
    assert 'inference_requests_total{code="404",model="unknown"} 1.0' in lines
    assert 'inference_duration_seconds_count{model="resnet50"} 1.0' in lines
    assert "inference_queue_depth 1.0" in lines
    assert "inference_model_switches_total 0.0" in lines
    assert "nonsense" not in answer.text


def test_document_describes_both_bodies_and_every_error(client):
    document = client.get("/openapi.json").json
    infer = document["paths"]["/infer"]["post"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert set(infer["responses"]) == {"200", "400", "404", "408", "413", "500", "503"}
    assert infer["parameters"][0]["name"] == "model"
    assert set(document["paths"]) == {"/infer", "/health", "/livez", "/metrics"}


def test_sigterm_finishes_the_request_that_runs_and_ends_with_0():
    program = """
        import socket, sys
        from inference_server import Accelerator, Backend, create_app, serve

        class Slow(Backend):
            accelerator, models, absent, details = "fake", ["resnet50"], {}, {}

            def infer(self, model, image):
                print("begun", flush=True)
                sys.stdin.readline()
                return 3

            def close(self):
                print("closed", flush=True)

        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        ready = lambda: print(bound.getsockname()[1], bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), flush=True)
        accelerator = Accelerator(Slow)
        accelerator.opened.wait()
        serve(create_app("slow1", accelerator), bound_socket=bound, on_ready=ready)
        """
    process: Any = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=dict(os.environ, PYTHONPATH=str(DOCKER)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    try:
        port, without_delay = process.stdout.readline().split()
        assert int(without_delay)  # else each answer waits for the client's delayed acknowledgement
        client, answers = Client(int(port)), []
        asking = threading.Thread(target=lambda: answers.append(client.infer(IMAGE)))
        asking.start()
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        process.stdin.write("\n")
        process.stdin.flush()
        asking.join(PATIENCE_S)
        client.close()
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (answers[0].status, answers[0].json["top1"]) == (200, 3)
        assert (process.returncode, out, err) == (0, "closed\n", "")
    finally:
        process.kill()
        process.wait()
