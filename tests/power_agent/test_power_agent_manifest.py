"""The power agent's manifest: valid for Kubernetes, its rows read by the agent itself, and no more rights than it needs."""

import re

import kubernetes_validate
import pytest
import yaml

from power_agent.__main__ import DEFAULT_PORT
from power_agent.rows import ATORCH_BLE, load_rows
from tests.helpers import default_profile
from utils import PROJECT_ROOT

PATH = PROJECT_ROOT / "monitoring" / "power-agent-daemonset.yaml"
CONFIGMAP, DAEMONSET = yaml.safe_load_all(PATH.read_text())
TEMPLATE = DAEMONSET["spec"]["template"]
POD = TEMPLATE["spec"]
(CONTAINER,) = POD["containers"]
ROWS = CONFIGMAP["data"]["rows.yaml"]


@pytest.mark.parametrize("version", ["1.30", "1.32", "1.34", "1.37"])
@pytest.mark.parametrize("document", [CONFIGMAP, DAEMONSET], ids=lambda document: document["kind"])
def test_every_document_is_valid_for_kubernetes(document, version):
    assert kubernetes_validate.validate(document, version, strict=True) == version


def test_everything_is_in_the_namespace_and_has_the_label_that_prometheus_looks_for():
    for document in (CONFIGMAP, DAEMONSET):
        assert document["metadata"]["namespace"] == "monitoring"
        assert document["metadata"]["labels"]["app.kubernetes.io/name"] == "power-agent"
    assert DAEMONSET["spec"]["selector"]["matchLabels"].items() <= TEMPLATE["metadata"]["labels"].items()


def test_rows_as_they_stand_are_left_out_with_a_line_each(tmp_path, caplog):
    (tmp_path / "rows.yaml").write_text(ROWS)
    assert [load_rows(tmp_path / "rows.yaml", node) for node in default_profile().nodes] == [[]] * 6
    assert sorted(message.split(":")[0] for message in caplog.messages) == sorted(default_profile().nodes)
    assert all("left out" in message for message in caplog.messages)


def test_rows_with_addresses_are_read_by_hosts_that_can_read_them(tmp_path):
    numbers = iter(range(16, 32))
    filled = re.sub(r"<[^>]*>", lambda _: f"A4:C1:38:00:00:{next(numbers):02X}", ROWS)
    (tmp_path / "rows.yaml").write_text(filled)
    read = {node: load_rows(tmp_path / "rows.yaml", node) for node in default_profile().nodes}
    assert sorted(row.node for rows in read.values() for row in rows) == sorted(default_profile().nodes)
    assert {row.sensor for rows in read.values() for row in rows} == {ATORCH_BLE}
    assert read["jetson1"] == read["jetson2"] == []
    for rows in read.values():
        assert all(row.accelerator == re.sub(r"\d", "", row.node) for row in rows)


def test_port_is_the_same_wherever_it_stands():
    assert CONTAINER["ports"] == [{"name": "metrics", "containerPort": DEFAULT_PORT, "protocol": "TCP"}]
    assert CONTAINER["args"][CONTAINER["args"].index("--port") + 1] == str(DEFAULT_PORT)
    probes = [CONTAINER[f"{name}Probe"]["httpGet"] for name in ("readiness", "liveness")]
    assert probes == [{"path": "/metrics", "port": "metrics"}] * 2


def test_paths_of_the_arguments_are_mounted_and_all_mounts_are_read_only():
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
    assert all(mount["readOnly"] is True for mount in mounts.values())
    assert {name: mount["mountPath"] for name, mount in mounts.items()} == {
        "rows": "/etc/power-agent",
        "dbus": "/run/dbus",
        "sys": "/host/sys",
    }
    arguments = dict(zip(CONTAINER["args"][::2], CONTAINER["args"][1::2], strict=True))
    assert arguments["--rows"] == f"{mounts['rows']['mountPath']}/{next(iter(CONFIGMAP['data']))}"
    assert arguments["--sysfs"] == mounts["sys"]["mountPath"]
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert volumes["rows"]["configMap"]["name"] == CONFIGMAP["metadata"]["name"]
    assert {name: volume["hostPath"]["path"] for name, volume in volumes.items() if name != "rows"} == {
        "dbus": "/run/dbus",
        "sys": "/sys",
    }


def test_root_has_no_capability_and_nothing_to_write():
    assert CONTAINER["securityContext"] == {
        "runAsUser": 0,
        "runAsGroup": 0,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
        "appArmorProfile": {"type": "Unconfined"},
    }
    assert POD["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & POD.keys()


def test_it_runs_on_every_worker_and_says_which_host_it_is_on():
    assert POD["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
    (term,) = POD["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "node-role.kubernetes.io/control-plane", "operator": "DoesNotExist"}]}
    assert POD["tolerations"] == [{"operator": "Exists"}]
    (name,) = CONTAINER["env"]
    assert name == {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}}


def test_old_pod_ends_before_the_new_one_connects():
    assert DAEMONSET["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0


def test_it_says_what_it_was_tested_on():
    assert "it has not run on a board or with a real meter yet" in PATH.read_text().replace("\n# ", " ")
