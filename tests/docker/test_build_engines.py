"""build_engines.sh with a script for trtexec: what it builds, what it calls that, and what it says when it cannot."""

import hashlib
import os
import stat
import subprocess
from pathlib import Path

import pytest

from inference_server import read_model_files
from tests.docker.servers import DOCKER

SCRIPT = DOCKER / "jetson_inference_server" / "build_engines.sh"

# Options as 8.2.1 takes them; anything else is refused as the real one does.
TRTEXEC = """#!/bin/bash
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$BANNER] # $*"
[[ $1 != --help ]] || exit 0
echo "$*" >>"$CALLS"
workspace=
for option in "$@"; do
  case $option in
    --onnx=*) onnx=${option#*=} ;;
    --saveEngine=*) engine=${option#*=} ;;
    --fp16 | --buildOnly | --skipInference) ;;
    --workspace=* | --memPoolSize=workspace:*) workspace=${option##*[=:]} ;;
    *) echo "[E] Unknown option: $option" && exit 1 ;;
  esac
done
echo "[I] Workspace: $workspace MiB"
if [[ $(basename "$onnx") == "$BREAKS" ]]; then
  echo "half an engine" >"$engine"
  printf '[E] Engine could not be created from network\\n[E] Engine set up failed'
  exit "$STATUS"
fi
[[ $(basename "$onnx") == "$WRITES_NOTHING" ]] || { echo "engine of"; cat "$onnx"; } >"$engine"
"""


class Builder:
    """The script with a directory of graphs and one for engines."""

    def __init__(self, directory: Path) -> None:
        self.onnx = directory / "onnx"
        self.engines = directory / "engines dir"
        self.onnx.mkdir()
        self.tools = directory / "tools"
        self.tools.mkdir()
        self.calls_file = directory / "calls"
        self.trtexec = self.tool("trtexec", TRTEXEC)
        (directory / "model").write_bytes(b"NVIDIA Jetson Nano Developer Kit\0")
        self.variables = {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "TRTEXEC": str(self.trtexec),
            "DEVICE_TREE_MODEL": str(directory / "model"),
            "CALLS": str(self.calls_file),
            "BANNER": "8201",
            "STATUS": "1",
        }

    def tool(self, name, text):
        path = self.tools / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def graphs(self, *names):
        for name in names:
            (self.onnx / f"{name}.onnx").write_text(f"graph of {name}")

    def engine(self, name, version="8.2.1", gpu="nvidia-jetson-nano-developer-kit"):
        digest = hashlib.sha256((self.onnx / f"{name}.onnx").read_bytes()).hexdigest()
        return self.engines / f"{name}_trt{version}_{gpu}_{digest[:12]}.engine"

    def run(self, *options, **variables):
        command = [SCRIPT, "--onnx", self.onnx, "--engines", self.engines, *options]
        return subprocess.run(command, capture_output=True, text=True, env={**self.variables, **variables}, timeout=60)

    @property
    def calls(self):
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def builder(tmp_path):
    return Builder(tmp_path)


def test_builds_an_fp16_engine_per_graph_and_the_server_can_read_the_manifest(builder):
    builder.graphs("mobilenet", "resnet50", "efficientnet")
    done = builder.run("--workspace-mb", "128")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("mobilenet", "resnet50", "efficientnet"):
        assert builder.engine(name).read_text() == f"engine of\ngraph of {name}"
    assert all(call.endswith("--fp16 --workspace=128 --buildOnly") for call in builder.calls)
    found = read_model_files(builder.engines)
    assert {file.name: (file.path, file.input_type) for file in found.files} == {
        name: (builder.engine(name), "float32") for name in ("mobilenet", "resnet50", "efficientnet")
    }
    assert found.absent == {"vgg16": "there was no vgg16.onnx for build_engines.sh"}


def test_what_is_there_is_not_built_again_unless_forced(builder):
    builder.graphs("mobilenet", "resnet50")
    builder.run()
    manifest = (builder.engines / "models.yaml").read_text()
    assert builder.run().returncode == 0
    assert len(builder.calls) == 2
    assert (builder.engines / "models.yaml").read_text() == manifest
    builder.run("--force", "--models", "resnet50")
    assert len(builder.calls) == 3


@pytest.mark.parametrize("change", ["graph", "tensorrt", "gpu"])
def test_another_graph_tensorrt_or_gpu_means_another_engine(change, builder):
    builder.graphs("mobilenet")
    builder.run()
    first = builder.engine("mobilenet")
    if change == "graph":
        (builder.onnx / "mobilenet.onnx").write_text("another graph")
        builder.run()
        second = builder.engine("mobilenet")
    elif change == "tensorrt":
        builder.run(BANNER="8001")
        second = builder.engine("mobilenet", version="8.0.1")
    else:
        builder.run("--gpu", "Jetson Nano (2GB)")
        second = builder.engine("mobilenet", gpu="jetson-nano-2gb")
    assert first != second
    assert first.exists()
    assert [file.path for file in read_model_files(builder.engines).files] == [second]


@pytest.mark.parametrize(
    ("banner", "version", "limits"),
    [
        ("8201", "8.2.1", "--workspace=256 --buildOnly"),
        ("8601", "8.6.1", "--workspace=256 --buildOnly"),
        ("8410", "8.4.10", "--workspace=256 --buildOnly"),
        ("101602", "10.16.2", "--memPoolSize=workspace:256 --skipInference"),
    ],
)
def test_reads_the_version_from_the_banner(banner, version, limits, builder):
    builder.graphs("mobilenet")
    assert builder.run(BANNER=banner).returncode == 0
    assert builder.engine("mobilenet", version=version).exists()
    assert builder.calls[0].endswith(f"--fp16 {limits}")


def test_only_some_models(builder):
    builder.graphs("mobilenet", "resnet50", "vgg16")
    builder.run("--models", "mobilenet")
    builder.run("--models", "resnet50")
    assert len(builder.calls) == 2
    found = read_model_files(builder.engines)
    assert [file.name for file in found.files] == ["mobilenet", "resnet50"]
    assert found.absent["vgg16"] == f"build_engines.sh has not built {builder.engine('vgg16').name}"


def test_a_model_that_fails_leaves_its_log_and_the_others_are_built(builder):
    builder.graphs("mobilenet", "vgg16", "resnet50")
    done = builder.run(BREAKS="resnet50.onnx")
    assert done.returncode == 1
    assert "resnet50: | [E] Engine set up failed" in done.stderr
    log = builder.engines / (builder.engine("resnet50").name + ".log")
    assert f"resnet50: trtexec failed with status 1; the whole log: {log}" in done.stderr
    assert done.stderr.splitlines()[-1] == "build_engines.sh: not built: resnet50"
    assert "[E] Engine could not be created from network" in log.read_text()
    found = read_model_files(builder.engines)
    assert [file.name for file in found.files] == ["mobilenet", "vgg16"]
    assert "has not built resnet50_trt8.2.1_" in found.absent["resnet50"]
    assert [path.name for path in builder.engines.iterdir() if path.name.startswith(".")] == []


def test_a_build_that_is_killed_points_to_swap(builder):
    builder.graphs("vgg16")
    done = builder.run(BREAKS="vgg16.onnx", STATUS="137")
    assert done.returncode == 1
    assert "was killed, most likely for want of memory: add swap" in done.stderr


def test_a_full_disk_is_named(builder):
    builder.tool("df", "#!/bin/sh\necho Avail\necho '   12'\n")
    builder.graphs("vgg16")
    done = builder.run(BREAKS="vgg16.onnx")
    assert done.returncode == 1
    assert f"the disk is full, 12 kB are free in {builder.engines}" in done.stderr


def test_a_trtexec_that_writes_nothing_is_not_believed(builder):
    builder.graphs("vgg16")
    done = builder.run(WRITES_NOTHING="vgg16.onnx")
    assert done.returncode == 1
    assert "vgg16: trtexec wrote no engine" in done.stderr


def test_a_failed_build_keeps_the_engine_that_was_there(builder):
    builder.graphs("mobilenet")
    builder.run()
    done = builder.run("--force", BREAKS="mobilenet.onnx")
    assert done.returncode == 1
    assert [file.path for file in read_model_files(builder.engines).files] == [builder.engine("mobilenet")]


@pytest.mark.parametrize(
    ("options", "variables", "status", "message"),
    [
        ([], {"TRTEXEC": "/nowhere/trtexec"}, 1, "no trtexec at /nowhere/trtexec: install libnvinfer-bin"),
        ([], {"BANNER": "110000"}, 1, "is of TensorRT 11.0.0, expected 8 to 10: later ones build no FP16 engine"),
        ([], {"BANNER": "120304"}, 1, "is of TensorRT 12.3.4, expected 8 to 10"),
        ([], {"BANNER": "x"}, 1, "does not say which TensorRT it is of"),
        ([], {"DEVICE_TREE_MODEL": "/nowhere/model"}, 2, "cannot tell which board this is from /nowhere/model"),
        (["--models", "vgg16"], {}, 2, "--models: no "),
        (["--models"], {}, 2, "--models: expected a value"),
        (["--workspace-mb", "much"], {}, 2, "--workspace-mb: expected MB from 1 to 999999, got much"),
        (["--int8"], {}, 2, "unknown option --int8"),
        (["--engines", "/dev/null/engines"], {}, 1, "cannot make /dev/null/engines"),
        (["--onnx", "/nowhere"], {}, 1, "/nowhere is no directory"),
        (["--onnx", "/proc/self/task"], {}, 1, "no .onnx file in /proc/self/task"),
    ],
)
def test_says_in_one_line_what_is_wrong(options, variables, status, message, builder):
    builder.graphs("mobilenet")
    done = builder.run(*options, **variables)
    assert done.returncode == status
    assert done.stderr.startswith("build_engines.sh: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert builder.calls == []


@pytest.mark.parametrize("missing", ["--onnx", "--engines"])
def test_both_directories_are_needed(missing, builder):
    given = {"--onnx": builder.onnx, "--engines": builder.engines}
    options = [str(part) for name, path in given.items() if name != missing for part in (name, path)]
    done = subprocess.run([SCRIPT, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"build_engines.sh: {missing}: expected the directory")


def test_a_model_with_an_odd_name_is_refused(builder):
    builder.graphs("mobile net")
    done = builder.run()
    assert done.returncode == 1
    assert "expected only letters, digits, _ and - in a model's name" in done.stderr


def test_help_tells_about_swap():
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "swapon" in done.stdout
    assert "--workspace-mb" in done.stdout


def test_needs_nothing_but_bash_and_coreutils(builder, tmp_path):
    needed = ["bash", "basename", "cat", "df", "env", "mkdir", "mv", "rm", "sha256sum", "tail", "tr"]
    only = tmp_path / "only"
    only.mkdir()
    for name in needed:
        found = next(Path(folder) / name for folder in ("/usr/bin", "/bin") if (Path(folder) / name).exists())
        (only / name).symlink_to(found)
    builder.graphs("mobilenet", "vgg16")
    done = builder.run(PATH=str(only), BREAKS="vgg16.onnx")
    assert "command not found" not in done.stderr
    assert "vgg16: trtexec failed with status 1" in done.stderr
    assert builder.engine("mobilenet").exists()
