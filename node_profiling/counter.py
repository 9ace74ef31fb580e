"""Shows on a terminal how far the measurement of a node is."""

import math
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_REFRESH_S = 0.5


class Counter:
    """Shows how many requests have been sent, and how long the others will take: on a terminal, unless quiet.

    It is drawn between two requests, never during one.
    """

    def __init__(self, console: Console, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
        shown = console.is_terminal and not quiet
        self._bar = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not shown)
        self._task = self._bar.add_task("", total=None)
        self._refreshed_s = -math.inf

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def begin(self, name: str, total: int) -> None:
        """Count from 0 again."""
        self._bar.reset(self._task, total=total, description=name)

    def advance(self) -> None:
        """One more has been sent."""
        self._bar.advance(self._task)
        if time.monotonic() - self._refreshed_s >= _REFRESH_S:
            self._bar.refresh()
            self._refreshed_s = time.monotonic()
