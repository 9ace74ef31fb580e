"""Settings: the defaults are the design's figures, a file changes some of them, and what is wrong is named with its line."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from settings import DEFAULT_CONFIG, Settings, load_settings, require_known_models
from utils import UsageError, validated

DEFAULTS = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))


def refusal(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_settings(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


# Expected figures of the next four tests: design.md, section 4.


def test_default_load_is_the_designs():
    settings = load_settings()
    assert settings.models == ["mobilenet", "resnet50", "efficientnet", "vgg16"]
    classes = {name: (c.share, c.base_deadline_s, c.extension_factor) for name, c in settings.slo_classes.items()}
    assert classes == {
        "hard": (0.15, (0.05, 0.15), 1.0),
        "normal": (0.35, (0.10, 0.30), 1.0),
        "soft": (0.50, (0.30, 0.60), 1.2),
    }
    assert (settings.load, settings.duration_s, settings.queue_discipline) == (1.0, 600, "fifo")


def test_default_devices_are_the_designs():
    devices = load_settings().devices
    assert (devices.count, devices.placement, devices.area_side_m, devices.cell_radius_m) == (100, "cell", 500, 250)
    types = {name: (t.share, t.speed_mps, t.turn_probability, t.tasks_per_s) for name, t in devices.types.items()}
    assert types.pop("fixed")[:2] == (0.0, (0, 0))
    assert types == {
        "pedestrian": (0.5, (1, 2), 0.10, 0.2),
        "vehicle": (0.3, (5, 15), 0.05, 0.6),
        "drone": (0.2, (5, 15), 0.08, 0.5),
    }


def test_default_load_is_38_tasks_per_second():
    devices = load_settings().devices
    assert sum(devices.count * kind.share * kind.tasks_per_s for kind in devices.types.values()) == pytest.approx(38)


def test_default_margins_and_weights_are_the_designs():
    settings = load_settings()
    assert (settings.deadline_adaptation, settings.exit_safety, settings.safety_margin) == (True, 0.8, 0.1)
    assert settings.topsis.weights.as_tuple() == (0.4, 0.2, 0.2, 0.2)
    assert settings.scheduler == "power_aware_topsis"
    requests = settings.requests
    assert (requests.connections_per_node, requests.max_attempts, requests.drain_timeout_s) == (2, 2, 60)
    assert (settings.power.poll_interval_s, settings.power.idle_baseline_s) == (1, 30)


def test_power_comes_first_when_calm_and_slack_and_load_when_busy():
    own = load_settings().power_aware_topsis
    assert max(own.weights_calm.as_tuple()) == own.weights_calm.power
    assert sorted(own.weights_busy.as_tuple())[-2:] == [own.weights_busy.load, own.weights_busy.slack]


def test_default_profile_stands_beside_the_default_settings():
    assert load_settings().performance_profile == DEFAULT_CONFIG.parent / "performance_profile.yaml"


def test_file_changes_only_what_it_names(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("seed: 7\ndevices:\n  types:\n    drone: {tasks_per_s: 2}\n", encoding="utf-8")
    changed, default = load_settings(path), load_settings()
    assert changed.seed == 7
    assert changed.devices.types["drone"].tasks_per_s == 2
    assert changed.devices.types["drone"].speed_mps == (5, 15)
    assert changed.replace(seed=default.seed, devices=default.devices.model_dump()) == default


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_empty_file_changes_nothing(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_settings(path) == load_settings()


def part_of(mapping):
    """Any mapping that holds some of the keys of `mapping`, at every depth."""
    return st.fixed_dictionaries(
        {}, optional={key: part_of(value) if isinstance(value, dict) else st.just(value) for key, value in mapping.items()}
    )


@hypothesis_settings(max_examples=25)
@given(part_of({key: value for key, value in DEFAULTS.items() if key != "performance_profile"}))
def test_every_key_may_be_left_out(part):
    with TemporaryDirectory() as folder:
        path = Path(folder, "my.yaml")
        path.write_text(yaml.safe_dump(part), encoding="utf-8")
        assert load_settings(path) == load_settings()


def test_profile_is_looked_up_beside_the_file_that_names_it(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("performance_profile: rig.yaml\n", encoding="utf-8")
    assert load_settings(path).performance_profile == tmp_path / "rig.yaml"
    path.write_text("performance_profile: /somewhere/else.yaml\n", encoding="utf-8")
    assert load_settings(path).performance_profile == Path("/somewhere/else.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\ndurations_s: 5\n", ":2: unknown key durations_s; did you mean duration_s?"),
        ("topsis:\n  weights:\n    slak: 1\n", ":3: unknown key topsis.weights.slak; did you mean slack?"),
        (
            "devices:\n  types:\n    drone:\n      task_per_s: 1\n",
            ":4: unknown key devices.types.drone.task_per_s; did you mean tasks_per_s?",
        ),
        ("slo_classes: {hard: {shear: 1}}\n", ":1: unknown key slo_classes.hard.shear; did you mean share?"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(tmp_path, text, expected):
    assert refusal(tmp_path, text) == expected


def test_key_that_resembles_nothing_is_refused_without_a_guess(tmp_path):
    assert refusal(tmp_path, "xyzzy: 1\n") == ":1: unknown key xyzzy"


@pytest.mark.parametrize(
    ("text", "line", "key", "found"),
    [
        ("# mine\nduration_s: soon\n", 2, "duration_s", "'soon'"),
        ('duration_s: "10"\n', 1, "duration_s", "'10'"),
        ("duration_s: 0\n", 1, "duration_s", "0"),
        ("duration_s: -3\n", 1, "duration_s", "-3"),
        ("duration_s: .inf\n", 1, "duration_s", "inf"),
        ("duration_s: .nan\n", 1, "duration_s", "nan"),
        ("seed: 1.5\n", 1, "seed", "1.5"),
        ("seed: true\n", 1, "seed", "True"),
        ("seed: -1\n", 1, "seed", "-1"),
        ("load: true\n", 1, "load", "True"),
        ("queue_discipline: lifo\n", 1, "queue_discipline", "'lifo'"),
        ("scheduler: 5\n", 1, "scheduler", "5"),
        ("deadline_adaptation: 1\n", 1, "deadline_adaptation", "1"),
        ("exit_safety: 1.2\n", 1, "exit_safety", "1.2"),
        ("exit_safety: .nan\n", 1, "exit_safety", "nan"),
        ("devices:\n  count: 0\n", 2, "devices.count", "0"),
        ("devices:\n  placement: moon\n", 2, "devices.placement", "'moon'"),
        ("devices: 5\n", 1, "devices", "5"),
        ("devices:\n", 1, "devices", "None"),
        ("devices: {types: {drone: {share: .nan}}}\n", 1, "devices.types.drone.share", "nan"),
        ("devices:\n  types:\n    drone:\n      speed_mps: [1,\n        fast]\n", 5, "devices.types.drone.speed_mps.1", "'fast'"),
        ("models: mobilenet\n", 1, "models", "'mobilenet'"),
        ("models: []\n", 1, "models", "[]"),
        ("models:\n- mobilenet\n- true\n", 3, "models.1", "True"),
        ("requests: {connections_per_node: 2.0}\n", 1, "requests.connections_per_node", "2.0"),
        ("power_aware_topsis: {power_budget_w: 0}\n", 1, "power_aware_topsis.power_budget_w", "0"),
        ("slo_classes: {soft: {extension_factor: 0.9}}\n", 1, "slo_classes.soft.extension_factor", "0.9"),
        ("topsis: {weights: {slack: -1}}\n", 1, "topsis.weights.slack", "-1"),
        ("performance_profile: 5\n", 1, "performance_profile", "5"),
    ],
)
def test_wrong_value_names_line_key_and_what_was_found(tmp_path, text, line, key, found):
    message = refusal(tmp_path, text)
    assert message.startswith(f":{line}: {key}: expected ")
    assert message.endswith(f", found {found}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("devices:\n  types:\n    drone: {share: 0.3}\n", ":1: devices: the shares of devices.types must add up to 1, found 1.1"),
        ("devices: {cell_radius_m: 251}\n", ":1: devices: cell_radius_m 251 must not exceed half of area_side_m 500"),
        (
            "devices: {types: {drone: {speed_mps: [3, 2]}}}\n",
            ":1: devices.types.drone: speed_mps must be [low, high], found [3.0, 2.0]",
        ),
        (
            "slo_classes: {hard: {base_deadline_s: [2, 1]}}\n",
            ":1: slo_classes.hard: base_deadline_s must be [low, high], found [2.0, 1.0]",
        ),
        (
            "topsis:\n  weights: {slack: 0, performance: 0, power: 0, load: 0}\n",
            ":2: topsis.weights: at least one weight must be above 0",
        ),
        (
            "power: {poll_interval_s: 10}\n",
            ":1: power: max_age_s 5 is below poll_interval_s 10: no sample would be young enough to be used; "
            "raise max_age_s or lower poll_interval_s",
        ),
        (
            "power:\n  max_age_s: 0.4\n  poll_interval_s: 0.1\n",
            ":1: power: max_age_s 0.4 is below power_delay_s 0.5: no sample would be young enough to be used; "
            "raise max_age_s or lower power_delay_s",
        ),
        (
            "power: {metrics: {power_w: [], energy_j: []}}\n",
            ":1: power.metrics: power_w and energy_j are both empty: at least one metric is needed",
        ),
        (
            "power: {metrics: {power_w: [node_watts, node_energy_joules_total]}}\n",
            ":1: power.metrics: node_energy_joules_total stands twice; a metric has one meaning",
        ),
        (
            'power: {metrics: {nodes: {coral1: "10.0.0.7:8000", coral2: "10.0.0.7:8000"}}}\n',
            ":1: power.metrics: nodes: 10.0.0.7:8000 stands for two nodes",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(tmp_path, text, expected):
    assert refusal(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [("slo_classes: {hard: {share: 0.5}}\n", "slo_classes"), ("models: [vgg16, vgg16]\n", "models")],
)
def test_contradiction_between_top_level_keys_names_the_key(tmp_path, text, named):
    assert named in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "metrics", ["power_w: [node-watts]", 'energy_j: ["x\\n"]', "label: 1a", "nodes: {coral1: 7}", "label: 'a\"'"]
)
def test_names_that_prometheus_cannot_have_are_refused(tmp_path, metrics):
    assert ":1: power.metrics." in refusal(tmp_path, f"power: {{metrics: {{{metrics}}}}}\n")


def test_new_device_type_must_be_complete(tmp_path):
    message = refusal(tmp_path, "devices:\n  types:\n    tram: {share: 0}\n")
    assert message == ":3: devices.types.tram.speed_mps is missing"


@pytest.mark.parametrize("text", ["true: 5\n", "1: 5\n", "~: 5\n"])
def test_key_that_is_no_text_is_refused(tmp_path, text):
    assert "found" in refusal(tmp_path, text)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.yaml: no such file"):
        load_settings(tmp_path / "absent.yaml")


def test_replaced_value_is_checked_as_a_read_one():
    settings = load_settings()
    assert settings.replace(duration_s=5.0).duration_s == 5
    assert settings.duration_s == 600
    with pytest.raises(UsageError, match="options: duration_s: expected greater than 0, found -1"):
        settings.replace(duration_s=-1)
    with pytest.raises(UsageError, match="options: unknown key durations; did you mean duration_s"):
        settings.replace(durations=1)


def test_model_that_the_profile_does_not_know_is_refused():
    settings = load_settings()
    require_known_models(settings, ["vgg16", "efficientnet", "resnet50", "mobilenet"])
    with pytest.raises(UsageError, match="models: vgg16 is not in the performance profile, which knows mobilenet, resnet50, eff"):
        require_known_models(settings, ["mobilenet", "resnet50", "efficientnet"])


def leaves(content, path=()):
    """Path and value of every number of the settings."""
    if isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, (*path, key))
    elif isinstance(content, int | float) and not isinstance(content, bool) or path[-1] == "power_budget_w":
        yield path, content


def with_value(content, path, value):
    changed = dict(content) if isinstance(content, dict) else list(content)
    changed[path[0]] = with_value(changed[path[0]], path[1:], value) if path[1:] else value
    return changed


@pytest.mark.parametrize("path", [path for path, _ in leaves(DEFAULTS)], ids=lambda path: ".".join(map(str, path)))
def test_every_number_has_a_greatest_value(path):
    last = path[-1]
    content = load_settings().model_dump()
    for value in (10**30, 1e30) if last != "seed" else (2**64,):
        with pytest.raises(UsageError, match=rf"^file: {'.'.join(map(str, path))}: expected .* found ") as told:
            validated(Settings, with_value(content, path, value), "file", {})
        assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("devices: {count: 1e12}", "1000000000000.0"),
        ("devices: {count: 1000000000000}", "1000000000000"),
        ("load: 50000", "50000"),
        ("duration_s: 1e7", "10000000.0"),
    ],
)
def test_what_no_memory_holds_is_refused(tmp_path, text, found):
    assert refusal(tmp_path, text).endswith(f", found {found}")


@pytest.mark.parametrize("interval_s", ["1e-300", "0.001"])
def test_interval_without_an_end_is_refused(tmp_path, interval_s):
    assert "greater than or equal to 0.01" in refusal(tmp_path, f"power: {{poll_interval_s: {interval_s}}}")
