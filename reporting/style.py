"""The look of every figure of a report, how policies are told apart, and the figures as SVG and PNG.

Colours are Paul Tol's "muted" scheme, which people with any common colour vision can tell apart; markers, line styles and
labels say the same again. Text becomes paths in SVG, so that a figure looks alike on every machine.
"""

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

COLOURS = ("#332288", "#cc6677", "#117733", "#88ccee", "#aa4499", "#999933", "#44aa99", "#882255", "#ddcc77", "#777777")
MARKERS = "osD^vP*X<>p"
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
INK, FAINT = "#22272e", "#6b7480"
WIDTH_IN = 5.7
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:,.10g}")

_PNG_DPI = 300
_STYLE: dict[Any, Any] = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"},
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": "#9aa2ac",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.7,
    "xtick.color": "#9aa2ac",
    "ytick.color": "#9aa2ac",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "hatch.color": "white",
    "svg.fonttype": "path",
}

Floats = NDArray[np.float64]
Arguments = ParamSpec("Arguments")
Policy = tuple[str, str]
"""A scheduler and the queue discipline it was run with."""


class Look(NamedTuple):
    """How a policy is drawn in every figure of a report."""

    label: str
    colour: str
    marker: str
    face: str
    """Colour of the marker's inside."""
    line: Any

    def options(self, joined: bool = True) -> dict[str, Any]:
        """What matplotlib is told: markers, joined by a line or not."""
        return {"color": self.colour, "marker": self.marker, "mfc": self.face, "linestyle": self.line if joined else ""}


def looks(policies: Iterable[Policy]) -> dict[Policy, Look]:
    """A look for each policy: colour and marker by scheduler; line style and filling by queue discipline if there are several."""
    policies = list(dict.fromkeys(policies))
    schedulers = list(dict.fromkeys(scheduler for scheduler, _ in policies))
    disciplines = list(dict.fromkeys(discipline for _, discipline in policies))
    chosen = {}
    for scheduler, discipline in policies:
        which, queue = schedulers.index(scheduler), disciplines.index(discipline)
        label = f"{scheduler}, {discipline}" if len(disciplines) > 1 else scheduler
        colour, line = COLOURS[which % len(COLOURS)], queue if len(disciplines) > 1 else which
        chosen[scheduler, discipline] = Look(
            shortened(label),
            colour,
            MARKERS[which % len(MARKERS)],
            "white" if queue % 2 else colour,
            LINE_STYLES[line % len(LINE_STYLES)],
        )
    return chosen


def shortened(name: str, longest: int = 32) -> str:
    """A name on one line that leaves room for the figure; the end of it says most."""
    name = " ".join(name.split())
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


class Drawn(NamedTuple):
    """A figure in the formats that papers and pages take."""

    svg: str
    png: bytes | None


def drawn(figure: Figure, name: str, png: bool) -> Drawn:
    """The figure as an SVG document and, if asked for, as a PNG: the same bytes for the same figure and name, without a date.

    Args:
        figure: what to draw.
        name: stands before every id of the SVG, so that several figures can stand in one page.
        png: whether to make the PNG, of 300 dots per inch, too.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), _without_glyph_warnings():
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        svg = re.sub(r"<!-- .*? -->\n?", "", text.getvalue(), flags=re.DOTALL)
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
        svg = re.sub(r' d="[^"]+"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
        if not png:
            return Drawn(svg, None)
        figure.set_layout_engine("none")  # it has been laid out
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_PNG_DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return Drawn(svg, file.getvalue())


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """A name may hold characters that the font has not; a box in their place is enough."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Artists take their style when they are made: make them under ours."""

    @functools.wraps(draw)
    def draw_styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return draw_styled


def subplots(rows: int, columns: int, row_in: float, extra_in: float = 0.5, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of one column's width and its panels, row by row."""
    figure = Figure(figsize=(WIDTH_IN, rows * row_in + extra_in), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def legend_over(figure: Figure, handles: Sequence[Any], columns: int = 2) -> None:
    """A legend above all panels; none without handles."""
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3, columnspacing=1.4)


def share_axis(panel: Axes) -> None:
    """Shares as percentages."""
    panel.yaxis.set_major_formatter(PERCENT)


def plain_log(axis: Axis) -> None:
    """Ticks 1, 2, 5 of each decade as plain numbers."""
    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if high < 1e4 * max(low, 1e-12) else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def horizontal(*panels: Axes) -> None:
    """First row on top, no lines between rows."""
    if not panels[0].yaxis_inverted():
        panels[0].invert_yaxis()
    for panel in panels:
        panel.grid(False, axis="y")
        panel.tick_params(axis="y", length=0)
