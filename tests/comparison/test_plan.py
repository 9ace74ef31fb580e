"""Which cells there are, in which order, and what the search for the highest loads asks."""

from comparison.load_limits import LoadLimit
from comparison.plan import Policy, find_limits
from tests.helpers import default_settings

from .few_cells import plan


def test_search_starts_from_what_is_known_and_asks_every_policy_and_seed_in_one_round():
    one = plan(schedulers=["topsis", "random"], seeds=[1, 2])
    limit_of = {"topsis": 1.3, "random": 0.1}
    rounds = []

    def finish(cells):
        rounds.append([(asked.settings.scheduler, asked.settings.seed, asked.settings.load) for asked in cells])
        assert all(asked.kind == "limit" for asked in cells)
        return {asked.key: {"meets": asked.settings.load <= limit_of[asked.settings.scheduler]} for asked in cells}

    known = {(policy, seed): {1.0: policy.scheduler == "topsis"} for policy in one.policies for seed in one.seeds}
    limits = find_limits(one, known, finish)
    assert sorted(rounds[0]) == [("random", 1, 0.25), ("random", 2, 0.25), ("topsis", 1, 2.0), ("topsis", 2, 2.0)]
    assert all(limits[Policy("random", "fifo"), seed] == LoadLimit(None, "below") for seed in (1, 2))
    found = limits[Policy("topsis", "fifo"), 1]
    assert found.kind == "found" and found.load is not None and 1.25 <= found.load <= 1.3
    assert not any(load == 1.0 for asked in rounds for _, _, load in asked)


def test_without_any_task_a_highest_load_is_not_known():
    one = plan(schedulers=["topsis"], seeds=[1])
    who = (Policy("topsis", "fifo"), 1)
    limits = find_limits(one, {who: {}}, lambda cells: {asked.key: {"meets": None} for asked in cells})
    assert limits == {who: LoadLimit(None, "unknown")}


def test_plan_has_a_run_for_every_policy_load_and_seed_a_bound_for_every_scenario_and_the_ablation_nearest_to_load_1():
    cells = plan(queue_disciplines=["fifo", "edf"]).cells()
    kinds = [one.kind for one in cells]
    assert kinds.count("run") == 2 * 2 * 2 * 2
    assert kinds.count("bound") == 2 * 2
    ablated = [one for one in cells if one.kind == "ablation"]
    assert {one.settings.load for one in ablated} == {1.0} and {one.settings.scheduler for one in ablated} == {"topsis"}
    assert len(ablated) == 2 * 2 * 4 and {one.without for one in ablated} == {"slack", "performance", "power", "load"}
    assert len({one.key for one in cells}) == len(cells)
    fewer = plan(bounds=False, ablation=False).cells()
    assert {one.kind for one in fewer} == {"run"}


def test_ablation_takes_the_weight_out():
    of_slack = next(one for one in plan().cells() if one.without == "slack")
    assert of_slack.settings.topsis.weights.slack == 0
    assert of_slack.settings.topsis.weights.power == default_settings().topsis.weights.power


def test_tables_are_in_the_order_that_was_asked_for():
    ordered = plan(loads=[1.0, 0.5]).in_order(plan(loads=[1.0, 0.5]).cells())
    runs = [(one.settings.scheduler, one.settings.load, one.settings.seed) for one in ordered if one.kind == "run"]
    assert runs == [(name, load, seed) for name in ("topsis", "random") for load in (1.0, 0.5) for seed in (3, 4)]
