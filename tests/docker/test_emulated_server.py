"""Emulated nodes as they are used: as processes, over HTTP."""

import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from typing import Any

import pytest

from emulated_inference_server.accelerator import EmulatedAccelerator
from emulated_inference_server.node_slice import NodeSlice
from tests.docker.servers import PATIENCE_S, Client

ROOT_ENV = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path.endswith("docker")))
COMMAND = [sys.executable, "-m", "emulated_inference_server"]
IMAGE = bytes(range(256)) * 588
CORAL = {
    "node": "coral1",
    "accelerator": "coral",
    "idle_w": 4.56,
    "busy_w": 5.35,
    "request_overhead_ms": 0.0,
    "cv": 0.07,
    "mean_ms": {"mobilenet": 2.0, "resnet50": 5.0},
    "queue_capacity": 200,
}


def launch(options) -> Any:
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *options], env=ROOT_ENV, text=True, **pipes)


class Node:
    """A running emulated node."""

    def __init__(self, *options, **changes):
        self.process = launch(options)
        self.process.stdin.write(json.dumps(CORAL | changes) + "\n")
        self.process.stdin.flush()
        self.said = json.loads(self.process.stdout.readline())
        self.client = Client(self.said["port"])

    def calibrate(self, body):
        return self.client.request("POST", "/calibration", body, {"Content-Type": "application/json"})

    def metric(self, name):
        (value,) = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(value)

    def send_image(self):
        """Ask for an inference on a connection of its own, and do not wait for the answer."""
        connection = socket.create_connection(("127.0.0.1", self.said["port"]), PATIENCE_S)
        head = "POST /infer?model=resnet50 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Content-Type: application/octet-stream\r\nContent-Length: {len(IMAGE)}\r\n\r\n"
        connection.sendall(head.encode() + IMAGE)
        return connection

    def end(self):
        self.client.close()
        self.process.kill()
        self.process.communicate()


def read_answer(connection):
    with connection, connection.makefile("rb") as answer:
        return json.loads(answer.read().partition(b"\r\n\r\n")[2])


@pytest.fixture
def start():
    nodes = []

    def start_node(*options, **changes):
        nodes.append(Node(*options, **changes))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.end()


def test_says_its_name_and_the_port_that_answers(start):
    node = start()
    assert node.said["node"] == "coral1"
    assert node.client.get("/health").json == {
        "status": "ok",
        "server": "coral1",
        "accelerator": "coral",
        "models": ["mobilenet", "resnet50"],
        "binary": True,
        "absent": {},
        "details": {"emulated": "service times are drawn, no model is computed"},
    }
    assert node.client.get("/livez").status == 200


def test_takes_the_port_it_is_given_or_another_if_that_is_taken(start):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    first = start("--port", str(port))
    second = start("--port", str(port))
    assert first.said["port"] == port != second.said["port"]
    assert second.client.get("/health").status == 200


@pytest.mark.parametrize("noise", [None, 0.0, -2.5, 1.25])
def test_service_time_follows_from_the_noise_of_the_task(start, noise):
    headers = {} if noise is None else {"X-Service-Noise": str(noise)}
    answer = start().client.infer(IMAGE, **headers)
    variance = math.log(1 + 0.07**2)
    expected_s = 0.005 * math.exp(math.sqrt(variance) * (noise or 0.0) - variance / 2)
    assert answer.json["inference_time"] == pytest.approx(expected_s, rel=1e-12)
    assert answer.json["top1"] == zlib.crc32(IMAGE) % 1000
    assert answer.json["queue_time"] == 0.0


@pytest.mark.parametrize("noise", ["", "abc", "nan", "inf", "-inf", "10.5"])
def test_noise_that_makes_no_sense_is_refused(start, noise):
    answer = start().client.infer(IMAGE, **{"X-Service-Noise": noise})
    assert answer.status == 400
    assert answer.json["detail"].startswith("X-Service-Noise: expected a number from -10 to 10")


def test_answer_does_not_come_before_its_time(start):
    node = start(request_overhead_ms=60.0)
    sent_s = time.monotonic()
    answer = node.client.infer(IMAGE)
    assert time.monotonic() - sent_s >= 0.06 + answer.json["inference_time"]
    assert answer.json["inference_time"] < 0.006
    assert answer.json["queue_time"] == 0.0


def accelerator(**changes):
    return EmulatedAccelerator(NodeSlice.from_json(json.dumps(CORAL | {"mean_ms": {"resnet50": 10.0}, "cv": 0.0} | changes)))


def test_overhead_noise_stretches_the_overhead_and_its_energy_and_without_it_the_overhead_is_the_mean():
    answering = accelerator(request_overhead_ms=20.0, overhead_cv=0.5, overhead_w=3.0)
    sigma = math.sqrt(math.log(1.25))
    for noise in (None, -1.0, 0.0, 2.0):
        expected_s = 0.02 if noise is None else 0.02 * math.exp(sigma * noise - sigma**2 / 2)
        headers = {} if noise is None else {"x-overhead-noise": str(noise)}
        before_j = answering.energy_j() - 4.56 * answering._clock()
        answering.submit("resnet50", IMAGE, headers).result(PATIENCE_S)
        slot = answering._timeline._slots[-1]
        assert 2 * slot.transfer_s == pytest.approx(expected_s)
        while answering._clock() < slot.end_s + slot.transfer_s:
            time.sleep(0.001)
        drawn_j = answering.energy_j() - 4.56 * answering._clock() - before_j
        assert drawn_j == pytest.approx(0.79 * 0.01 + 3.0 * expected_s, abs=1e-3)
    answering.calibrate(4.0)
    answering.submit("resnet50", IMAGE, {"x-overhead-noise": "2"}).result(PATIENCE_S)
    assert 2 * answering._timeline._slots[-1].hold_after_s == pytest.approx(expected_s - 0.004)
    answering.close()


def test_answer_with_a_short_way_back_overtakes_one_with_a_long_way():
    answering = accelerator(request_overhead_ms=100.0, overhead_cv=0.5)
    slow = answering.submit("resnet50", IMAGE, {"x-overhead-noise": "2"})
    quick = answering.submit("resnet50", IMAGE, {"x-overhead-noise": "-2"})
    quick.result(PATIENCE_S)
    assert not slow.done()
    slow.result(PATIENCE_S)
    answering.close()


@pytest.mark.parametrize("noise", ["ten", "nan", "11"])
def test_overhead_noise_that_is_no_standard_normal_number_is_refused(start, noise):
    answer = start().client.infer(IMAGE, **{"X-Overhead-Noise": noise})
    assert answer.status == 400
    assert "X-Overhead-Noise: expected a number from -10 to 10" in answer.json["detail"]


def test_one_inference_at_a_time(start):
    node = start(mean_ms={"resnet50": 50.0}, cv=0.0)
    connections = [node.send_image() for _ in range(4)]
    answers = sorted((read_answer(connection) for connection in connections), key=lambda answer: answer["start_time"])
    for earlier, later in pairwise(answers):
        assert later["start_time"] >= earlier["end_time"] - 1e-4  # the accuracy of the wall clock in these two
        assert later["queue_time"] <= 0.05 * len(answers)
    assert answers[0]["queue_time"] == 0.0


def test_calibration_takes_the_local_round_trip_off_the_overhead(start):
    node = start(request_overhead_ms=15.0)
    answer = node.calibrate('{"local_round_trip_ms": 3}')
    assert (answer.status, answer.json) == (200, {"local_round_trip_ms": 3.0, "hold_ms": 6.0})
    assert node.calibrate('{"local_round_trip_ms": 20}').json["hold_ms"] == 0.0
    assert "/calibration" in node.client.get("/openapi.json").json["paths"]


@pytest.mark.parametrize("value", ["-1", "NaN", "Infinity", "1e9", '"3"', "true", "null", "1" * 500])
def test_calibration_that_makes_no_sense_is_refused(start, value):
    answer = start().calibrate(f'{{"local_round_trip_ms": {value}}}')
    assert answer.status == 400
    assert "local_round_trip_ms" in answer.json["detail"]


@pytest.mark.parametrize("body", ["", "[]", "{", " " * 5000])
def test_calibration_that_is_no_object_is_refused(start, body):
    assert start().calibrate(body).status == 400


def test_full_queue_is_refused(start):
    node = start(mean_ms={"resnet50": 20000.0}, queue_capacity=1)
    others = [node.send_image() for _ in range(3)]
    try:
        ready, _, _ = select.select(others, [], [], PATIENCE_S)  # two are served for 20 s, so the third answers first
        assert ready[0].recv(12) == b"HTTP/1.1 503"
        assert node.metric("inference_queue_depth") == 1
    finally:
        for other in others:
            other.close()


def test_inference_that_has_begun_goes_on_without_its_client_and_is_counted():
    accelerator = EmulatedAccelerator(NodeSlice.from_json(json.dumps(CORAL | {"mean_ms": {"resnet50": 100.0}, "cv": 0.0})))
    begun, waiting = (accelerator.submit("resnet50", IMAGE, {}) for _ in range(2))
    while accelerator.queue_depth > 1:  # the first travels
        time.sleep(0.001)
    assert not begun.cancel()
    assert waiting.cancel() and waiting.cancel()
    assert begun.result(PATIENCE_S).inference_time == pytest.approx(0.1)
    assert not begun.cancel()
    accelerator.close()


def test_request_whose_client_went_away_leaves_its_place():
    accelerator = EmulatedAccelerator(NodeSlice.from_json(json.dumps(CORAL | {"mean_ms": {"resnet50": 100.0}, "cv": 0.0})))
    first, cancelled, last = (accelerator.submit("resnet50", IMAGE, {}) for _ in range(3))
    assert cancelled.cancel()
    assert last.result(PATIENCE_S).queue_time <= 0.1  # what is left of the first; with the cancelled one almost 0.2
    assert first.result(0).queue_time == 0.0
    accelerator.close()


def test_energy_above_idle_is_exactly_that_of_the_inferences(start):
    node = start(idle_w=0.0, busy_w=10.0)
    busy_s = sum(
        node.client.infer(IMAGE, model, **{"X-Service-Noise": noise}).json["inference_time"]
        for model in ("mobilenet", "resnet50")
        for noise in ("-1", "0", "2")
    )
    assert node.metric("node_energy_joules_total") == pytest.approx(10.0 * busy_s, rel=1e-9)
    assert node.metric("node_power_watts") >= 0.0


def test_idle_energy_follows_the_clock(start):
    node = start(idle_w=4.0, busy_w=4.0)
    first_s, first_j = time.monotonic(), node.metric("node_energy_joules_total")
    between_s = time.monotonic()
    node.client.infer(IMAGE)
    again_s, second_j = time.monotonic(), node.metric("node_energy_joules_total")
    assert 4.0 * (again_s - between_s) <= second_j - first_j <= 4.0 * (time.monotonic() - first_s)


def test_metrics_carry_the_labels_of_the_contract(start):
    node = start()
    node.client.infer(IMAGE)
    text = node.client.get("/metrics").text
    assert 'node_power_watts{accelerator="coral",node="coral1"}' in text
    assert 'node_energy_joules_total{accelerator="coral",node="coral1"}' in text
    assert 'emulated_wake_lateness_seconds_bucket{le="0.0001"}' in text
    assert "emulated_wake_lateness_seconds_count 1.0" in text


def test_ends_with_its_input(start):
    node = start(mean_ms={"resnet50": 20000.0})
    node.process.stdin.close()
    assert node.process.wait(PATIENCE_S) == 0
    assert node.process.stderr.read() == ""
    node.process.stdin = None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_quietly_when_told(start, number):
    node = start()
    node.process.send_signal(number)
    out, err = node.process.communicate(timeout=PATIENCE_S)
    assert (node.process.returncode, out, err) == (0, "", "")


def test_ends_when_its_parent_is_killed():
    parent_program = f"""
import subprocess, time
node = subprocess.Popen({COMMAND!r}, stdin=subprocess.PIPE, text=True)
node.stdin.write({json.dumps(CORAL)!r} + "\\n")
node.stdin.flush()
node.wait()
"""
    parent: Any = subprocess.Popen([sys.executable, "-c", parent_program], env=ROOT_ENV, stdout=subprocess.PIPE, text=True)
    try:
        port = json.loads(parent.stdout.readline())["port"]
        parent.kill()
        ended, _, _ = select.select([parent.stdout], [], [], PATIENCE_S)  # the node holds the other end of the pipe
        assert ended
        assert parent.stdout.read() == ""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    finally:
        parent.kill()
        parent.communicate()


@pytest.mark.parametrize(
    "line, says",
    [
        ("", "expected a JSON object"),
        ("nonsense", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        (json.dumps(CORAL | {"idle_w": 6.0}), "busy_w: expected a number of at least 6, got 5.35"),
        (json.dumps(CORAL | {"idle_w": -1}), "idle_w: expected a number of at least 0, got -1"),
        (json.dumps(CORAL | {"cv": None}), "cv: expected a number"),
        (json.dumps(CORAL | {"cv": math.nan}), "cv: expected a number"),
        (json.dumps(CORAL | {"cv": 1e200}), "cv: expected a number of at most 10, got 1e+200"),
        (json.dumps(CORAL | {"busy_w": 1e300}), "busy_w: expected a number of at most 100000, got 1e+300"),
        (json.dumps(CORAL | {"mean_ms": {"vgg16": 1e-320}}), "mean_ms: expected 0.001 to 3.6e+06 for 'vgg16', got 1e-320"),
        (json.dumps(CORAL | {"node": ""}), "node: expected a text"),
        (json.dumps(CORAL | {"mean_ms": {}}), "mean_ms: expected an object"),
        (json.dumps(CORAL | {"mean_ms": {"vgg16": 0}}), "mean_ms: expected milliseconds above 0 for 'vgg16', got 0"),
        (json.dumps(CORAL | {"queue_capacity": 0}), "queue_capacity: expected a whole number"),
        (json.dumps(CORAL | {"colour": "red"}), "unknown key 'colour'"),
        (json.dumps({name: value for name, value in CORAL.items() if name != "accelerator"}), "accelerator: missing"),
    ],
)
def test_bad_slice_is_one_clear_line(line, says):
    done = subprocess.run(COMMAND, env=ROOT_ENV, input=line + "\n", capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
