"""The table of latency and power: its published cells, what is derived from them, and what makes no sense."""

import errno
import json
import math
import os
from datetime import UTC, datetime

import pytest
import yaml
from scipy import stats

from main_pregenerated import main
from performance_profile import (
    Measurement,
    NodeMeans,
    PerformanceProfile,
    load_profile,
    profile_text,
    remeasured,
    replace_keeping_old,
)
from settings import DEFAULT_CONFIG, require_known_models
from tests.helpers import default_settings
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


def test_what_a_task_may_take_is_by_its_own_noise_and_never_below_the_mean(profile):
    mean_s = 0.015 + 0.07767
    assert (
        profile.expected_s("coral1", "resnet50", 0.0) == profile.expected_s("coral1", "resnet50", -3.0) == pytest.approx(mean_s)
    )
    assert profile.expected_s("coral1", "resnet50", 3.0) == pytest.approx(0.015 + 0.07767 * 1.23035, rel=1e-5)


@pytest.mark.parametrize(
    ("node", "mean_ms"),
    [
        ("coral1", {"mobilenet": 13.89, "resnet50": 77.67, "efficientnet": 25.09, "vgg16": 344.0, "inception": 21.2}),
        ("jetson2", {"mobilenet": 15.56, "resnet50": 60.37, "efficientnet": 42.69, "vgg16": 85.1, "inception": 21.9}),
        ("hailo2", {"mobilenet": 7.61, "resnet50": 24.16, "efficientnet": 12.99, "vgg16": 133.0, "inception": 10.5}),
    ],
)
def test_latencies_are_the_measured_ones(profile, node, mean_ms):
    assert profile.service_time_s(node) == pytest.approx({model: ms / 1000 for model, ms in mean_ms.items()})


def test_inception_is_an_estimate_and_not_drawn_unless_the_settings_name_it(profile):
    inception = profile.latency["inception"]
    assert inception.provenance == "estimated" and "minus the request overheads" in inception.note
    assert "inception" not in default_settings().models
    require_known_models(default_settings(models=["inception"]), profile.latency)


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
        "overhead_w": 0.0,
        "overhead_cv": 0.0,
        "cv": 0.005,
        "mean_ms": {"mobilenet": 15.80, "resnet50": 60.02, "efficientnet": 42.79, "vgg16": 85.1, "inception": 22.3},
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
        ({"cv__coral": float("nan")}, "cv.coral"),
        ({"cv__coral": 1e200}, "cv.coral"),
        ({"cv__coral": 10**400}, "cv.coral"),
        ({"latency__vgg16__mean_ms__hailo2": 1e-320}, "latency.vgg16.mean_ms.hailo2"),
        ({"latency__vgg16__mean_ms__hailo2": 1e200}, "latency.vgg16.mean_ms.hailo2"),
        ({"nodes__coral1__idle_w": 1e300, "nodes__coral1__busy_w": 1e301}, "nodes.coral1.idle_w"),
        ({"nodes__coral1__busy_w": 1e300}, "nodes.coral1.busy_w"),
        ({"nodes__coral1__idle_w": 0.0, "nodes__coral1__busy_w": 1e-320}, "nodes.coral1.busy_w"),
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


def test_fitted_profile_gives_what_was_recorded_and_is_else_the_default_one(profile):
    # Source of the recorded figures: the comment of the fitted profile.
    fitted = load_profile(PROFILE.with_name("performance_profile_fitted.yaml"))
    assert (fitted.latency, fitted.cv) == (profile.latency, profile.cv)
    recorded_w = {"coral1": 0.242, "coral2": 0.126, "jetson1": 0.803, "jetson2": 0.810, "hailo1": -0.086, "hailo2": 0.138}
    by_default_w = {"coral1": 0.070, "coral2": 0.058, "jetson1": 0.536, "jetson2": 0.428, "hailo1": 0.027, "hailo2": 0.115}
    transfers = {"coral1": 0.081, "coral2": 0.082, "jetson1": 0.110, "jetson2": 0.112, "hailo1": 0.117, "hailo2": 0.108}
    for boards in (["coral1", "coral2", "hailo1", "hailo2"], ["jetson1", "jetson2"]):
        drawn_w = given_w = 0.0
        for name in boards:
            old, new = profile.nodes[name], fitted.nodes[name]
            busy = by_default_w[name] / (old.busy_w - old.idle_w)
            drawn_w += recorded_w[name] + old.idle_w - new.idle_w
            given_w += (new.busy_w - new.idle_w) * busy
            given_w += new.overhead_w * transfers[name] * new.request_overhead_ms / old.request_overhead_ms
        assert given_w == pytest.approx(drawn_w, rel=0.03)
    jetson1 = fitted.nodes["jetson1"]
    overhead_ms = stats.lognorm(fitted.overhead_sigma("jetson1"), scale=1.0)
    for more_ms, share in ((10.0, 13 / 32), (30.0, 4 / 60)):
        factor = (profile.nodes["jetson1"].request_overhead_ms + more_ms) / jetson1.request_overhead_ms
        assert overhead_ms.sf(factor * math.exp(fitted.overhead_sigma("jetson1") ** 2 / 2)) == pytest.approx(share, abs=0.02)
    assert all(node.overhead_w_provenance == "estimated" for node in fitted.nodes.values())


EXTREMES = [
    {"cv__coral": 10.0},
    {"latency__vgg16__mean_ms__hailo2": 1e-3},
    {"latency__vgg16__mean_ms__hailo2": 3.6e6},
    {"nodes__coral1__idle_w": 0.0, "nodes__coral1__busy_w": 1e-3},
    {"nodes__coral1__idle_w": 1e5, "nodes__coral1__busy_w": 1e5},
]


@pytest.mark.parametrize("changes", EXTREMES)
def test_extreme_profile_that_is_accepted_can_be_run(tmp_path, changes):
    changed(tmp_path, **changes)
    (tmp_path / "run.yaml").write_text("performance_profile: profile.yaml\nload: 2.0\n")
    options = ["--cluster", "simulated", "--config", str(tmp_path / "run.yaml"), "--duration", "10", "--quiet", "--no-report"]
    assert main([*options, "--output", str(tmp_path / "results")]) == 0


# Measured anew.


def measurement(**changes):
    made = {
        "measured_at": datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
        "cluster": "workers",
        "nodes": ["coral1"],
        "models": ["mobilenet", "resnet50", "efficientnet", "vgg16", "inception"],
        "requests": 200,
        "warm_up": 10,
        "order": "mixed",
        "seed": 42,
    }
    return Measurement.model_validate(made | changes)


def every_node(profile, model_ms):
    return {name: NodeMeans(12.0, model_ms) for name in profile.nodes}


def test_measured_figures_replace_the_old_ones_of_that_node_only(profile):
    means = NodeMeans(9.87654321, {"mobilenet": 12.3456789, "resnet50": 70.0, "efficientnet": 20.0, "vgg16": 300.0})
    new = remeasured(profile, measurement(), {"coral1": means}, {}, {"coral": 0.0512345})
    assert (new.nodes["coral1"].request_overhead_ms, new.nodes["coral1"].overhead_provenance) == (9.8765, "measured")
    assert new.latency["mobilenet"].mean_ms == {**profile.latency["mobilenet"].mean_ms, "coral1": 12.346}
    assert list(new.latency["mobilenet"].mean_ms) == NODES
    assert new.cv == {**profile.cv, "coral": 0.0512}
    power = {"idle_w", "busy_w", "power_provenance", "accelerator"}
    for name in NODES:
        assert new.nodes[name].model_dump(include=power) == profile.nodes[name].model_dump(include=power)
    for name in NODES[1:]:
        assert new.nodes[name] == profile.nodes[name]
        assert new.service_time_s(name) == profile.service_time_s(name)
    assert new.measurements == [measurement()]
    assert not profile.measurements  # which stays as it was


def test_row_is_mixed_while_figures_of_another_origin_stay_in_it(profile):
    one = {"coral1": NodeMeans(12.0, {"mobilenet": 12.0, "vgg16": 300.0})}
    new = remeasured(profile, measurement(), one, {}, {})
    assert (new.latency["mobilenet"].provenance, new.latency["mobilenet"].note) == ("measured", "")
    assert (new.latency["vgg16"].provenance, new.latency["vgg16"].note) == ("mixed", profile.latency["vgg16"].note)
    published = profile.model_copy(
        update={"latency": {"vgg16": profile.latency["vgg16"].model_copy(update={"provenance": "published"})}}
    )
    assert remeasured(published, measurement(), one, {}, {}).latency["vgg16"].provenance == "mixed"


def test_row_that_is_all_measured_loses_what_was_said_of_the_old_figures(profile):
    new = remeasured(profile, measurement(nodes=NODES), every_node(profile, {"vgg16": 99.0}), {}, {})
    assert new.latency["vgg16"].model_dump() == {"provenance": "measured", "mean_ms": dict.fromkeys(NODES, 99.0), "note": ""}


def test_figures_of_a_grouped_order_or_of_a_part_of_the_models_say_so(profile):
    def note(**changes):
        how = measurement(nodes=NODES, **changes)
        return remeasured(profile, how, every_node(profile, {"mobilenet": 5.0}), {}, {}).latency["mobilenet"].note

    assert "warm figures" in note(order="grouped")
    assert note(models=["mobilenet", "vgg16"]) == "Measured in a mix of mobilenet, vgg16 only."
    assert note() == ""


def test_what_holds_for_a_part_of_a_row_names_its_nodes(profile):
    jetsons = {name: NodeMeans(12.0, {"vgg16": 90.0}) for name in ("jetson1", "jetson2")}
    new = remeasured(profile, measurement(nodes=list(jetsons), models=["vgg16"]), jetsons, {}, {})
    assert new.latency["vgg16"].note == f"jetson1, jetson2 measured in a mix of vgg16 only. {profile.latency['vgg16'].note}"
    grouped = remeasured(new, measurement(nodes=["jetson2"], order="grouped"), {"jetson2": jetsons["jetson2"]}, {}, {})
    assert grouped.latency["vgg16"].note == (
        "jetson1 measured in a mix of vgg16 only. jetson2 measured one model after the other: warm figures, which a load of "
        f"mixed models does not reach. {profile.latency['vgg16'].note}"
    )


def test_what_was_said_of_figures_goes_with_them(profile):
    jetson = {"jetson1": NodeMeans(12.0, {"vgg16": 90.0})}
    once = remeasured(profile, measurement(nodes=["jetson1"], models=["vgg16"]), jetson, {}, {})
    twice = remeasured(once, measurement(nodes=["jetson1"]), jetson, {}, {})
    assert twice.latency["vgg16"].note == profile.latency["vgg16"].note
    absent = {name: ["vgg16"] for name in NODES if name != "jetson1"}
    assert remeasured(once, measurement(nodes=["coral1"]), {}, absent, {}).latency["vgg16"].note == (
        f"Measured in a mix of vgg16 only. {profile.latency['vgg16'].note}"
    )


def test_note_is_not_repeated_by_the_next_measurement(profile):
    one = {"coral1": NodeMeans(12.0, {"vgg16": 300.0})}
    once = remeasured(profile, measurement(order="grouped"), one, {}, {})
    twice = remeasured(once, measurement(order="grouped"), one, {}, {})
    assert once.latency["vgg16"].note.endswith(profile.latency["vgg16"].note)
    assert twice.latency["vgg16"].note == once.latency["vgg16"].note
    assert len(twice.measurements) == 2


def test_what_emulated_nodes_answer_is_never_called_measured(profile):
    how = measurement(cluster="emulated", nodes=NODES)
    new = remeasured(profile, how, every_node(profile, {"mobilenet": 5.0}), {}, {})
    assert new.latency["mobilenet"].provenance == "estimated" and "emulated nodes" in new.latency["mobilenet"].note
    assert {node.overhead_provenance for node in new.nodes.values()} == {"estimated"}


def test_model_that_a_node_does_not_serve_is_left_out_of_its_figures(profile):
    one = {"hailo1": NodeMeans(12.0, {"mobilenet": 12.0})}
    vgg16 = remeasured(profile, measurement(), one, {"hailo1": ["vgg16"]}, {}).latency["vgg16"]
    assert list(vgg16.mean_ms) == [name for name in NODES if name != "hailo1"]
    assert (vgg16.provenance, vgg16.note) == (profile.latency["vgg16"].provenance, profile.latency["vgg16"].note)


def test_model_that_is_absent_on_a_node_without_any_measurement_is_taken_out_of_its_figures_too(profile):
    one = {"jetson1": NodeMeans(12.0, {"vgg16": 90.0})}
    new = remeasured(profile, measurement(nodes=["jetson1"], models=["vgg16"]), one, {"coral1": ["vgg16"]}, {})
    assert list(new.latency["vgg16"].mean_ms) == NODES[1:]
    assert new.nodes["coral1"] == profile.nodes["coral1"]
    assert new.latency["mobilenet"] == profile.latency["mobilenet"]


def test_model_that_no_node_serves_any_more_has_no_row(profile):
    nodes = {name: NodeMeans(12.0, {"mobilenet": 5.0}) for name in NODES}
    assert list(remeasured(profile, measurement(), nodes, dict.fromkeys(NODES, ["vgg16"]), {}).latency) == [
        "mobilenet",
        "resnet50",
        "efficientnet",
        "inception",
    ]


def test_model_that_is_new_to_the_profile_gets_a_row(profile):
    one = {"hailo1": NodeMeans(12.0, {"squeezenet": 3.0})}
    new = remeasured(profile, measurement(models=["squeezenet", "shufflenet"]), one, {}, {})
    assert list(new.latency) == [*profile.latency, "squeezenet"]
    assert (new.latency["squeezenet"].provenance, new.latency["squeezenet"].mean_ms) == ("measured", {"hailo1": 3.0})


# Written and read again.


def test_written_profile_is_read_as_it_was(profile, tmp_path):
    new = remeasured(profile, measurement(), {"coral1": NodeMeans(12.0, {"vgg16": 300.0})}, {}, {"coral": 0.05})
    for written in (profile, new):
        (tmp_path / "new.yaml").write_text(profile_text(written, ["first", ""]), encoding="utf-8")
        assert load_profile(tmp_path / "new.yaml") == written


def test_comment_stands_at_the_top_and_cannot_break_the_table(profile, tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text(profile_text(profile, ["--output 'a\nnodes: {}'", "\x00\x1b\udc80\u2028é"]), encoding="utf-8")
    assert path.read_text(encoding="utf-8").splitlines()[:2] == ["# --output 'a?nodes: {}'", "# ????é"]
    assert load_profile(path) == profile


def test_profile_without_measurements_is_written_without_them(profile):
    assert "measurements" not in profile_text(profile, [])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"measured_at": "2026-03-04 05:06:07"}, "measured_at"),  # of which time zone?
        ({"order": "sorted"}, "order"),
        ({"cluster": "simulated"}, "cluster"),
        ({"requests": 1}, "requests"),
        ({"nodes": []}, "nodes"),
    ],
)
def test_measurement_that_makes_no_sense_is_named_with_its_line(tmp_path, changes, key):
    wrong = measurement().model_dump(mode="json") | changes
    path = changed(tmp_path, measurements=[wrong])
    where, message = refusal(path).removeprefix(":").split(": ", 1)
    assert message.startswith(f"measurements.0.{key}: ")
    assert key in path.read_text().splitlines()[int(where) - 1]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_first_file_is_written_and_there_is_no_old_one(tmp_path):
    assert replace_keeping_old(tmp_path / "p.yaml", "new") is None
    assert names_in(tmp_path) == ["p.yaml"] and (tmp_path / "p.yaml").read_text() == "new"


def test_old_file_is_kept_byte_for_byte_under_the_date_of_its_last_change(tmp_path):
    path, old = tmp_path / "p.yaml", b"# no profile\r\n\xff\x00"
    path.write_bytes(old)
    changed_at = datetime(2025, 1, 2, 3, 4, 5).timestamp()
    os.utime(path, (changed_at, changed_at))
    kept = replace_keeping_old(path, "new")
    assert kept is not None and kept.name == "p_20250102_030405.yaml" and kept.read_bytes() == old
    assert path.read_text() == "new" and len(names_in(tmp_path)) == 2


def test_old_profile_is_kept_under_the_date_of_its_last_measurement(profile, tmp_path):
    old = profile_text(profile.model_copy(update={"measurements": [measurement()]}), [])
    (tmp_path / "p.yaml").write_text(old)
    assert replace_keeping_old(tmp_path / "p.yaml", "new") == tmp_path / "p_20260304_050607.yaml"


def test_file_that_was_kept_before_is_never_overwritten(profile, tmp_path):
    old = profile_text(profile.model_copy(update={"measurements": [measurement()]}), [])
    for name in ("p_20260304_050607.yaml", "p_20260304_050607_2.yaml"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "p.yaml").write_text(old)
    assert replace_keeping_old(tmp_path / "p.yaml", "new") == tmp_path / "p_20260304_050607_3.yaml"
    assert (tmp_path / "p_20260304_050607_3.yaml").read_text() == old
    for name in ("p_20260304_050607.yaml", "p_20260304_050607_2.yaml"):
        assert (tmp_path / name).read_text() == "precious"


def test_link_goes_on_leading_to_the_profile(tmp_path):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "p.yaml"
    target.write_text("old")
    (tmp_path / "link.yaml").symlink_to(target)
    kept = replace_keeping_old(tmp_path / "link.yaml", "new")
    assert (tmp_path / "link.yaml").is_symlink() and target.read_text() == "new"
    assert kept is not None and kept.parent == target.parent and kept.read_text() == "old"


@pytest.mark.parametrize("writes_before", [0, 1])
def test_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, writes_before):
    path = tmp_path / "p.yaml"
    path.write_text("old")
    done: list[int] = []

    def fsync(descriptor):
        if len(done) == writes_before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(descriptor)

    monkeypatch.setattr("performance_profile.os.fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        replace_keeping_old(path, "new")
    assert names_in(tmp_path) == ["p.yaml"] and path.read_text() == "old"


def test_hash_is_of_the_content_and_not_of_the_text(tmp_path):
    text = PROFILE.read_text()
    same = tmp_path / "same.yaml"
    same.write_text("# another comment\n" + yaml.safe_dump(yaml.safe_load(text), sort_keys=False))
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("busy_w: 5.35", "busy_w: 5.36"))
    assert load_profile(same).sha256 == load_profile(PROFILE).sha256 != load_profile(other).sha256
    content = load_profile(PROFILE).model_dump()
    turned = PerformanceProfile.model_validate({**content, "nodes": dict(reversed(content["nodes"].items()))})
    assert turned.sha256 != load_profile(PROFILE).sha256  # ties go by the order of the nodes


@pytest.mark.parametrize("name", ["", "a\nb", "a\u2028b", "\x1b[2J", "a" * 201])
def test_name_of_a_model_that_not_every_file_can_hold_is_refused(tmp_path, name):
    path = changed(tmp_path, latency={name: {"provenance": "measured", "mean_ms": {"coral1": 1.0}}})
    assert "latency: expected names of 1 to 200 printable characters, found" in refusal(path)
