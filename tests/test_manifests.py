"""The manifests of yaml/: valid for Kubernetes, and agreeing with each other, with the servers and with `--discover`."""

import re
from fractions import Fraction
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from cluster.discovery import DEFAULT_PORT, LABEL_SELECTOR, LABELS, NAMESPACE
from tests.helpers import default_profile
from utils import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "yaml"
KINDS = ("coral", "jetson", "hailo")
FILES = sorted(FOLDER.glob("*.yaml"))
KUBERNETES_VERSIONS = ("1.29", "1.32", "1.34", "1.37")
AN_EARLIER_FORM = "an earlier form was applied to a control plane 1.36, without a kubelet"

COMMON_VARIABLES = {
    *("NODE_NAME", "HOST", "PORT", "MODEL_DIR", "QUEUE_CAPACITY", "INFERENCE_TIMEOUT_S", "OPEN_TIMEOUT_S", "LOG_LEVEL"),
}
OWN_VARIABLES = {
    "coral": {"CORAL_DELEGATE", "CORAL_DEVICE"},
    "jetson": {"GPU_MEMORY_MB", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"},
    "hailo": {"HAILO_DRIVER_VERSION_FILE", "HAILORT_SERVICE", "HAILORT_LOGGER_PATH", "HAILO_POWER"},
}
HOST_PATHS = {
    "coral": {("/dev/bus/usb", "Directory", "/dev/bus/usb", False)},
    "jetson": {("/etc/nv_tegra_release", "File", "/etc/nv_tegra_release", True)},
    "hailo": {
        ("/dev/hailo0", "CharDevice", "/dev/hailo0", False),
        ("/sys/module/hailo_pci/version", "File", "/host/hailo_driver_version", True),
    },
}
"""Path on the node, its type, path in the container, whether it is mounted read-only; beside the models."""

every_kind = pytest.mark.parametrize("kind", KINDS)


class Manifests:
    """The two documents of one kind's file, and the parts of its DaemonSet that tests ask for."""

    def __init__(self, kind, text=None):
        self.text = text or (FOLDER / f"{kind}_daemonset.yaml").read_text()
        self.daemonset, self.service = yaml.safe_load_all(self.text)
        self.template = self.daemonset["spec"]["template"]
        self.pod = self.template["spec"]
        (self.container,) = self.pod["containers"]
        self.security = {**self.pod.get("securityContext", {}), **self.container["securityContext"]}
        self.variables = {each["name"]: each.get("value", "") for each in self.container["env"]}

    def host_paths(self):
        mounts = {mount["name"]: mount for mount in self.container["volumeMounts"]}
        for volume in self.pod["volumes"]:
            if "hostPath" in volume:
                mount = mounts[volume["name"]]
                yield volume["hostPath"]["path"], volume["hostPath"]["type"], mount["mountPath"], mount.get("readOnly", False)


# All files.


def documents_of(path):
    return list(yaml.safe_load_all(path.read_text()))


def test_folder_holds_the_files_that_the_documentation_names():
    expected = ["coral_daemonset.yaml", "hailo_daemonset.yaml", "jetson_daemonset.yaml", "network_policy.yaml"]
    assert [path.name for path in FILES] == expected
    assert [path.name for path in sorted(FOLDER.iterdir())] == ["Kustomization", *expected]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_document_is_valid_for_kubernetes(path, version):
    for document in documents_of(path):
        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_validation_notices_a_misspelt_field():
    daemonset = Manifests("coral").daemonset
    daemonset["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        kubernetes_validate.validate(daemonset, "1.34", strict=True)


def keys_that_stand_twice(node):
    children = []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        yield from {key for key in keys if keys.count(key) > 1}
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        yield from keys_that_stand_twice(child)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_key_stands_twice_and_everything_names_its_namespace(path):
    for root in yaml.compose_all(path.read_text(), Loader=yaml.SafeLoader):
        assert list(keys_that_stand_twice(root)) == []
    assert {document["metadata"]["namespace"] for document in documents_of(path)} == {"default"} == {NAMESPACE}


# A second `kubectl apply` says "unchanged": nothing stands here that the API server writes in another form, or leaves out.


POINTERS_TO_FALSE = {
    *("automountServiceAccountToken", "enableServiceLinks", "privileged", "allowPrivilegeEscalation"),
}
"""Fields that Kubernetes keeps when they are false; of all others it drops false, 0 and what is empty."""
POINTERS_TO_ZERO = {"maxSurge", "maxUnavailable", "runAsUser", "runAsGroup"}
ATOMIC_WITH_DEFAULTS = {"fieldRef": "apiVersion", "resourceFieldRef": "divisor", "roleRef": "apiGroup"}
"""Mappings that are replaced as a whole: what they leave to a default differs at every apply."""
KEYS_OF_LISTS = {
    "ports": lambda port: (port["protocol"], port.get("containerPort") or port["port"]),
    "env": lambda variable: variable["name"],
    "volumes": lambda volume: volume["name"],
    "volumeMounts": lambda mount: mount["mountPath"],
    "containers": lambda container: container["name"],
}
"""By what the entries of a list are told apart; a protocol that is left out makes server-side apply count a port twice."""


def canonical_quantity(text):
    """A quantity as Kubernetes writes it: a whole number with the largest suffix that keeps it whole."""
    ((number, suffix),) = re.findall(r"^([\d.]+)([A-Za-z]*)$", str(text))
    binary = suffix.endswith("i")
    suffixes = ["", "Ki", "Mi", "Gi", "Ti"] if binary else ["m", "", "k", "M", "G", "T"]
    base = 1024 if binary else 1000
    value = Fraction(number) * base ** suffixes.index(suffix)
    fitting = [step for step in range(len(suffixes)) if value % base**step == 0]
    return f"{value // base ** fitting[-1]}{suffixes[fitting[-1]]}"


def not_kept(value, at="", key=""):
    """Where an object would come back from the API server in another form, each with the reason."""
    if value in (None, "", [], {}) or (value is False and key not in POINTERS_TO_FALSE):
        yield f"{at}: {value!r} is dropped"
    elif value == 0 and not isinstance(value, bool) and key not in POINTERS_TO_ZERO:
        yield f"{at}: 0 is dropped"
    elif isinstance(value, dict):
        if key in ATOMIC_WITH_DEFAULTS and ATOMIC_WITH_DEFAULTS[key] not in value:
            yield f"{at}: {ATOMIC_WITH_DEFAULTS[key]} is left to its default"
        for name, each in value.items():
            if key in ("limits", "requests") or name == "sizeLimit":
                if each != canonical_quantity(each):
                    yield f"{at}.{name}: {each!r} becomes {canonical_quantity(each)!r}"
            else:
                yield from not_kept(each, f"{at}.{name}", name)
    elif isinstance(value, list):
        if key in KEYS_OF_LISTS:
            keys = [KEYS_OF_LISTS[key]({"protocol": None, **each}) for each in value]
            if len(set(keys)) < len(keys) or (key == "ports" and any(protocol is None for protocol, _ in keys)):
                yield f"{at}: entries cannot be told apart"
        for index, each in enumerate(value):
            if each != "" or key != "apiGroups":
                yield from not_kept(each, f"{at}[{index}]")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_second_apply_finds_what_it_sent(path):
    for document in documents_of(path):
        assert list(not_kept(document)) == []


@pytest.mark.parametrize(
    "text, reason",
    [
        ("spec: {publishNotReadyAddresses: false}", "False is dropped"),
        ("env: [{name: A, value: ''}]", "'' is dropped"),
        ("spec: {minReadySeconds: 0}", "0 is dropped"),
        ("valueFrom: {fieldRef: {fieldPath: spec.nodeName}}", "apiVersion is left to its default"),
        ("limits: {nvidia.com/gpu: 1}", "1 becomes '1'"),
        ("limits: {cpu: '0.5'}", "'0.5' becomes '500m'"),
        ("limits: {cpu: 1000m}", "'1000m' becomes '1'"),
        ("requests: {memory: 1024Mi}", "'1024Mi' becomes '1Gi'"),
        ("requests: {memory: 1.5Gi}", "'1.5Gi' becomes '1536Mi'"),
        ("emptyDir: {sizeLimit: 2048Ki}", "'2048Ki' becomes '2Mi'"),
        ("ports: [{name: http, containerPort: 8080}]", "cannot be told apart"),
        ("env: [{name: A, value: b}, {name: A, value: c}]", "cannot be told apart"),
    ],
)
def test_walk_notices_what_the_api_server_changes(text, reason):
    (found,) = not_kept(yaml.safe_load(text))
    assert reason in found


# Kustomize.


def kustomized(folder):
    """Resources that a folder's Kustomization names."""
    content = yaml.safe_load((folder / "Kustomization").read_text())
    assert (content.pop("apiVersion"), content.pop("kind")) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    resources = content.pop("resources")
    assert content == {}
    return resources


def test_kustomization_holds_every_file_and_is_none_of_those_that_apply_sends():
    """`kubectl apply -f` takes the files that end in yaml, yml or json, and the cluster knows no kind Kustomization."""
    assert kustomized(FOLDER) == [path.name for path in FILES]
    assert not [path for path in FOLDER.iterdir() if path.suffix and path not in FILES]


# Names, labels, ports.


@every_kind
def test_file_holds_one_daemonset_and_one_headless_service_of_that_name(kind):
    one = Manifests(kind)
    assert (one.daemonset["kind"], one.service["kind"]) == ("DaemonSet", "Service")
    assert one.daemonset["metadata"]["name"] == one.service["metadata"]["name"] == f"{kind}-inference-server"
    assert one.service["spec"]["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in one.service["spec"]  # its default, false


@every_kind
def test_selectors_fit_the_pods_labels_and_no_other_kinds(kind):
    one = Manifests(kind)
    labels = one.template["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": f"{kind}-inference-server", **LABELS}
    assert one.daemonset["metadata"]["labels"] == one.service["metadata"]["labels"] == labels
    for selector in (one.daemonset["spec"]["selector"]["matchLabels"], one.service["spec"]["selector"]):
        assert selector.items() <= labels.items()
        assert selector["app.kubernetes.io/name"] == f"{kind}-inference-server"


def test_discovery_selects_by_the_labels_that_the_pods_carry():
    labels = Manifests("coral").template["metadata"]["labels"]
    assert dict(part.split("=") for part in LABEL_SELECTOR.split(",")) == LABELS
    assert LABELS.items() <= labels.items()


@every_kind
def test_port_is_the_same_wherever_it_stands(kind):
    one = Manifests(kind)
    assert one.container["ports"] == [{"name": "http", "containerPort": DEFAULT_PORT, "protocol": "TCP"}]
    assert one.service["spec"]["ports"] == [{"name": "http", "port": DEFAULT_PORT, "targetPort": "http", "protocol": "TCP"}]
    assert one.variables["PORT"] == str(DEFAULT_PORT)
    assert one.template["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(DEFAULT_PORT),
        "prometheus.io/path": "/metrics",
    }


def test_network_policy_admits_the_servers_port_and_nothing_else():
    (policy,) = documents_of(FOLDER / "network_policy.yaml")
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"] == {
        "podSelector": {"matchLabels": LABELS},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"protocol": "TCP", "port": DEFAULT_PORT}]}],
    }


# What the three kinds share.


def test_what_the_kinds_share_is_the_same_in_all():
    def shared(kind):
        text = (FOLDER / f"{kind}_daemonset.yaml").read_text().replace(f"{kind}-inference-server", "X-inference-server")
        one = Manifests(kind, text)
        del one.pod["nodeSelector"]["node.hardware"]
        for key in ("runtimeClassName", "securityContext"):
            one.pod.pop(key, None)
        for key in ("resources", "securityContext"):
            del one.container[key]
        one.container["env"] = [each for each in one.container["env"] if each["name"] in COMMON_VARIABLES]
        for holder, key in ((one.container, "volumeMounts"), (one.pod, "volumes")):
            holder[key] = [each for each in holder[key] if each["name"] in ("models", "tmp")]
        return one.daemonset, one.service

    assert shared("coral") == shared("jetson") == shared("hailo")


@every_kind
def test_pods_go_to_the_nodes_of_their_kind(kind):
    assert Manifests(kind).pod["nodeSelector"] == {"node.hardware": kind, "kubernetes.io/arch": "arm64"}


@every_kind
def test_taint_that_keeps_others_off_is_the_label_and_is_tolerated_with_any_value_and_effect(kind):
    one = Manifests(kind)
    assert one.pod["tolerations"] == [{"key": "node.hardware", "operator": "Exists"}]
    assert one.pod["tolerations"][0]["key"] in one.pod["nodeSelector"]


@every_kind
def test_old_pod_ends_before_the_new_one_starts(kind):
    strategy = Manifests(kind).daemonset["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


@every_kind
def test_pod_is_cut_off_from_what_it_does_not_need(kind):
    one = Manifests(kind)
    assert one.pod["automountServiceAccountToken"] is False
    assert one.pod["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & one.pod.keys()
    assert one.security["readOnlyRootFilesystem"] is True
    assert {"name": "tmp", "mountPath": "/tmp"} in one.container["volumeMounts"]
    (tmp,) = (volume for volume in one.pod["volumes"] if volume["name"] == "tmp")
    assert tmp["emptyDir"]["sizeLimit"]


@every_kind
def test_image_is_pinned_to_a_tag_and_fetched_once(kind):
    container = Manifests(kind).container
    assert re.fullmatch(rf"registry\.example/edge/{kind}-inference-server:\d+\.\d+\.\d+", container["image"])
    assert container["imagePullPolicy"] == "IfNotPresent"


@every_kind
def test_environment_holds_the_variables_of_the_server_and_no_others(kind):
    one = Manifests(kind)
    assert len(one.variables) == len(one.container["env"])
    assert one.variables.keys() == COMMON_VARIABLES | OWN_VARIABLES[kind]
    (name,) = (each for each in one.container["env"] if each["name"] == "NODE_NAME")
    assert name["valueFrom"] == {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}
    assert all(isinstance(value, str) for value in one.variables.values())


def test_variables_of_all_kinds_are_those_that_the_shared_server_documents():
    source = (PROJECT_ROOT / "docker" / "inference_server" / "main.py").read_text()
    table = "".join(re.findall(r"^\| (`[A-Z_`, ]+) \|", source, flags=re.MULTILINE))
    assert set(re.findall(r"[A-Z_]+", table)) == COMMON_VARIABLES


@every_kind
def test_variables_of_one_kind_are_read_by_its_server(kind):
    sources = "".join(path.read_text() for path in (PROJECT_ROOT / "docker" / f"{kind}_inference_server").glob("*.py"))
    read_elsewhere = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "HAILORT_LOGGER_PATH"}
    assert [name for name in sorted(OWN_VARIABLES[kind] - read_elsewhere) if f'"{name}"' not in sources] == []


@every_kind
def test_host_paths_are_those_that_the_server_needs(kind):
    one = Manifests(kind)
    assert set(one.host_paths()) == HOST_PATHS[kind] | {("/opt/edge-models", "Directory", one.variables["MODEL_DIR"], True)}
    assert {mount["name"] for mount in one.container["volumeMounts"]} == {volume["name"] for volume in one.pod["volumes"]}


# Times.


def first_and_last_s(probe):
    """How long a process may be silent before this probe gives up, at least, and how long it takes at most, seconds."""
    between_s = (probe["failureThreshold"] - 1) * probe["periodSeconds"]
    return between_s + probe["timeoutSeconds"], between_s + probe["periodSeconds"] + probe["timeoutSeconds"]


@every_kind
def test_probes_ask_the_right_questions_and_wait_no_longer_than_their_period(kind):
    container = Manifests(kind).container
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert paths == {
        "startup": {"path": "/health", "port": "http"},
        "readiness": {"path": "/health", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
    }
    for name in paths:
        assert container[f"{name}Probe"]["timeoutSeconds"] <= container[f"{name}Probe"]["periodSeconds"]


@every_kind
def test_startup_lasts_as_long_as_the_device_may_take_to_open(kind):
    one = Manifests(kind)
    probe = one.container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= float(one.variables["OPEN_TIMEOUT_S"]) + 30


@every_kind
def test_watchdog_of_the_server_comes_before_the_liveness_probe(kind):
    one = Manifests(kind)
    earliest_s, latest_s = first_and_last_s(one.container["livenessProbe"])
    assert earliest_s >= 3 * float(one.variables["INFERENCE_TIMEOUT_S"])
    assert latest_s <= 120


@every_kind
def test_termination_lasts_as_long_as_a_full_queue_of_the_slowest_model(kind):
    one, profile = Manifests(kind), default_profile()
    slowest_s = max(max(profile.service_time_s(name).values()) for name in profile.nodes if name.startswith(kind))
    queue_s = (int(one.variables["QUEUE_CAPACITY"]) + 1) * slowest_s
    hang_s = float(one.variables["INFERENCE_TIMEOUT_S"])
    assert queue_s + hang_s + 5 <= one.pod["terminationGracePeriodSeconds"] <= 2 * 60
    ((each, together),) = re.findall(r"65 x ([\d.]+) s = ([\d.]+) s", one.text)
    assert float(each) == pytest.approx(slowest_s, abs=5e-4)
    assert float(together) == pytest.approx(queue_s, abs=0.06)


# Resources and rights.


def mebibytes(text):
    return int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]


@every_kind
def test_limits_leave_the_node_a_core_and_some_memory(kind):
    one = Manifests(kind)
    requests, limits = one.container["resources"]["requests"], one.container["resources"]["limits"]
    assert 0 < float(requests["cpu"]) <= float(limits["cpu"]) <= 3
    on_the_gpu = int(one.variables.get("GPU_MEMORY_MB", 0))
    assert mebibytes(requests["memory"]) <= mebibytes(limits["memory"]) <= 3964 - 768 - on_the_gpu  # of a node of 4 GB


@pytest.mark.parametrize("kind", ["coral", "hailo"])
def test_privileged_container_claims_no_restriction_that_has_no_effect(kind):
    security = Manifests(kind).security
    assert security["privileged"] is True
    assert not {"capabilities", "allowPrivilegeEscalation", "seccompProfile"} & security.keys()


@pytest.mark.parametrize("kind, root", [("coral", True), ("jetson", False), ("hailo", False)])
def test_server_is_root_only_where_the_device_asks_for_it(kind, root):
    security = Manifests(kind).security
    assert (security["runAsUser"] == 0, not security.get("runAsNonRoot", False)) == (root, root)


def test_jetson_gets_its_gpu_from_the_runtime_and_no_more_rights_than_that():
    one = Manifests("jetson")
    assert one.pod["runtimeClassName"] == "nvidia"
    assert one.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert one.security["privileged"] is one.security["allowPrivilegeEscalation"] is False
    assert one.security["capabilities"] == {"drop": ["ALL"]}
    assert one.security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one.security["supplementalGroups"] == [44]


# What stands in comments, to be taken by whoever needs it.


def with_options(kind, name):
    """The manifests with the commented list items of that name taken in."""
    text, taken = re.subn(rf"^( +)# (- {{name: {name})", r"\1\2", Manifests(kind).text, flags=re.MULTILINE)
    return Manifests(kind, text), taken


@pytest.mark.parametrize(
    "kind, name, type_, paths",
    [
        ("hailo", "hailort-service", "Socket", {"/tmp/hailort_uds.sock"}),
        (
            "jetson",
            "nv",
            "CharDevice",
            {
                *("/dev/nvhost-ctrl", "/dev/nvhost-ctrl-gpu", "/dev/nvhost-gpu", "/dev/nvhost-as-gpu"),
                *("/dev/nvhost-prof-gpu", "/dev/nvhost-dbg-gpu", "/dev/nvhost-vic", "/dev/nvmap"),
            },
        ),
    ],
)
def test_commented_options_are_valid_when_they_are_taken(kind, name, type_, paths):
    one, taken = with_options(kind, name)
    assert taken == 2 * len(paths)
    kubernetes_validate.validate(one.daemonset, "1.34", strict=True)
    assert set(one.host_paths()) - set(Manifests(kind).host_paths()) == {(path, type_, path, False) for path in paths}


def test_every_file_says_what_it_was_tested_on():
    for kind in KINDS:
        text = Path(FOLDER / f"{kind}_daemonset.yaml").read_text()
        assert "it has not run on a board yet" in text and AN_EARLIER_FORM in text
