"""Rules and dashboards in the ConfigMaps are those of the original files, and embed.py says when they are not."""

import json

import pytest
import yaml

from monitoring import embed

HAND_WRITTEN = "# by hand\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: prometheus-config}\ndata:\n  a: |\n    b: 1\n"
RULES = "groups:\n  - name: a\n    rules:\n      - {record: b, expr: 'c > 1'}  # why\n"
DASHBOARD = '{\n  "id": null,\n  "uid": "a",\n  "schemaVersion": 39,\n  "title": "Größe in °C",\n  "panels": []\n}\n'


def titled(title):
    return json.dumps({**json.loads(DASHBOARD), "title": title})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prometheus-configmap.yaml").write_text(HAND_WRITTEN)
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "alerts.yaml").write_text(RULES)
    return tmp_path


def add_dashboard(folder, name="experiment.json", text=DASHBOARD):
    (folder / "dashboards").mkdir(exist_ok=True)
    (folder / "dashboards" / name).write_text(text)


def run(folder, *options):
    return embed.main(["--folder", str(folder), *options])


def made(folder, file):
    return list(yaml.safe_load_all((folder / file).read_text()))[-1]


def test_config_maps_of_the_repository_agree_with_their_originals():
    assert sorted(path.name for path in embed.differing()) == []


def test_data_of_the_repository_is_every_original_to_the_letter():
    rules = {path.name: path.read_text() for path in (embed.FOLDER / "rules").iterdir()}
    assert made(embed.FOLDER, "prometheus-configmap.yaml")["data"] == rules
    dashboards = {path.name: path.read_text() for path in (embed.FOLDER / "dashboards").glob("*.json")}
    assert made(embed.FOLDER, "grafana-dashboards-configmap.yaml")["data"] == dashboards


def test_originals_come_through_unchanged_and_what_is_written_by_hand_stays(folder):
    add_dashboard(folder)
    assert run(folder) == 0
    text = (folder / "prometheus-configmap.yaml").read_text()
    assert text.startswith(f"{HAND_WRITTEN}---\n# From here on made by")
    assert "      - name: a\n" in text
    assert made(folder, "prometheus-configmap.yaml")["data"] == {"alerts.yaml": RULES}
    assert made(folder, "grafana-dashboards-configmap.yaml")["data"] == {"experiment.json": DASHBOARD}


def test_second_run_writes_nothing(folder, capsys):
    add_dashboard(folder)
    run(folder)
    assert capsys.readouterr().out.splitlines() == [
        "embed: wrote grafana-dashboards-configmap.yaml",
        "embed: wrote prometheus-configmap.yaml",
    ]
    before = {path: path.read_bytes() for path in folder.glob("*.yaml")}
    assert run(folder) == run(folder, "--check") == 0
    assert capsys.readouterr() == ("", "")
    assert {path: path.read_bytes() for path in folder.glob("*.yaml")} == before


def test_files_stand_in_the_order_of_their_names(folder):
    for name in ("b.json", "a.json", "c.json"):
        add_dashboard(folder, name)
    run(folder)
    assert list(made(folder, "grafana-dashboards-configmap.yaml")["data"]) == ["a.json", "b.json", "c.json"]


def test_without_dashboards_the_config_map_is_empty_but_there(folder):
    assert run(folder) == 0
    document = made(folder, "grafana-dashboards-configmap.yaml")
    assert (document["kind"], document["metadata"]["name"], document["data"]) == ("ConfigMap", "grafana-dashboards", {})


def test_check_names_the_file_that_differs_and_writes_nothing(folder, capsys):
    add_dashboard(folder)
    run(folder)
    before = (folder / "grafana-dashboards-configmap.yaml").read_bytes()
    add_dashboard(folder, text=DASHBOARD.replace("Größe", "Other"))
    capsys.readouterr()
    assert run(folder, "--check") == 1
    printed = capsys.readouterr().err
    assert "grafana-dashboards-configmap.yaml differs" in printed
    assert "make monitoring-configmaps" in printed
    assert "prometheus-configmap.yaml" not in printed
    assert (folder / "grafana-dashboards-configmap.yaml").read_bytes() == before


def test_check_notices_an_edit_in_the_config_map_itself(folder, capsys):
    run(folder)
    file = folder / "prometheus-configmap.yaml"
    file.write_text(file.read_text().replace("c > 1", "c > 2"))
    assert run(folder, "--check") == 1
    assert "prometheus-configmap.yaml differs" in capsys.readouterr().err


def test_rule_file_that_is_gone_goes_from_the_config_map(folder):
    (folder / "rules" / "more.yaml").write_text(RULES)
    run(folder)
    assert list(made(folder, "prometheus-configmap.yaml")["data"]) == ["alerts.yaml", "more.yaml"]
    (folder / "rules" / "more.yaml").unlink()
    assert run(folder, "--check") == 1
    run(folder)
    assert list(made(folder, "prometheus-configmap.yaml")["data"]) == ["alerts.yaml"]


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("rules/alerts.yaml", "groups: [", "alerts.yaml: no valid YAML"),
        ("rules/alerts.yaml", "- a\n", "alerts.yaml: expected Prometheus rules"),
        ("dashboards/a.json", "{", "a.json: no valid JSON"),
        ("dashboards/a.json", "[]", "a.json: expected a dashboard, a JSON object, found list"),
        (
            "dashboards/a.json",
            '{"apiVersion": "dashboard.grafana.app/v2", "spec": {}}',
            "no uid, schemaVersion, panels at its top",
        ),
        ("dashboards/a.json", DASHBOARD.replace("null", "7"), '"id" is 7, expected null'),
        ("dashboards/a.json", titled("x" * 250_000), "`kubectl apply` takes at most 250000"),
        ("dashboards/a.json", titled("<" * 50_000), "`kubectl apply` takes at most 250000"),
    ],
)
def test_malformed_original_is_named_and_nothing_is_written(folder, capsys, file, text, message):
    (folder / "dashboards").mkdir()
    (folder / file).write_text(text)
    assert run(folder) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "grafana-dashboards-configmap.yaml").exists()
    assert (folder / "prometheus-configmap.yaml").read_text() == HAND_WRITTEN


@pytest.mark.parametrize(
    "file, message", [("rules/alerts.yaml", "at least one rule file"), ("prometheus-configmap.yaml", "not found")]
)
def test_missing_original_is_named(folder, capsys, file, message):
    (folder / file).unlink()
    assert run(folder, "--check") == 2
    assert message in capsys.readouterr().err
