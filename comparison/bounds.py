"""What no policy can beat: the cluster's capacity, and clairvoyant lower bounds on misses and energy for the tasks of a trace.

The world that is bounded (design, "Service"): task j arrives at a_j, has the fixed deadline d_j, takes s_jn seconds on the
accelerator of node n without interruption, one task at a time, and e_jn = (busy_w − idle_w)·s_jn + overhead_w·o_jn joules above
idle. Half of the request overhead o_jn passes before the accelerator and half after. So j meets its deadline on n only if it runs
there inside its window [r, D], with r = a_j + o_jn/2 and D = a_j + d_j − o_jn/2.

Relaxed, that is, allowed here though no real schedule can do it: the future is known; connections and queue orders do not bind;
tasks outside of those given take no accelerator time, and late answers take it only in step 5; tasks of different blocks do not
compete; a task may be split over nodes. Every real schedule is still allowed, so what the best allowed one needs is a lower bound
for all of them.

1. Overlap. A run of length s that starts at S overlaps an interval I = [t1, t2] for max(0, min(S + s, t2) − max(S, t1)) seconds.
As S grows, this rises, stays and falls; over the window, S in [r, D − s], it is therefore least at an end. At S = r it is
max(0, min(s, t2 − t1, r + s − t1, t2 − r)), at S = D − s it is max(0, min(s, t2 − t1, D − t1, t2 − D + s)), and as r + s ≤ D the
smaller of the two is w = max(0, min(s, t2 − t1, r + s − t1, t2 − D + s)): so long at least does every run spend in I. (Energetic
reasoning, the left and right shift of a task: Baptiste, Le Pape and Nuijten, Annals of Operations Research 92, 1999.)

2. Cuts. Let x_jn be 1 where j is on time on n, else 0. Every schedule obeys Σ_n x_jn ≤ 1 for each task, and for each node n and
interval I it obeys Σ_j w_jn(I)·x_jn ≤ |I|, since an accelerator has |I| seconds in I.

3. Prices. Let a schedule answer every task and miss m deadlines, and let a miss cost λ ≥ 0 joules. Its energy and λ·m come to at
least Σ_j [Σ_n e_jn·x_jn + (1 − Σ_n x_jn)·(λ + min_n e_jn)]. For any prices u ≥ 0 of the cuts, Σ u·(|I| − Σ w·x) is not negative;
take it away, and leave of each task the cheapest of its choices:

    energy + λ·m  ≥  V(λ) = Σ_j min(λ + min_n e_jn, min_n (e_jn + Σ_I u_nI·w_jn(I))) − Σ u_nI·|I|,

the inner minimum over the nodes where j fits its window. So energy ≥ V(λ) − λ·m for every λ (Lagrangian duality: Boyd and
Vandenberghe, "Convex Optimization", section 5.1.3). With e = 0 and λ = 1 the same sum bounds the misses, also those of schedules
that leave tasks unanswered.

4. Blocks. The tasks are cut into blocks by their arrival. What is left of a schedule when the tasks of other blocks are taken out
is a schedule of the block, and misses and energy are sums over the blocks; so the sum of the blocks' bounds is a bound. In each
block the misses are a whole number.

5. Late answers. If every task is answered by `until_s`, each node runs for at most H seconds, from the first arrival to then.
With v_n ≥ 0 as the price of its time, watts, Σ_n v_n·(H − Σ_j s_jn·[j was answered by n]) is not negative; take it away too, and
step 3 holds with e_jn + v_n·s_jn in the place of e_jn, less H·Σ_n v_n. Of V with these prices and V without, the larger is used.

Good prices u are the dual values of the linear program of steps 2 and 3, which HiGHS solves. The bound is then computed from u by
the formula, which holds for any u ≥ 0 (and v ≥ 0): the solver's tolerance and the choice of cuts can loosen it, never spoil it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csc_array, csr_array, vstack

from performance_profile import PerformanceProfile
from settings import Settings
from task_generator import Trace

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCK_S = 10.0
"""Tasks that arrive within so many seconds make a block."""
_LARGEST_BLOCK = 1000
"""A block of more tasks is cut further: programs take more time than their size."""
_WINDOW_SLACK_S = 1e-9
"""Added to every window: an answer that is late by rounding alone counts as on time here."""
_MISS_ROUNDING = 1e-6
"""Per task, taken off before misses are rounded up to a whole number."""
_ENERGY_ROUNDING = 1e-9
"""Share of an energy, taken off against rounding."""
_LEAST_VIOLATION_S = 1e-4
"""A cut is added where a solution breaks it by more."""
_USED = 1e-7
"""A smaller share of a task on a node counts as none when cuts are looked for."""
_MISS_ROUNDS = 3
"""Programs solved for the misses of a block; cuts are added after each."""
_SOLVED_PRICES = (2.0, 2.0, 1.0, 0.5)
"""Prices λ that programs are solved for, in units of `_price_unit_j`; cuts are added after each."""
_SOLVED_PRICES_OF_TIMED = (0.7,)
"""The same for the programs in which late answers take time."""
_PRICES = tuple(2.0 ** (step / 4) for step in range(-20, 13))
"""Prices λ at which V is computed, in the same units."""


def capacity_tasks_per_s(
    profile: PerformanceProfile, node_names: Sequence[str], models: Sequence[str], connections: int
) -> float:
    """Most tasks per second that the nodes can serve for ever, models in equal shares.

    The linear program, with y_mn tasks/s of model m on node n, s_mn the profile's mean service time and o_n the request overhead,

        maximise T  with  Σ_n y_mn = T / M for each of the M models,
                          Σ_m y_mn·s_mn ≤ 1 for each node: its accelerator serves one task at a time,
                          Σ_m y_mn·(s_mn + o_n) ≤ connections for each node: a request holds a connection for that long at least.

    Args:
        profile: figures of the nodes.
        node_names: the nodes of the cluster.
        models: names of the models, each with the same share of the tasks.
        connections: requests that may be in flight to a node at once.

    Returns:
        Tasks per second that no cluster of these nodes can exceed for long; 0 where no node serves one of the models.
    """
    services = [profile.service_time_s(name) for name in node_names]
    served = [(m, n) for m, model in enumerate(models) for n in range(len(node_names)) if model in services[n]]
    of_model, of_node = np.array(served, dtype=np.int64).reshape(-1, 2).T
    service_s = np.array([services[n][models[m]] for m, n in served])
    overhead_s = np.array([profile.overhead_s(name) for name in node_names])
    on_node = np.equal.outer(np.arange(len(node_names)), of_node)
    limits = np.vstack([on_node * service_s, on_node * (service_s + overhead_s[of_node])])
    shares = np.equal.outer(np.arange(len(models)), of_model).astype(float)
    solved = linprog(
        np.append(np.zeros(len(served)), -1.0),
        A_ub=np.hstack([limits, np.zeros((len(limits), 1))]),
        b_ub=np.repeat([1.0, float(connections)], len(node_names)),
        A_eq=np.hstack([shares, np.full((len(models), 1), -1 / len(models))]),
        b_eq=np.zeros(len(models)),
        method="highs",
    )
    return float(solved.x[-1])


def fixed_deadlines_s(trace: Trace, settings: Settings) -> Floats:
    """Fixed deadline of every task, seconds after its arrival, shape (n,): min(base, exit_safety × time to exit).

    The same arithmetic as `DeadlineAdapter` and `mobility_manager.time_to_exit_s`, on whole columns.
    """
    x_m, y_m = trace.position_m - settings.devices.area_side_m / 2
    vx_mps, vy_mps = trace.velocity_mps
    a = vx_mps * vx_mps + vy_mps * vy_mps
    b = x_m * vx_mps + y_m * vy_mps
    c = x_m * x_m + y_m * y_m - settings.devices.cell_radius_m * settings.devices.cell_radius_m
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(b * b - a * c)
        exit_s = np.where(b <= 0, (root - b) / a, -c / (root + b))
    exit_s = np.where(c > 0, 0.0, np.where(a == 0, np.inf, exit_s))
    fixed_s: Floats = np.minimum(trace.base_deadline_s, settings.exit_safety * exit_s)
    return fixed_s


@dataclass(frozen=True)
class ClairvoyantBound:
    """Lower bounds for every schedule of some tasks, one that knows the future included.

    Args:
        tasks: number of tasks.
        misses_per_task_minimum: tasks whose fixed deadline no node could meet, were it idle and theirs alone.
        misses: no schedule misses fewer fixed deadlines.
        energy_per_task_minimum_j: each task's least energy above idle on any node, summed, joules.
        prices: pairs (λ, V), λ rising from 0, joules per miss and joules: a schedule that answers every task and misses the
            fixed deadline of m of them takes at least V − λ·m joules above idle.
    """

    tasks: int
    misses_per_task_minimum: int
    misses: int
    energy_per_task_minimum_j: float
    prices: tuple[tuple[float, float], ...]

    def energy_j(self, misses: float) -> float:
        """Least energy above idle, joules, of a schedule that answers every task and misses at most so many fixed deadlines.

        There is no schedule with fewer than `self.misses`; asked for one, the answer is that for `self.misses`.
        """
        possible = max(misses, self.misses)
        return max(value_j - price_j * possible for price_j, value_j in self.prices)


def clairvoyant_bound(
    arrival_time_s: Floats,
    fixed_deadline_s: Floats,
    model_name: Sequence[str],
    service_noise: Floats,
    profile: PerformanceProfile,
    node_names: Sequence[str],
    until_s: float = math.inf,
    overhead_noise: Floats | None = None,
) -> ClairvoyantBound:
    """Bounds for the schedules of some tasks; the module says how they are found and why they hold.

    A task whose model no node serves counts as missed and takes no energy.

    Args:
        arrival_time_s: shape (n,), in any order, seconds.
        fixed_deadline_s: shape (n,), seconds after the arrival.
        model_name: n names.
        service_noise: shape (n,), standard normal noise of each task.
        profile: figures of the nodes.
        node_names: the nodes of the cluster.
        until_s: when the last answer can come, on the clock of the arrivals: the end of the load and the drain timeout. The
            energy bound is for schedules that have answered every task by then.
        overhead_noise: shape (n,), the same for the request overhead; None: each takes the mean.
    """
    if overhead_noise is None:
        overhead_noise = np.full(len(arrival_time_s), np.nan)
    tasks = _Tasks.of(arrival_time_s, fixed_deadline_s, model_name, service_noise, overhead_noise, profile, node_names)
    prices_j = _price_unit_j(profile, node_names) * np.array(_PRICES)
    horizon_s = until_s - float(arrival_time_s.min(initial=math.inf))
    free_w, time_w = np.zeros(len(node_names)), _time_prices_w(profile, node_names, model_name, horizon_s)
    misses, free_j, timed_j = 0, np.zeros(len(prices_j)), np.zeros(len(prices_j))
    for members in _blocks(arrival_time_s):
        block = _Block(tasks, members)
        misses += block.fewest_misses()
        free_j += block.values_j(prices_j, free_w, _SOLVED_PRICES)
        if time_w.any():
            timed_j += block.values_j(prices_j, time_w, _SOLVED_PRICES_OF_TIMED)
    least_j = float(tasks.least_j(free_w).sum())
    values_j = np.append(least_j, free_j)
    if time_w.any():
        values_j = np.maximum(values_j, np.append(tasks.least_j(time_w).sum(), timed_j) - horizon_s * time_w.sum())
    values_j -= _ENERGY_ROUNDING * np.abs(values_j)
    return ClairvoyantBound(
        tasks=len(arrival_time_s),
        misses_per_task_minimum=int((~tasks.on_time.any(axis=1)).sum()),
        misses=misses,
        energy_per_task_minimum_j=least_j,
        prices=tuple(zip([0.0, *prices_j.tolist()], values_j.tolist(), strict=True)),
    )


def _time_prices_w(profile: PerformanceProfile, node_names: Sequence[str], model_name: Sequence[str], horizon_s: float) -> Floats:
    """Prices v of the nodes' time, watts, shape (nodes,), for which step 5 gives most at λ = 0 if services take their means.

    The linear program: maximise Σ_m count_m·p_m − H·Σ_n v_n with p_m ≤ e_mn + v_n·s_mn for all m and n. Zeros where
    the horizon is endless, or no schedule answers all tasks.
    """
    models, counts = np.unique(np.array(model_name, dtype=str), return_counts=True)
    services = [profile.service_time_s(node) for node in node_names]
    served = [(m, n) for m, model in enumerate(models) for n in range(len(node_names)) if model in services[n]]
    free_w = np.zeros(len(node_names))
    if not math.isfinite(horizon_s) or len({m for m, _ in served}) < len(models):
        return free_w
    of_model, of_node = np.array(served, dtype=np.int64).T
    service_s = np.array([services[n][models[m]] for m, n in served])
    above_idle_w = np.array([profile.nodes[node].busy_w - profile.nodes[node].idle_w for node in node_names])
    overhead_j = np.array([profile.overhead_j(node) for node in node_names])
    solved = linprog(
        np.append(-counts.astype(float), np.full(len(node_names), horizon_s)),
        A_ub=np.hstack([np.eye(len(models))[of_model], -service_s[:, None] * np.eye(len(node_names))[of_node]]),
        b_ub=above_idle_w[of_node] * service_s + overhead_j[of_node],
        method="highs",
    )
    return free_w if solved.x is None else np.maximum(0.0, solved.x[len(models) :])


def _price_unit_j(profile: PerformanceProfile, node_names: Sequence[str]) -> float:
    """Most joules above idle that the choice of the node makes out for one task, by the profile's means.

    A price of a miss far above it changes no choice any more; far below it, missing is always cheaper.
    """
    spreads = []
    for figures in profile.latency.values():
        energies = [
            (profile.nodes[name].busy_w - profile.nodes[name].idle_w) * figures.mean_ms[name] / 1e3 + profile.overhead_j(name)
            for name in node_names
            if name in figures.mean_ms
        ]
        if energies:
            spreads.append(max(max(energies) - min(energies), min(energies)))
    return max(spreads, default=0.0) or 1.0


def _blocks(arrival_time_s: Floats) -> list[Integers]:
    """Positions of the tasks of each block."""
    order = np.argsort(arrival_time_s, kind="stable")
    number = np.floor(arrival_time_s[order] / BLOCK_S)
    blocks = [block for block in np.split(order, np.flatnonzero(np.diff(number)) + 1) if len(block)]
    return [part for block in blocks for part in np.array_split(block, math.ceil(len(block) / _LARGEST_BLOCK))]


@dataclass(frozen=True, eq=False)
class _Tasks:
    """Tasks × nodes, shape (n, nodes): where a task can be on time, its service time and window there, seconds.

    `overhead_j` is what the request overhead takes there, joules above idle; `above_idle_w` what the nodes draw above idle when
    busy, shape (nodes,), watts. Where a node does not serve a task's model, the service time is infinite.
    """

    on_time: NDArray[np.bool_]
    service_s: Floats
    release_s: Floats
    due_s: Floats
    overhead_j: Floats
    above_idle_w: Floats

    @classmethod
    def of(
        cls,
        arrival_time_s: Floats,
        fixed_deadline_s: Floats,
        model_name: Sequence[str],
        service_noise: Floats,
        overhead_noise: Floats,
        profile: PerformanceProfile,
        node_names: Sequence[str],
    ) -> "_Tasks":
        """With the true service times, as the simulated nodes have them."""
        position = {name: code for code, name in enumerate(profile.latency)}
        code = np.array([position[name] for name in model_name], dtype=np.int64)
        means_s = np.array(
            [[profile.service_time_s(node).get(model, np.inf) for node in node_names] for model in profile.latency]
        )
        sigma = np.array([profile.sigma(node) for node in node_names])
        overhead_s = np.stack([profile.overhead_of_tasks_s(node, overhead_noise) for node in node_names], axis=1)
        service_s = means_s[code] * np.exp(np.multiply.outer(service_noise, sigma) - sigma**2 / 2)
        release_s = arrival_time_s[:, None] + overhead_s / 2
        due_s = (arrival_time_s + fixed_deadline_s)[:, None] - overhead_s / 2 + _WINDOW_SLACK_S
        above_idle_w = np.array([profile.nodes[node].busy_w - profile.nodes[node].idle_w for node in node_names])
        overhead_j = np.array([profile.nodes[node].overhead_w for node in node_names]) * overhead_s
        return cls(release_s + service_s <= due_s, service_s, release_s, due_s, overhead_j, above_idle_w)

    def least_j(self, time_w: Floats) -> Floats:
        """Each task's least energy on any node, whose time has a price; shape (n,), joules; 0 for a task that no node serves."""
        served = np.isfinite(self.service_s)
        cost_j = (self.above_idle_w + time_w) * np.where(served, self.service_s, 0.0) + self.overhead_j
        least_j = np.where(served, cost_j, np.inf).min(axis=1, initial=np.inf)
        return np.where(np.isinf(least_j), 0.0, least_j)


class _Block:
    """The linear program of the tasks that arrive in one block, and its cuts.

    Its columns are the pairs of a task and a node where that task can be on time.

    Args:
        tasks: all tasks.
        members: positions of the block's tasks.
    """

    def __init__(self, tasks: _Tasks, members: Integers) -> None:
        self._task, self._node = np.nonzero(tasks.on_time[members])
        pairs = members[self._task], self._node
        self._service_s = tasks.service_s[pairs]
        self._overhead_j = tasks.overhead_j[pairs]
        self._release_s = tasks.release_s[pairs]
        self._due_s = tasks.due_s[pairs]
        self._tasks, self._members = tasks, members
        self._columns_of = [np.flatnonzero(self._node == node) for node in range(tasks.on_time.shape[1])]
        ones = np.ones(len(self._task))
        self._one_node_each = csr_array((ones, (self._task, np.arange(len(self._task)))), shape=(len(members), len(self._task)))
        self._cuts = csr_array((0, len(self._task)))
        self._length_s = np.zeros(0)
        self._cut_at_instants()

    def fewest_misses(self) -> int:
        """No schedule misses fewer fixed deadlines of the block's tasks."""
        nothing, one_each = np.zeros(len(self._task)), np.ones(len(self._members))
        best = 0.0
        for _ in range(_MISS_ROUNDS):
            shares, cut_prices = self._solved(nothing, one_each)
            best = max(best, float(self._dual_values(nothing, np.zeros(len(one_each)), cut_prices, np.ones(1))[0]))
            if not self._cut_off(shares):
                break
        return int(np.ceil(best - _MISS_ROUNDING * len(one_each)))

    def values_j(self, prices_j: Floats, time_w: Floats, solved_prices: Sequence[float]) -> Floats:
        """V(λ) of the block at each price, less what the nodes' time costs; shape (prices,), joules.

        Args:
            prices_j: prices λ, those of `_PRICES`.
            time_w: prices of the nodes' time, shape (nodes,), watts.
            solved_prices: those that programs are solved for, in the units of `_PRICES`; the best result is taken at each λ.
        """
        cost_j = (self._tasks.above_idle_w + time_w)[self._node] * self._service_s + self._overhead_j
        least_j = self._tasks.least_j(time_w)[self._members]
        unit_j = prices_j[_PRICES.index(1.0)]
        values_j = np.full(len(prices_j), -np.inf)
        for price in solved_prices:
            shares, cut_prices = self._solved(cost_j, least_j + price * unit_j)
            values_j = np.maximum(values_j, self._dual_values(cost_j, least_j, cut_prices, prices_j))
            self._cut_off(shares)
        return values_j

    def _dual_values(self, cost: Floats, least: Floats, cut_prices: Floats, prices: Floats) -> Floats:
        """Step 3's formula at each price of a miss, for given prices of the cuts."""
        on_time = np.full(len(least), np.inf)
        np.minimum.at(on_time, self._task, cost + cut_prices @ self._cuts)
        values: Floats = np.minimum(np.add.outer(prices, least), on_time).sum(axis=1) - cut_prices @ self._length_s
        return values

    def _solved(self, cost: Floats, cost_late: Floats) -> tuple[Floats, Floats]:
        """Shares of the tasks on the nodes, shape (pairs,), and prices of the cuts, that minimise cost; both near enough."""
        if not len(self._task):
            return np.zeros(0), np.zeros(0)
        solved = linprog(
            cost - cost_late[self._task],
            A_ub=csc_array(vstack([self._one_node_each, self._cuts])),
            b_ub=np.append(np.ones(len(cost_late)), self._length_s),
            bounds=(0, 1),  # implied, but the dual simplex method then starts from a basis that is dual feasible
            method="highs-ds",
            options={"presolve": False},
        )
        if solved.x is None:  # any prices of cuts give a bound; none give the per-task minimum
            return np.zeros(len(self._task)), np.zeros(len(self._length_s))
        return solved.x, np.maximum(0.0, -solved.ineqlin.marginals[len(cost_late) :])

    def _cut_at_instants(self) -> None:
        """Cuts at the intervals in which several tasks must run to be on time: at most one of them is.

        Every run of a task in its window covers [D − s, r + s], where D − s < r + s. Each largest set of such intervals that have
        an instant in common is cut at all that they have in common.
        """
        for columns in self._columns_of:
            first_s = self._due_s[columns] - self._service_s[columns]
            last_s = self._release_s[columns] + self._service_s[columns]
            must = first_s < last_s
            starts_s, ends_s = np.sort(first_s[must]), np.sort(last_s[must])
            # The largest sets stand before an end that comes next after a start.
            before_end = np.searchsorted(starts_s, ends_s, side="left")
            largest = (before_end - np.arange(len(ends_s)) > 1) & (np.diff(before_end, prepend=0) > 0)
            self._cut(columns, starts_s[before_end[largest] - 1], ends_s[largest])

    def _cut_off(self, shares: Floats) -> bool:
        """Add cuts that `shares` violate; whether there were any."""
        known = len(self._length_s)
        for columns in self._columns_of:
            used = columns[shares[columns] > _USED]
            if len(used) > 1:
                self._cut(columns, *self._violated(used, shares[used]))
        return len(self._length_s) > known

    def _violated(self, columns: Integers, share: Floats) -> tuple[Floats, Floats]:
        """Starts and ends of the most violated intervals of one node, one for each start.

        F(t) is the work done by t if all runs are as late as they may be, G(t) if all are as early. F(t2) − G(t1) never exceeds
        the least work in [t1, t2] and equals it where that is longer than every window; with it, the best start for an end is
        the one before it with the least G(t1) − t1, which takes one pass.
        """
        service_s, release_s, due_s = self._service_s[columns], self._release_s[columns], self._due_s[columns]
        latest_s = due_s - service_s
        starts_s = np.unique(np.concatenate([release_s, latest_s]))
        ends_s = np.unique(np.concatenate([due_s, release_s + service_s]))
        early_s = np.clip(np.subtract.outer(starts_s, release_s), 0.0, service_s) @ share - starts_s
        late_s = np.clip(np.subtract.outer(ends_s, latest_s), 0.0, service_s) @ share - ends_s
        least_s = np.minimum.accumulate(early_s)
        best = np.maximum.accumulate(np.where(early_s <= least_s, np.arange(len(starts_s)), 0))
        before = np.searchsorted(starts_s, ends_s, side="left") - 1
        ends_s, late_s, before = ends_s[before >= 0], late_s[before >= 0], before[before >= 0]
        violation_s = late_s - least_s[before]
        order = np.argsort(-violation_s, kind="stable")
        order = order[violation_s[order] > _LEAST_VIOLATION_S]
        _, worst = np.unique(best[before[order]], return_index=True)
        return starts_s[best[before[order[worst]]]], ends_s[order[worst]]

    def _cut(self, columns: Integers, starts_s: Floats, ends_s: Floats) -> None:
        """Add the cuts Σ w·x ≤ |I| of one node for the intervals I from `starts_s` to `ends_s`."""
        if not len(starts_s):
            return
        service_s, release_s, due_s = self._service_s[columns], self._release_s[columns], self._due_s[columns]
        starts, ends = starts_s[:, None], ends_s[:, None]
        least_s = np.minimum(
            np.minimum(service_s, ends - starts), np.minimum(release_s + service_s - starts, ends - due_s + service_s)
        )
        interval, position = np.nonzero(least_s > 0)
        rows = csr_array((least_s[interval, position], (interval, columns[position])), shape=(len(starts_s), self._cuts.shape[1]))
        self._cuts = csr_array(vstack([self._cuts, rows]))
        self._length_s = np.append(self._length_s, ends_s - starts_s)
