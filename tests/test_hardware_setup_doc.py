"""What docs/hardware_setup.md names exists: files, options, variables, labels, limits; its commands find what they need."""

import hashlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

import main_pregenerated
import profile_nodes
from cluster.discovery import LABELS, PATIENCE
from cluster.http_client import CPU, Health, wrong_node
from cluster.kubernetes_api import COPY_OF_K3S
from inference_request import WORKERS
from measurement.summary import DOWN_LIMIT_S, LAG_MAX_LIMIT_S, LAG_P99_LIMIT_S
from tests.helpers import default_profile
from utils import PROJECT_ROOT

PATH = PROJECT_ROOT / "docs" / "hardware_setup.md"
TEXT = PATH.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)
MODELS_PAGE = (PROJECT_ROOT / "docker" / "models" / "README.md").read_text(encoding="utf-8")
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
COPY = "edge-accelerator-harness"
"""Folder in the home directories of master and PC into which the page puts the repository."""
PAGES = [
    *("README.md", "README_KO.md", "CONTRIBUTING.md", "docker/models/README.md"),
    *(f"docs/{page.name}" for page in sorted((PROJECT_ROOT / "docs").glob("*.md"))),
]


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
    of_k3s = {"--write-kubeconfig-mode", "--disable-network-policy", "--kubelet-arg=fail-cgroupv1=false", "--tls-san"}
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


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.split("\n", 1)[0][:20])
def test_commands_that_use_the_repository_go_there_first(section):
    folders, programs = "|".join(FOLDERS), "|".join(PROGRAMS)
    uses = re.compile(rf"(?<![\w./~-])(?:{folders})/|^(?:python3 (?:{programs})|make |\. \.venv)", re.MULTILINE)
    there = None
    for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
        going = re.search(rf"^cd ~/{COPY}\b", block, re.MULTILINE)
        if used := uses.search(block):
            there = there or (going and going.start() < used.start())
            assert there, f"uses the repository before `cd ~/{COPY}`:\n{block}"
        there = there or bool(going)


def test_repository_is_on_the_master_and_the_pc_before_it_is_used():
    (cloned,) = [at for at, section in enumerate(SECTIONS) if f"git clone ADDRESS_OF_THIS_REPOSITORY ~/{COPY}" in section]
    used = [at for at, section in enumerate(SECTIONS) if f"cd ~/{COPY}\n" in section]
    assert used and min(used) > cloned


class Commands:
    """Runs documented commands in folders of a test; what they would do to other machines or the system happens there.

    Args:
        folder: holds the homes `pc` and `node`, and `edge-models` in place of /opt/edge-models.
    """

    def __init__(self, folder):
        self.models = folder / "edge-models"
        self._folder = folder
        self._programs = folder / "bin"
        for each in (self._programs, folder / "pc", folder / "node"):
            each.mkdir()
        (folder / "pc" / COPY).symlink_to(PROJECT_ROOT)
        self._program("sudo", 'exec "$@"')
        self._program("apt", ":")
        self._program("python3", f'exec {shlex.quote(sys.executable)} "$@"')
        self._program("scp", f'[ "${{2%:}}" != "$2" ] && cp "$1" {shlex.quote(str(folder / "node"))}/')
        self._program("curl", 'while [ $# -gt 2 ]; do [ "$1" != --output-dir ] || cd "$2"; shift; done; echo "$2" > "${2##*/}"')

    def _program(self, name, text):
        path = self._programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, home, text):
        """Run shell commands with one of the two home directories, from anywhere."""
        environment = {"HOME": str(self._folder / home), "PATH": f"{self._programs}:/usr/bin:/bin"}
        command = ["bash", "-e", "-u", "-c", text.replace("/opt/edge-models", str(self.models))]
        done = subprocess.run(command, cwd=self._folder, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def blocks_below(text, *headings):
    """Shell commands below a heading of the page, and below one within that."""
    for heading in headings:
        text = text.split(f"{heading}\n", 1)[1]
    return re.findall(r"```sh\n(.*?)```", re.split(r"^###? ", text, flags=re.MULTILINE)[0], re.DOTALL)


@pytest.mark.parametrize("heading, ending", [("## Coral", ".tflite"), ("## Hailo-8L", ".hef")])
def test_ready_made_models_get_their_manifest_by_the_commands_of_the_two_pages(heading, ending, tmp_path):
    commands = Commands(tmp_path)
    (preparation,) = [block for block in BLOCKS if "sudo mkdir -p /opt/edge-models && sudo apt" in block]
    (copying,) = [block for block in BLOCKS if "scp docker/models/write_manifest.py" in block]
    commands.run("node", preparation)
    commands.run("pc", copying)
    needed = [block for block in blocks_below(MODELS_PAGE, heading, "### Ready-made") if "get_input" not in block]
    assert any("curl" in block for block in needed) and any("write_manifest.py" in block for block in needed)
    commands.run("node", "\n".join(needed))
    manifest = yaml.safe_load((commands.models / "models.yaml").read_text())["models"]
    assert manifest.pop("vgg16").keys() == {"absent"}
    assert set(manifest) == {"mobilenet", "resnet50", "efficientnet"}
    for model in manifest.values():
        content = (commands.models / model["file"]).read_bytes()
        assert model["file"].endswith(ending) and content.startswith(b"https://")
        assert model["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("page", PAGES)
def test_pages_have_no_gaps_left_to_fill(page):
    assert re.findall(r"@@\w+@@", (PROJECT_ROOT / page).read_text(encoding="utf-8")) == []


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
    assert "--node-taint node.hardware=${node%[0-9]}:NoExecute" in TEXT
    assert {tuple(each.items()) for pod in pods for each in pod["tolerations"]} == {
        (("key", "node.hardware"), ("operator", "Exists"))
    }
    assert "nvidia.com/gpu:" in (PROJECT_ROOT / "yaml" / "jetson_daemonset.yaml").read_text()


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
    *("the driver's version is not to be had", "HailoRT's Python binding does not work with numpy"),
    *("no pod that is ready", "wants no pod (DESIRED 0)", "it is in the namespace", "expected a whole kubeconfig"),
    *("does not accept the credentials of the kubeconfig", "does not accept the certificate of the kubeconfig"),
    *("its certificate has expired, or the clock here is wrong", "its certificate is not signed by the one in the kubeconfig"),
    *("its certificate does not name this address", "a certificate or key in the kubeconfig cannot be read"),
)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_to_look_for_are_those_of_the_programs(message):
    assert message in TEXT
    programs = [PROJECT_ROOT / name for name in ("measurement/summary.py", "cluster/discovery.py", "cluster/kubernetes_api.py")]
    source = "".join(file.read_text(encoding="utf-8") for file in (*programs, *(PROJECT_ROOT / "docker").rglob("*.py")))
    assert message.removeprefix("models.yaml: ") in source


def test_what_is_said_of_a_wrong_node_can_be_looked_up():
    profile = default_profile()
    for health in (
        Health(frozenset(), True, server="coral2", accelerator="coral"),
        Health(frozenset(), True, server="coral1", accelerator=CPU),
    ):
        problem = wrong_node("coral1", health, profile)
        assert problem is not None and problem in TEXT


def test_kubeconfig_is_copied_as_the_harness_recommends():
    assert COPY_OF_K3S in TEXT.split("## 7 k3s")[1].split("## 8 ")[0]


def test_wait_for_a_pipe_is_as_long_as_in_the_program():
    assert f"waiting up to {PATIENCE.given_up_after_s:g} s for a list of pods on standard input" in TEXT


def test_exit_statuses_are_those_of_the_servers():
    for file, name in (
        ("inference_server/watchdog.py", "EXIT_HANGS"),
        ("jetson_inference_server/jetson_inference_server.py", "EXIT_CONTEXT_LOST"),
    ):
        (status,) = re.findall(rf"^{name} = (\d+)", (PROJECT_ROOT / "docker" / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert f"exit status {status}" in TEXT
