"""Compare scheduling policies: run each with many loads and seeds in virtual time, and say what can be told apart.

    python3 compare_schedulers.py --schedulers topsis,earliest_completion --load 0.5,1.0 --seeds 10

`sweep.py` runs the cells and keeps them, `comparison.py` holds the statistics, `report.py` draws; here they are put together.
"""

import signal
import sys

if __name__ == "__main__":  # until main() has its own handlers: an end without a traceback, while the imports take their time
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: sys.exit(130))

import argparse
import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Self

import joblib
import pandas as pd
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import comparison
from bounds import ClairvoyantBound, capacity_tasks_per_s
from main_pregenerated import StopSignal
from metric_collector import RunFolder
from performance_profile import load_profile
from report import write_comparison_report
from run_figures import versions
from scheduler import SCHEDULERS, create_scheduler
from settings import load_settings, require_known_models
from sweep import (
    Cell,
    CellStore,
    Plan,
    Result,
    Window,
    Workers,
    bound_of,
    find_limits,
    interruptible,
    known_verdicts,
    package_versions,
    plain_settings,
    policy_hash,
    require_backend,
    source_hashes,
)
from utils import (
    HarnessError,
    Interrupted,
    StrictModel,
    UsageError,
    git_commit,
    random_stream,
    validated,
    write_json_atomically,
)

PROGRAM = "compare_schedulers.py"
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
DEFAULT_SEEDS, DEFAULT_FIRST_SEED = 10, 42
_PLAIN_REFRESH_S = 10.0


class SweepOptions(StrictModel):
    """The options that say what is swept, as they stand in sweep.json."""

    config: Path | None
    schedulers: list[str] = Field(min_length=1)
    load: list[float] = Field(min_length=1)
    seeds: int = Field(ge=1)
    first_seed: int = Field(ge=0)
    duration: float = Field(gt=0)
    queue: list[Literal["fifo", "edf"]] = Field(min_length=1)
    bounds: bool
    limits: bool
    ablation: bool


class SweepRecord(StrictModel):
    """Content of sweep.json: what is swept, and everything else that bears on its cells."""

    sweep_id: str
    created_at: str
    options: SweepOptions
    settings: dict[str, Any]
    profile: dict[str, Any]
    sources: dict[str, str]
    policies: dict[str, str | None]
    packages: dict[str, str]
    versions: dict[str, str]
    git_commit: str | None


class Sweep(NamedTuple):
    """A sweep and the folder that keeps it."""

    folder: Path
    record: SweepRecord
    plan: Plan


# What is to be swept: begun anew, or gone on with.


def begun(options: argparse.Namespace) -> Sweep:
    """A new sweep, checked; its folder holds sweep.json.

    Raises:
        UsageError: an option or the settings are wrong, or the folder cannot be made.
    """
    settings = load_settings(options.config)
    swept = SweepOptions(
        config=options.config.absolute() if options.config else None,
        schedulers=options.schedulers or list(SCHEDULERS),
        load=options.load or [1.0],
        seeds=options.seeds or DEFAULT_SEEDS,
        first_seed=DEFAULT_FIRST_SEED if options.first_seed is None else options.first_seed,
        duration=options.duration or settings.duration_s,
        queue=options.queue or ["fifo"],
        bounds=options.bounds is not False,
        limits=options.limits is not False,
        ablation=options.ablation is not False,
    )
    plan = planned(swept)
    now = datetime.now().astimezone()
    folder = RunFolder(options.output or Path("comparisons"), now)
    record = SweepRecord(
        sweep_id=folder.experiment_id,
        created_at=now.isoformat(),
        options=swept,
        **basis(plan),
        versions=dict(versions()),
        git_commit=git_commit(),
    )
    _write_json(folder.path / "sweep.json", record.model_dump(mode="json"))
    return Sweep(folder.path, record, plan)


def planned(swept: SweepOptions) -> Plan:
    """The plan that the options mean with the settings, the profile and the policies as they are now.

    Raises:
        UsageError: one of these is wrong.
    """
    settings = load_settings(swept.config).replace(duration_s=swept.duration)
    profile = load_profile(settings.performance_profile)
    require_known_models(settings, profile.latency)
    for name in swept.schedulers:
        try:
            create_scheduler(name, settings, random_stream(settings.seed, "policy"))
        except UsageError as error:
            raise UsageError(str(error).replace("--scheduler:", "--schedulers:", 1)) from error
    seeds = range(swept.first_seed, swept.first_seed + swept.seeds)
    return Plan(settings, profile, swept.schedulers, swept.queue, swept.load, seeds, swept.bounds, swept.limits, swept.ablation)


def basis(plan: Plan) -> dict[str, Any]:
    """Everything beside the options that bears on the cells, as it is now."""
    return {
        "settings": plain_settings(plan.settings),
        "profile": plan.profile.model_dump(mode="json"),
        "sources": dict(source_hashes()),
        "policies": {name: policy_hash(name) for name in plan.schedulers},
        "packages": dict(package_versions()),
    }


def resumed(options: argparse.Namespace) -> Sweep:
    """The sweep of `--resume`, if it is still the same.

    Raises:
        UsageError: the folder holds no sweep, an option differs from the sweep's, or something that bears on it has changed.
    """
    folder: Path = options.resume
    if options.output is not None:
        raise UsageError("--output: not together with --resume, which goes on in its own folder")
    record = _recorded(folder)
    for name, value in record.options.model_dump().items():
        given = getattr(options, name)
        if given is not None and given != value and name != "config":
            raise UsageError(f"--resume: {folder} was begun with another {_OPTION[name]}: found {given}, expected {value}")
    swept = record.options.model_copy(update={"config": options.config.absolute()} if options.config else {})
    plan = planned(swept)
    before = record.model_dump(mode="json")
    for name, content in basis(plan).items():
        if changed := _first_difference(content, before[name]):
            raise UsageError(f"--resume: {_BASIS[name]} changed since {folder} was begun: {changed}; begin a new sweep")
    return Sweep(folder, record, plan)


_OPTION = {
    "config": "--config",
    "schedulers": "--schedulers",
    "load": "--load",
    "seeds": "--seeds",
    "first_seed": "--first-seed",
    "duration": "--duration",
    "queue": "--queue",
    "bounds": "--no-bounds",
    "limits": "--no-limits",
    "ablation": "--no-ablation",
}
_BASIS = {
    "settings": "the settings",
    "profile": "the performance profile",
    "sources": "the source code",
    "policies": "a policy",
    "packages": "a package",
}


def _recorded(folder: Path) -> SweepRecord:
    path = folder / "sweep.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--resume: {folder} is no folder of a sweep: there is no {path}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--resume: {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--resume: {path} is damaged: expected a mapping, found {type(content).__name__}")
    return validated(SweepRecord, content, f"--resume: {path}", {})


def _first_difference(now: Any, before: Any, at: str = "") -> str | None:
    """Where two JSON-able values differ first, and how; None where they do not."""
    if isinstance(now, dict) and isinstance(before, dict):
        keys = dict.fromkeys([*before, *now])
        deeper = (_first_difference(now.get(key), before.get(key), f"{at}.{key}" if at else key) for key in keys)
        return next(filter(None, deeper), None)
    if now == before:
        return None
    return at if isinstance(before, str) and len(before) == _SHA256_DIGITS else f"{at}: found {now}, expected {before}"


_SHA256_DIGITS = 64


# Running what is not finished.


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


def finish(store: CellStore, workers: Workers, shown: CellProgress, cells: Sequence[Cell]) -> dict[str, Result]:
    """Results of all `cells` by key; those that the store has not are run, and kept as they come."""
    results: dict[str, Result] = {}
    for cell in cells:
        if (result := store.read(cell)) is not None:
            results[cell.key] = result
    missing = [cell for cell in cells if cell.key not in results]
    shown.add(len(cells), len(results))
    if missing:
        for cell, result in workers.results(missing):
            store.write(cell, result)
            results[cell.key] = result
            shown.advance()
    return results


class Finished(NamedTuple):
    """What all cells of a sweep came to."""

    cells: pd.DataFrame
    minutes: pd.DataFrame
    without: pd.DataFrame
    bounds: dict[tuple[float, int], ClairvoyantBound]
    limits: dict[tuple[str, str], list[comparison.LoadLimit]]


def run_sweep(plan: Plan, run: Callable[[Sequence[Cell]], Mapping[str, Result]]) -> Finished:
    """Run every cell of a sweep, those that its highest loads ask for too."""
    cells = plan.cells()
    results = run(cells)
    of_kind: dict[str, list[tuple[Cell, Result]]] = {"run": [], "ablation": [], "bound": []}
    for cell in plan.in_order(cells):
        of_kind[cell.kind].append((cell, results[cell.key]))
    rows = [result["row"] for _, result in of_kind["run"]]
    limits = find_limits(plan, known_verdicts(plan, rows), run) if plan.limits else {}
    return Finished(
        pd.DataFrame(rows),
        _minutes(of_kind["run"]),
        pd.DataFrame([{**result["row"], "without": cell.without} for cell, result in of_kind["ablation"]]),
        {(cell.settings.load, cell.settings.seed): bound_of(result) for cell, result in of_kind["bound"]},
        {policy: [limits[policy, seed] for seed in plan.seeds] for policy in plan.policies if plan.limits},
    )


def _minutes(runs: Sequence[tuple[Cell, Result]]) -> pd.DataFrame:
    """Compliance with the fixed deadline in each minute of arrival, mean over seeds, nothing trimmed: minutes.csv."""
    keys = ["scheduler", "queue_discipline", "load", "minute"]
    rows = [
        (*(result["row"][key] for key in keys[:-1]), minute, rate) for _, result in runs for minute, rate in result["minutes"]
    ]
    table = pd.DataFrame(rows, columns=[*keys, "fixed_deadline_compliance_rate"])
    return table.groupby(keys, sort=False, as_index=False).mean()


# Tables, verdict and report.


def write_tables(sweep: Sweep, done: Finished) -> dict[str, Any]:
    """Write every table of a sweep, and comparison.json last; its content.

    Raises:
        HarnessError: runs of one load and seed have met different scenarios, or the disk is full.
    """
    plan = sweep.plan
    reference = comparison.reference_of(plan.schedulers)
    gap_table = comparison.gaps(done.cells, done.bounds) if done.bounds else None
    limit_table = comparison.load_limits(done.limits) if done.limits else None
    tables = {
        "cells": done.cells,
        "minutes": done.minutes,
        "comparison": comparison.compared(done.cells, reference),
        "pareto": comparison.pareto(done.cells),
        "bounds": _bound_table(done.bounds) if done.bounds else None,
        "gaps": gap_table,
        "frontier": comparison.frontier(done.bounds) if done.bounds else None,
        "load_limits": limit_table,
        "ablation": comparison.ablation(done.cells, done.without) if len(done.without) else None,
    }
    for name, table in tables.items():
        if table is not None:
            _write_table(sweep.folder / f"{name}.csv", table)
    window = Window.of(plan.settings.duration_s)
    cool_down_s = plan.settings.duration_s - window.before_s
    capacity_per_s = capacity_tasks_per_s(
        plan.profile, list(plan.profile.nodes), plan.settings.models, plan.settings.requests.connections_per_node
    )
    loads = _loads(done.cells, window.length_s, capacity_per_s)
    content = {
        "sweep_id": sweep.record.sweep_id,
        "created_at": sweep.record.created_at,
        "verdict": comparison.verdict(done.cells, gap_table, limit_table),
        "notes": comparison.notes(
            seeds=len(plan.seeds),
            duration_s=plan.settings.duration_s,
            warm_up_s=window.since_s,
            cool_down_s=cool_down_s,
            schedulers=plan.schedulers,
            loads=loads,
            capacity_tasks_per_s=capacity_per_s,
        ),
        "options": sweep.record.options.model_dump(mode="json"),
        "settings": sweep.record.settings,
        "reference": reference,
        "warm_up_s": window.since_s,
        "cool_down_s": cool_down_s,
        "capacity_tasks_per_s": capacity_per_s,
        "loads": loads,
        "versions": {**sweep.record.versions, **sweep.record.packages},
        "git_commit": sweep.record.git_commit,
    }
    _write_json(sweep.folder / "comparison.json", content)
    return content


def _bound_table(bounds: Mapping[tuple[float, int], ClairvoyantBound]) -> pd.DataFrame:
    """Shares of the tasks, and joules above idle per task: bounds.csv."""
    rows = [
        {
            "load": load,
            "seed": seed,
            "tasks": bound.tasks,
            "miss_rate_per_task_minimum": bound.misses_per_task_minimum / bound.tasks,
            "miss_rate_bound": bound.misses / bound.tasks,
            "energy_per_task_minimum_j": bound.energy_per_task_minimum_j / bound.tasks,
            "energy_bound_j": bound.energy_j(bound.tasks) / bound.tasks,
            "energy_bound_at_fewest_misses_j": bound.energy_j(bound.misses) / bound.tasks,
        }
        for (load, seed), bound in bounds.items()
        if bound.tasks
    ]
    return pd.DataFrame(rows)


def _loads(cells: pd.DataFrame, window_s: float, capacity_per_s: float) -> list[dict[str, float]]:
    """Tasks per second that were dispatched at each load, mean over seeds, and as a share of what the cluster can serve."""
    rates = cells.groupby("load", sort=False)["tasks"].mean() / window_s
    return [
        {"load": float(load), "dispatched_tasks_per_s": float(rate), "fraction_of_capacity": float(rate / capacity_per_s)}
        for load, rate in rates.items()
    ]


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV whole or not at all; floats in the shortest form that reads back as the same number, flags as true or false."""
    flags = {name: table[name].map({True: "true", False: "false"}) for name in table.columns if table[name].dtype == bool}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        table.assign(**flags).to_csv(temporary, index=False, lineterminator="\n")
        temporary.replace(path)
    except OSError as error:
        raise HarnessError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, content: Any) -> None:
    try:
        write_json_atomically(path, content)
    except OSError as error:
        raise HarnessError(f"{path} cannot be written: {error.strerror}") from None


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
            f"{runs['fixed_deadline_compliance_rate'].mean():.2%}",
            f"{runs['achievable_slo_rate'].mean():.2%}",
            f"{runs['response_p99_s'].mean() * 1e3:.0f}",
            f"{runs['above_idle_per_task_j'].mean() * 1e3:.1f}",
        )
    return table


# The command line.


def run(options: argparse.Namespace, console: Console, stop: StopSignal) -> int:
    """One comparison from options to files; the exit status.

    Raises:
        HarnessError: it could not be done.
    """
    require_backend(options.backend)
    if options.dask_scheduler and options.backend != "dask":
        raise UsageError(f"--dask-scheduler: only with --backend dask, found --backend {options.backend}")
    sweep = resumed(options) if options.resume else begun(options)
    store = CellStore(sweep.folder / "cells", _say_with(console))
    shown = CellProgress(console, options.quiet)
    try:
        with shown, Workers(options.jobs or joblib.cpu_count(), options.backend, options.dask_scheduler, stop) as workers:
            done = run_sweep(sweep.plan, lambda cells: finish(store, workers, shown, cells))
        with interruptible(stop):
            content = write_tables(sweep, done)
            print_comparison(console, content, done.cells, sweep.folder)
            if options.report:
                console.print(Text(f"report: {write_comparison_report(sweep.folder)}"), soft_wrap=True)
    except KeyboardInterrupt:
        go_on = shlex.join(["python3", PROGRAM, "--resume", str(sweep.folder)])
        raise Interrupted(f"interrupted; {shown}; go on with: {go_on}") from None
    return 0


def _say_with(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed; what was not given is None.

    Raises:
        UsageError: an option is unknown or has a value that it cannot have.
    """
    parser = _Parser(prog=PROGRAM, description="Compare scheduling policies in virtual time.", allow_abbrev=False)
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="settings that differ from config/experiment.yaml")
    add("--schedulers", type=_listed, metavar="A,B", help="policies, or your own as package.module:Class (all of this project)")
    add("--load", type=_loads_of, metavar="X,Y", help="multiples of the configured arrival rates (1.0)")
    add("--seeds", type=_count, metavar="N", help=f"runs of each policy and load, each with a seed of its own ({DEFAULT_SEEDS})")
    add(
        "--first-seed",
        type=_seed,
        metavar="N",
        help=f"the seeds are N, N + 1, … ({DEFAULT_FIRST_SEED}, the seed of config/experiment.yaml)",
    )
    add("--duration", type=_seconds, metavar="S", help="length of the load in seconds (the settings' 600)")
    add("--queue", type=_queues, metavar="A,B", help="order of the nodes' queues: fifo, edf, or both (fifo)")
    add("--jobs", type=_count, metavar="N", help="cells run at once (all cores)")
    add("--backend", default="loky", metavar="NAME", help="where cells run: loky, threading, dask, or another of joblib's (loky)")
    add("--dask-scheduler", metavar="ADDRESS", help="with --backend dask: a cluster that runs already (local workers)")
    add("--output", type=Path, metavar="DIR", help="parent of the comparison's folder (comparisons)")
    add("--resume", type=Path, metavar="DIR", help="go on with the comparison in this folder; its options hold")
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
    twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if twice:
        raise argparse.ArgumentTypeError(f"{twice} stands twice in {text!r}")
    return names


def _queues(text: str) -> list[str]:
    for name in (names := _listed(text)):
        if name not in ("fifo", "edf"):
            raise argparse.ArgumentTypeError(f"expected fifo or edf, found {name!r}")
    return names


def _loads_of(text: str) -> list[float]:
    loads = [_positive(load, "a load above 0") for load in _listed(text)]
    twice = next((load for position, load in enumerate(loads) if load in loads[:position]), None)
    if twice:
        raise argparse.ArgumentTypeError(f"{twice:g} stands twice in {text!r}")
    return loads


def _seconds(text: str) -> float:
    return _positive(text, "seconds above 0")


def _positive(text: str, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, found {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop = StopSignal()
    stop.install()
    try:
        return run(parse_options(arguments), Console(), stop)
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except Interrupted as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except HarnessError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
