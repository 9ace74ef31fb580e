"""Puts Prometheus' rules and Grafana's dashboards into the ConfigMaps that `kubectl apply -f monitoring/` sends.

`monitoring/rules/*.yaml` and `monitoring/dashboards/*.json` are the originals; what stands in the ConfigMaps is made from them
(`make monitoring-configmaps`). With `--check` nothing is written: exit status 1 and the files that differ.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent
MARKER = "# From here on made by monitoring/embed.py from {source}; edit those and run `make monitoring-configmaps`.\n"
LARGEST_BYTES = 250_000
"""`kubectl apply` keeps the whole object in an annotation, and Kubernetes refuses annotations beyond 262,144 bytes."""


class EmbedError(Exception):
    """An original or a ConfigMap file is not as expected."""


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that they can be read and compared in the ConfigMap."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def config_map(name: str, application: str, files: dict[str, str]) -> str:
    """The YAML of one ConfigMap.

    Args:
        name: Its name in the namespace monitoring.
        application: Its label app.kubernetes.io/name.
        files: Key (a file name) to text.

    Raises:
        EmbedError: The ConfigMap is too big for `kubectl apply`.
    """
    document = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": "monitoring",
            "labels": {"app.kubernetes.io/name": application, "app.kubernetes.io/part-of": "edge-accelerator-harness"},
        },
        "data": dict(sorted(files.items())),
    }
    escaped = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026"})  # as kubectl writes them
    size_bytes = len(json.dumps(document, ensure_ascii=False).translate(escaped).encode())
    if size_bytes > LARGEST_BYTES:
        raise EmbedError(
            f"ConfigMap {name} has {size_bytes} bytes, `kubectl apply` takes at most {LARGEST_BYTES}: "
            "leave something out, or split it into two ConfigMaps"
        )
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)


def read_rules(folder: Path) -> dict[str, str]:
    """The rule files by name.

    Raises:
        EmbedError: There is none, or one is no YAML with `groups`.
    """
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    if not files:
        raise EmbedError(f"{folder}: expected at least one rule file (*.yaml), found none")
    for name, text in files.items():
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise EmbedError(f"{folder / name}: no valid YAML: {error}") from error
        if not isinstance(content, dict) or "groups" not in content:
            raise EmbedError(f"{folder / name}: expected Prometheus rules, a mapping with the key `groups`")
    return files


def read_dashboards(folder: Path) -> dict[str, str]:
    """The dashboards by file name; none where the folder is missing or empty.

    Raises:
        EmbedError: One is no JSON object, or no dashboard that Grafana reads from a file.
    """
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}
    for name, text in files.items():
        try:
            content = json.loads(text)
        except ValueError as error:
            raise EmbedError(f"{folder / name}: no valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise EmbedError(f"{folder / name}: expected a dashboard, a JSON object, found {type(content).__name__}")
        if absent := [key for key in ("uid", "schemaVersion", "panels") if key not in content]:
            hint = "export the dashboard from Grafana as JSON with the model Classic"
            raise EmbedError(f"{folder / name}: no {', '.join(absent)} at its top; {hint}")
        if content.get("id") is not None:
            raise EmbedError(f'{folder / name}: "id" is {content["id"]!r}, expected null: it would collide in another Grafana')
    return files


def expected_files(folder: Path = FOLDER) -> dict[Path, str]:
    """What the files with made ConfigMaps should hold.

    Args:
        folder: The folder monitoring/.

    Raises:
        EmbedError: An original is missing or malformed, or a ConfigMap gets too big.
    """
    prometheus = folder / "prometheus-configmap.yaml"
    rules_marker = MARKER.format(source="monitoring/rules/*.yaml")
    if not prometheus.is_file():
        raise EmbedError(f"{prometheus}: not found; the rules are put behind the scrape configuration that it holds")
    by_hand = prometheus.read_text(encoding="utf-8").split(f"---\n{rules_marker}")[0]
    rules = config_map("prometheus-rules", "prometheus", read_rules(folder / "rules"))
    dashboards_marker = MARKER.format(source="monitoring/dashboards/*.json")
    dashboards = config_map("grafana-dashboards", "grafana", read_dashboards(folder / "dashboards"))
    return {
        folder / "grafana-dashboards-configmap.yaml": f"{dashboards_marker}{dashboards}",
        prometheus: f"{by_hand}---\n{rules_marker}{rules}",
    }


def differing(folder: Path = FOLDER) -> dict[Path, str]:
    """Those of `expected_files` that are missing or hold something else."""
    return {
        path: text
        for path, text in expected_files(folder).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line: write the ConfigMaps, or check them. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Put rules and dashboards into their ConfigMaps.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a ConfigMap differs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the folder monitoring/ (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        files = differing(options.folder)
    except EmbedError as error:
        print(f"embed: {error}", file=sys.stderr)
        return 2
    for path, text in files.items():
        if options.check:
            print(f"embed: {path.name} differs from its originals; run `make monitoring-configmaps`", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"embed: wrote {path.name}")
    return 1 if options.check and files else 0


if __name__ == "__main__":
    sys.exit(main())
