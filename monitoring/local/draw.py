"""Draw the panels of the dashboards from a running Prometheus, by the panels' own queries: pictures for the documentation.

    python3 -m monitoring.local.draw --minutes 3

They are matplotlib's, not Grafana's: the queries and the numbers are the same, the look is not.
"""

import argparse
import math
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import urllib3
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from measurement.power_sources import require_url
from monitoring.local.panels import DASHBOARDS, Panel, filled_in, legend_of, read_panels
from reporting.style import COLOURS, FAINT, styled
from terminal.options import OptionParser, exit_status, positive, seconds
from utils import PROJECT_ROOT, HarnessError

PROGRAM = "draw.py"
_COLUMNS, _WIDTH_IN, _NUMBERS_IN, _GRAPH_IN, _DPI = 3, 5.6, 1.5, 2.7, 80
_MOST_LEGENDS = 8
_RATE_S = 20
_UNITS: dict[str, tuple[str, Callable[[float], str]]] = {
    "percentunit": ("", lambda value: f"{100 * value:.4g} %"),
    "s": ("s", lambda value: f"{value:.4g}"),
    "watt": ("W", lambda value: f"{value:.4g}"),
    "joule": ("J", lambda value: f"{value:.4g}"),
    "Bps": ("bytes/s", lambda value: f"{value:.3g}"),
    "bytes": ("bytes", lambda value: f"{value:.3g}"),
    "celsius": ("°C", lambda value: f"{value:.3g}"),
    "reqps": ("requests/s", lambda value: f"{value:.3g}"),
    "ops": ("per second", lambda value: f"{value:.3g}"),
}


class Line(NamedTuple):
    """One series of a panel: its name, times in seconds since the start of the picture, and values."""

    name: str
    times_s: list[float]
    values: list[float]


class Window(NamedTuple):
    """The time range of a picture, Unix seconds."""

    start_s: float
    end_s: float


def lines_of(panel: Panel, url: str, window: Window) -> list[Line]:
    """Every series of every query of a panel, one point a second; those without a finite value are left out.

    Raises:
        HarnessError: Prometheus does not answer, or refuses the query.
    """
    found = []
    for query in panel.queries:
        expression = filled_in(query.expression, _RATE_S, round(window.end_s - window.start_s))
        fields = {"query": expression, "start": f"{window.start_s:.3f}", "end": f"{window.end_s:.3f}", "step": "1"}
        try:
            answer = urllib3.request("GET", f"{url}/api/v1/query_range", fields=fields, timeout=60.0, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise HarnessError(f"no Prometheus answers at {url}: {error}") from error
        if answer.status != 200:
            raise HarnessError(f"{url} refused the query of {panel.title!r}: {answer.data.decode(errors='replace')[:500]}")
        for series in answer.json()["data"]["result"]:
            points = [(float(at) - window.start_s, float(value)) for at, value in series["values"]]
            if any(math.isfinite(value) for _, value in points):
                found.append(Line(legend_of(query, series["metric"]), *map(list, zip(*points, strict=True))))
    return sorted(found, key=lambda line: line.name)


@styled
def picture(panels: Sequence[tuple[Panel, list[Line]]], caption: str) -> Figure:
    """All panels in a grid: first the numbers of those that show their latest value, then graphs over time."""
    numbers = [panel for panel in panels if panel[0].kind == "stat"]
    graphs = [panel for panel in panels if panel[0].kind != "stat"]
    low, high = (math.ceil(len(some) / _COLUMNS) for some in (numbers, graphs))
    heights_in = [_NUMBERS_IN] * low + [_GRAPH_IN] * high
    figure = Figure(figsize=(_COLUMNS * _WIDTH_IN, sum(heights_in) + 0.4), layout="constrained")
    axes = figure.subplots(low + high, _COLUMNS, squeeze=False, height_ratios=heights_in)
    for some, rows, draw in ((numbers, axes[:low], _draw_numbers), (graphs, axes[low:], _draw_graph)):
        cells = list(rows.flat)
        for cell in cells[len(some) :]:
            cell.set_axis_off()
        for (panel, lines), axis in zip(some, cells, strict=False):
            axis.set_title(panel.title)
            draw(axis, panel, lines)
    figure.suptitle(caption, fontsize=10, color=FAINT, x=0.01, ha="left")
    return figure


def _draw_graph(axis: Axes, panel: Panel, lines: list[Line]) -> None:
    unit, shown = _shown(panel.unit)
    axis.set_ylabel(unit)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    colours = [COLOURS[which % len(COLOURS)] for which in range(len(lines))]
    if panel.stacked:
        times_s = sorted({at for line in lines for at in line.times_s})
        heights = [[dict(zip(line.times_s, line.values, strict=True)).get(at, 0.0) for at in times_s] for line in lines]
        axis.stackplot(times_s, heights, labels=[line.name for line in lines], colors=colours, alpha=0.8, linewidth=0)
    else:
        for which, (line, colour) in enumerate(zip(lines, colours, strict=True)):
            style = ("-", "--", ":")[which // len(COLOURS) % 3]
            axis.plot(line.times_s, line.values, label=line.name, color=colour, linewidth=1.1, linestyle=style)
    if panel.limit is not None:
        axis.axhline(panel.limit, color="#cc3311", linewidth=1, linestyle="--")
    if panel.unit == "percentunit":
        axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("s")
    handles, names = axis.get_legend_handles_labels()
    if len(names) > _MOST_LEGENDS:
        names = [*names[: _MOST_LEGENDS - 1], f"… {len(names) - _MOST_LEGENDS + 1} more"]
    axis.legend(
        handles[: len(names)], names, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.5, handlelength=1.4, borderpad=0
    )


def _draw_numbers(axis: Axes, panel: Panel, lines: list[Line]) -> None:
    unit, shown = _shown(panel.unit)
    axis.set_axis_off()
    for row, line in enumerate(lines[:_MOST_LEGENDS]):
        y = 0.98 - row * 0.16
        if panel.unit == "dateTimeFromNow":
            value = time.strftime("%Y-%m-%d %H:%M", time.localtime(line.values[-1] / 1e3))
        else:
            value = f"{shown(line.values[-1])} {unit}".rstrip()
        name_only = panel.title == "Run"
        text = line.name if name_only else f"{value}   {line.name}"
        axis.text(0.0, y, "\n".join(textwrap.wrap(text, 48)), transform=axis.transAxes, fontsize=10, va="top")


def _shown(unit: str) -> tuple[str, Callable[[float], str]]:
    """Name of a unit on an axis, and how its numbers are written."""
    return _UNITS.get(unit, (unit.removeprefix("suffix: ") if unit.startswith("suffix:") else "", lambda value: f"{value:.4g}"))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed.

    Raises:
        UsageError: an option is unknown or has a value that it cannot have.
    """
    parser = OptionParser(PROGRAM, "Draw the dashboards' panels from a running Prometheus.")
    parser.add_argument("--prometheus-url", default="http://127.0.0.1:9090", metavar="URL", help="(http://127.0.0.1:9090)")
    parser.add_argument(
        "--minutes",
        type=lambda text: positive(text, "minutes above 0"),
        default=3.0,
        metavar="M",
        help="how far back the pictures reach (3)",
    )
    parser.add_argument(
        "--ago",
        type=seconds,
        default=0.0,
        metavar="S",
        help="how many seconds ago they end (0): after a run, some more than have passed since, as its nodes stop one by one",
    )
    parser.add_argument(
        "--output", type=Path, default=PROJECT_ROOT / "docs" / "pictures", metavar="DIR", help="where they go (docs/pictures)"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Draw every dashboard; the exit status.

    Raises:
        HarnessError: Prometheus does not answer or has no data of the time, or a picture cannot be written.
    """
    url = require_url("--prometheus-url", options.prometheus_url)
    end_s = math.floor(time.time() - options.ago)
    window = Window(end_s - round(60 * options.minutes), end_s)
    found = {
        file: [(panel, lines_of(panel, url, window)) for panel in read_panels(file)] for file in sorted(DASHBOARDS.glob("*.json"))
    }
    if not any(lines for drawn in found.values() for _, lines in drawn):
        start, end = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s)) for at_s in window)
        raise HarnessError(f"no data between {start} and {end}; see --minutes and --ago")
    for file, drawn in found.items():
        with_data = [(panel, lines) for panel, lines in drawn if lines]
        print(
            f"{file.stem}: {len(with_data)} panels drawn; no data: " + ("; ".join(p.title for p, ls in drawn if not ls) or "none")
        )
        if not with_data:
            continue
        caption = (
            f"Dashboard {file.stem}: drawn by monitoring/local/draw.py from the panels' queries, not a screenshot of Grafana"
        )
        target = options.output / f"{file.stem}.png"
        try:
            options.output.mkdir(parents=True, exist_ok=True)
            picture(with_data, caption).savefig(target, dpi=_DPI, metadata={"Software": None})
        except OSError as error:
            raise HarnessError(f"{target} cannot be written: {error.strerror}") from error
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(PROGRAM, lambda: run(parse_options())))
