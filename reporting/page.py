"""A page under way: draws its figures, keeps its tables, and writes all of them with the page itself."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from reporting.style import drawn
from reporting.tables import Table, kind_of, shown, text_of
from utils import write_failure

TEMPLATES = Path(__file__).with_name("templates")
_FILTERS = ("percent", "ms", "mj", "j", "count", "number")


@dataclass(slots=True)
class Page:
    """What has been drawn so far, and where it goes.

    Attributes:
        folder: of `report.html`, `figures/` and `tables/`.
        png: whether the figures are written as PNG too.
        figures: SVG elements by name.
        left_out: why a figure is missing, by its name.
        tables: in the order of the page.
    """

    folder: Path
    png: bool
    figures: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    def figure(self, name: str, missing: str, draw: Callable[[], Figure]) -> None:
        """Draw a figure and write its files, or keep why it is `missing`; files of an earlier report do not stay."""
        for kind in ("svg", "png"):
            self._remove(f"figures/{name}.{kind}")
        if missing:
            self.left_out[name] = missing
            return
        figure = drawn(draw(), name, self.png)
        self._write(f"figures/{name}.svg", figure.svg.encode())
        if figure.png:
            self._write(f"figures/{name}.png", figure.png)
        self.figures[name] = _inline(figure.svg)

    def table(self, name: str, title: str, frame: pd.DataFrame, group: str) -> None:
        """Keep a table and write its CSV file; one without rows is left out."""
        if len(frame) and len(frame.columns) > 1:
            counts = {column: frame[column].convert_dtypes() for column in frame.columns if kind_of(column)[1] == "count"}
            whole = frame.assign(**counts)  # integers again, where reading made floats of them
            self._write(f"tables/{name}.csv", whole.to_csv(index=False, lineterminator="\n").encode())
            self.tables.append(shown(name, title, frame, group))

    def write(self, template: str, **content: Any) -> Path:
        """Write the page from its template; its path."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.ChainableUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update({unit: partial(text_of, unit=unit) for unit in _FILTERS}, flat=_flat)
        page = environment.get_template(template).render(
            figures=self.figures, left_out=self.left_out, tables=self.tables, png=self.png, **content
        )
        return self._write("report.html", page.encode())

    def _remove(self, name: str) -> None:
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_failure(f"{path} cannot be replaced", error) from None

    def _write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            raise write_failure(f"{path} cannot be written", error) from None
        return path


def _inline(svg: str) -> str:
    """The SVG document as an element of a page: scales with its box, and is read out as one image by what stands around it."""
    root = re.search(r"<svg\b[^>]*>", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    if not root or not box:
        raise ValueError("matplotlib's SVG has no root element with a viewBox")
    inner = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>", "", svg[root.end() :], flags=re.DOTALL)
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} aria-hidden="true" focusable="false">{inner}'


def _flat(content: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and texts."""
    if isinstance(content, Mapping):
        return [row for key, value in content.items() for row in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
    if not prefix:
        return []
    as_json = isinstance(content, (list, bool, type(None)))
    return [(prefix, json.dumps(content, ensure_ascii=False) if as_json else str(content))]
