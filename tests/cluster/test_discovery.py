"""Finding the workers: what a list of pods says, what stands on standard input, and how the cluster's API is asked."""

import io
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from urllib.parse import parse_qs

import pytest
import yaml

import main_pregenerated
import profile_nodes
from cluster import discovery, kubernetes_api
from cluster.discovery import LABEL_SELECTOR, LABELS, Patience, discover_workers, pods_in, read_given, workers_of
from cluster.emulated import EmulatedNodes
from cluster.kubernetes_api import COPY_OF_K3S
from tests.helpers import Reply, default_profile, scripted_server, small_profile
from utils import PROJECT_ROOT, HarnessError, Interrupted, UsageError

PROFILE_NODES = list(default_profile().nodes)
LITTLE_PATIENCE = Patience(told_after_s=0.0, given_up_after_s=0.05)
WAITING = "waiting up to 0.05 s for a list of pods on standard input, which is a pipe"


def a_pod(
    node="coral1", name="", ip="10.42.1.7", labels=LABELS, phase="Running", ready="True", ports=None, waiting="", **metadata
):
    """A pod as kubectl prints it; `metadata` is added to its own."""
    ports = [{"name": "http", "containerPort": 8080, "protocol": "TCP"}] if ports is None else ports
    state = {"waiting": {"reason": waiting}} if waiting else {"running": {"startedAt": "2026-11-23T20:00:00Z"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or f"server-on-{node}",
            "namespace": "default",
            "labels": {"app.kubernetes.io/name": "coral-inference-server", **labels, "pod-template-generation": "1"},
            **metadata,
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            "containers": [{"name": "inference-server", "image": "registry.example/edge/x:1", "ports": ports}],
        },
        "status": {
            "phase": phase,
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": ready}],
            "containerStatuses": [{"name": "inference-server", "ready": ready == "True", "state": state}],
            **({"podIP": ip, "podIPs": [{"ip": ip}]} if ip else {}),
        },
    }


def a_list(*pods, kind="List"):
    return json.dumps({"apiVersion": "v1", "kind": kind, "items": pods, "metadata": {"resourceVersion": ""}}).encode()


def found(*pods):
    return workers_of(pods_in(a_list(*pods), "standard input"), PROFILE_NODES)


# What a list says.


def test_workers_come_in_the_order_of_the_profile_and_unknown_nodes_last():
    names = ["hailo2", "zebra", "coral1", "alpaca", "jetson1"]
    workers = found(*(a_pod(name, ip=f"10.42.0.{number}") for number, name in enumerate(names))).workers
    assert list(workers.items()) == [
        ("coral1", "http://10.42.0.2:8080/infer"),
        ("jetson1", "http://10.42.0.4:8080/infer"),
        ("hailo2", "http://10.42.0.0:8080/infer"),
        ("alpaca", "http://10.42.0.3:8080/infer"),
        ("zebra", "http://10.42.0.1:8080/infer"),
    ]


@pytest.mark.parametrize(
    "ports, port",
    [
        ([{"name": "metrics", "containerPort": 9000}, {"name": "http", "containerPort": 8181}], 8181),
        ([{"containerPort": 9000}], 8080),
        ([], 8080),
    ],
)
def test_port_is_the_one_that_is_named_http(ports, port):
    assert found(a_pod(ports=ports)).workers == {"coral1": f"http://10.42.1.7:{port}/infer"}


def test_ipv6_address_stands_in_brackets():
    assert found(a_pod(ip="fd00:10:42::7")).workers == {"coral1": "http://[fd00:10:42::7]:8080/infer"}


@pytest.mark.parametrize("text", [a_list(a_pod(), kind="PodList"), a_list(a_pod()), json.dumps(a_pod()).encode()])
def test_lists_of_kubectl_and_of_the_api_and_a_single_pod_are_taken(text):
    assert [pod.spec.node for pod in pods_in(text, "standard input")] == ["coral1"]


def test_items_of_the_api_carry_no_kind():
    item = {key: value for key, value in a_pod().items() if key not in ("kind", "apiVersion")}
    assert found(item).workers == {"coral1": "http://10.42.1.7:8080/infer"}


@pytest.mark.parametrize("key", LABELS)
def test_pods_without_the_labels_and_other_kinds_of_things_are_passed_over_in_silence(key):
    others = {label: value for label, value in LABELS.items() if label != key}
    service = {"kind": "Service", "apiVersion": "v1", "metadata": {"name": "kubernetes", "labels": LABELS}, "spec": {"ports": 3}}
    strangers = [a_pod("coral2", labels=others), a_pod("hailo1", labels={**LABELS, key: "monitoring"}), service]
    assert found(a_pod(), *strangers) == ({"coral1": "http://10.42.1.7:8080/infer"}, [])


def test_malformed_pods_of_others_do_not_spoil_the_list():
    strangers = [a_pod("coral2", ip="nonsense", labels=dict.fromkeys(LABELS, "another")), a_pod("hailo1", ports=7, labels={})]
    strangers[1]["metadata"]["labels"] = None
    assert found(a_pod(), *strangers) == ({"coral1": "http://10.42.1.7:8080/infer"}, [])


@pytest.mark.parametrize(
    "pod, why",
    [
        (a_pod(deletionTimestamp="2026-11-23T20:00:00Z"), "it is being deleted"),
        (a_pod(phase="Pending", waiting="ImagePullBackOff"), "its phase is Pending (ImagePullBackOff), not Running"),
        (a_pod(phase="Failed"), "its phase is Failed, not Running"),
        (a_pod(ready="False"), "it is not ready"),
        (a_pod(ready="Unknown"), "it is not ready"),
        (a_pod(ready="False", waiting="CrashLoopBackOff"), "it is not ready (CrashLoopBackOff)"),
        (a_pod(ip=""), "it has no address yet"),
        (a_pod(phase="Pending", waiting="Odd\x1b[2J\nreason"), r"its phase is Pending (Odd\x1b[2J\nreason), not Running"),
    ],
)
def test_server_that_cannot_serve_is_left_out_and_told(pod, why):
    workers, left_out = found(pod, a_pod("hailo1"))
    assert list(workers) == ["hailo1"]
    assert left_out == [f"pod server-on-coral1 on coral1 is left out: {why}"]


UNSCHEDULABLE = "0/7 nodes are available: 1 Insufficient memory, 6 node(s) didn't satisfy plugin(s) [NodeAffinity]."


def an_unplaced_pod(node="coral2", message=UNSCHEDULABLE):
    """A pod of a DaemonSet as it waits for its node."""
    pod = a_pod(node="", name="waiting", phase="Pending", ip="")
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    pod["spec"]["affinity"] = affinity
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pod["status"] = {"phase": "Pending", "conditions": [condition]}
    return pod


def test_pod_that_finds_no_place_is_told_with_its_node_and_the_reason():
    assert found(an_unplaced_pod()).left_out == [
        f"pod waiting on coral2 is left out: its phase is Pending (Unschedulable: {UNSCHEDULABLE}), not Running"
    ]


def test_names_and_reasons_are_shown_in_one_line_without_control_characters():
    pods = [a_pod(name="evil\x1b]0;title\x07\n", phase="Failed"), an_unplaced_pod("node\r", "\x9b31m" + "long " * 1000)]
    for line in found(*pods).left_out:
        assert line.isprintable() and len(line) <= 500
    with pytest.raises(UsageError) as refused:
        found(a_pod(name="a\x1b[2J"), a_pod(name="b\n" + "x" * 10_000))
    assert str(refused.value).isprintable() and len(str(refused.value)) < 500


def test_pod_of_another_namespace_is_left_out_and_told():
    mine, other = a_pod("coral1"), a_pod("coral2", name="stranger", namespace="other")
    assert found(mine, other) == (
        {"coral1": "http://10.42.1.7:8080/infer"},
        [
            "pod stranger on coral2 is left out: it is in the namespace other, not default: "
            "`--namespace` names the one that is taken"
        ],
    )
    assert list(workers_of(pods_in(a_list(mine, other), "standard input"), PROFILE_NODES, "other").workers) == ["coral2"]


def test_pod_of_another_namespace_is_no_second_server_of_its_node():
    assert list(found(a_pod("coral1"), a_pod("coral1", namespace="other")).workers) == ["coral1"]


def test_pod_without_conditions_or_node_is_not_ready():
    fresh = a_pod(node="", name="fresh", phase="Pending", ip="")
    fresh["status"] = {"phase": "Pending", "conditions": None}
    assert found(fresh) == ({}, ["pod fresh on no node is left out: its phase is Pending, not Running"])


def test_old_pod_beside_its_ready_successor_does_not_hide_it():
    old = a_pod(name="old", ip="10.42.1.6", deletionTimestamp="2026-11-23T20:00:00Z")
    for pods in ([old, a_pod(name="new")], [a_pod(name="new"), old]):
        assert found(*pods).workers == {"coral1": "http://10.42.1.7:8080/infer"}


def test_two_ready_servers_on_one_node_are_refused_by_name():
    with pytest.raises(UsageError, match=r"^node coral1: expected one .* found two, first and second: ") as refused:
        found(a_pod(name="first"), a_pod("coral2"), a_pod(name="second", ip="10.42.1.8"))
    assert "coral2" not in str(refused.value)
    assert str(refused.value).endswith("(both are in the namespace default)")


@pytest.mark.parametrize(
    "text, says",
    [
        (b"NAME   READY   STATUS\ncoral  1/1  Running\n", r"found 'NAME   READY   STATUS\\ncoral .*', which is not JSON$"),
        (b"\xff\xfe\x00\x01", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (a_list(a_pod())[:-20], "not JSON"),
        (a_list(a_pod()) * 2, "not JSON"),
        (b"[]", "found JSON of another kind"),
        (b'"pods"', "found JSON of another kind"),
        (b"{}", "found JSON of another kind"),
        (b'{"kind": "Status", "status": "Failure"}', "found the kind Status"),
        (b'{"kind": "ServiceList", "items": []}', "found the kind ServiceList"),
        (b'{"kind": "List", "items": {"a": 1}}', "found the kind List"),
        (b'{"kind": "List", "items": [7]}', "found a pod that is none: an item: "),
        (b'{"kind": "Pod"}', "found a pod that is none: metadata: Field required"),
        (a_list(a_pod(ip="10.42.1")), "found a pod that is none: status.podIP: "),
        (a_list(a_pod(ports=[{"name": "http", "containerPort": 99999}])), r"spec\.containers\.0\.ports\.0\.containerPort: "),
    ],
)
def test_what_is_no_list_of_pods_is_refused_in_one_line(text, says):
    with pytest.raises(UsageError, match=r"^standard input: expected what `kubectl get pods -o json` prints, ") as refused:
        pods_in(text, "standard input")
    assert re.search(says, str(refused.value)), refused.value
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


def test_list_without_items_holds_no_pods():
    assert pods_in(b'{"kind": "PodList", "items": null}', "standard input") == []


# Why servers are missing.


def a_node(name, ready="True", message="", **labels):
    condition = {"type": "Ready", "status": ready, "reason": "KubeletReady", "message": message}
    pressure = {"type": "DiskPressure", "status": "False", "message": "kubelet has no disk pressure"}
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {"conditions": [pressure, condition]}}


def a_daemonset(kind="jetson", desired=2, current=2, namespace="default", labels=LABELS):
    return {
        "kind": "DaemonSet",
        "metadata": {"name": f"{kind}-inference-server", "namespace": namespace, "labels": labels},
        "spec": {"template": {"spec": {"nodeSelector": {"node.hardware": kind}}}},
        "status": {"desiredNumberScheduled": desired, "currentNumberScheduled": current, "numberReady": current},
    }


NOT_READY = "node coral2 is NotReady: Kubelet stopped posting node status."
NO_LABEL = (
    "DaemonSet jetson-inference-server wants no pod (DESIRED 0): "
    "no node has the label node.hardware=jetson, or those that have it have a taint that it does not tolerate"
)
TOO_FEW = (
    "DaemonSet jetson-inference-server wants 2 pods and has 1: "
    "`kubectl -n default describe daemonset jetson-inference-server` says why"
)
REASONS = [
    ([a_node("coral1"), a_node("coral2", "Unknown", "Kubelet stopped posting node status.")], [NOT_READY]),
    ([a_daemonset(desired=0, current=0)], [NO_LABEL]),
    ([a_daemonset(current=1)], [TOO_FEW]),
    ([a_daemonset()], []),
    ([a_daemonset(desired=0, current=0, namespace="other"), a_daemonset(desired=0, current=0, labels={"app": "other"})], []),
    ([{"kind": "Node"}, {"kind": "DaemonSet", "metadata": 7}, {"kind": "DaemonSet", "metadata": {"name": 7}}, 7], []),
]


@pytest.mark.parametrize("others, told", REASONS)
def test_list_of_several_kinds_says_why_servers_are_missing(no_input, monkeypatch, tmp_path, others, told):
    """As `kubectl get pods,nodes,daemonsets -o json` prints it."""
    others = [each for each in others if each != 7]
    (tmp_path / "all.json").write_bytes(a_list(a_pod(), *others))
    with (tmp_path / "all.json").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        workers, lines = discovered()
    assert list(workers) == ["coral1"]
    assert lines == [*told, "standard input: servers on coral1; no server on coral2, jetson1, jetson2, hailo1, hailo2"]


@pytest.mark.parametrize("others, told", REASONS)
def test_api_says_why_servers_are_missing(api, others, told):
    def reply(asked):
        kind = {"pods": "Pod", "nodes": "Node", "daemonsets": "DaemonSet"}[asked.path.partition("?")[0].rsplit("/", 1)[-1]]
        items = [a_pod()] if kind == "Pod" else [each for each in others if each == 7 or each["kind"] == kind]
        without_kind = [each if each == 7 else {key: value for key, value in each.items() if key != "kind"} for each in items]
        return Reply(200, a_list(*without_kind, kind=f"{kind}List"))

    api.reply = reply
    assert discovered()[1][1:] == [
        *told,
        "the Kubernetes API: servers on coral1; no server on coral2, jetson1, jetson2, hailo1, hailo2",
    ]


def test_daemonsets_are_named_where_there_are_no_pods(api):
    sets = [a_daemonset("coral", 0, 0), a_daemonset("jetson", 2, 0), a_daemonset("hailo", 2, 2)]

    def reply(asked):
        return Reply(200, a_list(*sets, kind="DaemonSetList") if "daemonsets" in asked.path else a_list(kind="PodList"))

    api.reply = reply
    lines: list[str] = []
    with pytest.raises(HarnessError, match=r"and `kubectl get daemonsets -n default`$"):
        discover_workers(PROFILE_NODES, lines.append)
    assert [line.split(" wants ")[0] for line in lines[1:]] == [
        f"DaemonSet {kind}-inference-server" for kind in ("coral", "jetson", "hailo")
    ]


def test_user_who_may_not_look_at_nodes_is_told_and_gets_the_workers(api):
    def reply(asked):
        return Reply(200, a_list(a_pod(), kind="PodList")) if "/pods" in asked.path else Reply(403, b"{}")

    api.reply = reply
    workers, lines = discovered()
    assert list(workers) == ["coral1"]
    refused = "not asked why servers are missing: the Kubernetes API at {} does not let the user of the kubeconfig list {} (403)"
    assert lines[1:3] == [refused.format(api.url, what) for what in ("nodes", "DaemonSets in the namespace default")]


# Standard input.


@contextmanager
def an_open_pipe(holds=b""):
    """The reading end of a pipe whose writing end stays open."""
    reading, writing = os.pipe()
    try:
        os.write(writing, holds)
        with os.fdopen(reading) as stream:
            yield stream
    finally:
        os.close(writing)


def nothing_is_told(line):
    raise AssertionError(f"told: {line}")


def test_pipe_is_read_to_its_end_however_it_comes():
    reading, writing = os.pipe()
    text = a_list(*(a_pod(name=f"pod{number}") for number in range(500)))
    assert len(text) > 2 * 65536  # more than a pipe holds at once

    def write():
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            for start in range(0, len(text), 50_000):
                pipe.write(text[start : start + 50_000])

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading) as stream:
        assert read_given(stream, nothing_is_told) == text
    writer.join()


def test_file_is_read(tmp_path):
    (tmp_path / "pods.json").write_bytes(a_list(a_pod()))
    with (tmp_path / "pods.json").open() as stream:
        assert read_given(stream, nothing_is_told) == a_list(a_pod())


def test_terminal_dev_null_and_what_is_no_file_hold_nothing(tmp_path):
    terminal, other_side = os.openpty()
    os.write(terminal, b'{"kind": "List"}\n')
    with os.fdopen(other_side) as stream:
        assert read_given(stream, nothing_is_told) == b""
    os.close(terminal)
    with open(os.devnull) as stream:
        assert read_given(stream, nothing_is_told) == b""
    assert read_given(stream, nothing_is_told) == b""  # closed
    assert read_given(io.StringIO("text"), nothing_is_told) == read_given(None, nothing_is_told) == b""


def test_open_pipe_on_which_nothing_comes_is_given_up_and_told():
    lines: list[str] = []
    with an_open_pipe() as stream:
        assert read_given(stream, lines.append, patience=LITTLE_PATIENCE) == b""
    assert lines == [WAITING, "standard input: expected a list of pods, found nothing within 0.05 s"]


def test_pipe_on_which_a_list_comes_late_is_read():
    reading, writing = os.pipe()
    lines: list[str] = []

    def answer(line):
        lines.append(line)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(a_list(a_pod()))

    with os.fdopen(reading) as stream:
        assert read_given(stream, answer, patience=Patience(told_after_s=0.0)) == a_list(a_pod())
    assert lines == ["waiting up to 60 s for a list of pods on standard input, which is a pipe"]


def test_pipe_that_stops_in_the_middle_is_refused():
    with (
        an_open_pipe(a_list(a_pod())[:100]) as stream,
        pytest.raises(UsageError, match=r"standard input: expected a whole list of pods, found one that stops for 0.05 s"),
    ):
        read_given(stream, nothing_is_told, patience=LITTLE_PATIENCE)


def test_wish_to_stop_ends_the_wait_for_a_pipe():
    with an_open_pipe() as stream, pytest.raises(Interrupted):
        read_given(stream, nothing_is_told, lambda: True)


def written_slowly(holds, again):
    """The reading end of a pipe to which something is written again and again until it is closed."""
    reading, writing = os.pipe()

    def write():
        with suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(holds)
            while pipe.write(again):
                pass

    threading.Thread(target=write, daemon=True).start()
    return os.fdopen(reading)


def test_list_beyond_the_bound_is_refused(monkeypatch):
    monkeypatch.setattr(discovery, "LARGEST_LIST_BYTES", 3 << 20)
    with (
        written_slowly(b"[", b" " * 100_000) as stream,
        pytest.raises(UsageError, match=r"list of pods of at most 3 MiB, found more"),
    ):
        read_given(stream, nothing_is_told)


def test_list_that_never_ends_is_given_up():
    patience = Patience(whole_s=0.05)
    with (
        written_slowly(b"[", b" ") as stream,
        pytest.raises(UsageError, match=r"whole list of pods within 0\.05 s, found no end"),
    ):
        read_given(stream, nothing_is_told, patience=patience)


# The API.


@pytest.fixture
def no_input(monkeypatch, tmp_path):
    """Nothing on standard input, and no configuration of any cluster but what a test makes."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


def kubeconfig(path, server, user=None, **cluster):
    """A kubeconfig such as k3s writes, with a token unless `user` says something else."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "default", "user": user or {"token": "opensesame"}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "current-context": "default",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))


@pytest.fixture
def api(no_input, monkeypatch, tmp_path):
    """A server in the API's place, to which KUBECONFIG leads; a test sets its reply."""
    with scripted_server(lambda asked: Reply(404)) as server:
        kubeconfig(tmp_path / "kubeconfig", server.url)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield server


def discovered():
    lines: list[str] = []
    return discover_workers(PROFILE_NODES, lines.append, patience=LITTLE_PATIENCE), lines


def nothing_is_told_but_asking(line):
    assert line.startswith("asking the Kubernetes API")


def json_reply(content, status=200):
    return lambda asked: Reply(status, content, {"Content-Type": "application/json"})


def test_api_is_asked_for_the_labels_with_the_users_credentials(api):
    api.reply = json_reply(a_list(a_pod("hailo1"), a_pod("coral1", ready="False"), kind="PodList"))
    workers, lines = discovered()
    assert workers == {"hailo1": "http://10.42.1.7:8080/infer"}
    assert lines == [
        f"asking the Kubernetes API at {api.url}",
        "pod server-on-coral1 on coral1 is left out: it is not ready",
        "the Kubernetes API: servers on hailo1; no server on coral1, coral2, jetson1, jetson2, hailo2",
    ]
    asked = [(each.method, *each.path.partition("?")[::2]) for each in api.asked]
    assert [(method, path, parse_qs(query)) for method, path, query in asked] == [
        ("GET", "/api/v1/namespaces/default/pods", {"labelSelector": [LABEL_SELECTOR]}),
        ("GET", "/api/v1/nodes", {}),
        ("GET", "/apis/apps/v1/namespaces/default/daemonsets", {"labelSelector": [LABEL_SELECTOR]}),
    ]
    for each in api.asked:
        assert {name.lower(): value for name, value in each.headers.items()}["authorization"] == "Bearer opensesame"


def test_api_is_asked_nothing_more_where_no_server_is_missing(api):
    api.reply = json_reply(a_list(*(a_pod(name) for name in PROFILE_NODES), kind="PodList"))
    assert list(discovered()[0]) == PROFILE_NODES
    assert len(api.asked) == 1


def test_another_namespace_is_asked_for_and_named(api):
    api.reply = json_reply(a_list(kind="PodList"))
    lines: list[str] = []
    with pytest.raises(HarnessError, match="kubectl get pods -n edge -l .* and `kubectl get daemonsets -n edge`"):
        discover_workers(PROFILE_NODES, lines.append, namespace="edge")
    none = "no DaemonSet in the namespace edge has these labels: `kubectl apply -f yaml/`, or another `--namespace`"
    assert lines == [f"asking the Kubernetes API at {api.url}", none]
    assert [each.path.partition("?")[0] for each in api.asked] == [
        *("/api/v1/namespaces/edge/pods", "/api/v1/nodes", "/apis/apps/v1/namespaces/edge/daemonsets"),
    ]


def test_kubeconfig_of_the_home_folder_is_found(api, monkeypatch, tmp_path):
    api.reply = json_reply(a_list(a_pod(), kind="PodList"))
    monkeypatch.delenv("KUBECONFIG")
    kubeconfig(tmp_path / ".kube" / "config", api.url)
    assert list(discovered()[0]) == ["coral1"]


def test_second_file_of_kubeconfig_counts_where_the_first_is_missing(api, monkeypatch, tmp_path):
    api.reply = json_reply(a_list(a_pod(), kind="PodList"))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/nowhere{os.pathsep}{tmp_path}/kubeconfig")
    assert list(discovered()[0]) == ["coral1"]


def test_list_on_standard_input_goes_before_the_api(api, monkeypatch, tmp_path):
    (tmp_path / "pods.json").write_bytes(a_list(*(a_pod(name) for name in PROFILE_NODES)))
    with (tmp_path / "pods.json").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        workers, lines = discovered()
    assert list(workers) == PROFILE_NODES
    assert lines == [f"standard input: servers on {', '.join(PROFILE_NODES)}"]
    assert api.asked == []


@pytest.mark.parametrize("holds", [b"", b" \n"])
def test_empty_input_leaves_it_to_the_api(api, monkeypatch, tmp_path, holds):
    api.reply = json_reply(a_list(a_pod(), kind="PodList"))
    (tmp_path / "empty").write_bytes(holds)
    with (tmp_path / "empty").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        workers, lines = discovered()
    assert list(workers) == ["coral1"]
    assert lines[:2] == [
        "standard input: expected a list of pods, found nothing",
        f"asking the Kubernetes API at {api.url}",
    ]


def test_pipe_that_says_nothing_leaves_it_to_the_api_which_is_named_before_it_is_asked(api, monkeypatch):
    api.stop()
    lines: list[str] = []
    with an_open_pipe() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(HarnessError, match="cannot be reached"):
            discover_workers(PROFILE_NODES, lines.append, patience=LITTLE_PATIENCE)
    assert lines == [
        WAITING,
        "standard input: expected a list of pods, found nothing within 0.05 s",
        f"asking the Kubernetes API at {api.url}",
    ]


@pytest.mark.parametrize("pods", [[], [a_pod(ready="False")]])
def test_no_ready_server_says_which_labels_and_how_to_look(api, pods):
    api.reply = json_reply(a_list(*pods, kind="PodList"))
    with pytest.raises(HarnessError) as failed:
        discovered()
    assert not isinstance(failed.value, UsageError)
    assert f"no pod that is ready has the labels {LABEL_SELECTOR};" in str(failed.value)
    assert f"kubectl get pods -n default -l {LABEL_SELECTOR} -o wide" in str(failed.value)


@pytest.mark.parametrize(
    "status, says",
    [
        (
            401,
            "does not accept the credentials of the kubeconfig (401): expired, of another cluster, or none; copy it anew: `mkdir",
        ),
        (403, "does not let the user of the kubeconfig list pods in the namespace default (403)"),
        (404, "answers 404"),
        (500, "answers 500"),
        (302, "answers 302"),
    ],
)
def test_refusal_of_the_api_is_one_line_and_not_asked_again(api, status, says):
    api.reply = json_reply({"kind": "Status", "status": "Failure", "message": "a\nlong\nstory", "code": status}, status)
    with pytest.raises(HarnessError) as failed:
        discovered()
    assert str(failed.value).startswith(f"the Kubernetes API at {api.url} ")
    assert says in str(failed.value)
    assert len(api.asked) == 1


def test_api_that_is_not_there_is_told_in_one_line(api, caplog):
    api.stop()
    with pytest.raises(HarnessError, match=rf"^the Kubernetes API at {api.url} cannot be reached: Connection refused$"):
        discovered()
    assert caplog.messages == []  # such as urllib3's on every attempt anew


def test_api_whose_name_leads_nowhere_is_told_in_one_line(no_input, monkeypatch, tmp_path):
    kubeconfig(tmp_path / "kubeconfig", "http://master.invalid:6443")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(HarnessError, match=r"^the Kubernetes API at http://master.invalid:6443 cannot be reached: "):
        discovered()


def test_api_that_hangs_is_given_up(api, monkeypatch):
    monkeypatch.setattr(discovery, "API_TIMEOUT_S", 0.2)
    never = threading.Event()
    api.reply = lambda asked: Reply(after=never)
    with pytest.raises(HarnessError, match=r"^the Kubernetes API at .* did not answer within 0\.2 s$"):
        discovered()
    assert len(api.asked) == 1
    never.set()


def test_api_that_drips_its_answer_is_given_up(no_input, monkeypatch, tmp_path):
    monkeypatch.setattr(discovery, "API_TIMEOUT_S", 0.5)
    ends = threading.Event()

    def drip(listening):
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000\r\n\r\n")
            while not ends.wait(0.05):
                connection.sendall(b"[")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=drip, args=[listening], daemon=True).start()
        kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        with pytest.raises(HarnessError, match=r"did not answer within 0\.5 s$"):
            discovered()
    ends.set()


def test_wish_to_stop_ends_the_wait_for_the_api(api):
    never = threading.Event()
    api.reply = lambda asked: Reply(after=never)
    with pytest.raises(Interrupted):
        discover_workers(PROFILE_NODES, nothing_is_told_but_asking, lambda: bool(api.asked))
    never.set()


def test_answer_beyond_the_bound_is_refused(api, monkeypatch):
    monkeypatch.setattr(kubernetes_api, "LARGEST_LIST_BYTES", 1 << 20)
    api.reply = lambda asked: Reply(200, b" " * (2 << 20))
    with pytest.raises(HarnessError, match=r"cannot be asked: its answer is longer than 1 MiB$"):
        discovered()


def test_proxies_of_the_environment_are_not_used_and_that_of_the_kubeconfig_is(api, monkeypatch, tmp_path):
    api.reply = json_reply(a_list(a_pod(), kind="PodList"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nowhere)
    assert list(discovered()[0]) == ["coral1"]
    kubeconfig(tmp_path / "kubeconfig", "http://192.0.2.1:6443", **{"proxy-url": api.url})
    assert list(discovered()[0]) == ["coral1"]
    assert api.asked[-1].path.startswith("http://192.0.2.1:6443/")


# Its certificates.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two authorities, and certificates of the first: valid, expired, of another name. Each as NAME.pem with its NAME.key."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("authority", "stranger"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "9", "-subj", f"/CN=k3s-{name}")
    for name, days, address in (
        ("valid", "9", "IP:127.0.0.1"),
        ("expired", "-1", "IP:127.0.0.1"),
        ("elsewhere", "9", "DNS:master"),
    ):
        (folder / "names").write_text(f"subjectAltName={address}")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        by = ("-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *by, "-days", days, "-out", f"{name}.pem")
    return folder


@contextmanager
def an_api_with_tls(certificates, name, asks_for_client=False):
    """An API that shows a certificate, and may ask for one."""
    pods = a_list(*(a_pod(node) for node in PROFILE_NODES), kind="PodList")
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(pods)}\r\nConnection: close\r\n\r\n".encode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    if asks_for_client:
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # refuses within the handshake; 1.3 when the request is half sent
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "authority.pem")

    def answer(listening):
        with suppress(OSError):
            connection, _ = listening.accept()
            with context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(65536)
                secured.sendall(head + pods)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=[listening], daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}"
    thread.join(10)


@pytest.fixture
def discovered_with_tls(certificates, no_input, monkeypatch, tmp_path):
    """Discovers through an API with TLS: the server's certificate, the authority and the user's certificate of the kubeconfig."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    def discover(server, authority="authority", user="valid", asks_for_client=False):
        cluster = {"certificate-authority": str(certificates / f"{authority}.pem")} if authority else {}
        own = {"client-certificate": str(certificates / f"{user}.pem"), "client-key": str(certificates / f"{user}.key")}
        with an_api_with_tls(certificates, server, asks_for_client) as url:
            kubeconfig(tmp_path / "kubeconfig", url, own if user else {"token": "opensesame"}, **cluster)
            return discovered()[0]

    return discover


def test_certificates_that_fit_are_accepted(discovered_with_tls):
    assert list(discovered_with_tls("valid", asks_for_client=True)) == PROFILE_NODES


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"server": "expired"}, "its certificate has expired, or the clock here is wrong"),
        ({"server": "elsewhere"}, "its certificate does not name this address"),
        ({"server": "valid", "authority": "stranger"}, "its certificate is not signed by the one in the kubeconfig"),
        ({"server": "valid", "authority": ""}, "its certificate is not signed by the one in the kubeconfig"),
        ({"server": "valid", "user": "expired", "asks_for_client": True}, "it does not accept the certificate of the kubeconfig"),
        (
            {"server": "valid", "user": "stranger", "asks_for_client": True},
            "it does not accept the certificate of the kubeconfig",
        ),
        ({"server": "valid", "user": "", "asks_for_client": True}, "it does not accept the certificate of the kubeconfig"),
    ],
)
def test_certificate_that_does_not_fit_is_told_with_the_remedy(discovered_with_tls, arguments, says):
    with pytest.raises(HarnessError, match=r"^the Kubernetes API at https://127\.0\.0\.1:\d+ cannot be asked: ") as failed:
        discovered_with_tls(**arguments)
    assert says in str(failed.value)
    assert (f"copy it anew: `{COPY_OF_K3S}`" in str(failed.value)) == (arguments["server"] != "elsewhere")


@pytest.mark.parametrize("key", ["certificate-authority", "certificate-authority-data"])
@pytest.mark.parametrize("content", ["", "no PEM", "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg=="])
def test_certificate_that_is_missing_or_unreadable_is_told_with_the_remedy(api, tmp_path, key, content):
    (tmp_path / "ca.pem").write_text(content)
    value = content or "!" if key.endswith("data") else str(tmp_path / ("ca.pem" if content else "missing.pem"))
    kubeconfig(tmp_path / "kubeconfig", api.url.replace("http:", "https:"), **{key: value})
    with pytest.raises(HarnessError) as failed:
        discovered()
    assert f"copy it anew: `{COPY_OF_K3S}`" in str(failed.value), failed.value


def test_api_that_accepts_no_tls_is_told_in_one_line(no_input, monkeypatch, tmp_path):
    with scripted_server(lambda asked: Reply(404)) as server:
        kubeconfig(tmp_path / "kubeconfig", server.url.replace("http:", "https:"))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        with pytest.raises(HarnessError, match=r"^the Kubernetes API at https://.* cannot be asked: .*SSL"):
            discovered()


@pytest.mark.parametrize("reply", [Reply(content=b"<html>"), Reply(raw=b"HTTP/1.1 nonsense\r\n\r\n"), Reply(reset=True)])
def test_answer_that_is_none_is_told_in_one_line(api, reply):
    api.reply = lambda asked: reply
    with pytest.raises(HarnessError, match=r"^the Kubernetes API"):
        discovered()


def test_missing_configuration_says_where_it_was_looked_for_and_where_k3s_keeps_it(no_input):
    with pytest.raises(UsageError, match=r"no configuration of the Kubernetes API in ~/\.kube/config") as refused:
        discovered()
    assert f"on a k3s master, `{COPY_OF_K3S}` and `export KUBECONFIG=$HOME/.kube/config`" in str(refused.value)
    assert "`kubectl get pods -o json`" in str(refused.value)


def test_kubeconfig_that_cannot_be_read_says_why(no_input, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path))  # a folder: root, too, cannot read it as a file
    with pytest.raises(UsageError, match=rf"^{tmp_path}: cannot be read: Is a directory; on a k3s master, "):
        discovered()


@pytest.mark.parametrize("content", ["", "a: [1", "just text", "- 1", "clusters: 7", "{}", "\x00", "current-context: none"])
def test_kubeconfig_that_is_none_is_refused_in_one_line(no_input, monkeypatch, tmp_path, content):
    (tmp_path / "kubeconfig").write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with pytest.raises(UsageError, match=str(tmp_path / "kubeconfig")):
        discovered()


# The whole way.


def started(tmp_path, *arguments, **options):
    command = [sys.executable, str(PROJECT_ROOT / "main_pregenerated.py"), "--discover", "--output", str(tmp_path / "results")]
    environment = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": ""}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=100, env=environment, cwd=PROJECT_ROOT, **options
    )


@pytest.mark.parametrize(
    "text, status, says",
    [
        ("", 2, "no configuration of the Kubernetes API"),
        ("No resources found\n", 2, "standard input: expected what `kubectl get pods -o json` prints"),
        (a_list().decode(), 1, "standard input: no pod that is ready"),
    ],
)
def test_program_tells_in_one_line_why_it_found_no_workers(tmp_path, text, status, says):
    done = started(tmp_path, "--duration", "1", input=text)
    assert done.returncode == status
    assert done.stderr.startswith("main_pregenerated.py: ") and says in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("results/*"))


@pytest.mark.parametrize("parse", [main_pregenerated.parse_options, profile_nodes.parse_options])
@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--namespace", "edge"], "--namespace: says where --discover looks"),
        (
            ["--discover", "--namespace", "../nodes"],
            "--namespace: expected a name of small letters, digits and -, found '../nodes'",
        ),
        (["--discover", "--namespace", ""], "--namespace: expected a name"),
    ],
)
def test_namespace_that_cannot_be_is_refused(parse, arguments, says):
    with pytest.raises(UsageError) as refused:
        parse(arguments)
    assert str(refused.value).startswith(says)


def test_program_tells_of_pods_of_another_namespace_and_takes_the_one_it_is_given(tmp_path):
    pods = a_list(a_pod("coral1", deletionTimestamp="2026-01-01T00:00:00Z"), a_pod("raspberry", namespace="other")).decode()
    done = started(tmp_path, "--duration", "1", input=pods)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "pod server-on-coral1 on coral1 is left out: it is being deleted",
        "pod server-on-raspberry on raspberry is left out: it is in the namespace other, not default: "
        "`--namespace` names the one that is taken",
    ]
    assert "worker raspberry" in started(tmp_path, "--duration", "1", "--namespace", "other", input=pods).stderr


def test_server_on_a_node_that_the_profile_does_not_know_is_refused_by_name(tmp_path):
    done = started(tmp_path, "--duration", "1", input=a_list(a_pod("raspberry")).decode())
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("main_pregenerated.py: worker raspberry is not in the performance profile, which knows coral1")
    assert not list(tmp_path.glob("results/*"))


def test_experiment_runs_on_the_pods_of_standard_input(tmp_path):
    models = dict.fromkeys(["mobilenet", "resnet50", "efficientnet", "vgg16"], 2.0)
    (tmp_path / "settings.yaml").write_text("power: {idle_baseline_s: 0}\nscheduler: round_robin\n")
    with EmulatedNodes(small_profile({"hailo2": models, "coral1": models})) as nodes:
        ports = {name: int(url.split(":")[2].removesuffix("/infer")) for name, url in nodes.workers.items()}
        pods = [a_pod(name, ip="127.0.0.1", ports=[{"name": "http", "containerPort": port}]) for name, port in ports.items()]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = started(
            tmp_path,
            *("--config", str(tmp_path / "settings.yaml"), "--duration", "2", "--quiet", "--no-report"),
            *("--prometheus-url", nowhere),
            input=a_list(*pods, a_pod("jetson1", phase="Pending", ip="")).decode(),
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "pod server-on-jetson1 on jetson1 is left out: its phase is Pending, not Running",
        "standard input: servers on coral1, hailo2; no server on coral2, jetson1, jetson2, hailo1",
    ]
    (path,) = tmp_path.glob("results/*/experiment_summary_*.json")
    summary = json.loads(path.read_text())
    assert summary["cluster"] == "workers"
    assert list(summary["utilisation"]) == ["coral1", "hailo2"]  # the order of the profile, not of the list
    assert min(summary["utilisation"].values()) > 0
    assert summary["tasks"]["on_time"] > 0 and summary["tasks"]["failed"] == 0
