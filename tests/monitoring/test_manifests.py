"""The manifests of monitoring/: valid, appliable in one go, and agreeing with what they scrape, as promtool relabels it."""

import json
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor

import kubernetes_validate
import pytest
import urllib3
import yaml

from tests.monitoring.prometheus_process import PROMTOOL, node_exporter, program
from tests.test_manifests import AN_EARLIER_FORM, keys_that_stand_twice, kustomized, not_kept
from utils import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "monitoring"
KEPT = FOLDER / "namespace" / "namespace.yaml"
"""Namespace and volumes: applied first, and no part of what `kubectl delete -f monitoring/` removes."""
FILES = [KEPT, *sorted(FOLDER.glob("*.yaml"))]
KUBERNETES_VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34")
POWER_AGENT = FOLDER / "power-agent-daemonset.yaml"
"""Needs Kubernetes 1.30: its AppArmor profile is no field before."""

EXISTING_NAMESPACES = {"default"}
MADE_BY_THE_USER = {("monitoring", "Secret", "grafana-admin")}
NODES = {"master": "192.168.1.10", "coral1": "192.168.1.11"}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def documents_of(path):
    return list(yaml.safe_load_all(path.read_text()))


ALL = [document for path in FILES for document in documents_of(path)]


def find(kind, name, namespace=None):
    (found,) = (
        document
        for document in ALL
        if (document["kind"], document["metadata"]["name"]) == (kind, name)
        and namespace in (None, document["metadata"].get("namespace"))
    )
    return found


def workloads(documents=ALL):
    return [document for document in documents if document["kind"] in ("Deployment", "DaemonSet")]


every_workload = pytest.mark.parametrize("workload", workloads(), ids=lambda workload: workload["metadata"]["name"])


def pod_of(name, kind="Deployment"):
    return find(kind, name)["spec"]["template"]["spec"]


# All files.


def test_folder_holds_the_files_that_the_documentation_names():
    assert {path.name for path in FILES} == {
        *("namespace.yaml", "grafana-dashboards-configmap.yaml", "grafana-deployment.yaml", "kube-state-metrics.yaml"),
        *("node-exporter-daemonset.yaml", "power-agent-daemonset.yaml"),
        *("prometheus-configmap.yaml", "prometheus-deployment.yaml"),
    }


@every_file
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_document_is_valid_for_kubernetes(path, version):
    for document in documents_of(path):
        if path == POWER_AGENT and version == "1.29":
            for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
                container["securityContext"].pop("appArmorProfile", None)
        assert kubernetes_validate.validate(document, version, strict=True) == version


@every_file
def test_no_key_stands_twice(path):
    for root in yaml.compose_all(path.read_text(), Loader=yaml.SafeLoader):
        assert list(keys_that_stand_twice(root)) == []


@every_file
def test_second_apply_finds_what_it_sent(path):
    for document in documents_of(path):
        assert list(not_kept(document)) == []


def test_no_two_objects_have_one_name_even_in_one_namespace_together_with_the_servers():
    servers = [document for path in (PROJECT_ROOT / "yaml").glob("*.yaml") for document in documents_of(path)]
    names = [(each["kind"], each["metadata"]["name"]) for each in (*ALL, *servers)]
    assert len(set(names)) == len(names)


# Kustomize, and another namespace.


def test_kustomizations_hold_every_file():
    assert kustomized(FOLDER) == [path.name for path in FILES[1:]]
    assert kustomized(KEPT.parent) == [KEPT.name]
    assert not list(FOLDER.rglob("kustomization.y*ml"))  # `kubectl apply -f` would send it


@pytest.mark.parametrize("name", ["prometheus-config", "grafana-provisioning"])
def test_nothing_names_the_namespace_where_kustomize_does_not_set_it(name):
    """Kustomize sets metadata.namespace and the subjects of bindings; what stands in a file of a ConfigMap stays."""
    for text in find("ConfigMap", name)["data"].values():
        assert not re.search(r"\bmonitoring\b", json.dumps(yaml.safe_load(text)))


# Removing: `kubectl delete -f monitoring/`.


def test_removing_the_folder_leaves_the_figures():
    kept = [(each["kind"], each["metadata"]["name"]) for each in documents_of(KEPT)]
    assert kept == [
        *(("Namespace", "monitoring"), ("PersistentVolumeClaim", "prometheus-data"), ("PersistentVolumeClaim", "grafana-data")),
    ]
    removed = {document["kind"] for path in FILES[1:] for document in documents_of(path)}
    assert not removed & {"Namespace", "PersistentVolumeClaim", "Secret"}


# `kubectl apply -f monitoring/namespace/ -f monitoring/`.


def used_by(document):
    """(namespace, kind, name) of what an object needs that stands before it."""
    namespace = document["metadata"].get("namespace")
    if namespace:
        yield None, "Namespace", namespace
    if "roleRef" in document:
        yield None, document["roleRef"]["kind"], document["roleRef"]["name"]
        for subject in document["subjects"]:
            yield subject["namespace"], subject["kind"], subject["name"]
    if document["kind"] not in ("Deployment", "DaemonSet"):
        return
    pod = document["spec"]["template"]["spec"]
    if "serviceAccountName" in pod:
        yield namespace, "ServiceAccount", pod["serviceAccountName"]
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            yield namespace, "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield namespace, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in pod["containers"]:
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                yield namespace, "Secret", variable["valueFrom"]["secretKeyRef"]["name"]


def missing_in_order(documents):
    there = {(None, "Namespace", name) for name in EXISTING_NAMESPACES} | MADE_BY_THE_USER
    missing = []
    for document in documents:
        missing += [(document["metadata"]["name"], *used) for used in used_by(document) if used not in there]
        namespace = None if document["kind"] == "Namespace" else document["metadata"].get("namespace")
        there.add((namespace, document["kind"], document["metadata"]["name"]))
    return missing


def test_everything_stands_before_its_user_in_the_order_of_kubectl():
    assert missing_in_order(ALL) == []


def test_walk_notices_a_user_that_stands_first():
    assert missing_in_order(ALL[::-1])
    without = [document for document in ALL if document["metadata"]["name"] != "prometheus-rules"]
    assert missing_in_order(without) == [("prometheus", "monitoring", "ConfigMap", "prometheus-rules")]


def test_secret_is_made_with_the_command_that_the_file_gives():
    text = (FOLDER / "grafana-deployment.yaml").read_text()
    (command,) = re.findall(r"kubectl -n monitoring create secret generic (.*?\"\n)", text, re.DOTALL)
    name, *literals = shlex.split(command.replace("\\\n#", ""))
    keys = {literal.removeprefix("--from-literal=").split("=")[0] for literal in literals}
    used = [each["valueFrom"]["secretKeyRef"] for each in pod_of("grafana")["containers"][0]["env"] if "valueFrom" in each]
    assert {(each["name"], each["key"]) for each in used} == {(name, key) for key in keys}
    assert "CreateContainerConfigError" in text


def test_namespace_admits_what_needs_the_host_and_warns_of_it():
    labels = find("Namespace", "monitoring")["metadata"]["labels"]
    levels = {key.split("/")[1]: value for key, value in labels.items() if key.startswith("pod-security")}
    assert levels == {"enforce": "privileged", "warn": "restricted", "audit": "restricted"}


# Rights.


@pytest.mark.parametrize(
    "role, rules",
    [
        ("prometheus-nodes", {("", "nodes")}),
        ("prometheus-pods", {("", "pods")}),
        ("kube-state-metrics", {("", "nodes"), ("", "pods"), ("apps", "daemonsets"), ("apps", "deployments")}),
    ],
)
def test_roles_allow_to_list_and_watch_what_is_needed_and_nothing_else(role, rules):
    given = find("ClusterRole", role)["rules"]
    assert {(group, resource) for rule in given for group in rule["apiGroups"] for resource in rule["resources"]} == rules
    assert all(set(rule) == {"apiGroups", "resources", "verbs"} and rule["verbs"] == ["list", "watch"] for rule in given)


def namespaces_of(sd):
    """Namespaces that a discovery of pods asks for; its own is that of Prometheus."""
    own = {"monitoring"} if sd["namespaces"].get("own_namespace") else set()
    return own | set(sd["namespaces"].get("names", []))


def test_prometheus_may_see_exactly_what_its_service_discovery_asks_for():
    asked = [sd for job in SCRAPE for sd in job["kubernetes_sd_configs"]]
    namespaces = {name for sd in asked if sd["role"] == "pod" for name in namespaces_of(sd)}
    bindings = [each for each in ALL if each["kind"] == "RoleBinding" and each["roleRef"]["name"] == "prometheus-pods"]
    assert {binding["metadata"]["namespace"] for binding in bindings} == namespaces
    assert {sd["role"] for sd in asked} == {"pod", "node"}


def test_kube_state_metrics_exports_the_label_that_says_where_a_server_belongs():
    assert "--metric-labels-allowlist=nodes=[node.hardware]" in pod_of("kube-state-metrics")["containers"][0]["args"]


def cores(text):
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def test_everything_on_the_master_together_leaves_the_harness_two_of_four_cores():
    on_master = [find("Deployment", name) for name in ("prometheus", "grafana", "kube-state-metrics")]
    on_master.append(find("DaemonSet", "node-exporter"))
    assert {each["metadata"]["name"] for each in workloads()} - {each["metadata"]["name"] for each in on_master} == {
        "power-agent"
    }
    limits = [each["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] for each in on_master]
    assert sum(map(cores, limits)) <= 2


@pytest.mark.parametrize("name", ["node-exporter", "power-agent"])
def test_what_runs_on_every_node_tolerates_any_taint(name):
    assert pod_of(name, "DaemonSet")["tolerations"] == [{"operator": "Exists"}]


def test_power_agent_says_that_it_is_as_good_as_root():
    assert "This pod can do to its node what root can" in POWER_AGENT.read_text()


def test_kube_state_metrics_watches_what_its_role_allows():
    (resources,) = (
        each.removeprefix("--resources=").split(",")
        for each in pod_of("kube-state-metrics")["containers"][0]["args"]
        if each.startswith("--resources=")
    )
    assert set(resources) == {name for rule in find("ClusterRole", "kube-state-metrics")["rules"] for name in rule["resources"]}


@every_workload
def test_pod_gets_no_more_than_it_needs(workload):
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is ("serviceAccountName" in pod)
    assert pod["enableServiceLinks"] is False
    assert {"requests", "limits"} <= container["resources"].keys()
    name = workload["metadata"]["name"]
    if name != "power-agent":
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == (472 if name == "grafana" else 65534)
    assert ({"hostNetwork", "hostPID"} <= pod.keys()) is (name == "node-exporter")
    assert security["capabilities"].get("add", []) == (["SYS_TIME"] if name == "node-exporter" else [])


@every_workload
def test_every_volume_is_mounted_and_every_mount_has_its_volume(workload):
    pod = workload["spec"]["template"]["spec"]
    mounts = [mount["name"] for mount in pod["containers"][0].get("volumeMounts", [])]
    assert sorted(mounts) == sorted(volume["name"] for volume in pod.get("volumes", []))


@every_workload
def test_image_is_pinned_and_selectors_fit(workload):
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", container["image"])
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": workload["metadata"]["name"]}
    assert labels["app.kubernetes.io/name"] == workload["metadata"]["name"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in {port["name"] for port in container["ports"]}


@pytest.mark.parametrize("name, port", [("prometheus", 30090), ("grafana", 30300)])
def test_service_is_reached_on_the_documented_port_of_the_master(name, port):
    service = find("Service", name)["spec"]
    (only,) = service["ports"]
    assert (service["type"], only["nodePort"], only["targetPort"]) == ("NodePort", port, "web")
    template = find("Deployment", name)["spec"]["template"]
    assert service["selector"].items() <= template["metadata"]["labels"].items()
    (container_port,) = template["spec"]["containers"][0]["ports"]
    assert (container_port["name"], container_port["containerPort"]) == ("web", only["port"])


@pytest.mark.parametrize("name", ["prometheus", "grafana", "kube-state-metrics"])
def test_what_there_is_one_of_runs_on_the_master_and_never_twice(name):
    assert find("Deployment", name)["spec"]["strategy"] == {"type": "Recreate"}
    assert find("Deployment", name)["spec"]["replicas"] == 1
    pod = pod_of(name)
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]}
    assert {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"} in pod["tolerations"]


def test_retention_leaves_room_in_the_claim():
    (container,) = pod_of("prometheus")["containers"]
    options = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert options["storage.tsdb.retention.time"] == "30d"
    claimed = find("PersistentVolumeClaim", "prometheus-data")["spec"]["resources"]["requests"]["storage"]
    assert int(options["storage.tsdb.retention.size"].removesuffix("GB")) <= 0.8 * int(claimed.removesuffix("Gi"))


def test_grafana_reads_the_service_and_the_folder_that_exist():
    files = {name: yaml.safe_load(text) for name, text in find("ConfigMap", "grafana-provisioning")["data"].items()}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod_of("grafana")["containers"][0]["volumeMounts"]}
    taken = {
        item["key"]: mounts[volume["name"]]
        for volume in pod_of("grafana")["volumes"]
        for item in volume.get("configMap", {}).get("items", [])
    }
    provisioning = "/etc/grafana/provisioning"
    assert taken == {
        "datasource.yaml": f"{provisioning}/datasources",
        "dashboards.yaml": f"{provisioning}/dashboards",
        "alerting.yaml": f"{provisioning}/alerting",
    }
    (source,) = files["datasource.yaml"]["datasources"]
    assert source["url"] == f"http://prometheus:{find('Service', 'prometheus')['spec']['ports'][0]['port']}"
    (provider,) = files["dashboards.yaml"]["providers"]
    assert provider["options"]["path"] == mounts["dashboards"]
    (rule,) = files["alerting.yaml"]["groups"][0]["rules"]
    assert [step["datasourceUid"] for step in rule["data"]] == [source["uid"], "__expr__"]
    assert rule["condition"] in {step["refId"] for step in rule["data"]}


def test_grafana_is_handed_one_alert_for_each_that_fires(tmp_path):
    (rule,) = yaml.safe_load(find("ConfigMap", "grafana-provisioning")["data"]["alerting.yaml"])["groups"][0]["rules"]
    expected = ('{alert="NodeDown", severity="critical", node="coral1"}', '{alert="PowerOverBudget", severity="warning"}')
    given = (
        'ALERTS{alertname="NodeDown", alertstate="firing", severity="critical", node="coral1"}',
        'ALERTS{alertname="NodeDown", alertstate="pending", severity="critical", node="coral2"}',
        'ALERTS{alertname="PowerOverBudget", alertstate="firing", severity="warning"}',
    )
    check = {
        "expr": rule["data"][0]["model"]["expr"],
        "eval_time": "1m",
        "exp_samples": [{"labels": labels, "value": 1} for labels in expected],
    }
    series = [{"series": labels, "values": "1+0x12"} for labels in given]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"tests": [{"interval": "5s", "input_series": series, "promql_expr_test": [check]}]}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


# What Prometheus scrapes.


CONFIG_MAP = find("ConfigMap", "prometheus-config")["data"]["prometheus.yml"]
CONFIG = yaml.safe_load(CONFIG_MAP)
SCRAPE = CONFIG["scrape_configs"]


def promtool(*arguments):
    return subprocess.run([program(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_configuration_is_valid_and_takes_the_rules_from_where_they_are_mounted(tmp_path):
    mounts = {mount["name"]: mount["mountPath"] for mount in pod_of("prometheus")["containers"][0]["volumeMounts"]}
    assert CONFIG["rule_files"] == [f"{mounts['rules']}/*.yaml"]
    assert f"--config.file={mounts['config']}/prometheus.yml" in pod_of("prometheus")["containers"][0]["args"]
    assert f"--storage.tsdb.path={mounts['data']}" in pod_of("prometheus")["containers"][0]["args"]
    for name, text in find("ConfigMap", "prometheus-rules")["data"].items():
        (tmp_path / name).write_text(text)
    file = tmp_path / "prometheus.yml"
    jobs = [{key: value for key, value in job.items() if key != "kubernetes_sd_configs"} for job in SCRAPE]
    file.write_text(yaml.safe_dump({**CONFIG, "rule_files": [f"{tmp_path}/[ar]*.yaml"], "scrape_configs": jobs}))
    done = promtool("check", "config", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout


def test_service_discovery_holds_only_what_prometheus_knows():
    """Debian builds Prometheus without the discovery of Kubernetes, so its promtool cannot check these blocks."""
    for job in SCRAPE:
        (sd,) = job["kubernetes_sd_configs"]
        assert sd == {"role": "node"} or sd in (
            {"role": "pod", "namespaces": {"own_namespace": True}},
            {"role": "pod", "namespaces": {"own_namespace": True, "names": ["default"]}},
        )


def meta_name(key):
    return re.sub(r"[^a-zA-Z0-9_]", "_", key)


def pods_as_discovered():
    """Targets as Prometheus makes them of pods, one for each port: namespace, address and __meta labels."""
    templates = [
        *workloads(),
        *(each for path in (PROJECT_ROOT / "yaml").glob("*.yaml") for each in workloads(documents_of(path))),
    ]
    for number, workload in enumerate(templates):
        name, template = workload["metadata"]["name"], workload["spec"]["template"]
        for phase in ("Running", "Failed", "Pending"):
            for port in template["spec"]["containers"][0]["ports"]:
                labels = {
                    "__meta_kubernetes_namespace": workload["metadata"]["namespace"],
                    "__meta_kubernetes_pod_name": f"{name}-{phase}",
                    "__meta_kubernetes_pod_node_name": "coral1",
                    "__meta_kubernetes_pod_phase": phase,
                    "__meta_kubernetes_pod_container_port_name": port["name"],
                    "__meta_kubernetes_pod_container_port_number": str(port["containerPort"]),
                }
                for key, value in template["metadata"]["labels"].items():
                    labels[f"__meta_kubernetes_pod_label_{meta_name(key)}"] = value
                yield f"10.42.{number}.{len(phase)}:{port['containerPort']}", labels


def nodes_as_discovered():
    for name, address in NODES.items():
        labels = {"__meta_kubernetes_node_name": name, "__meta_kubernetes_node_address_InternalIP": address}
        if name == "master":
            labels["__meta_kubernetes_node_labelpresent_node_role_kubernetes_io_control_plane"] = "true"
        yield f"{address}:10250", labels


def discovered_by(job):
    (sd,) = job["kubernetes_sd_configs"]
    if sd["role"] == "node":
        return list(nodes_as_discovered())
    return [each for each in pods_as_discovered() if each[1]["__meta_kubernetes_namespace"] in namespaces_of(sd)]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """What is left after Prometheus' own relabelling: job name to the targets' labels, and the pod each was made from."""
    folder = tmp_path_factory.mktemp("relabelling")

    def relabelled(job):
        fixed = {key: value for key, value in job.items() if key != "kubernetes_sd_configs"}
        fixed["static_configs"] = [{"targets": [address], "labels": labels} for address, labels in discovered_by(job)]
        file = folder / f"{job['job_name']}.yml"
        file.write_text(yaml.safe_dump({"global": CONFIG["global"], "scrape_configs": [fixed]}))
        done = promtool("check", "service-discovery", "--timeout=5s", file, job["job_name"])
        assert done.returncode == 0, done.stdout + done.stderr
        return [
            {**target["labels"], "pod": target["discoveredLabels"].get("__meta_kubernetes_pod_name")}
            for target in json.loads(done.stdout)
            if target["labels"]
        ]

    with ThreadPoolExecutor() as pool:
        return dict(zip([job["job_name"] for job in SCRAPE], pool.map(relabelled, SCRAPE), strict=True))


def test_every_job_of_the_contract_is_scraped_at_its_pace():
    paces = {
        job["job_name"]: (job.get("scrape_interval", CONFIG["global"]["scrape_interval"]), job.get("honor_labels", False))
        for job in SCRAPE
    }
    assert paces == {
        "node-exporter": ("5s", True),
        "power-agent": ("1s", True),
        "inference-server": ("5s", False),
        "kube-state-metrics": ("5s", True),
        "harness": ("5s", True),
        "prometheus": ("5s", False),
    }


@pytest.mark.parametrize(
    "job, pods, port",
    [
        ("power-agent", {"power-agent"}, 9101),
        ("inference-server", {"coral-inference-server", "hailo-inference-server", "jetson-inference-server"}, 8080),
        ("kube-state-metrics", {"kube-state-metrics"}, 8080),
        ("prometheus", {"prometheus"}, 9090),
    ],
)
def test_running_pods_of_a_job_are_scraped_on_their_port_and_no_others(targets, job, pods, port):
    assert sorted(target["pod"] for target in targets[job]) == sorted(f"{name}-Running" for name in pods)
    for target in targets[job]:
        assert target["__address__"].endswith(f":{port}")
        assert (target["__metrics_path__"], target["node"], target["job"]) == ("/metrics", "coral1", job)


@pytest.mark.parametrize(
    "job, expected",
    [
        ("node-exporter", {(name, f"{address}:9100") for name, address in NODES.items()}),
        ("harness", {("master", f"{NODES['master']}:9105")}),
    ],
)
def test_nodes_are_scraped_at_their_own_address(targets, job, expected):
    assert {(target["node"], target["__address__"]) for target in targets[job]} == expected


def test_node_exporter_listens_where_it_is_scraped():
    (container,) = pod_of("node-exporter", "DaemonSet")["containers"]
    assert [(port["containerPort"], port["hostPort"]) for port in container["ports"]] == [(9100, 9100)]
    assert "--web.listen-address=:9100" in container["args"]


def test_flags_of_node_exporter_are_known_and_give_what_the_alerts_ask_for(tmp_path):
    """By Debian's node-exporter, which is older than the image's."""
    (container,) = pod_of("node-exporter", "DaemonSet")["containers"]
    textfile = tmp_path / "power.prom"
    textfile.write_text('node_power_watts{node="jetson1"} 4\n')
    here = {
        "/host/root/proc": "/proc",
        "/host/root/run": "/run",
        "/host/root": "/",
        "/host/sys": "/sys",
        "/textfile": str(tmp_path),
    }
    arguments = []
    for argument in container["args"]:
        if not argument.startswith("--web.listen-address"):
            option, _, value = argument.partition("=")
            for there, path in here.items():
                if value.startswith(there):
                    value = path + value.removeprefix(there)
                    break
            arguments.append(f"{option}={value}" if value else option)
    with node_exporter(tmp_path / "log", *arguments) as address:
        text = urllib3.request("GET", f"http://{address}/metrics").data.decode()
    names = set(re.findall(r"^(\w+)", text, flags=re.MULTILINE))
    assert {
        "node_filesystem_avail_bytes",
        "node_filesystem_readonly",
        "node_cpu_seconds_total",
        "node_boot_time_seconds",
    } <= names
    assert 'node_power_watts{node="jetson1"} 4' in text
    enabled = set(re.findall(r'node_scrape_collector_success\{collector="(\w+)"\}', text))
    assert {"hwmon", "thermal_zone", "timex", "textfile"} <= enabled
    assert not {"wifi", "btrfs"} & enabled


def test_every_file_says_what_it_was_tested_on():
    for path in FILES:
        if path.stem != "grafana-dashboards-configmap":
            words = " ".join(path.read_text().replace("\n# ", " ").split())
            assert AN_EARLIER_FORM.lower() in words.lower(), path.name
