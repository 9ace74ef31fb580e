"""The panels of the dashboards as data: what they ask, and how Grafana's variables and legends are filled in without Grafana."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils import PROJECT_ROOT

DASHBOARDS = PROJECT_ROOT / "monitoring" / "dashboards"


class Query(NamedTuple):
    """PromQL of a panel, with Grafana's variables in it, and the legend of its series."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """One panel that asks something; `kind` and `unit` are Grafana's names.

    Attributes:
        limit: value at which the panel draws a line, in its unit; None without one.
    """

    id: int
    kind: str
    title: str
    description: str
    unit: str
    stacked: bool
    limit: float | None
    queries: tuple[Query, ...]


def read_panels(dashboard: Path) -> list[Panel]:
    """The panels of a dashboard file that ask something, in their order on the page, those within closed rows too."""
    content = json.loads(dashboard.read_text(encoding="utf-8"))
    flat = [inner for panel in content["panels"] for inner in (panel, *panel.get("panels", ()))]
    return [_panel(panel) for panel in flat if panel.get("targets")]


def _panel(panel: Mapping[str, Any]) -> Panel:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    steps = defaults["thresholds"]["steps"] if custom.get("thresholdsStyle", {}).get("mode") == "line" else []
    return Panel(
        id=panel["id"],
        kind=panel["type"],
        title=panel["title"],
        description=panel.get("description", ""),
        unit=defaults.get("unit", "none"),
        stacked=custom.get("stacking", {}).get("mode", "none") != "none",
        limit=next((step["value"] for step in steps if step["value"] is not None), None),
        queries=tuple(Query(target["expr"], target.get("legendFormat", "")) for target in panel["targets"]),
    )


def filled_in(expression: str, rate_s: int, range_s: int) -> str:
    """`expression` with Grafana's variables replaced, as Grafana does before it asks.

    Args:
        expression: PromQL with variables.
        rate_s: window of rates, seconds: Grafana takes four scrape intervals or more.
        range_s: time range of the page, seconds.

    Raises:
        ValueError: it holds a variable that is not known here.
    """
    values = {"$__rate_interval": f"{rate_s}s", "$__range": f"{range_s}s"}
    for name, value in values.items():
        expression = re.sub(re.escape(name) + r"\b", value, expression)
    if "$" in expression:
        raise ValueError(f"unknown variable in {expression!r}: expected {' or '.join(values)}")
    return expression


def legend_of(query: Query, labels: Mapping[str, str]) -> str:
    """The name of one series: the query's legend with `{{label}}` filled in."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), query.legend)
