"""The main program of the real servers, in a process of its own with a device that is a stand-in. Valid Python 3.6."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from inference_server.backend import IMAGE_BYTES
from inference_server.main import InvalidVariable, settings_from
from tests.docker.servers import DOCKER, PATIENCE_S, Client

IMAGE = b"\7" + bytes(IMAGE_BYTES - 1)
JSON = {"Content-Type": "application/json"}
PROGRAM = """
    import ctypes, os, time
    from inference_server import Backend
    from inference_server.backend import let_others_run
    from inference_server.main import run_server

    def hold_the_lock(seconds):
        ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1e6)))  # as libraries do that are loaded with PyDLL

    class FirstByte(Backend):
        accelerator, details = "fake", {"driver": "1.2.3"}

        def __init__(self, files, environment):
            self.models, self.absent = [model.name for model in files.files], files.absent
            for _ in range(int(os.environ.get("STEPS", "1"))):
                let_others_run()
                hold_the_lock(float(os.environ.get("STEP_S", "0")))

        def infer(self, model, image):
            if image[0] == 253:
                hold_the_lock(60)
            if image[0] == 252:
                os.abort()
            while image[0] == 255:
                time.sleep(1)
            if image[0] == 254:
                raise RuntimeError("bad tensor")
            return image[0]

    run_server(FirstByte)
"""


class Server:
    """A running server and what it logs."""

    def __init__(self, directory, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = dict(os.environ, PYTHONPATH=str(DOCKER), NODE_NAME="fake1", HOST="127.0.0.1", PORT=str(port))
        variables.update(environment, MODEL_DIR=str(directory))
        self.process: Any = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
        )
        self.client = Client(port)

    def health(self):
        """What /health says as soon as it says anything."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.client.get("/health")
            except OSError:
                self.client.close()
                assert time.monotonic() < deadline_s
                assert self.process.poll() is None, self.process.communicate()
                time.sleep(0.01)

    def ready(self):
        """Wait until the models are loaded."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.health().status != 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        return self

    def ended(self):
        """Exit status and the lines of the log, once it has ended."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert out == ""
        return self.process.returncode, [json.loads(line) for line in err.splitlines()]


@pytest.fixture
def start(tmp_path):
    servers = []

    def start(**environment):
        servers.append(Server(tmp_path, **environment))
        return servers[-1]

    (tmp_path / "a.bin").write_bytes(b"weights")
    entry = f"{{file: a.bin, input_type: uint8, sha256: {hashlib.sha256(b'weights').hexdigest()}}}"
    (tmp_path / "models.yaml").write_text(f"models:\n  mobilenet: {entry}\n  vgg16: {{absent: not compiled}}\n")
    yield start
    for server in servers:
        server.client.close()
        if server.process.returncode is None:  # Python 3.6 cannot read a closed pipe a second time
            server.process.kill()
            server.process.communicate()


def test_serves_logs_in_json_and_ends_with_0_on_sigterm(start):
    server = start().ready()
    health = server.health().json
    assert (health["server"], health["models"], health["absent"]) == ("fake1", ["mobilenet"], {"vgg16": "not compiled"})
    assert server.client.infer(IMAGE, "mobilenet").json["top1"] == 7
    assert server.client.infer(b"\xfe" + IMAGE[1:], "mobilenet").status == 500
    server.process.send_signal(signal.SIGTERM)
    status, log = server.ended()
    assert status == 0
    assert {line["node"] for line in log} == {"fake1"}
    assert all({"timestamp", "level", "logger", "message"} <= set(line) for line in log)
    said = {line["message"]: line for line in log}
    assert said["model ready"]["model"] == "mobilenet"
    assert said["model absent"]["reason"] == "not compiled"
    assert said["accelerator ready"]["driver"] == "1.2.3"
    assert "bad tensor" in said["inference of mobilenet failed"]["exc_info"]


def test_inference_that_hangs_ends_the_process_with_70(start):
    server = start(INFERENCE_TIMEOUT_S="0.5").ready()
    with pytest.raises(OSError):
        server.client.infer(b"\xff" + IMAGE[1:], "mobilenet")
    status, log = server.ended()
    assert status == 70
    assert log[-1]["level"] == "CRITICAL"
    assert "an inference has taken" in log[-1]["message"]


def test_inference_that_hangs_with_the_lock_of_python_held_ends_the_process_with_1(start):
    server = start(INFERENCE_TIMEOUT_S="0.3").ready()
    assert server.client.infer(IMAGE, "mobilenet").status == 200
    with pytest.raises(OSError):
        server.client.infer(b"\xfd" + IMAGE[1:], "mobilenet")
    out, err = server.process.communicate(timeout=PATIENCE_S)
    assert (server.process.returncode, out) == (1, "")
    assert "Timeout (0:00:01.3" in err
    assert "in hold_the_lock" in err


def test_opening_that_hangs_with_the_lock_of_python_held_ends_the_process_with_1(start):
    process = start(OPEN_TIMEOUT_S="0.3", STEP_S="60").process
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    assert "Timeout (0:00:01.3" in err
    assert "in hold_the_lock" in err


def test_slow_opening_within_its_limit_and_idle_time_end_nothing(start):
    server = start(OPEN_TIMEOUT_S="1.5", INFERENCE_TIMEOUT_S="0.1", STEPS="2", STEP_S="0.6").ready()
    time.sleep(1.3)  # longer than an inference may take; gauges are read meanwhile
    assert server.client.infer(IMAGE, "mobilenet").status == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.ended()[0] == 0


def test_livez_is_answered_between_two_steps_of_opening_that_hold_the_lock(start):
    server = start(STEPS="8", STEP_S="0.2")
    answers = []
    while server.health().status != 200:
        answers.append(server.client.get("/livez").status)
    assert set(answers) == {200}
    assert len(answers) >= 3


def test_library_that_aborts_ends_the_process_by_its_signal_and_the_log_says_in_which_call(start):
    server = start().ready()
    with pytest.raises(OSError):
        server.client.infer(b"\xfc" + IMAGE[1:], "mobilenet")
    out, err = server.process.communicate(timeout=PATIENCE_S)
    assert (server.process.returncode, out) == (-signal.SIGABRT, "")
    assert "Fatal Python error: Aborted" in err
    assert "in infer" in err


def test_what_clients_send_is_not_raw_in_the_log(start):
    server = start(LOG_LEVEL="DEBUG").ready()
    wild = "\x1b[31mred\u202e"
    binary = {"Content-Type": "application/octet-stream"}
    client = server.client
    assert client.request("POST", "/infer?model=%1B%5B31mred%0Aroot", IMAGE, binary).status == 404
    assert client.request("POST", "/infer", json.dumps({"model": wild + "\n", "input": wild}), JSON).status == 404
    assert client.request("POST", "/infer", b"\x1b[31m\r\n{", JSON).status == 400
    assert client.request("POST", "/infer", IMAGE, {"Content-Type": "\x1b[31mred"}).status == 400
    for line in (b"GET /\x1b[31m HTTP/1.1", b"\x1b[31mred", b"POST /infer HTTP/1.1\r\nContent-Length: \x1b[31m"):
        with socket.create_connection(("127.0.0.1", client.port), PATIENCE_S) as connection:
            connection.sendall(line + b"\r\nHost: x\r\n\r\n")
            assert connection.recv(9) in (b"", b"HTTP/1.1 ")  # some just close
    server.process.send_signal(signal.SIGTERM)
    out, err = server.process.communicate(timeout=PATIENCE_S)
    assert (server.process.returncode, out) == (0, "")
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert all(json.loads(line)["node"] == "fake1" for line in err.splitlines())


def test_without_models_it_says_so_instead_of_ending(start, tmp_path):
    (tmp_path / "a.bin").unlink()
    server = start()
    deadline_s = time.monotonic() + PATIENCE_S
    while "being opened" in server.health().json["detail"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    answer = server.health()
    assert answer.status == 503
    assert "none of the models can be served" in answer.json["detail"]
    assert "a.bin cannot be read" in answer.json["detail"]
    assert server.client.get("/livez").status == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.ended()[0] == 0


def test_variable_that_makes_no_sense_ends_with_2_and_one_line(start):
    process = start(PORT="no").process
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (2, "", "PORT: expected a whole number from 0 to 65535, got 'no'\n")


def test_port_that_is_taken_ends_with_1_before_the_device_is_opened(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(PORT=str(taken.getsockname()[1])).process
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("HOST, PORT: cannot listen on 127.0.0.1:")
    assert last.endswith("Address already in use")
    assert "accelerator" not in err


@pytest.mark.parametrize(
    "name, value",
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("QUEUE_CAPACITY", "0"),
        ("QUEUE_CAPACITY", "1.5"),
        ("INFERENCE_TIMEOUT_S", "0"),
        ("INFERENCE_TIMEOUT_S", "inf"),
        ("INFERENCE_TIMEOUT_S", "86401"),
        ("OPEN_TIMEOUT_S", "soon"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_variables_are_checked(name, value):
    with pytest.raises(InvalidVariable, match=name + ": expected"):
        settings_from({name: value})


def test_empty_variables_count_as_absent():
    assert settings_from(dict.fromkeys(["PORT", "QUEUE_CAPACITY", "LOG_LEVEL", "MODEL_DIR"], "")) == settings_from({})
