"""export_onnx.py with the packages it pins: what its graphs are, that they compute what the networks do, and how it fails."""

import hashlib
import json
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.docker.environments import TORCH_FOR_CPUS, Recipe, clean_environment

HERE = Path(__file__).resolve().parent
MODELS = HERE.parents[1] / "docker" / "models"
SCRIPT = MODELS / "export_onnx.py"
PINS = MODELS / "requirements.txt"
TIMEOUT_S = 800
# Trained parameters as torchvision's documentation lists them.
PARAMETERS = {"mobilenet": 3_504_872, "resnet50": 25_557_032, "efficientnet": 7_794_184, "vgg16": 138_357_544}
# What classifiers need of what the parser of TensorRT 8.2 knows (onnx-tensorrt, release/8.2-GA, docs/operators.md).
OPERATORS = {"Add", "AveragePool", "Clip", "Constant", "Conv", "Div", "Flatten", "Gemm", "GlobalAveragePool"}
OPERATORS |= {"MaxPool", "Mul", "Relu", "Sigmoid", "Sub", "Transpose"}
PRINTED = re.compile(r"(?P<path>.+)  (?P<size>\d+) bytes  (?P<parameters>\d+) parameters  sha256 (?P<sha256>[0-9a-f]{64})")

pytestmark = pytest.mark.timeout(900)  # the first time it installs


ENVIRONMENT = Recipe("onnx-export", PINS, tools=["onnxruntime==1.32.0"])


@pytest.fixture(scope="module")
def python():
    """An interpreter with the pins and what runs the graphs, in an environment made once and again when they change."""
    return ENVIRONMENT.made_with(sys.executable)


@pytest.fixture(scope="module")
def exported(python):
    """For each model what the script printed of its graph and what onnx_report.py says of it; the files are gone again."""
    with tempfile.TemporaryDirectory() as folder:
        lines = run([python, SCRIPT, "--weights", "none", "--output", folder]).splitlines()
        printed = {Path(match["path"]).stem: match.groupdict() for match in map(PRINTED.fullmatch, lines) if match}
        files = sorted(Path(folder).iterdir())
        reports = json.loads(run([python, HERE / "onnx_report.py", *files]))
        for file in files:
            with file.open("rb") as stream:
                reports[file.stem] |= {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
        return {name: report | {"printed": printed[name]} for name, report in reports.items()}


def run(command, **environment):
    done = attempt(command, **environment)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def attempt(command, **environment):
    return subprocess.run(command, capture_output=True, text=True, env=clean_environment() | environment, timeout=TIMEOUT_S)


@pytest.mark.parametrize(("status", "options"), [(0, []), (1, ["--extra-index-url", TORCH_FOR_CPUS])])
def test_index_of_torch_for_cpus_is_named_only_where_pip_knows_none_without(status, options, tmp_path):
    pip = tmp_path / "python"
    pip.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit {status}\n')
    pip.chmod(0o755)
    assert ENVIRONMENT.index_options(pip) == options
    (pin,) = re.findall(r"^torch==.*", PINS.read_text(), re.MULTILINE)
    assert (tmp_path / "asked").read_text() == f"-m pip install --dry-run --no-deps --quiet {pin}+cpu\n"


def test_pins_without_torch_need_no_other_index(tmp_path):
    (tmp_path / "pins.txt").write_text("torchvision==0.28.0\nnumpy==2.4.6\n")
    assert Recipe("none", tmp_path / "pins.txt", tools=[]).index_options(tmp_path / "no-python") == []


def test_it_exports_the_four_models_of_the_experiment(exported):
    assert exported.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_graph_takes_the_image_of_a_server_and_gives_logits(exported, name):
    assert exported[name]["inputs"] == [["image", [1, 224, 224, 3], "tensor(float)"]]
    assert exported[name]["outputs"] == [["logits", [1, 1000], "tensor(float)"]]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_graph_is_one_that_tensorrt_8_2_reads(exported, name):
    graph = exported[name]
    assert (graph["opset"], graph["ir_version"]) == ({"": 13}, 7)
    assert set(graph["operators"]) <= OPERATORS
    assert not graph["external_data"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_onnxruntime_computes_what_torch_does_behind_torchvisions_preprocessing(exported, name):
    graph = exported[name]
    assert graph["error"] < 1e-4 * graph["spread"]
    for mistake, error in graph["error_if_preprocessed_wrongly"].items():
        assert error > 0.1 * graph["spread"], mistake


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_graph_has_the_published_number_of_parameters(exported, name):
    assert exported[name]["parameters"] == PARAMETERS[name]
    assert int(exported[name]["printed"]["parameters"]) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_prints_size_and_sha256_of_the_file(exported, name):
    assert int(exported[name]["printed"]["size"]) == exported[name]["size"]
    assert exported[name]["printed"]["sha256"] == exported[name]["sha256"]


def test_the_compilation_for_the_hailo_starts_at_a_node_that_is_there(exported):
    (node,) = re.findall(r"--start-node-names (\S+)", (MODELS / "README.md").read_text())
    assert exported["vgg16"]["convolutions"][0] == node


def test_random_weights_are_the_same_each_time_and_on_any_number_of_cores(python, exported, tmp_path):
    lines = run(
        [python, SCRIPT, "--weights", "none", "--output", tmp_path, "--models", "efficientnet,mobilenet"], OMP_NUM_THREADS="1"
    )
    again = [match["sha256"] for match in map(PRINTED.fullmatch, lines.splitlines()) if match]
    assert again == [exported["efficientnet"]["sha256"], exported["mobilenet"]["sha256"]]


def test_other_opsets_can_be_had_and_an_older_file_is_replaced(python, tmp_path):
    (tmp_path / "mobilenet.onnx").write_text("an older one")
    run([python, SCRIPT, "--weights", "none", "--output", tmp_path, "--models", "mobilenet", "--opset", "11"])
    (report,) = json.loads(run([python, HERE / "onnx_report.py", tmp_path / "mobilenet.onnx"])).values()
    assert report["opset"] == {"": 11}
    assert report["error"] < 1e-4 * report["spread"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--output", "x"], "the following arguments are required: --weights"),
        (["--weights", "none"], "the following arguments are required: --output"),
        (["--weights", "random", "--output", "x"], "choose from"),
        (
            ["--weights", "none", "--output", "x", "--models", "mobilenet,alexnet"],
            "no model 'alexnet'; there are mobilenet, resnet50",
        ),
        (["--weights", "none", "--output", "x", "--opset", "20"], "choose from 9, 10"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_done(options, complaint, tmp_path):
    options = [str(tmp_path / "x") if option == "x" else option for option in options]
    done = attempt([sys.executable, SCRIPT, *options])
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path):
    (tmp_path / "onnx.py").write_text("raise ModuleNotFoundError(\"No module named 'onnx'\")")
    done = attempt([sys.executable, SCRIPT, "--weights", "none", "--output", tmp_path / "out"], PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"export_onnx.py: a package that it needs cannot be imported (No module named 'onnx'): python3 -m pip install -r {PINS}\n"
    )


def test_a_failed_download_ends_in_one_line_and_leaves_nothing(python, tmp_path):
    with socket.socket() as closed:  # bound and not listening: refuses
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        command = [python, SCRIPT, "--weights", "imagenet", "--output", tmp_path / "out", "--models", "mobilenet"]
        done = attempt(
            command, https_proxy=proxy, HTTPS_PROXY=proxy, no_proxy="", NO_PROXY="", TORCH_HOME=str(tmp_path / "torch")
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    complaint = done.stderr.splitlines()[-1]
    assert complaint.startswith(
        "export_onnx.py: mobilenet: cannot download torchvision's weights IMAGENET1K_V2 of mobilenet_v2: "
    )
    assert "refused" in complaint
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_cannot_be_written_whole_is_not_there_at_all(python, tmp_path):
    command = [python, SCRIPT, "--weights", "none", "--output", tmp_path / "out", "--models", "mobilenet"]
    done = attempt(["bash", "-c", 'ulimit -f 1000 && exec "$@"', "bash", *command])
    assert done.returncode == 1
    assert re.fullmatch(r"export_onnx\.py: cannot write .*: File too large\n", done.stderr)
    assert list((tmp_path / "out").iterdir()) == []
