"""Compare scheduling policies: run each with many loads and seeds in virtual time, and say what can be told apart.

    python3 compare_schedulers.py --schedulers topsis,earliest_completion --load 0.5,1.0 --seeds 10

`comparison/` runs the cells, keeps them and holds the statistics, `report.py` draws; here they are put together.
"""

import os
import signal
import sys

if __name__ == "__main__":  # until main() has its own handlers: an end without a traceback, while the imports take their time
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: sys.exit(130))
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out

import argparse
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import joblib
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from comparison.cells import Cell, Result
from comparison.record import Sweep, SweepOptions, begun, resumed
from comparison.result_files import run_sweep, write_tables
from comparison.store import CellStore
from comparison.workers import Workers, require_backend
from performance_profile import PerformanceProfile
from report import write_comparison_report
from scheduler import SCHEDULERS
from settings import load_settings
from terminal.options import OptionParser, StopSignal, count, interruptible, positive, seconds, seed, stoppable
from utils import Interrupted, StopRequested, UsageError

PROGRAM = "compare_schedulers.py"
DEFAULT_SEEDS, DEFAULT_FIRST_SEED = 10, 42
_PLAIN_REFRESH_S = 10.0


class CellProgress:
    """Shows how many cells are finished and how long the others will take: a bar on a terminal, elsewhere a line now and then.

    Args:
        console: where.
        quiet: shows nothing.
    """

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("cells", total=None)
        self._total = self._finished = self._run = 0
        self._started_s = self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def add(self, total: int, finished: int) -> None:
        """More cells are wanted, of which some were finished before."""
        self._total += total
        self._finished += finished
        self._bar.update(self._task, total=self._total, completed=self._finished)

    def advance(self) -> None:
        """One more has been run."""
        self._run += 1
        self._finished += 1
        self._bar.update(self._task, completed=self._finished)
        now_s = time.monotonic()
        if not self._quiet and not self._console.is_terminal and now_s - self._said_s >= _PLAIN_REFRESH_S:
            self._said_s = now_s
            left_s = (now_s - self._started_s) / self._run * (self._total - self._finished)
            self._console.print(f"{self._finished} of {self._total} cells, about {left_s:.0f} s left", highlight=False)

    def __str__(self) -> str:
        return f"{self._finished} of {self._total} cells are finished"


def finish(
    store: CellStore,
    workers: Workers,
    shown: CellProgress,
    cells: Sequence[Cell],
    earlier: PerformanceProfile | None = None,
) -> dict[str, Result]:
    """Results of all `cells` by key; those that the store has not, also not of an `earlier` profile, are run and kept."""
    results: dict[str, Result] = {}
    for cell in cells:
        result = store.read(cell)
        if result is None and earlier:
            result = store.read(replace(cell, profile=earlier))
        if result is not None:
            results[cell.key] = result
    missing = [cell for cell in cells if cell.key not in results]
    shown.add(len(cells), len(results))
    if missing:
        for cell, result in workers.results(missing):
            store.write(cell, result)
            results[cell.key] = result
            shown.advance()
    return results


def print_comparison(console: Console, content: Mapping[str, Any], cells: pd.DataFrame, folder: Path) -> None:
    """What a person wants to know first: the verdict, what to mind, the main figures, where the files are."""
    for sentence in content["verdict"]:
        console.print(Text(sentence))
    console.print()
    for note in content["notes"]:
        console.print(Text(note), style="dim")
    for load, of_load in cells.groupby("load", sort=False):
        console.print(_figures_table(load, of_load))
    console.print(Text(f"files: {folder}"), soft_wrap=True)


def _figures_table(load: float, cells: pd.DataFrame) -> Table:
    """Means over seeds of the main figures of each policy."""
    table = Table(title=Text(f"load {load:g}: fixed deadlines met, energy above idle; seeds: {cells['seed'].nunique()}"))
    table.add_column("policy", overflow="fold", ratio=1)
    for name in ("met", "achievable", "p99 ms", "mJ / task"):
        table.add_column(name, justify="right", no_wrap=True)
    queues = cells["queue_discipline"].nunique()
    for (scheduler, queue), runs in cells.groupby(["scheduler", "queue_discipline"], sort=False):
        table.add_row(
            Text(scheduler if queues == 1 else f"{scheduler}, {queue}"),
            _mean(runs["fixed_deadline_compliance_rate"], ".2%"),
            _mean(runs["achievable_slo_rate"], ".2%"),
            _mean(runs["response_p99_s"], ".0f", 1e3),
            _mean(runs["above_idle_per_task_j"], ".1f", 1e3),
        )
    return table


def _mean(values: pd.Series, form: str, factor: float = 1.0) -> str:
    """Mean over the seeds; '–' where one of them has no value, as comparison.csv leaves it out."""
    mean = pd.to_numeric(values).mean(skipna=False)
    return "–" if pd.isna(mean) else f"{mean * factor:{form}}"


def run(options: argparse.Namespace, console: Console, stop: StopSignal) -> int:
    """One comparison from options to files; the exit status.

    Raises:
        HarnessError: it could not be done.
    """
    require_backend(options.backend)
    if options.dask_scheduler and options.backend != "dask":
        raise UsageError(f"--dask-scheduler: only with --backend dask, found --backend {options.backend}")
    with interruptible(stop):
        sweep = _sweep_of(options)
    store = CellStore(sweep.folder / "cells", _say_with(console))
    shown = CellProgress(console, options.quiet)
    try:
        jobs = options.jobs or joblib.cpu_count()
        with shown, Workers(jobs, options.backend, options.dask_scheduler, stop) as workers, interruptible(stop):
            done = run_sweep(sweep.plan, lambda cells: finish(store, workers, shown, cells, sweep.plan.earlier_profile))
        with interruptible(stop):
            content = write_tables(sweep, done)
            print_comparison(console, content, done.cells, sweep.folder)
            if options.report:
                console.print(
                    Text(f"report: {write_comparison_report(sweep.folder, mixed_profiles=options.mixed_profiles)}"),
                    soft_wrap=True,
                )
    except StopRequested:
        go_on = shlex.join(["python3", PROGRAM, "--resume", str(sweep.folder)])
        raise Interrupted(f"interrupted; {shown}; go on with: {go_on}") from None
    return 0


def _sweep_of(options: argparse.Namespace) -> Sweep:
    """The sweep that is begun, or gone on with."""
    if options.resume:
        if options.output is not None:
            raise UsageError("--output: not together with --resume, which goes on in its own folder")
        return resumed(options.resume, vars(options))
    swept = SweepOptions(
        config=options.config.absolute() if options.config else None,
        schedulers=options.schedulers or list(SCHEDULERS),
        load=options.load or [1.0],
        seeds=options.seeds or DEFAULT_SEEDS,
        first_seed=DEFAULT_FIRST_SEED if options.first_seed is None else options.first_seed,
        duration=options.duration or load_settings(options.config).duration_s,
        queue=options.queue or ["fifo"],
        bounds=options.bounds is not False,
        limits=options.limits is not False,
        ablation=options.ablation is not False,
    )
    return begun(swept, options.output or Path("comparisons"))


def _say_with(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed; what was not given is None.

    Raises:
        UsageError: an option is unknown or has a value that it cannot have.
    """
    parser = OptionParser(PROGRAM, "Compare scheduling policies in virtual time.")
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="settings that differ from config/experiment.yaml")
    add("--schedulers", type=_listed, metavar="A,B", help="policies, or your own as package.module:Class (all of this project)")
    add("--load", type=_loads, metavar="X,Y", help="multiples of the configured arrival rates (1.0)")
    add("--seeds", type=count, metavar="N", help=f"runs of each policy and load, each with a seed of its own ({DEFAULT_SEEDS})")
    add(
        "--first-seed",
        type=_first_seed,
        metavar="N",
        help=f"the seeds are N, N + 1, … ({DEFAULT_FIRST_SEED}, the seed of config/experiment.yaml)",
    )
    add("--duration", type=seconds, metavar="S", help="length of the load in seconds (the settings' 600)")
    add("--queue", type=_queues, metavar="A,B", help="order of the nodes' queues: fifo, edf, or both (fifo)")
    add("--jobs", type=count, metavar="N", help="cells run at once (all cores)")
    add("--backend", default="loky", metavar="NAME", help="where cells run: loky, threading, dask, or another of joblib's (loky)")
    add("--dask-scheduler", metavar="ADDRESS", help="with --backend dask: a cluster that runs already (local workers)")
    add("--output", type=Path, metavar="DIR", help="parent of the comparison's folder (comparisons)")
    add("--resume", type=Path, metavar="DIR", help="go on with the comparison in this folder; its options hold")
    add(
        "--mixed-profiles",
        action="store_true",
        help="with --resume: compare cells that were run before the performance profile changed with those that are run now",
    )
    for name, what in (
        ("bounds", "clairvoyant bounds"),
        ("limits", "search for the highest loads"),
        ("ablation", "weight ablation"),
    ):
        add(f"--no-{name}", dest=name, action="store_const", const=False, help=f"leave out the {what}")
    add("--no-report", dest="report", action="store_false", help="write the tables only")
    add("--quiet", action="store_true", help="no progress display")
    return parser.parse_args(arguments)


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names or numbers with commas between them, found {text!r}")
    _require_once(names, text)
    return names


def _require_once(values: Sequence[str] | Sequence[float], text: str) -> None:
    for position, value in enumerate(values):
        if value in values[:position]:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise argparse.ArgumentTypeError(f"{shown} stands twice in {text!r}")


def _queues(text: str) -> list[str]:
    for name in (names := _listed(text)):
        if name not in ("fifo", "edf"):
            raise argparse.ArgumentTypeError(f"expected fifo or edf, found {name!r}")
    return names


def _loads(text: str) -> list[float]:
    loads = [positive(load, "a load above 0") for load in _listed(text)]
    _require_once(loads, text)
    return loads


def _first_seed(text: str) -> int:
    return seed(text, bits=63)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return stoppable(PROGRAM, lambda stop: run(parse_options(arguments), Console(), stop))


if __name__ == "__main__":
    sys.exit(main())
