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
PROGRAM = """
    import time
    from inference_server import Backend
    from inference_server.main import run_server

    class FirstByte(Backend):
        accelerator, details = "fake", {"driver": "1.2.3"}

        def __init__(self, files, environment):
            self.models, self.absent = [model.name for model in files.files], files.absent

        def infer(self, model, image):
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
        ("OPEN_TIMEOUT_S", "soon"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_variables_are_checked(name, value):
    with pytest.raises(InvalidVariable, match=name + ": expected"):
        settings_from({name: value})


def test_empty_variables_count_as_absent():
    assert settings_from(dict.fromkeys(["PORT", "QUEUE_CAPACITY", "LOG_LEVEL", "MODEL_DIR"], "")) == settings_from({})
