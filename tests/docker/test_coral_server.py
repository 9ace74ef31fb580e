"""The Coral server in its own process on TensorFlow Lite's CPU kernels: real models, real HTTP; no Edge TPU took part."""

import hashlib
import json
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from urllib3.util import parse_url

import main_pregenerated
from cluster.http_client import Health, NodeClient
from settings import load_settings
from tests.docker.environments import CORAL, clean_environment, find_python, not_found, run
from tests.docker.servers import DOCKER, PATIENCE_S, Answer, Client
from tests.docker.tflite_models import Quantisation, block_image, classifier, edge_tpu_model
from tests.helpers import eventually

pytestmark = pytest.mark.timeout(900)  # the first time it installs

IMAGES = [block_image(rng) for rng in np.random.default_rng(7).spawn(40)]
MODELS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "mobilenet": (classifier("uint8", Quantisation(1 / 128, 128), seed=1), {"input_type": "uint8"}),
    "resnet50": (
        classifier("int8", Quantisation(0.0173, -23), seed=2),
        {"input_type": "int8", "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]},
    ),
    "efficientnet": (classifier("float32", seed=3), {"input_type": "float32", "mean": 127.0, "std": 128.0}),
    "vgg16": (classifier("uint8", Quantisation(1 / 128, 128), seed=4), {"input_type": "uint8", "mean": 127.5, "std": 100.0}),
}
REFERENCE = """
    # Each pixel becomes the stored value whose meaning is nearest to what the pixel means.
    import json, sys
    import numpy as np
    from tflite_runtime.interpreter import Interpreter

    def stored_values(kind, mean, std, scale, zero_point):
        meant = (np.arange(256.0) - mean) / std
        if kind == np.float32:
            return meant.astype(np.float32)
        range_of_kind = np.iinfo(kind)
        stored = np.arange(range_of_kind.min, range_of_kind.max + 1)
        meanings = (stored - zero_point) * scale
        return stored[np.abs(meanings[None, :] - meant[:, None]).argmin(axis=1)].astype(kind)

    images = np.fromfile(sys.argv[1], np.uint8).reshape(-1, 224, 224, 3)
    answers = {}
    for name, path, mean, std in json.loads(sys.argv[2]):
        interpreter = Interpreter(path)
        interpreter.allocate_tensors()
        given, = interpreter.get_input_details()
        scores, = interpreter.get_output_details()
        answers[name] = []
        for image in images:
            if mean is None:
                tensor = image
            else:
                tensor = np.stack([
                    stored_values(given["dtype"], mean[channel], std[channel], *given["quantization"])[image[:, :, channel]]
                    for channel in range(3)
                ], axis=-1)
            interpreter.set_tensor(given["index"], tensor[None])
            interpreter.invoke()
            answers[name].append(int(interpreter.get_tensor(scores["index"])[0].argmax()))
    print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python of the image with its pins; the one that runs this test serves too, if it is one that TensorFlow Lite has."""
    running = sys.executable if sys.version_info[:2] == (3, 11) else None
    interpreter = find_python("3.10") or running
    if interpreter is None:
        pytest.skip(f"{not_found('3.10')}, and this is not 3.11: tflite-runtime 2.14 has no other")
    return CORAL.made_with(interpreter)


class Server:
    """A running Coral server."""

    def __init__(self, python: Path, directory: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        variables = {"NODE_NAME": "coral1", "HOST": "127.0.0.1", "PORT": str(self.port), "MODEL_DIR": str(directory)}
        self.process = subprocess.Popen(
            [python, "-m", "coral_inference_server.coral_inference_server"],
            cwd=DOCKER,
            env={**clean_environment(), "CORAL_DELEGATE": "none", **variables, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.client = Client(self.port)

    def health(self) -> Answer | None:
        """What /health says; None before anything listens."""
        assert self.process.poll() is None, self.process.communicate()
        try:
            return self.client.get("/health")
        except OSError:
            self.client.close()
            return None

    def wait_until_ready(self) -> None:
        assert eventually(lambda: (answer := self.health()) is not None and answer.status == 200)

    def ended(self) -> tuple[int, list[dict[str, Any]], list[str]]:
        """Exit status, log, and what TensorFlow Lite itself wrote, after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert out == ""
        native = [line for line in err.splitlines() if line.startswith("INFO: ")]
        return self.process.returncode, [json.loads(line) for line in err.splitlines() if line not in native], native


@contextmanager
def serving(python: Path, directory: Path, **environment: str) -> Iterator[Server]:
    """A server that is ended with the block, whatever the test found."""
    server = Server(python, directory, **environment)
    try:
        yield server
    finally:
        server.client.close()
        server.process.kill()
        server.process.communicate()


def shelve(directory: Path, **models: dict[str, Any] | tuple[bytes, dict[str, Any]]) -> None:
    """Write models and their manifest; a model is its file with its entry, or only the entry."""
    entries = {}
    for name, model in models.items():
        if isinstance(model, dict):
            entries[name] = model
            continue
        content, entry = model
        (directory / f"{name}.tflite").write_bytes(content)
        entries[name] = {"file": f"{name}.tflite", "sha256": hashlib.sha256(content).hexdigest(), **entry}
    (directory / "models.yaml").write_text(yaml.safe_dump({"models": entries}, sort_keys=False))


def own_answers(python: Path, directory: Path, images: list[bytes]) -> dict[str, list[int]]:
    """What the interpreter says by itself, with an input made another way."""
    (directory / "images.bin").write_bytes(b"".join(images))
    given = []
    for name, (_, entry) in MODELS.items():
        mean, std = (np.broadcast_to(entry[key], 3).tolist() if key in entry else None for key in ("mean", "std"))
        given.append((name, str(directory / f"{name}.tflite"), mean, std))
    said: dict[str, list[int]] = json.loads(
        run([python, "-c", textwrap.dedent(REFERENCE), str(directory / "images.bin"), json.dumps(given)])
    )
    return said


def test_top1_is_the_interpreters_own_for_every_input_type(python: Path, tmp_path: Path):
    shelve(tmp_path, **MODELS)
    expected = own_answers(python, tmp_path, IMAGES)
    assert all(len(set(answers)) > 10 for answers in expected.values())
    with serving(python, tmp_path) as server:
        server.wait_until_ready()
        found = {name: [server.client.infer(image, name).json["top1"] for image in IMAGES] for name in MODELS}
        assert found == expected
        health = server.client.get("/health").json
        assert (health["server"], health["accelerator"], health["models"]) == ("coral1", "cpu", list(MODELS))
        assert "no Edge TPU" in health["details"]["delegate"]
        assert (health["details"]["tflite"], health["details"]["numpy"]) == ("2.14.0", "1.26.4")


def test_another_quantisation_would_give_other_answers(python: Path, tmp_path: Path):
    shelve(tmp_path, resnet50=MODELS["resnet50"], shifted=(MODELS["resnet50"][0], {"input_type": "int8", "std": 1 / 0.0173}))
    with serving(python, tmp_path) as server:
        server.wait_until_ready()
        pairs = [[server.client.infer(image, name).json["top1"] for name in ("resnet50", "shifted")] for image in IMAGES]
    assert sum(one != other for one, other in pairs) > 5


def test_models_that_cannot_be_served_say_why_and_the_others_serve(python: Path, tmp_path: Path):
    uint8 = MODELS["mobilenet"][0]
    shelve(
        tmp_path,
        mobilenet=MODELS["mobilenet"],
        torn=(uint8[: len(uint8) // 2], {"input_type": "uint8", "sha256": hashlib.sha256(uint8).hexdigest()}),
        garbage=(b"no model", {"input_type": "uint8"}),
        other_type=(uint8, {"input_type": "int8"}),
        other_size=(classifier("uint8", Quantisation(1 / 128, 128), side=112), {"input_type": "uint8"}),
        compiled=(edge_tpu_model(), {"input_type": "uint8"}),
        forgotten=(classifier("int8", Quantisation(1 / 127.5, -1)), {"input_type": "int8"}),
        vgg16={"absent": "not compiled for this device"},
    )
    says = {
        "torn": "has SHA-256",
        "garbage": "garbage.tflite cannot be loaded: ValueError",
        "other_type": "takes uint8 input, models.yaml says input_type: int8",
        "other_size": "shape (1, 112, 112, 3), expected (1, 224, 224, 3)",
        "compiled": "compiled for the Edge TPU, and CORAL_DELEGATE=none",
        "forgotten": "254 of the 256 pixel values",
        "vgg16": "not compiled for this device",
    }
    with serving(python, tmp_path) as server:
        server.wait_until_ready()
        health = server.client.get("/health").json
        assert health["models"] == ["mobilenet"]
        assert set(health["absent"]) == set(says)
        image = bytes(224 * 224 * 3)
        for model, reason in says.items():
            answer = server.client.infer(image, model)
            assert answer.status == 404
            assert reason in answer.json["detail"]
            assert reason in health["absent"][model]
        assert server.client.infer(image, "mobilenet").status == 200
        status, log, native = server.ended()
    assert status == 0
    assert {line["node"] for line in log} == {"coral1"}
    assert {line["model"] for line in log if line["message"] == "model absent"} == set(says)
    assert all("XNNPACK" in line for line in native)


def test_without_a_manifest_it_says_so_and_recovers_when_there_is_one(python: Path, tmp_path: Path):
    with serving(python, tmp_path) as server:
        assert eventually(lambda: (answer := server.health()) is not None and "models.yaml" in answer.text)
        answer = server.client.get("/health")
        assert answer.status == 503
        assert f"{tmp_path / 'models.yaml'}: cannot be read: No such file" in answer.json["detail"]
        assert server.client.get("/livez").status == 200
        shelve(tmp_path, mobilenet=MODELS["mobilenet"])
        server.wait_until_ready()
        assert server.client.infer(bytes(224 * 224 * 3), "mobilenet").status == 200


def test_the_real_loader_says_that_the_library_is_missing(python: Path, tmp_path: Path):
    program = """
        import ctypes, sys
        from pathlib import Path
        sys.unraisablehook = lambda unraisable: print("NOISE", unraisable.exc_value)
        sys.path.insert(0, sys.argv[1])
        from coral_inference_server.coral_inference_server import open_backend
        from inference_server import AcceleratorGone, read_model_files
        try:
            ctypes.CDLL("libedgetpu.so.1")
        except OSError:
            try:
                open_backend(read_model_files(Path(sys.argv[2])), {}, sleep=lambda seconds: None)
            except AcceleratorGone as gone:
                print(gone)
        else:
            print("here it is")
    """
    shelve(tmp_path, mobilenet=(edge_tpu_model(), {"input_type": "uint8"}))
    said = run([python, "-c", textwrap.dedent(program), DOCKER, tmp_path])
    if said == "here it is\n":
        pytest.skip("libedgetpu is installed on this machine")
    assert "libedgetpu.so.1 cannot be loaded: libedgetpu.so.1: cannot open shared object file" in said
    assert "CORAL_DELEGATE=none (5 attempts)" in said
    assert "NOISE" not in said


def test_the_real_interpreter_tells_which_operators_are_not_the_edge_tpus(python: Path, tmp_path: Path):
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from tflite_runtime.interpreter import Interpreter
        from coral_inference_server.coral_inference_server import _outside_edge_tpu
        for path in sys.argv[2:]:
            print([_outside_edge_tpu(Interpreter(path))])
    """
    shelve(tmp_path, whole=(edge_tpu_model(), {"input_type": "uint8"}), none=MODELS["mobilenet"])
    said = run([python, "-c", textwrap.dedent(program), DOCKER, *(tmp_path / f"{name}.tflite" for name in ("whole", "none"))])
    assert said.splitlines() == ["['']", "['3 operators on the CPU (1 AVERAGE_POOL_2D, 1 RESHAPE, 1 FULLY_CONNECTED)']"]


def test_the_harness_runs_its_load_on_it(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory, results = tmp_path / "model", tmp_path / "results"
    directory.mkdir()
    shelve(directory, **MODELS)
    config = tmp_path / "config.yaml"
    profile = yaml.safe_load(load_settings().performance_profile.read_text())
    profile["nodes"]["coral1"]["accelerator"] = "cpu"  # else the harness would take these for times of an Edge TPU
    profile["cv"]["cpu"] = 0.1
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    config.write_text("power: {idle_baseline_s: 0}\ndevices: {count: 20}\nperformance_profile: profile.yaml\n")
    with serving(python, directory) as server:
        server.wait_until_ready()
        url = f"http://127.0.0.1:{server.port}/infer"
        client = NodeClient(parse_url(url), load_settings().requests)
        health = client.health()
        assert health == Health(frozenset(MODELS), True, "coral1", "cpu")
        for binary in (True, False):
            client.connect()
            answer = client.infer("resnet50", 0.0, binary)
            assert answer.inference_time_s > 0
            assert answer.model_switched is binary  # the first follows the warm-up of another model
        client.close()
        monkeypatch.setattr(main_pregenerated, "WORKERS", {"coral1": url})
        options = ["--config", config, "--duration", "2", "--cluster", "workers", "--output", results, "--quiet", "--no-report"]
        options += ["--prometheus-url", "http://127.0.0.1:9"]  # nobody measures power here
        assert main_pregenerated.main(list(map(str, options))) == 0
    (summary_file,) = results.glob("*/experiment_summary_*.json")
    tasks = json.loads(summary_file.read_text())["tasks"]
    assert tasks["failed"] == tasks["unfinished"] == 0
    assert tasks["on_time"] + tasks["late"] > 10
