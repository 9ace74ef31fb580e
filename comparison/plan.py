"""What a comparison is made of: which cells there are, and which ones the search for the highest loads asks for."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from comparison.cells import Cell, Kind, Result, code_hash
from comparison.computation import misses_allowed
from comparison.load_limits import HIGHEST_LOAD, LOWEST_LOAD, LoadLimit, next_load
from comparison.weight_ablation import ABLATED, CRITERIA, without
from performance_profile import PerformanceProfile
from settings import Settings
from utils import UsageError


class Policy(NamedTuple):
    """What is compared."""

    scheduler: str
    queue_discipline: str


@dataclass(frozen=True)
class Plan:
    """What is swept; everything that bears on a cell follows from it and from the code.

    Attributes:
        settings: the experiment; policy, queue discipline, load and seed are the sweep's.
        profile: figures of the nodes.
        earlier_profile: other figures, with which finished cells may have been run; None: there are none such.
        bounds: whether clairvoyant bounds are computed.
        limits: whether the highest loads are looked for.
        ablation: whether TOPSIS policies are run without each of their criteria.
    """

    settings: Settings
    profile: PerformanceProfile
    schedulers: Sequence[str]
    queue_disciplines: Sequence[str]
    loads: Sequence[float]
    seeds: Sequence[int]
    bounds: bool = True
    limits: bool = True
    ablation: bool = True
    earlier_profile: PerformanceProfile | None = None

    @property
    def policies(self) -> list[Policy]:
        """Every scheduler with every queue discipline."""
        return list(itertools.starmap(Policy, itertools.product(self.schedulers, self.queue_disciplines)))

    @property
    def ablation_load(self) -> float:
        """The load nearest to 1."""
        return min(self.loads, key=lambda load: abs(load - 1))

    def cells(self) -> list[Cell]:
        """All cells but those of the search for the highest loads; long ones first, those of one scenario in a row."""
        cells = []
        for load, seed in itertools.product(sorted(self.loads, reverse=True), self.seeds):
            if self.bounds:
                cells.append(self._cell("bound", _ANY_POLICY, load, seed))
            cells += [self._cell("run", policy, load, seed) for policy in self.policies]
            if self.ablation and load == self.ablation_load:
                cells += self._ablation_cells(seed)
        return cells

    def in_order(self, cells: Iterable[Cell]) -> list[Cell]:
        """Cells in the order of the tables: by policy, queue discipline and load as listed, then by seed and criterion."""

        def position(cell: Cell) -> tuple[int, ...]:
            scheduler, queue = cell.settings.scheduler, cell.settings.queue_discipline
            policy = (self.schedulers.index(scheduler), self.queue_disciplines.index(queue)) if cell.kind != "bound" else (0, 0)
            criterion = CRITERIA.index(cell.without) if cell.without else 0
            return *policy, self.loads.index(cell.settings.load), cell.settings.seed, criterion

        return sorted(cells, key=position)

    def limit_cell(self, policy: Policy, load: float, seed: int) -> Cell:
        """Asks whether a policy bears a load."""
        return self._cell("limit", policy, load, seed)

    def _ablation_cells(self, seed: int) -> list[Cell]:
        policies = [policy for policy in self.policies if policy.scheduler in ABLATED]
        cells = []
        for policy, criterion in itertools.product(policies, CRITERIA):
            with suppress(UsageError):  # the only criterion that has a weight cannot be left out
                cells.append(self._cell("ablation", policy, self.ablation_load, seed, criterion))
        return cells

    def _cell(self, kind: Kind, policy: Policy, load: float, seed: int, criterion: str = "") -> Cell:
        settings = self.settings.replace(**policy._asdict(), load=load, seed=seed)
        if criterion:
            settings = without(settings, policy.scheduler, criterion)
        return Cell(kind, settings, self.profile, code_hash(policy.scheduler), criterion)


_ANY_POLICY = Policy("earliest_completion", "fifo")
"""Stands in the settings of a bound, on which no policy bears."""

Finish = Callable[[Sequence[Cell]], Mapping[str, Result]]
"""Runs those of some cells that are not finished; results of all of them by key."""


def find_limits(
    plan: Plan, verdicts: Mapping[tuple[Policy, int], dict[float, bool]], finish: Finish
) -> dict[tuple[Policy, int], LoadLimit]:
    """The highest load that each policy bears with each seed, found by bisection, one round for all at once.

    Args:
        plan: the sweep.
        verdicts: by policy and seed, which loads are known to be borne or not; more are added.
        finish: runs cells.
    """
    limits: dict[tuple[Policy, int], LoadLimit] = {}
    while len(limits) < len(verdicts):
        asked: dict[tuple[Policy, int], Cell] = {}
        for (policy, seed), known in verdicts.items():
            if (policy, seed) in limits:
                continue
            answer = next_load(known)
            if isinstance(answer, LoadLimit):
                limits[policy, seed] = answer
            else:
                asked[policy, seed] = plan.limit_cell(policy, answer, seed)
        results = finish(sorted(asked.values(), key=lambda cell: (-cell.settings.load, cell.settings.seed)))
        for who, cell in asked.items():
            meets = results[cell.key]["meets"]
            if meets is None:
                limits[who] = LoadLimit(None, "unknown")
            else:
                verdicts[who][cell.settings.load] = meets
    return limits


def known_verdicts(plan: Plan, rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Policy, int], dict[float, bool]]:
    """Which loads the sweep's own rows say are borne, by policy and seed."""
    verdicts: dict[tuple[Policy, int], dict[float, bool]] = {who: {} for who in itertools.product(plan.policies, plan.seeds)}
    for row in rows:
        if LOWEST_LOAD <= row["load"] <= HIGHEST_LOAD and row["tasks"]:
            achievable = round(row["achievable_slo_rate"] * row["tasks"])
            borne = row["missed"] <= misses_allowed(row["tasks"], achievable)
            verdicts[Policy(row["scheduler"], row["queue_discipline"]), row["seed"]][row["load"]] = borne
    return verdicts
