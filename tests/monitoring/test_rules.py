"""The recording and alert rules, by promtool: valid, and each alert fires and stays quiet (`*_rules_test.yaml`)."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring.prometheus_process import PROMTOOL, program
from utils import PROJECT_ROOT

RULES = PROJECT_ROOT / "monitoring" / "rules"
UNIT_TESTS = Path(__file__).parent


def rules_of(file):
    return [rule for group in yaml.safe_load((RULES / file).read_text())["groups"] for rule in group["rules"]]


ALERTS = rules_of("alerts.yaml")
RECORDS = rules_of("recording.yaml")
REQUIRED = {
    *("NodeDown", "PowerAgentSilent", "PowerOverBudget", "SloComplianceLow", "InferenceQueueFull", "PodsMissing", "PowerMissing"),
    *("TemperatureHigh", "ClockSkew", "DiskNearlyFull", "InferenceServerMissing"),
}


def name_of(alert):
    return "-".join(filter(None, (alert["alert"], alert["labels"].get("part"))))


every_alert = pytest.mark.parametrize("alert", ALERTS, ids=name_of)


def promtool(*arguments):
    return subprocess.run([program(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=60)


def unit_tests_notice(alert, folder, changed):
    """Whether the unit tests of an alert pass with its rule as it is, and fail with `changed` in it."""
    content = yaml.safe_load((UNIT_TESTS / "alert_rules_test.yaml").read_text())
    content["tests"] = [each for each in content["tests"] if each["alert_rule_test"][0]["alertname"] == alert["alert"]]
    content["rule_files"] = [str(RULES / "recording.yaml"), "alerts.yaml"]
    (folder / "test.yaml").write_text(yaml.safe_dump(content))

    def passes(*alerts):
        (folder / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": list(alerts)}]}))
        done = promtool("test", "rules", folder / "test.yaml")
        assert ("SUCCESS" in done.stdout) != ("FAILED" in done.stdout + done.stderr), done
        return done.returncode == 0

    others = [each for each in ALERTS if each["alert"] == alert["alert"] and each is not alert]
    return passes(*others, alert) and not passes(*others, {**alert, **changed})


def test_rules_are_valid():
    done = promtool("check", "rules", *sorted(RULES.iterdir()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout
    assert f"{len(RECORDS)} rules found" in done.stdout


@pytest.mark.parametrize("file", ["alert_rules_test.yaml", "recording_rules_test.yaml"])
def test_unit_tests_of_the_rules_pass(file):
    done = promtool("test", "rules", UNIT_TESTS / file)
    assert done.returncode == 0, done.stdout + done.stderr


@every_alert
@pytest.mark.parametrize(
    "changed", [{"expr": "vector(1) < 0"}, {"expr": "vector(1)"}, {"for": "0s"}], ids=["never", "always", "at-once"]
)
def test_unit_tests_notice_an_alert_that_fires_wrongly(alert, changed, tmp_path):
    assert unit_tests_notice(alert, tmp_path, changed)


def test_every_alert_that_is_wanted_exists():
    assert {alert["alert"] for alert in ALERTS} >= REQUIRED


@every_alert
def test_alert_says_how_bad_it_is_and_what_was_measured(alert):
    assert alert["labels"]["severity"] in {"warning", "critical"}
    assert alert["for"]
    assert alert["annotations"].keys() == {"summary", "description"}
    assert re.search(r"\$value|query", alert["annotations"]["description"])
    for label in re.findall(r"\$labels\.(\w+)", "".join(alert["annotations"].values())):
        assert re.search(rf"\b{label}\b", alert["expr"]), f"{label} is no label of the result"


def test_every_record_is_unit_tested_and_named_by_level_metric_and_operation():
    tested = (UNIT_TESTS / "recording_rules_test.yaml").read_text()
    names = [rule["record"] for rule in RECORDS]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"(node|cluster|slo_class):\w+:\w+", name)
        assert f"expr: {name}" in tested or f"expr: '{name}'" in tested, name
