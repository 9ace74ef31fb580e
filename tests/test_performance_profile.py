"""The table of latency and power: its published cells, what is derived from them, and what makes no sense."""

import json
import math

import pytest
import yaml

from performance_profile import load_profile
from settings import DEFAULT_CONFIG
from utils import UsageError

PROFILE = DEFAULT_CONFIG.parent / "performance_profile.yaml"
NODES = ["coral1", "coral2", "jetson1", "jetson2", "hailo1", "hailo2"]


@pytest.fixture(scope="module")
def profile():
    return load_profile(PROFILE)


def changed(tmp_path, **changes):
    """The default profile with values replaced; a key is a path with dots, written with double underscores."""
    content = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    for path, value in changes.items():
        *outer, last = path.split("__")
        mapping = content
        for key in outer:
            mapping = mapping[key]
        mapping[last] = value
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def refusal(path):
    with pytest.raises(UsageError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


# Expected figures: facts/performance_profile.yaml (provenance of each in its comments).


def test_the_six_reference_nodes_are_there_in_the_order_of_the_workers(profile):
    assert list(profile.nodes) == NODES
    assert [node.accelerator for node in profile.nodes.values()] == ["coral", "coral", "jetson", "jetson", "hailo", "hailo"]


@pytest.mark.parametrize(
    ("node", "idle_w", "busy_w", "overhead_ms"),
    [("coral1", 4.56, 5.35, 15.0), ("jetson2", 2.29, 6.24, 23.0), ("hailo1", 5.04, 5.33, 10.8), ("hailo2", 4.51, 5.01, 10.8)],
)
def test_power_and_overhead_are_the_measured_ones(profile, node, idle_w, busy_w, overhead_ms):
    figures = profile.nodes[node]
    assert (figures.idle_w, figures.busy_w, figures.request_overhead_ms) == (idle_w, busy_w, overhead_ms)
    assert profile.overhead_s(node) == pytest.approx(overhead_ms / 1000)


@pytest.mark.parametrize(
    ("node", "mean_ms"),
    [
        ("coral1", {"mobilenet": 13.89, "resnet50": 77.67, "efficientnet": 25.09, "vgg16": 344.0}),
        ("jetson2", {"mobilenet": 15.56, "resnet50": 60.37, "efficientnet": 42.69, "vgg16": 85.1}),
        ("hailo2", {"mobilenet": 7.61, "resnet50": 24.16, "efficientnet": 12.99, "vgg16": 133.0}),
    ],
)
def test_latencies_are_the_measured_ones(profile, node, mean_ms):
    assert profile.service_time_s(node) == pytest.approx({model: ms / 1000 for model, ms in mean_ms.items()})


def test_every_node_serves_every_model(profile):
    assert {node: sorted(profile.service_time_s(node)) for node in NODES} == dict.fromkeys(NODES, sorted(profile.latency))


def test_a_busy_node_draws_more_than_an_idle_one(profile):
    assert all(node.busy_w > node.idle_w for node in profile.nodes.values())


@pytest.mark.parametrize(("node", "cv"), [("coral2", 0.07), ("jetson1", 0.005), ("hailo1", 0.003)])
def test_sigma_gives_a_log_normal_of_the_measured_variation(profile, node, cv):
    # Moments of exp(sigma z - sigma^2/2): mean 1, variance exp(sigma^2) - 1 (Johnson, Kotz and Balakrishnan 1994, chapter 14).
    assert math.sqrt(math.expm1(profile.sigma(node) ** 2)) == pytest.approx(cv, rel=1e-9)


def test_what_an_emulated_node_learns_is_its_own_row_as_json(profile):
    assert json.loads(json.dumps(profile.emulation_slice("jetson1"))) == {
        "node": "jetson1",
        "accelerator": "jetson",
        "idle_w": 2.38,
        "busy_w": 6.47,
        "request_overhead_ms": 23.0,
        "cv": 0.005,
        "mean_ms": {"mobilenet": 15.80, "resnet50": 60.02, "efficientnet": 42.79, "vgg16": 85.1},
    }


def test_node_without_an_entry_does_not_serve_the_model(tmp_path):
    profile = load_profile(changed(tmp_path, latency__vgg16__mean_ms={"jetson1": 85.1}))
    assert "vgg16" not in profile.service_time_s("coral1")
    assert "vgg16" not in profile.emulation_slice("coral1")["mean_ms"]
    assert profile.service_time_s("jetson1")["vgg16"] == pytest.approx(0.0851)


def test_busy_below_idle_is_refused_with_its_line(tmp_path):
    path = changed(tmp_path, nodes__hailo1__busy_w=5.03)
    line = next(number for number, text in enumerate(path.read_text().splitlines(), start=1) if text.strip() == "hailo1:")
    assert refusal(path).startswith(f":{line}: nodes.hailo1: busy_w 5.03 is below idle_w 5.04")


def test_busy_equal_to_idle_is_accepted(tmp_path):
    assert load_profile(changed(tmp_path, nodes__hailo1__busy_w=5.04)).nodes["hailo1"].busy_w == 5.04


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"latency__vgg16__mean_ms__hailo3": 1.0}, "latency of vgg16: hailo3 is not among the nodes coral1, coral2"),
        ({"nodes__coral1__accelerator": "edgetpu"}, "node coral1: cv has no entry for its accelerator edgetpu"),
    ],
)
def test_names_that_do_not_agree_are_refused(tmp_path, changes, expected):
    assert expected in refusal(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"latency__vgg16__mean_ms__hailo2": 0}, "latency.vgg16.mean_ms.hailo2"),
        ({"latency__vgg16__mean_ms__hailo2": "fast"}, "latency.vgg16.mean_ms.hailo2"),
        ({"nodes__coral1__idle_w": -1}, "nodes.coral1.idle_w"),
        ({"nodes__coral1__power_provenance": "guessed"}, "nodes.coral1.power_provenance"),
        ({"nodes__coral1__request_overhead_ms": -1}, "nodes.coral1.request_overhead_ms"),
        ({"cv__coral": -0.1}, "cv.coral"),
        ({"cv__coral": float("inf")}, "cv.coral"),
        ({"nodes": {}}, "nodes"),
        ({"latency": {}}, "latency"),
    ],
)
def test_wrong_cell_is_named_with_its_line(tmp_path, changes, key):
    path = changed(tmp_path, **changes)
    where, message = refusal(path).removeprefix(":").split(": ", 1)
    assert message.startswith(f"{key}: expected ")
    assert key.rsplit(".", 1)[-1] in path.read_text().splitlines()[int(where) - 1]


def test_unknown_column_is_met_with_the_nearest_one(tmp_path):
    assert refusal(changed(tmp_path, nodes__coral1__idle=4.0)).endswith("unknown key nodes.coral1.idle; did you mean idle_w?")


@pytest.mark.parametrize("absent", ["nodes", "latency", "cv"])
def test_table_must_be_complete(tmp_path, absent):
    content = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    del content[absent]
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert refusal(path) == f": {absent} is missing"
