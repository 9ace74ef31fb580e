"""Policies by name and by class path, every way in which that can go wrong, and what a policy may know."""

import sys
from dataclasses import fields

import numpy as np
import pytest

from scheduler import SCHEDULERS, BaseScheduler, Node, Task, create_scheduler
from settings import load_settings
from utils import UsageError, random_stream

SETTINGS = load_settings()


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """A function that writes a module into the current folder and gives its name, unlike that of any other test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"own_{abs(hash(request.node.nodeid))}"

    def write(text):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        return name

    yield write
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def create(name):
    return create_scheduler(name, SETTINGS, random_stream(1, "policy"))


def refusal(name):
    with pytest.raises(UsageError) as caught:
        create(name)
    message = str(caught.value)
    assert message.startswith("--scheduler: ")
    return message.removeprefix("--scheduler: ")


FIRST = """
from scheduler import BaseScheduler

class First(BaseScheduler):
    def schedule(self, task, nodes):
        return nodes[0]

class Choosy(First):
    def __init__(self, settings, rng):
        raise ValueError("no such mood")

class Unfinished(BaseScheduler):
    pass

class Stranger:
    def schedule(self, task, nodes):
        return nodes[0]

class Greedy(First):
    def __init__(self):
        pass

number = 5
"""


def test_names_are_those_of_the_design():
    # design.md, section 5, "Scheduler names".
    assert list(SCHEDULERS) == [
        "topsis",
        "power_aware_topsis",
        "random",
        "round_robin",
        "shortest_queue",
        "fastest_node",
        "lowest_power",
        "earliest_completion",
        "minimum_energy",
    ]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_name_makes_its_policy_with_the_settings_and_the_stream(name):
    rng = np.random.default_rng(0)
    policy = create_scheduler(name, SETTINGS, rng)
    assert type(policy) is SCHEDULERS[name]
    assert policy.settings == SETTINGS
    assert policy.rng is rng


def test_default_policy_is_known():
    assert SETTINGS.scheduler in SCHEDULERS


def test_unknown_name_is_met_with_the_nearest_and_all_known_ones():
    message = refusal("topsys")
    assert message.startswith("no policy 'topsys'; did you mean topsis?; known: topsis, power_aware_topsis, random")
    assert message.endswith("package.module:Class")


@pytest.mark.parametrize("name", ["", "Topsis ", "xyzzy"])
def test_name_like_no_other_is_refused(name):
    assert refusal(name).startswith(f"no policy {name!r}")


def test_own_class_is_loaded_from_the_current_folder(own):
    policy = create(f"{own(FIRST)}:First")
    node = Node("coral1", "coral", 4.0, 5.0)
    assert isinstance(policy, BaseScheduler)
    assert policy.schedule(Task(1, 2, "drone", "vgg16", "soft", 0.0, 0.5, 0.5, 0.5), [node]) is node


def test_own_class_may_stand_in_a_package(own, tmp_path):
    name = own("")
    (tmp_path / f"{name}.py").unlink()
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "inner.py").write_text(FIRST, encoding="utf-8")
    assert type(create(f"{name}.inner:First")).__name__ == "First"


def test_module_of_the_harness_goes_before_one_of_the_same_name_in_the_current_folder(own, tmp_path):
    own("")
    (tmp_path / "slo_monitor.py").write_text(FIRST, encoding="utf-8")
    assert "slo_monitor has no class 'First'" in refusal("slo_monitor:First")


def test_absent_module_is_refused(own):
    own("")
    assert refusal("nowhere_to_be_found:First") == (
        "module 'nowhere_to_be_found' cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    )


@pytest.mark.parametrize("path", [":First", ".relative:First", ":", "..:First", "a..b:First"])
def test_path_that_names_no_module_is_refused(own, path):
    own("")
    assert "cannot be imported" in refusal(path)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("class First(:\n", "SyntaxError: "),
        ("import nowhere_to_be_found", "ModuleNotFoundError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Odd(Exception):\n  def __str__(self): raise SystemExit(5)\nraise Odd", "Odd: a Odd without a text"),
    ],
)
def test_module_that_fails_on_import_is_refused_with_the_cause(own, text, cause):
    name = own(text)
    message = refusal(f"{name}:First")
    assert message.startswith(f"module '{name}' cannot be imported: {cause}")
    assert "\n" not in message


@pytest.mark.parametrize("wanted", ["", "First:Second", "Frist"])
def test_absent_class_is_refused(own, wanted):
    name = own(FIRST)
    assert refusal(f"{name}:{wanted}").startswith(f"{name} has no class {wanted!r}")


def test_misspelt_class_is_met_with_the_nearest_one(own):
    assert refusal(f"{own(FIRST)}:Frist").endswith("has no class 'Frist'; did you mean First?")


@pytest.mark.parametrize("wanted", ["Stranger", "number"])
def test_what_is_no_scheduler_is_refused(own, wanted):
    assert f":{wanted} must be a class derived from scheduler.BaseScheduler, found" in refusal(f"{own(FIRST)}:{wanted}")


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [("Choosy", "ValueError: no such mood"), ("Unfinished", "TypeError: "), ("Greedy", "TypeError: ")],
)
def test_class_that_cannot_be_made_is_refused_with_the_cause(own, wanted, cause):
    name = own(FIRST)
    assert refusal(f"{name}:{wanted}").startswith(f"{name}:{wanted} cannot be made: {cause}")


def test_error_text_of_several_lines_becomes_one_line(own):
    name = own("raise ValueError('first\\nsecond')")
    assert "\n" not in refusal(f"{name}:First")


# What a policy may know: "never a task's true service time" (design.md, section 3).


def test_task_of_a_scheduler_holds_no_service_noise():
    assert Task._fields == (
        "task_id",
        "device_id",
        "device_type",
        "model_name",
        "slo_class",
        "arrival_time_s",
        "base_deadline_s",
        "adapted_deadline_s",
        "fixed_deadline_s",
    )
    assert not hasattr(Task(1, 2, "drone", "vgg16", "soft", 0.0, 0.5, 0.5, 0.5), "__dict__")


def test_node_of_a_scheduler_holds_no_service_noise():
    assert [field.name for field in fields(Node)] == [
        "name",
        "accelerator",
        "idle_w",
        "busy_w",
        "models",
        "service_time_s",
        "queue_depth",
        "predicted_completion_s",
        "completion_with_margin_s",
        "busy_fraction",
        "power_w",
        "power_age_s",
        "closeness",
        "overhead_j",
    ]
    assert not hasattr(Node("coral1", "coral", 4.0, 5.0), "__dict__")


def test_every_field_of_a_node_is_explained():
    documented = (Node.__doc__ or "").split("Attributes:")[1]
    assert [field.name for field in fields(Node) if f"    {field.name}: " not in documented] == []
