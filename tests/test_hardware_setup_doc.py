"""What docs/hardware_setup.md names exists: files, options, variables, labels, limits; its shell commands are shell."""

import re
import subprocess

import pytest
import yaml

import main_pregenerated
import profile_nodes
from inference_request import WORKERS
from node_discovery import LABELS
from run_figures import DOWN_LIMIT_S, LAG_MAX_LIMIT_S, LAG_P99_LIMIT_S
from utils import PROJECT_ROOT

PATH = PROJECT_ROOT / "docs" / "hardware_setup.md"
TEXT = PATH.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
SPANS = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", PROSE)]
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()] + SPANS

KINDS = ("coral", "jetson", "hailo")
FOLDERS = ("benchmarks", "config", "docker", "docs", "tests", "yaml")
MADE_BY_COMMANDS = {"docker/images.lock", "docker/hailo_inference_server/debs"}
SCRIPTS = {
    "build.sh": PROJECT_ROOT / "docker" / "build.sh",
    "build_engines.sh": PROJECT_ROOT / "docker" / "jetson_inference_server" / "build_engines.sh",
}
PROGRAMS = {"main_pregenerated.py": main_pregenerated.parse_options, "profile_nodes.py": profile_nodes.parse_options}
VARIABLES_OF_OTHERS = {"KUBECONFIG", "K3S_URL", "K3S_TOKEN", "INSTALL_K3S_CHANNEL", "USER", "HOME"}
PLACES_OF_VARIABLES = ("*.yaml", "*.py", "*.sh", "Dockerfile")


def named_paths():
    """Files and folders of the project that the text names, in prose and in commands."""
    found = {match for text in COMMANDS for match in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*", text)}
    found |= {span for span in SPANS if re.fullmatch(r"[a-z_]+\.py", span)}
    found |= {"docs/" + link for link in re.findall(r"\]\(([^)#:]+)\)", TEXT)}
    return sorted(path.rstrip("/.") for path in found)


def sources_of_variables():
    files = [PROJECT_ROOT / "inference_request.py"]
    for folder in ("docker", "yaml"):
        files += [file for pattern in PLACES_OF_VARIABLES for file in (PROJECT_ROOT / folder).rglob(pattern)]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def commands_of(program):
    """Arguments of each command that starts a program."""
    for command in COMMANDS:
        for part in re.split(r"[|;&]+ ", command):
            words = [word.strip("'\"") for word in part.split()]
            for at, word in enumerate(words):
                if word.rsplit("/", 1)[-1] == program and at + 1 < len(words) and "scp" not in words[:at]:
                    yield words[at + 1 :]


def test_named_files_and_folders_exist():
    paths = named_paths()
    assert len(paths) > 15
    somewhere = {file.name for folder in ("", "docker/models") for file in (PROJECT_ROOT / folder).glob("*.py")}
    missing = [path for path in paths if path not in MADE_BY_COMMANDS | somewhere and not (PROJECT_ROOT / path).exists()]
    assert missing == []


def test_links_within_the_page_lead_to_a_heading_or_an_anchor():
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    anchors |= set(re.findall(r'<a id="([^"]+)">', TEXT))
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_commands_of_the_harness_are_understood(program):
    commands = [arguments for arguments in commands_of(program) if all(not word.isupper() for word in arguments)]
    assert commands
    for arguments in commands:
        PROGRAMS[program](arguments)


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_options_of_the_scripts_are_in_their_help(script):
    told = subprocess.run(["bash", SCRIPTS[script], "--help"], capture_output=True, text=True, check=True).stdout
    options = {word.rstrip("'") for arguments in commands_of(script) for word in arguments if word.startswith("--")}
    assert options
    assert options <= set(re.findall(r"--[a-z-]+", told)) | {"--help"}


def test_options_named_without_their_program_belong_to_one():
    own = {span.split()[0] for span in SPANS if re.match(r"--[a-z]", span)}
    scripts = (*SCRIPTS.values(), PROJECT_ROOT / "docker" / "models" / "export_onnx.py")
    helps = [path.read_text(encoding="utf-8") for path in (*(PROJECT_ROOT / name for name in PROGRAMS), *scripts)]
    of_k3s = {"--write-kubeconfig-mode", "--disable-network-policy", "--kubelet-arg=fail-cgroupv1=false"}
    assert own
    assert {option for option in own if not any(option in text for text in helps)} <= of_k3s


def test_variables_exist_where_servers_and_scripts_read_them():
    named = {found for span in SPANS for found in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", span.split("=")[0])}
    named -= VARIABLES_OF_OTHERS | {"HAILO_INVALID_DRIVER_VERSION"}
    known = sources_of_variables()
    assert len(named) >= 10
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", known)] == []


def test_commands_are_shell():
    for block in BLOCKS:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_nodes_labels_and_images_are_those_of_the_manifests():
    manifests = [
        yaml.safe_load((PROJECT_ROOT / "yaml" / f"{kind}_daemonset.yaml").read_text().split("\n---\n")[0]) for kind in KINDS
    ]
    pods = [manifest["spec"]["template"]["spec"] for manifest in manifests]
    assert {pod["nodeSelector"]["node.hardware"] for pod in pods} == {name.rstrip("12") for name in WORKERS}
    assert "--node-label node.hardware=${node%[0-9]}" in TEXT
    images = {pod["containers"][0]["image"] for pod in pods}
    assert {f"registry.example/edge/{kind}-inference-server:0.1.0" for kind in KINDS} == images
    assert 'docker save "registry.example/edge/${node%[0-9]}-inference-server:0.1.0"' in TEXT
    assert f"app.kubernetes.io/component={LABELS['app.kubernetes.io/component']}" in TEXT
    assert {volume["hostPath"]["path"] for pod in pods for volume in pod["volumes"] if volume["name"] == "models"} == {
        "/opt/edge-models"
    }
    assert "nvidia.com/gpu: 1" in (PROJECT_ROOT / "yaml" / "jetson_daemonset.yaml").read_text()


def test_limits_of_a_valid_run_are_those_of_the_program():
    assert f"at most {LAG_P99_LIMIT_S * 1e3:g} ms at p99 and {LAG_MAX_LIMIT_S * 1e3:g} ms at worst" in TEXT
    assert f"down for more than {DOWN_LIMIT_S:g} s" in TEXT


def test_hailort_has_one_version():
    dockerfile = (PROJECT_ROOT / "docker" / "hailo_inference_server" / "Dockerfile").read_text()
    (version,) = set(re.findall(r"^ARG HAILORT_VERSION=(.*)$", dockerfile, re.MULTILINE))
    assert f"This project is set to **{version}**" in " ".join(TEXT.split())
    assert set(re.findall(r"hailort[=_](\d+\.\d+\.\d+)", TEXT)) == {version}


def test_example_image_has_the_bytes_that_a_server_expects():
    assert f"head -c {224 * 224 * 3} /dev/zero" in TEXT


MESSAGES = (
    *("could not be reached at start", "the master was too busy", "the run was interrupted"),
    *("requests are waiting already", "model: expected one of", "models.yaml: cannot be read"),
    *("found no Edge TPU it could open", "is not compiled for the Edge TPU"),
    *("TensorRT or pycuda cannot be imported", "HailoRT's parts must have one and the same version"),
    "the driver's version is not to be had",
    "no pod that is ready",
)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_to_look_for_are_those_of_the_programs(message):
    assert message in TEXT
    programs = [PROJECT_ROOT / name for name in ("run_figures.py", "node_discovery.py")]
    source = "".join(file.read_text(encoding="utf-8") for file in (*programs, *(PROJECT_ROOT / "docker").rglob("*.py")))
    assert message.removeprefix("models.yaml: ") in source


def test_exit_statuses_are_those_of_the_servers():
    for file, name in (
        ("inference_server/watchdog.py", "EXIT_HANGS"),
        ("jetson_inference_server/jetson_inference_server.py", "EXIT_CONTEXT_LOST"),
    ):
        (status,) = re.findall(rf"^{name} = (\d+)", (PROJECT_ROOT / "docker" / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert f"exit status {status}" in TEXT
