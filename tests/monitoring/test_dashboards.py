"""Every query of every panel and rule, put to a real Prometheus that holds real data.

Real: the emulated nodes and the harness under load, node-exporter on this machine, a second node-exporter and a power agent that
read the sensors of boards from directory trees. Stand-ins under the real names of their metrics, as their origins cannot run
here: kube-state-metrics, and what only the servers of a Jetson and a Hailo export.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge

from monitoring.local import draw
from monitoring.local.panels import DASHBOARDS, Panel, filled_in, legend_of, read_panels
from tests.helpers import eventually
from tests.monitoring.prometheus_process import (
    PROMTOOL,
    PrometheusProcess,
    exporter,
    free_port,
    node_exporter,
    program,
    prometheus,
)
from tests.power_agent.agent_process import serving
from tests.power_agent.sysfs_tree import Chip
from utils import PROJECT_ROOT

FILES = sorted(DASHBOARDS.glob("*.json"))
RULES = sorted((PROJECT_ROOT / "monitoring" / "rules").glob("*.yaml"))
WITHIN_S = 90.0

pytestmark = pytest.mark.timeout(240)  # the first test waits for the harness and for rates
RATE_S, RANGE_S = 10, 30


def panels() -> list[tuple[str, Panel]]:
    return [(file.stem, panel) for file in FILES for panel in read_panels(file)]


def rules() -> list[tuple[str, str]]:
    """Name and expression of every rule."""
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return [(rule.get("alert") or rule["record"], rule["expr"]) for group in groups for rule in group["rules"]]


def boards_sensors(sys_folder: Path) -> Path:
    """A /sys with the temperature sensors of a Raspberry Pi 5 (hwmon) and of a Jetson Nano (thermal zones)."""
    files = {
        "class/hwmon/hwmon0/name": "cpu_thermal",
        "class/hwmon/hwmon0/temp1_input": "48250",
        "class/thermal/thermal_zone0/type": "CPU-therm",
        "class/thermal/thermal_zone0/temp": "39500",
        "class/thermal/thermal_zone0/policy": "step_wise",
        "class/thermal/thermal_zone1/type": "PMIC-Die",
        "class/thermal/thermal_zone1/temp": "100000",
        "class/thermal/thermal_zone1/policy": "step_wise",
    }
    for name, content in files.items():
        (sys_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (sys_folder / name).write_text(content + "\n")
    return sys_folder


def kube_state_metrics(registry: CollectorRegistry) -> None:
    """Names and labels of kube-state-metrics, which needs a cluster."""
    pod = {"namespace": "default", "pod": "coral-inference-server-x7k2p", "uid": "u1"}
    ready = Gauge("kube_pod_status_ready", "", [*pod, "condition"], registry=registry)
    phase = Gauge("kube_pod_status_phase", "", [*pod, "phase"], registry=registry)
    for value, (condition, name) in enumerate((("false", "Succeeded"), ("true", "Running"))):
        ready.labels(*pod.values(), condition).set(value)
        phase.labels(*pod.values(), name).set(value)
    restarts = Counter("kube_pod_container_status_restarts", "", [*pod, "container"], registry=registry)
    restarts.labels(*pod.values(), "inference-server")
    for name in ("desired_number_scheduled", "number_ready"):
        daemonsets = Gauge(f"kube_daemonset_status_{name}", "", ["namespace", "daemonset"], registry=registry)
        daemonsets.labels("default", "coral-inference-server").set(2)
    conditions = Gauge("kube_node_status_condition", "", ["node", "condition", "status"], registry=registry)
    conditions.labels("coral1", "Ready", "true").set(1)
    node_labels = Gauge("kube_node_labels", "", ["node", "label_node_hardware"], registry=registry)
    node_labels.labels("without-server", "jetson").set(1)


def boards_servers(registry: CollectorRegistry) -> None:
    """What only the servers of a Jetson and a Hailo export, which need their devices."""
    Gauge("gpu_memory_bytes", "", registry=registry).set(6.0e8)
    Gauge("hailo_temperature_ts0_celsius", "", registry=registry).set(51.5)
    Gauge("hailo_temperature_ts1_celsius", "", registry=registry).set(50.5)


def without_meter(registry: CollectorRegistry) -> None:
    """What a harness says of a node that nobody measures."""
    Gauge("harness_node_idle_watts", "", ["node"], registry=registry).labels("bare").set(2.5)


def job(name: str, addresses_of: dict[str, list[str]], *files: str) -> dict[str, Any]:
    """A job with the targets of each node, and those that `files` will name."""
    return {
        "job_name": name,
        "honor_labels": True,
        "static_configs": [{"targets": targets, "labels": {"node": node}} for node, targets in addresses_of.items()],
        "file_sd_configs": [{"files": [file], "refresh_interval": "1s"} for file in files],
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    folder = tmp_path_factory.mktemp("dashboards")
    targets = folder / "targets"
    targets.mkdir()
    with ExitStack() as stack:
        textfiles = folder / "textfiles"
        textfiles.mkdir()
        (textfiles / "power_agent.prom").write_text('power_agent_up{node="coral2"} 1\n')
        this_machine = stack.enter_context(node_exporter(folder / "host", f"--collector.textfile.directory={textfiles}"))
        only_sensors = ["--collector.disable-defaults", "--collector.hwmon", "--collector.thermal_zone"]
        sys_folder = boards_sensors(folder / "sys")
        boards = stack.enter_context(node_exporter(folder / "boards", *only_sensors, f"--path.sysfs={sys_folder}"))
        served = {kind: stack.enter_context(exporter(kind)) for kind in (kube_state_metrics, boards_servers, without_meter)}
        Chip(folder / "power" / "sys", "iio", {"POM_5V_IN": (5.0, 0.5)})
        rail = "{node: jetson3, accelerator: jetson, sensor: ina3221}"
        agent = stack.enter_context(serving(folder / "power", [rail], "jetson3", "--sysfs", folder / "power" / "sys"))
        full = stack.enter_context(full_server())
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [
                job("inference-server", {"full": [full], "hailo1": [served[boards_servers]]}, "targets/emulated*.json"),
                job("harness", {"master": [served[without_meter]]}, "targets/harness*.json"),
                job("node-exporter", {"coral1": [this_machine, boards]}),
                job("kube-state-metrics", {"master": [served[kube_state_metrics]]}),
                job("power-agent", {"jetson3": [str(urllib3.util.parse_url(str(agent.url)).netloc)]}),
            ],
            "rule_files": [str(file) for file in RULES],
        }
        running = stack.enter_context(prometheus(config, folder))
        stack.enter_context(harness(running.url, folder, targets))
        yield running


def harness(prometheus_url: str, folder: Path, targets: Path) -> ExitStack:
    """A run of the harness on emulated nodes, with a power budget, until it is closed."""
    settings = folder / "experiment.yaml"
    settings.write_text("power_aware_topsis: {power_budget_w: 30.0}\n")
    command = [sys.executable, "main_pregenerated.py", "--cluster", "emulated", "--quiet", "--no-report"]
    command += ["--config", str(settings), "--duration", "600", "--output", str(folder / "results")]
    command += ["--prometheus-url", prometheus_url, "--metrics-port", str(free_port())]
    environment = {**os.environ, "MONITOR_TARGETS": str(targets)}
    with ExitStack() as stack:
        log = stack.enter_context((folder / "harness.log").open("wb"))
        run = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(run.wait, 30)
        stack.callback(run.terminate)
        return stack.pop_all()


@contextmanager
def full_server() -> Iterator[str]:
    """An emulated server that has refused requests because its queue was full; gives `host:port`."""
    figures = {"accelerator": "coral", "idle_w": 2.0, "busy_w": 3.0, "request_overhead_ms": 0.0, "cv": 0.0}
    slow = {"node": "full", **figures, "mean_ms": {"vgg16": 1000.0}, "queue_capacity": 1}
    command = [sys.executable, "-m", "emulated_inference_server"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT / "docker")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdin and server.stdout
        print(json.dumps(slow), file=server.stdin, flush=True)  # it ends when this pipe closes
        address = f"127.0.0.1:{json.loads(server.stdout.readline())['port']}"

        def ask() -> int:
            url, kind = f"http://{address}/infer?model=vgg16", {"Content-Type": "application/octet-stream"}
            return urllib3.request("POST", url, body=bytes(224 * 224 * 3), headers=kind, retries=False, timeout=30.0).status

        with ThreadPoolExecutor(4) as threads:
            answers = [threads.submit(ask) for _ in range(4)]
        assert 503 in {answer.result() for answer in answers}
        yield address


def counts(server: PrometheusProcess, expressions: list[str]) -> dict[str, int]:
    """Series with a finite value that each expression returns, once it returns some; 0 for those that never do."""
    found = dict.fromkeys(expressions, 0)

    def all_answered() -> bool:
        for expression in [expression for expression, count in found.items() if not count]:
            found[expression] = sum(math.isfinite(series.value) for series in server.query(expression))
        return all(found.values())

    if eventually(all_answered, within_s=WITHIN_S):
        found = {expression: max(count, len(server.query(expression))) for expression, count in found.items()}
    return found


def selectors(expression: str) -> list[str]:
    """The metrics that an expression reads, each with its label matchers."""
    matchers = r"\{(?:\"[^\"]*\"|[^}\"])*\}"
    others = (
        r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^]]*\]|\b(?:and|or|unless|bool|offset)\b|\b\d[\w.]*"
    )
    tokens = rf"{others}|((?:[a-zA-Z_:][\w:]*)?{matchers}|[a-zA-Z_:][\w:]*(?!\s*(?:\(|by\b|without\b)|[\w:]))"
    return [found[1] for found in re.finditer(tokens, expression) if found[1]]


def unfiltered(expression: str) -> str:
    """`expression` with its comparisons made to return 0 or 1, so that an alert that is quiet returns its series too."""
    tokens = r"(\{(?:\"[^\"]*\"|[^}\"])*\}|\"[^\"]*\")|(==|!=|<=|>=|<|>)(?!\s*bool)"
    return re.sub(tokens, lambda found: found[1] or f"{found[2]} bool", expression)


def test_every_query_of_every_panel_returns_series(server):
    asked = {
        (dashboard, panel.id, query.expression): filled_in(query.expression, RATE_S, RANGE_S)
        for dashboard, panel in panels()
        for query in panel.queries
    }
    found = counts(server, list(asked.values()))
    print(f"\n{'dashboard':<12}{'series':>6}  panel")
    silent = []
    for dashboard, panel in panels():
        numbers = [found[asked[dashboard, panel.id, query.expression]] for query in panel.queries]
        print(f"{dashboard:<12}{' + '.join(map(str, numbers)):>6}  {panel.title}")
        silent += [
            f"{dashboard}: {panel.title}: {query.expression}"
            for query, count in zip(panel.queries, numbers, strict=True)
            if not count
        ]
    assert not silent


def test_every_legend_names_its_series_apart(server):
    assert counts(server, ["sum by (node, code) (rate(inference_requests_total[10s]))"])
    for dashboard, panel in panels():
        names = [
            legend_of(query, series.labels)
            for query in panel.queries
            for series in server.query(filled_in(query.expression, RATE_S, RANGE_S))
        ]
        assert all(names), f"{dashboard}: {panel.title}: a series without a name in {names}"
        assert len(set(names)) == len(names), f"{dashboard}: {panel.title}: two series of one name in {names}"


def test_pictures_of_both_dashboards_are_drawn_from_the_same_queries(server, tmp_path, capsys):
    found = counts(server, [filled_in(query.expression, RATE_S, RANGE_S) for _, panel in panels() for query in panel.queries])
    assert all(found.values())
    options = draw.parse_options(["--prometheus-url", server.url, "--minutes", "1", "--output", str(tmp_path)])
    numbers = [len(read_panels(file)) for file in FILES]
    expected = [f"{file.stem}: {number} panels drawn; no data: none" for file, number in zip(FILES, numbers, strict=True)]

    def all_drawn() -> bool:  # a picture ends at a whole second, which may lie before a series' first value
        assert draw.run(options) == 0
        printed: list[str] = capsys.readouterr().out.splitlines()
        return printed == expected

    assert eventually(all_drawn, within_s=WITHIN_S)
    for file in FILES:
        assert (tmp_path / f"{file.stem}.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_holds_every_panel_with_its_series():
    lines = [draw.Line("a", [0.0, 1.0, 2.0], [1.0, math.nan, 3.0]), draw.Line("b", [1.0, 2.0], [5.0, 7.0])]
    some = read_panels(DASHBOARDS / "experiment.json")
    figure = draw.picture([(panel, lines) for panel in some], "caption")
    by_title = {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_title(loc="left")}
    assert by_title.keys() == {panel.title for panel in some}
    for panel in some:
        axis = by_title[panel.title]
        if panel.kind == "stat":
            assert [text.get_text()[-1] for text in axis.texts] == ["a", "b"]
        elif panel.stacked:
            assert len(axis.collections) == 2
        else:
            drawn = [np.asarray(line.get_ydata()).tolist() for line in axis.get_lines()]
            assert drawn[1] == [5.0, 7.0]
            assert drawn[2:] == ([] if panel.limit is None else [[panel.limit] * 2])


def test_every_rule_and_all_that_it_reads_returns_series(server):
    recorded = [name for name, _ in rules() if ":" in name]
    expressions = [(name, unfiltered(expression)) for name, expression in rules()]
    read = [(name, selector) for name, expression in expressions for selector in selectors(expression)]
    found = counts(server, [*recorded, *(expression for _, expression in [*expressions, *read])])
    print(f"\n{'series':>6}  rule")
    for name, expression in expressions:
        print(f"{found[expression]:>6}  {name}")
    assert not [(name, expression) for name, expression in [*expressions, *read] if not found[expression]]
    assert not [name for name in recorded if not found[name]]
    loaded = [rule for group in server.api("rules")["groups"] for rule in group["rules"]]
    health = {rule["name"]: (rule["health"], rule.get("lastError")) for rule in loaded}
    assert health == {name: ("ok", None) for name, _ in rules()}


def expression_of(title: str, range_s: int = RANGE_S) -> str:
    """The first query of a panel of the dashboard *Experiment*."""
    panel = next(panel for panel in read_panels(DASHBOARDS / "experiment.json") if panel.title == title)
    return filled_in(panel.queries[0].expression, RATE_S, range_s)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        # (5 - 2) W on a and (3 - 3) W on b; 2 + 1 tasks end per second, 2 of them on time
        ("Above-idle energy per task, last minute", {"{}": 1.0}),
        ("Energy above idle by node, last minute", {'{node="a"}': 180.0, '{node="b"}': 0.0}),
        ("Power above idle by node", {'{node="a"}': 3.0, '{node="b"}': 0.0}),
        ("Power of all nodes and budget", {"{}": 8.0}),
        ("SLO compliance so far", {"{}": 2 / 3}),
        ("SLO compliance by class", {'{slo_class="hard"}': 1.0, '{slo_class="soft"}': 0.0}),
        ("Nodes without power data", {"{}": 1.0}),
    ],
)
def test_panel_shows_what_the_counters_say(tmp_path, title, expected):
    """Node c has no meter and node d is none of the run's: neither has power above idle."""
    check_with_promtool(tmp_path, expression_of(title), expected)


def test_energy_per_task_over_the_shown_range_is_right_to_a_second_of_power_at_each_end(tmp_path):
    expression = expression_of("Above-idle energy per task", range_s=900)
    check_with_promtool(tmp_path, f"abs({expression} - 1) < bool 2 / 900", {"{}": 1.0})


def test_disk_transfer_counts_a_card_once_and_not_its_partitions_too(tmp_path):
    panel = next(panel for panel in read_panels(DASHBOARDS / "cluster.json") if panel.title == "Disk transfer")
    check_with_promtool(tmp_path, filled_in(panel.queries[0].expression, RATE_S, RANGE_S), {'{node="a"}': 1100.0})


def check_with_promtool(folder: Path, expression: str, expected: dict[str, float]) -> None:
    """Have promtool evaluate `expression` on known series after 1000 s of 1 s scrapes."""
    series = {
        'node_power_watts{node="a", accelerator="coral", job="power-agent"}': "5x1000",
        'node_power_watts{node="b", accelerator="hailo", job="power-agent"}': "3x1000",
        'node_power_watts{node="d", accelerator="none", job="power-agent"}': "9x1000",
        'harness_node_idle_watts{node="a", job="harness"}': "2x1000",
        'harness_node_idle_watts{node="b", job="harness"}': "3x1000",
        'harness_node_idle_watts{node="c", job="harness"}': "4x1000",
        'harness_tasks_total{outcome="on_time", slo_class="hard"}': "0+2x1000",
        'harness_tasks_total{outcome="late", slo_class="soft"}': "0+1x1000",
        'harness_tasks_total{outcome="on_time", slo_class="soft"}': "0x1000",
        'harness_tasks_total{outcome="skipped", slo_class="soft"}': "0+5x1000",
        'node_disk_read_bytes_total{node="a", device="mmcblk0"}': "0+1000x1000",
        'node_disk_read_bytes_total{node="a", device="mmcblk0p1"}': "0+300x1000",
        'node_disk_read_bytes_total{node="a", device="mmcblk0p2"}': "0+700x1000",
        'node_disk_read_bytes_total{node="a", device="mmcblk0boot0"}': "0+9x1000",
        'node_disk_read_bytes_total{node="a", device="nvme0n1"}': "0+100x1000",
    }
    samples = [{"labels": labels, "value": value} for labels, value in expected.items()]
    case = {
        "interval": "1s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": "1000s", "exp_samples": samples}],
    }
    file = folder / "case.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1s", "tests": [case]}))
    checked = subprocess.run([program(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_there_are_the_two_dashboards():
    assert [file.stem for file in FILES] == ["cluster", "experiment"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_dashboard_file_is_what_grafana_imports(file):
    dashboard = json.loads(file.read_text())
    assert dashboard["id"] is None  # an id of one Grafana would collide in another
    assert dashboard["uid"] == f"edge-{file.stem}"
    assert dashboard["title"] and dashboard["schemaVersion"] >= 39
    assert (dashboard["refresh"], dashboard["timezone"]) == ("5s", "browser")
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"], variable["name"]) == ("datasource", "prometheus", "datasource")
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in (panel for panel in dashboard["panels"] if panel["type"] != "row"):
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        for asks in (panel, *panel["targets"]):
            assert asks["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_do_not_overlap_and_fill_the_page(file):
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(file.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


def test_variables_are_filled_in_and_unknown_ones_refused():
    assert filled_in("rate(a[$__rate_interval]) + b[$__range:1s]", 20, 60) == "rate(a[20s]) + b[60s:1s]"
    with pytest.raises(ValueError, match=r"unknown variable in 'a\[\$__interval\]'"):
        filled_in("a[$__interval]", 20, 60)


def test_selectors_of_an_expression_are_its_metrics_with_their_matchers():
    expression = (
        'sum by (a) (rate(x_total{b="c|d"}[1m])) / on (a) (k:y:z > bool 3e1) unless max(e{f!="g"} or h or {__name__=~"[i}]"})'
    )
    assert selectors(expression) == ['x_total{b="c|d"}', "k:y:z", 'e{f!="g"}', "h", '{__name__=~"[i}]"}']
