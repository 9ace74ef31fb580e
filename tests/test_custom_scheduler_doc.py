"""The policy that docs/custom_scheduler.md shows is run as it stands there, and its tables name what there is."""

import re
import shlex
import sys
from dataclasses import fields

import numpy as np
import pytest

import compare_schedulers
import main_pregenerated
from scheduler import SCHEDULERS, BaseScheduler, Node, Task, create_scheduler
from settings import load_settings
from utils import PROJECT_ROOT

TEXT = (PROJECT_ROOT / "docs" / "custom_scheduler.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
(PROGRAM,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CLASS_PATH = "my_policies:EnergyWithReserve"


@pytest.fixture
def policy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "my_policies", raising=False)
    (tmp_path / "my_policies.py").write_text(PROGRAM, encoding="utf-8")
    yield create_scheduler(CLASS_PATH, load_settings(), np.random.default_rng(0))
    del sys.modules["my_policies"]


def task(slo_class, deadline_s=0.2):
    return Task(1, 2, "drone", "resnet50", slo_class, 5.0, deadline_s, deadline_s, deadline_s)


def node(name, joules, answer_s):
    """A node that costs so much energy and is expected to answer after so long, margin included."""
    return Node(
        name,
        "coral",
        idle_w=4.0,
        busy_w=5.0,
        service_time_s=joules,
        predicted_completion_s=answer_s / 1.1,
        completion_with_margin_s=answer_s,
    )


NODES = [node("cheap", 0.01, 0.19), node("fair", 0.02, 0.15), node("dear", 0.03, 0.10)]


@pytest.mark.parametrize(
    ("slo_class", "expected"),
    [("soft", "cheap"), ("normal", "fair"), ("hard", "dear")],  # usable: 0.2 s, 80 % of it, 60 % of it
)
def test_stricter_classes_pay_for_time_to_spare(policy, slo_class, expected):
    assert policy.schedule(task(slo_class), NODES).name == expected


def test_where_no_node_is_in_time_the_earliest_is_taken(policy):
    assert policy.schedule(task("hard", 0.05), NODES).name == "dear"


def test_of_equally_cheap_nodes_the_earlier_is_taken(policy):
    assert policy.schedule(task("soft"), [node("a", 0.01, 0.15), node("b", 0.01, 0.10)]).name == "b"


def test_policy_is_one_of_the_projects_kind_and_bears_the_name_of_the_commands(policy):
    assert isinstance(policy, BaseScheduler)
    assert f"{type(policy).__module__}:{type(policy).__name__}" == CLASS_PATH
    assert any(CLASS_PATH in command for command in COMMANDS)


def test_example_is_as_short_as_it_claims_to_be():
    assert len([line for line in PROGRAM.splitlines() if line.strip()]) <= 20


def test_every_command_is_one_that_the_program_understands():
    programs = {
        "main_pregenerated.py": main_pregenerated.parse_options,
        "compare_schedulers.py": compare_schedulers.parse_options,
    }
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        python, program, *arguments = shlex.split(command)
        options = programs[program](arguments)
        named = [options.scheduler] if program == "main_pregenerated.py" else options.schedulers
        assert python == "python3" and CLASS_PATH in named and {*named} <= {CLASS_PATH, *SCHEDULERS}


def table(of):
    """Names in the first column of the table that explains `of`."""
    body = TEXT.split(f"| field of `{of}` |")[1].split("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)


def test_tables_name_every_field_of_a_task_and_of_a_node():
    assert table("Task") == list(Task._fields)
    assert table("Node") == [field.name for field in fields(Node)]


def test_derived_figures_that_are_named_exist():
    named = set(re.findall(r"`node\.(\w+)", TEXT))
    assert named == {"current_power_w", "energy_above_idle_j", "predicted_to_meet"}
    assert all(hasattr(Node, name) for name in named)
