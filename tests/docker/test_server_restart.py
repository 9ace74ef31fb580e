"""A server that its library ends in the middle of a request, and comes back: the harness goes on, and says what it lost."""

import csv
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import yaml

import main_pregenerated
from settings import load_settings
from tests.docker.servers import DOCKER, PATIENCE_S, Client
from tests.helpers import eventually

MODELS = ("mobilenet", "resnet50", "efficientnet", "vgg16")
PROGRAM = """
    import os
    from pathlib import Path
    from inference_server import Backend
    from inference_server.main import run_server

    class Aborting(Backend):
        accelerator, details = "coral", {}

        def __init__(self, files, environment):
            self.models, self.absent, self.left = [model.name for model in files.files], files.absent, 20

        def infer(self, model, image):
            self.left -= 1
            if not self.left and not Path(os.environ["ABORTED"]).exists():
                Path(os.environ["ABORTED"]).touch()
                os.abort()  # as libedgetpu does at an error of USB
            return 1

    run_server(Aborting)
"""


class Restarting:
    """A server that is started again whenever it ends, as Kubernetes does it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        variables = {"NODE_NAME": "coral1", "HOST": "127.0.0.1", "PORT": str(self.port), "MODEL_DIR": str(folder)}
        self._environment = {**os.environ, **variables, "PYTHONPATH": str(DOCKER), "ABORTED": str(folder / "aborted")}
        self._ending = threading.Event()
        self.statuses: list[int] = []
        self._process = self._started()
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM)], env=self._environment, stderr=subprocess.DEVNULL
        )

    def _keep(self) -> None:
        while True:
            self.statuses.append(self._process.wait())
            if self._ending.is_set():
                return
            self._process = self._started()

    def is_ready(self) -> bool:
        """Whether it serves now."""
        client = Client(self.port)
        try:
            return client.get("/health").status == 200
        except OSError:
            return False
        finally:
            client.close()

    def end(self) -> None:
        """End it for good."""
        self._ending.set()
        self._process.send_signal(signal.SIGKILL)
        self._thread.join(PATIENCE_S)


@pytest.fixture
def server(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"weights")
    entry = {"file": "a.bin", "input_type": "uint8", "sha256": hashlib.sha256(b"weights").hexdigest()}
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": dict.fromkeys(MODELS, entry)}))
    server = Restarting(tmp_path)
    yield server
    server.end()


@pytest.mark.timeout(180)
def test_the_harness_survives_a_server_that_aborts_in_a_request_and_uses_it_again(server, tmp_path, monkeypatch):
    assert eventually(server.is_ready)
    config, results = tmp_path / "config.yaml", tmp_path / "results"
    config.write_text("power: {idle_baseline_s: 0}\ndevices: {count: 30}\n")
    monkeypatch.setattr(main_pregenerated, "WORKERS", {"coral1": f"http://127.0.0.1:{server.port}/infer"})
    options = ["--config", config, "--duration", "6", "--cluster", "workers", "--output", results, "--quiet", "--no-report"]
    options += ["--prometheus-url", "http://127.0.0.1:9"]  # nobody measures power here
    assert load_settings(config).devices.count == 30
    assert main_pregenerated.main(list(map(str, options))) == 0
    assert server.statuses == [-signal.SIGABRT]

    (summary_file,) = results.glob("*/experiment_summary_*.json")
    summary = json.loads(summary_file.read_text())
    tasks = summary["tasks"]
    assert (
        sum(count for name, count in tasks.items() if name in ("on_time", "late", "failed", "skipped", "unfinished"))
        == (tasks["generated"])
    )
    with (summary_file.parent / "master_inference_results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["outcome"] != "skipped"]
    by_arrival = [row["outcome"] for row in sorted(rows, key=lambda row: float(row["arrival_time_s"]))]
    lost = [place for place, outcome in enumerate(by_arrival) if outcome == "failed"]
    assert lost
    assert {"on_time", "late"} & set(by_arrival[: lost[0]])  # before it aborted
    assert {"on_time", "late"} & set(by_arrival[lost[-1] + 1 :])  # and after it came back
