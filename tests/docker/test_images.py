"""The images of servers and power agent: Dockerfiles, pinned requirements, what reaches the builder, build.sh on stand-ins."""

import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tflite

from coral_inference_server import check_runtime as coral_check
from hailo_inference_server import check_runtime as hailo_check

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
KINDS = ("coral", "jetson", "hailo", "power")
IMAGES = {kind: "power-agent" if kind == "power" else f"{kind}-inference-server" for kind in KINDS}
PACKAGES = {kind: image.replace("-", "_") for kind, image in IMAGES.items()}
MODULES = {kind: package if kind == "power" else f"{package}.{package}" for kind, package in PACKAGES.items()}
PORTS = {kind: "9101" if kind == "power" else "8080" for kind in KINDS}
MANIFESTS = {
    kind: ROOT / ("monitoring/power-agent-daemonset.yaml" if kind == "power" else f"yaml/{kind}_daemonset.yaml") for kind in KINDS
}
REQUIREMENTS = sorted(path for package in PACKAGES.values() for path in (DOCKER / package).glob("requirements*.txt"))
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def dockerfile(kind):
    return DOCKER / PACKAGES[kind] / "Dockerfile"


def instructions(kind):
    """Pairs of instruction and its text, continued lines joined, comments left out."""
    lines = [line for line in dockerfile(kind).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def arguments(kind):
    """Each ARG's name and default, None where it has none."""
    for name, text in instructions(kind):
        if name == "ARG":
            argument, given, default = text.partition("=")
            yield argument.strip(), default if given else None


def copied(kind):
    """What COPY takes from the context."""
    for name, text in instructions(kind):
        if name == "COPY" and not text.startswith("--from="):
            yield from text.split()[:-1]


def environment(kind):
    settings = " ".join(text for name, text in instructions(kind)[last_stage(kind) :] if name == "ENV")
    return dict(pair.split("=", 1) for pair in settings.split())


def last_stage(kind):
    return max(place for place, (name, _) in enumerate(instructions(kind)) if name == "FROM")


def reaches_builder(path):
    """What .dockerignore says of a path in docker/: the last line that fits decides, as Docker does it."""
    sent = True
    for line in (DOCKER / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.lstrip("!")
            assert pattern == "**" or "**" not in pattern, "this matcher knows no ** inside a pattern"
            same_depth = pattern.count("/") == path.count("/")
            if pattern == "**" or (same_depth and fnmatch.fnmatch(path, pattern)):
                sent = line.startswith("!")
    return sent


@pytest.mark.parametrize("kind", KINDS)
def test_hadolint_finds_nothing(kind):
    assert HADOLINT, "hadolint is missing: make setup"
    done = subprocess.run([HADOLINT, dockerfile(kind)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_digests_and_checksums_have_no_default(kind):
    pins = [(name, default) for name, default in arguments(kind) if name.endswith(("_DIGEST", "_SHA256"))]
    assert pins
    assert [default for _, default in pins] == [None] * len(pins)
    assert not re.search(r"[0-9a-f]{64}", dockerfile(kind).read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_stands_on_an_image_with_a_digest(kind):
    stages = [text.split()[0] for name, text in instructions(kind) if name == "FROM"]
    assert len(stages) > 1
    assert all(re.search(r":[^@]+@\$\{\w+_DIGEST\}$", image) for image in stages if image != "${BUILDER_IMAGE}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_fetched_file_is_checked(kind):
    for name, text in instructions(kind):
        if name == "RUN" and "curl " in text.replace("ca-certificates curl", ""):
            assert len(re.findall(r"curl -", text)) == text.count("sha256sum -c -") == 1
        assert name != "ADD"


@pytest.mark.parametrize("kind", KINDS)
def test_apt_lists_do_not_stay(kind):
    runs = [text for name, text in instructions(kind) if name == "RUN" and "apt-get" in text]
    assert all(text.count("apt-get update") == text.count("rm -rf /var/lib/apt/lists/*") for text in runs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_starts_its_program(kind):
    final = instructions(kind)[last_stage(kind) :]
    assert ("ENTRYPOINT", f'["python3", "-m", "{MODULES[kind]}"]') in final
    assert ("EXPOSE", PORTS[kind]) in final
    assert ("WORKDIR", "/app") in final
    assert environment(kind)["PYTHONUNBUFFERED"] == environment(kind)["PYTHONDONTWRITEBYTECODE"] == "1"
    assert environment(kind)["PATH"].startswith("/opt/venv/bin:")


@pytest.mark.parametrize("kind", ["jetson", "hailo"])
def test_the_server_is_not_root(kind):
    assert [text for name, text in instructions(kind)[last_stage(kind) :] if name == "USER"] == ["10001"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_copied_exists_and_reaches_the_builder(kind):
    for source in copied(kind):
        found = [str(path.relative_to(DOCKER)) for path in DOCKER.glob(source)]
        if source == "hailo_inference_server/debs/*.deb":  # the user puts them there
            found = [source.replace("*", name) for name in ("hailort_4.23.0_arm64", "python3-hailort_4.23.0-1_arm64")]
        assert found, f"{source} does not exist"
        files = [path for path in found if (DOCKER / path).suffix] or [f"{source}app.py"]
        assert all(reaches_builder(path) for path in files), source


@pytest.mark.parametrize(
    "path",
    [
        "build.sh",
        "images.lock",
        "inference_server/__pycache__/app.cpython-311.pyc",
        "coral_inference_server/.env",
        "coral_inference_server/requirements.in",
        "coral_inference_server/mobilenet.tflite",
        "hailo_inference_server/debs/hailort-pcie-driver_4.23.0_all.deb",
        "hailo_inference_server/resnet50.hef",
        "jetson_inference_server/vgg16.engine",
        "models/export_onnx.py",
        "models/vgg16.onnx",
        "tests/test_app.py",
    ],
)
def test_other_files_do_not_reach_the_builder(path):
    assert not reaches_builder(path)


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_requirements_are_pinned_with_hashes(path):
    joined = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9-]+==[^ ;]+( ; [^-]+)?( +--hash=sha256:[0-9a-f]{64})+$", line.strip()), line


def test_requirements_are_what_the_hardware_needs():
    pins = {path.parent.name + "/" + path.name: path.read_text() for path in REQUIREMENTS}
    coral = pins["coral_inference_server/requirements.txt"]
    assert "tflite-runtime==2.14.0 " in coral
    assert re.search(r"^numpy==1\.", coral, re.MULTILINE)
    hailo = pins["hailo_inference_server/requirements.txt"]
    for package in ("numpy", "contextlib2", "future", "verboselogs"):  # Debian's; and what HailoRT 4.23 does not import
        assert not re.search(rf"^{package}==", hailo, re.MULTILINE)
    jetson = pins["jetson_inference_server/requirements.txt"]
    for pin in ("fastapi==0.83.0", "numpy==1.19.4", "pydantic==1.9.2", "pyyaml==6.0.1", "starlette==0.19.1", "uvicorn==0.16.0"):
        assert f"\n{pin} " in jetson
    assert "pycuda==2022.1 " in pins["jetson_inference_server/requirements-gpu.txt"]
    assert all(
        "python-json-logger==2.0.7 " in text
        for name, text in pins.items()
        if "inference_server" in name and not name.endswith("-gpu.txt")
    )
    assert re.search(r"^bleak==3\.", pins["power_agent/requirements.txt"], re.MULTILINE)


def test_the_coral_check_builds_its_interpreter_of_a_valid_model():
    content = coral_check.empty_model()
    assert tflite.Model.ModelBufferHasIdentifier(content, 0)
    model = tflite.Model.GetRootAs(content, 0)
    assert (model.Version(), model.SubgraphsLength(), model.BuffersLength()) == (3, 1, 0)
    subgraph = model.Subgraphs(0)
    lengths = (subgraph.TensorsLength(), subgraph.InputsLength(), subgraph.OutputsLength(), subgraph.OperatorsLength())
    assert lengths == (0, 0, 0, 0)
    assert not subgraph.TensorsIsNone()
    assert not subgraph.OperatorsIsNone()


class QuantInfo(types.SimpleNamespace):
    def __init__(self, qp_zp, qp_scale, limvals_min, limvals_max):
        super().__init__(qp_zp=qp_zp, qp_scale=qp_scale)


@pytest.fixture
def hailo_platform(monkeypatch):
    """A stand-in of HailoRT 4.23.0's binding, as far as the check goes; its attribute `quantise` writes the result."""

    class HailoRTTransformUtils:
        @staticmethod
        def quantize_input_buffer(src_buffer, dst_buffer, elements_count, quant_info):
            assert (src_buffer.dtype, dst_buffer.dtype, elements_count) == (np.float32, np.uint8, src_buffer.size)
            package.quantise(src_buffer, dst_buffer, quant_info)

    def quantise(source, target, info):
        target[:] = np.rint(source / info.qp_scale + info.qp_zp)

    package = types.SimpleNamespace(__version__="4.23.0", quantise=quantise)
    pyhailort = types.SimpleNamespace(HailoRTTransformUtils=HailoRTTransformUtils)
    monkeypatch.setitem(sys.modules, "hailo_platform", package)
    monkeypatch.setitem(sys.modules, "hailo_platform.pyhailort", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "hailo_platform.pyhailort.pyhailort", pyhailort)
    monkeypatch.setitem(sys.modules, "hailo_platform.pyhailort._pyhailort", types.SimpleNamespace(QuantInfo=QuantInfo))
    return package


def test_the_hailo_check_passes_where_all_fits(hailo_platform, capsys):
    hailo_check.main("4.23.0")
    assert f"arrays of numpy {np.__version__} pass" in capsys.readouterr().out


def test_the_hailo_check_refuses_another_version(hailo_platform):
    with pytest.raises(RuntimeError, match=r"4\.23\.0, expected 4\.22\.0"):
        hailo_check.main("4.22.0")


def test_the_hailo_check_refuses_arrays_that_arrive_changed(hailo_platform):
    hailo_platform.quantise = lambda source, target, info: None
    with pytest.raises(RuntimeError, match=f"does not work with numpy {re.escape(np.__version__)}"):
        hailo_check.main("4.23.0")


DOCKER_STAND_IN = """#!{python}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
with (here / "docker.log").open("a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments == ["buildx", "version"]:
    sys.exit(0)
if arguments == ["buildx", "inspect", "--bootstrap"]:
    print("Name: default\\nPlatforms: " + (here / "platforms").read_text())
    sys.exit(0)
if arguments[:5] == ["buildx", "imagetools", "inspect", "--format", "{{{{.Manifest.Digest}}}}"] and len(arguments) == 6:
    digests = json.loads((here / "digests").read_text())
    if arguments[5] not in digests:
        sys.exit("not found: " + arguments[5])
    print(digests[arguments[5]])
    sys.exit(0)
if arguments[:2] == ["buildx", "build"]:
    options, context = arguments[2:-1], pathlib.Path(arguments[-1])
    taken = {{"--platform": [], "--file": [], "--tag": [], "--metadata-file": [], "--build-arg": []}}
    flags = []
    while options:
        option = options.pop(0)
        if option in taken:
            taken[option].append(options.pop(0))
        elif option in ("--provenance=false", "--load", "--push"):
            flags.append(option)
        else:
            sys.exit("unknown flag: " + option)
    assert "--provenance=false" in flags and len(flags) == 2, flags
    assert context.is_dir() and pathlib.Path(taken["--file"][0]).is_file()
    pathlib.Path(taken["--metadata-file"][0]).write_text(json.dumps({{"containerimage.digest": "sha256:" + "e" * 64}}, indent=2))
    sys.exit(0)
sys.exit("unknown command: " + " ".join(arguments))
"""

CURL_STAND_IN = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
assert len(sys.argv) == 7 and sys.argv[1:5] == ["-fsSL", "--retry", "3", "-o"], sys.argv
assets = json.loads((here / "assets").read_text())
with (here / "curl.log").open("a") as log:
    log.write(sys.argv[6] + "\\n")
if sys.argv[6] not in assets:
    sys.exit(22)
pathlib.Path(sys.argv[5]).write_text(assets[sys.argv[6]])
"""

BASES = {
    "arm64v8/ubuntu:22.04": "sha256:" + "a" * 64,
    "nvcr.io/nvidia/l4t-tensorrt:r8.2.1-runtime": "sha256:" + "b" * 64,
    "debian:trixie-slim": "sha256:" + "c" * 64,
}
PYCORAL = "https://example.org/pycoral-2.0.3-cp310-cp310-linux_aarch64.whl"
TOOLS = ("bash", "cat", "cut", "dirname", "env", "git", "grep", "head", "mktemp", "mv", "rm", "sed", "sha256sum", "sort")


def address(argument):
    found = [default for kind in KINDS for name, default in arguments(kind) if name == argument and default]
    assert len(found) == 1
    return found[0]


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


class Workshop:
    """A copy of docker/ with nothing on the PATH but stand-ins for docker and curl and the few tools that build.sh needs."""

    def __init__(self, folder):
        self.docker = folder / "docker"
        self.bin = folder / "bin"
        self.lock = self.docker / "images.lock"
        self.debs = self.docker / "hailo_inference_server" / "debs"
        self.bin.mkdir()
        shutil.copytree(DOCKER, self.docker, ignore=shutil.ignore_patterns("__pycache__", "images.lock", "debs", "models"))
        (folder / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
        self.debs.mkdir()
        (self.debs / "hailort_4.23.0_arm64.deb").write_text("library")
        (self.debs / "python3-hailort_4.23.0-1_arm64.deb").write_text("binding")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.stand_in("docker", DOCKER_STAND_IN)
        self.stand_in("curl", CURL_STAND_IN)
        self.say("digests", BASES)
        found = {address(name): name for name in ("LIBEDGETPU_URL", "TFLITE_WHEEL", "JETSON_KEY_URL")}
        self.say("assets", {**found, PYCORAL: "PYCORAL_WHEEL"})
        (self.bin / "platforms").write_text("linux/amd64*, linux/arm64, linux/arm/v7")

    def stand_in(self, name, text):
        (self.bin / name).write_text(text.format(python=sys.executable))
        (self.bin / name).chmod(0o755)

    def say(self, name, value):
        (self.bin / name).write_text(json.dumps(value))

    def run(self, *options, **variables):
        command = [self.bin / "bash", self.docker / "build.sh", *options]
        settings = {"PATH": str(self.bin), "HOME": str(self.docker), **variables}
        return subprocess.run(command, capture_output=True, text=True, env=settings, timeout=60)

    def built(self, *options, **variables):
        """The lines of the log that build, after a run that must succeed."""
        (self.bin / "docker.log").unlink(missing_ok=True)
        done = self.run(*options, **variables)
        assert done.returncode == 0, done.stderr
        calls = [json.loads(line) for line in (self.bin / "docker.log").read_text().splitlines()]
        builds = [call for call in calls if call[1] == "build"]
        return {kind: call for kind in KINDS for call in builds if f"/{IMAGES[kind]}:" in " ".join(call)}

    def refusal(self, *options, **variables):
        """The one line that says why the run failed."""
        done = self.run(*options, **variables)
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    @property
    def recorded(self):
        return dict(line.split("=", 1) for line in self.lock.read_text().splitlines())


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


def build_arguments(call):
    return dict(value.split("=", 1) for option, value in zip(call, call[1:], strict=False) if option == "--build-arg")


def test_build_resolves_and_records_what_the_dockerfiles_ask_for(workshop):
    calls = workshop.built()
    assert set(calls) == set(KINDS)
    for kind, call in calls.items():
        without_default = {name for name, default in arguments(kind) if default is None} - {"PYCORAL_SHA256"}
        assert without_default <= set(build_arguments(call))
        assert set(build_arguments(call)) <= {name for name, _ in arguments(kind)}
        assert call[call.index("--platform") + 1] == "linux/arm64"
        assert "--load" in call
        assert call[-1] == str(workshop.docker)
    recorded = workshop.recorded
    assert list(recorded) == sorted(recorded)
    assert {recorded[name] for name in recorded if name.endswith("_DIGEST")} == set(BASES.values())
    assert recorded["LIBEDGETPU_SHA256"] == sha256("LIBEDGETPU_URL")
    assert recorded["TFLITE_SHA256"] == sha256("TFLITE_WHEEL")
    assert recorded["JETSON_KEY_SHA256"] == sha256("JETSON_KEY_URL")
    assert recorded["HAILORT_DEB_SHA256"] == sha256("library")
    assert recorded["PYTHON3_HAILORT_DEB_SHA256"] == sha256("binding")
    assert build_arguments(calls["coral"])["UBUNTU_DIGEST"] == recorded["UBUNTU_DIGEST"] == BASES["arm64v8/ubuntu:22.04"]
    assert build_arguments(calls["coral"])["VERSION"] == "0.1.0"


def test_a_second_build_uses_what_was_recorded(workshop):
    first = {kind: build_arguments(call) for kind, call in workshop.built().items()}
    lock = workshop.lock.read_text()
    workshop.say("digests", {})
    workshop.say("assets", {})
    second = {kind: build_arguments(call) for kind, call in workshop.built().items()}
    assert workshop.lock.read_text() == lock
    assert second == first


def test_update_resolves_anew(workshop):
    workshop.built()
    workshop.say("digests", {image: "sha256:" + "d" * 64 for image in BASES})
    assert build_arguments(workshop.built("--update", "--only", "coral")["coral"])["UBUNTU_DIGEST"] == "sha256:" + "d" * 64
    assert workshop.recorded["DEBIAN_DIGEST"] == BASES["debian:trixie-slim"]


def test_another_base_image_is_not_built_with_the_old_digest(workshop):
    workshop.built("--only", "coral")
    path = workshop.docker / "coral_inference_server" / "Dockerfile"
    path.write_text(path.read_text().replace("arm64v8/ubuntu:22.04", "arm64v8/ubuntu:24.04"))
    assert "arm64v8/ubuntu:24.04" in workshop.refusal("--only", "coral")


def test_push_names_registry_tag_and_digest(workshop):
    done = workshop.run("--push", "--registry", "registry.lan:5000/edge", "--tag", "7")
    assert done.returncode == 0, done.stderr
    assert f"coral: registry.lan:5000/edge/coral-inference-server:7@sha256:{'e' * 64}" in done.stdout
    assert "yaml/coral_daemonset.yaml" in done.stdout
    calls = workshop.built("--push", "--registry", "registry.lan:5000/edge", "--tag", "7", "--only", "hailo")
    assert list(calls) == ["hailo"]
    assert "--push" in calls["hailo"]
    assert "registry.lan:5000/edge/hailo-inference-server:7" in calls["hailo"]


def test_the_hint_edits_the_manifests(workshop, tmp_path):
    done = workshop.run("--push", "--registry", "registry.lan:5000/edge")
    for manifest in MANIFESTS.values():
        copy = tmp_path / manifest.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(manifest, copy)
    for line in re.findall(r"^  (sed -i .*)$", done.stdout, re.MULTILINE):
        subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    for kind in KINDS:
        changed = (tmp_path / MANIFESTS[kind].relative_to(ROOT)).read_text()
        assert f"image: registry.lan:5000/edge/{IMAGES[kind]}:0.1.0@sha256:{'e' * 64}\n" in changed


def test_pycoral_is_left_out_unless_a_wheel_is_named_which_is_remembered(workshop):
    for given in (workshop.built("--only", "coral"), workshop.built("--only", "coral", PYCORAL_WHEEL="")):
        assert build_arguments(given["coral"])["PYCORAL_WHEEL"] == ""
        assert "PYCORAL_SHA256" not in build_arguments(given["coral"])
    for given in (workshop.built("--only", "coral", PYCORAL_WHEEL=PYCORAL), workshop.built("--only", "coral")):
        assert build_arguments(given["coral"])["PYCORAL_WHEEL"] == PYCORAL
        assert build_arguments(given["coral"])["PYCORAL_SHA256"] == sha256("PYCORAL_WHEEL")


def test_the_runtime_of_pypi_can_be_taken_and_stays(workshop):
    for given in (workshop.built("--only", "coral", TFLITE_WHEEL=""), workshop.built("--only", "coral")):
        assert build_arguments(given["coral"])["TFLITE_WHEEL"] == ""
        assert "TFLITE_SHA256" not in build_arguments(given["coral"])


def test_runtime_and_library_of_the_edge_tpu_are_of_one_tensorflow():
    (version,) = re.findall(r"tflite_runtime-([\d.]+)-", address("TFLITE_WHEEL"))
    said = coral_check.compare_versions(version, address("LIBEDGETPU_URL"))
    assert said == "tflite-runtime and libedgetpu are both of TensorFlow 2.17.1"


@pytest.mark.parametrize("tflite", ["2.18.0", "2.10.1", "2.5.0.post1"])
def test_the_coral_check_refuses_a_runtime_that_libedgetpu_does_not_work_with(tflite):
    with pytest.raises(RuntimeError, match=f"tflite-runtime {tflite} does not work with a libedgetpu of TensorFlow 2.17.1"):
        coral_check.compare_versions(tflite, address("LIBEDGETPU_URL"))


def test_the_coral_check_says_what_differs_or_cannot_be_known():
    assert "older than libedgetpu's TensorFlow 2.17.1" in coral_check.compare_versions("2.14.0", address("LIBEDGETPU_URL"))
    assert "not known whether tflite-runtime 2.17.1" in coral_check.compare_versions("2.17.1", "https://example.org/lib.deb")


@pytest.mark.parametrize("missing", ["LIBEDGETPU_URL", "TFLITE_WHEEL"])
def test_an_asset_that_is_gone_says_what_to_do(workshop, missing):
    workshop.say("assets", {address(name): "there" for name in ("LIBEDGETPU_URL", "TFLITE_WHEEL") if name != missing})
    reason = workshop.refusal("--only", "coral")
    assert address(missing) in reason
    assert f"({missing}=https://...)" in reason


def test_a_changed_package_is_refused(workshop):
    workshop.built()
    (workshop.debs / "hailort_4.23.0_arm64.deb").write_text("another library")
    reason = workshop.refusal()
    assert sha256("library") in reason
    assert sha256("another library") in reason
    assert build_arguments(workshop.built("--update")["hailo"])["HAILORT_DEB_SHA256"] == sha256("another library")


def test_a_damaged_lock_is_refused(workshop):
    workshop.built("--only", "coral")
    workshop.lock.write_text(re.sub(r"UBUNTU_DIGEST=.*", "UBUNTU_DIGEST=latest", workshop.lock.read_text()))
    assert "UBUNTU_DIGEST is 'latest'" in workshop.refusal("--only", "coral")


def test_missing_packages_say_where_to_get_them(workshop):
    shutil.rmtree(workshop.debs)
    reason = workshop.refusal()
    assert "apt-get download hailort=4.23.0 python3-hailort=4.23.0-1" in reason
    assert "--only coral,jetson,power" in reason
    assert set(workshop.built("--only", "coral,jetson,power")) == {"coral", "jetson", "power"}


def test_the_power_agent_is_built_alone(workshop):
    (call,) = workshop.built("--only", "power").values()
    assert call[call.index("--tag") + 1] == "registry.example/edge/power-agent:0.1.0"
    assert call[call.index("--file") + 1] == str(workshop.docker / "power_agent" / "Dockerfile")
    assert build_arguments(call)["DEBIAN_DIGEST"] == BASES["debian:trixie-slim"]


def test_a_base_image_that_cannot_be_read_is_named(workshop):
    workshop.say("digests", {})
    assert "arm64v8/ubuntu:22.04" in workshop.refusal("--only", "coral")


def test_missing_docker_is_said(workshop):
    (workshop.bin / "docker").unlink()
    assert "docker was not found" in workshop.refusal()


def test_missing_buildx_is_said(workshop):
    workshop.stand_in("docker", "#!{python}\nimport sys\nsys.exit(1)\n")
    assert "docker-buildx-plugin" in workshop.refusal()


def test_missing_emulation_is_said(workshop):
    (workshop.bin / "platforms").write_text("linux/amd64, linux/386")
    assert "binfmt --install arm64" in workshop.refusal()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--push"], "--registry"),
        (["--only", "coral,tpu"], "'tpu' is none of"),
        (["--only", ""], "--only needs some of"),
        (["--tag"], "--tag needs a value"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(workshop, options, reason):
    assert reason in workshop.refusal(*options)
    assert not (workshop.bin / "docker.log").exists()


def test_help_names_every_option(workshop):
    done = workshop.run("--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--registry", "--tag", "--push", "--only", "--platform", "--update"))
