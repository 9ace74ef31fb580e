"""What the sentences of a comparison may say."""

import numpy as np
import pandas as pd
import pytest

from comparison.gaps import gaps
from comparison.tables import compared, load_limits
from comparison.wording import notes, verdict

from .figures import BELOW, BOUNDS, cells, limits

JITTER = np.array([0.0, 0.002, -0.001, 0.001, -0.002])


def figures(compliance, energy, own=(1, -1, 1, -1, 0)):
    """Compliance and energy of five seeds, with something of the policy's own beside what the seeds share."""
    return compliance + JITTER + 1e-4 * np.array(own), energy + JITTER / 100 + 1e-5 * np.array(own)


FOUR = {
    "earliest_completion": figures(0.945, 0.090),
    "minimum_energy": figures(0.9449, 0.070, (-1, 2, 0, 1, -2)),
    "topsis": figures(0.94, 0.080, (0, 1, -1, 1, 0)),
    "random": figures(0.6, 0.1),
}


def test_verdict_of_a_clear_case():
    # Intervals by scipy.stats.t.interval of the figures, and of their paired differences at the levels of Holm's procedure.
    sentences = verdict(cells(FOUR))
    assert sentences == [
        "Load 1: earliest_completion meets the most fixed deadlines, 94.5 % (94.3 to 94.7); 95.0 % are achievable. It cannot be "
        "told from minimum_energy (apart by 0.01 points, −0.02 to 0.04). The other 2 meet fewer, the nearest, topsis, by "
        "0.50 points (0.47 to 0.53).",
        "Load 1: of the policies whose mean reaches 98 % of the achievable compliance (earliest_completion, minimum_energy and "
        "topsis), minimum_energy uses the least energy above idle per task, 70.00 mJ (69.96 to 70.04). The other 2 use more, the "
        "nearest, topsis, by 10.00 mJ (9.98 to 10.02).",
        "Load 1: Pareto front of misses and energy above idle per task, by the means: earliest_completion (misses 5.5 %, 5.3 to "
        "5.7; 90.00 mJ, 89.98 to 90.02) and minimum_energy (misses 5.5 %, 5.3 to 5.7; 70.00 mJ, 69.96 to 70.04).",
    ]


def test_several_loads_are_summed_up_first():
    swapped = {**FOUR, "earliest_completion": FOUR["topsis"], "topsis": FOUR["earliest_completion"]}
    hopeless = {name: figures(0.5, 0.09) for name in FOUR}
    three = pd.concat([cells(FOUR, load=0.5), cells(swapped, load=1.0), cells(hopeless, load=2.0)])
    (first, *rest) = verdict(three)
    assert first == (
        "In short, of these policies, by the means: most fixed deadlines are met by earliest_completion at load 0.5 and load 2; "
        "topsis at load 1. "
        "Of those that reach 98 % of the achievable compliance, the least energy above idle per task is used by "
        "minimum_energy at load 0.5 and load 1; no policy at load 2. What cannot be told apart stands below."
    )
    assert rest[0].startswith("Load 0.5: earliest_completion meets the most")
    same = verdict(pd.concat([cells(FOUR, load=0.5), cells(FOUR, load=1.0)]))[0]
    assert "met by earliest_completion everywhere." in same and "used by minimum_energy everywhere." in same


def test_policies_that_differ_in_nothing_cannot_be_told_apart():
    same = figures(0.9, 0.08)
    (first, *_) = verdict(cells({"a": same, "b": same, "c": same}))
    assert "It cannot be told from b (apart by 0.00 points, 0.00 to 0.00) and c (apart by 0.00 points, 0.00 to 0.00)." in first
    assert "meet fewer" not in first


def test_difference_within_the_noise_is_no_claim():
    rng = np.random.default_rng(6)
    noise = {name: (0.9 + rng.normal(0, 0.01, 10), 0.08 + rng.normal(0, 0.01, 10)) for name in "abcdef"}
    for sentence in verdict(cells(noise))[:2]:
        assert " meet fewer" not in sentence
        assert " use more" not in sentence


def test_picking_the_best_of_equals_seldom_leads_to_a_claim():
    rng = np.random.default_rng(7)
    claims = 0
    for _ in range(60):
        equals = {name: (0.9 + rng.normal(0, 0.01, 10), [0.08] * 10) for name in "abcdef"}
        claims += any("fewer" in sentence for sentence in verdict(cells(equals)))
    assert claims <= 8  # 5 % of 60 are 3; more than 8 have a chance below 0.01


def test_policy_near_98_percent_of_the_achievable_is_named_as_doubtful():
    near = 0.98 * 0.95
    doubtful = {"a": figures(0.945, 0.09), "b": (near + JITTER, [0.07] * 5)}
    sentence = verdict(cells(doubtful))[1]
    assert "whose mean reaches 98 % of the achievable compliance (a and b)" in sentence
    assert sentence.endswith(
        "It cannot be told whether 98 % of the achievable compliance is reached by b (98.0 %, 97.8 to 98.2)."
    )


def test_where_nobody_keeps_up_the_nearest_is_named_and_no_energy_praised():
    sentence = verdict(cells({"a": figures(0.7, 0.09), "b": figures(0.6, 0.05)}))[1]
    assert sentence == (
        "Load 1: no policy reaches 98 % of the achievable compliance; the nearest, a, reaches 73.7 % (73.5 to 73.9)."
    )


def test_only_policy_that_keeps_up_is_said_to_be_the_only_one():
    sentence = verdict(cells({"a": figures(0.945, 0.09), "b": figures(0.6, 0.05)}))[1]
    assert (
        sentence
        == "Load 1: only a reaches 98 % of the achievable compliance, with 90.00 mJ (89.98 to 90.02) above idle per task."
    )


def test_one_other_policy_is_called_the_other():
    first, second, _ = verdict(cells({"a": figures(0.945, 0.09), "b": figures(0.94, 0.08, (0, 1, 0, -1, 0))}))
    assert first.endswith("The other, b, meets fewer, by 0.50 points (0.48 to 0.52).")
    assert second.endswith("The other, a, uses more, by 10.00 mJ (9.98 to 10.02).")


def test_one_seed_makes_no_claim_on_differences():
    table = cells({name: (compliance[:1], energy[:1]) for name, (compliance, energy) in FOUR.items()})
    sentences = verdict(table)
    assert sentences == [
        "One seed gives no interval: nothing is said of differences between policies; the figures below are of that one run.",
        "Load 1: earliest_completion meets the most fixed deadlines, 94.5 %; 95.0 % are achievable.",
        "Load 1: of the policies whose mean reaches 98 % of the achievable compliance (earliest_completion, minimum_energy and "
        "topsis), minimum_energy uses the least energy above idle per task, 70.0 mJ.",
    ]


def test_one_policy_is_compared_with_none():
    sentences = verdict(cells({"topsis": FOUR["topsis"]}))
    assert sentences[0] == "Load 1: topsis meets 94.0 % (93.8 to 94.2) of the fixed deadlines; 95.0 % are achievable."
    assert "only topsis reaches" in sentences[1]


def test_every_load_and_queue_discipline_has_its_sentences():
    table = pd.concat([cells(FOUR, load, queue) for load in (0.5, 2.0) for queue in ("fifo", "edf")])
    starts = [sentence.split(":")[0] for sentence in verdict(table)]
    assert starts == [
        "In short, of these policies, by the means",
        *("Load 0.5, fifo", "Load 0.5, fifo", "Load 0.5, edf", "Load 0.5, edf", "Load 0.5"),
        *("Load 2, fifo", "Load 2, fifo", "Load 2, edf", "Load 2, edf", "Load 2"),
    ]


def test_front_over_two_queue_disciplines_names_them():
    table = pd.concat([cells(FOUR), cells({"topsis": figures(0.95, 0.06)}, queue="edf")])
    assert verdict(table)[-1].startswith(
        "Load 1: Pareto front of misses and energy above idle per task, by the means: topsis (edf) (misses 5.0 %"
    )


def test_load_without_tasks_is_said():
    nothing = cells(FOUR).assign(fixed_deadline_compliance_rate=None, achievable_slo_rate=None, above_idle_per_task_j=None)
    assert verdict(nothing) == ["Load 1: no task was dispatched in the window that is counted."]


def test_load_without_tasks_in_some_seed_has_no_means_as_in_the_tables():
    table = cells(FOUR)
    table.loc[table["seed"] == 42, ["fixed_deadline_compliance_rate", "achievable_slo_rate", "above_idle_per_task_j"]] = None
    assert verdict(table) == ["Load 1: no task was dispatched in the window that is counted of some seed."]
    means = compared(table, "earliest_completion")
    assert means[means["metric"] == "fixed_deadline_compliance_rate"]["mean"].isna().all()


@pytest.mark.parametrize("seeds", [3, 4, 5])
@pytest.mark.parametrize("draw", range(12))
def test_verdict_and_tables_tell_the_same_policies_apart(seeds, draw):
    rng = np.random.default_rng([seeds, draw])
    noisy = {
        name: (0.9 - 0.004 * place + rng.normal(0, 0.004, seeds), 0.08 + rng.normal(0, 0.01, seeds))
        for place, name in enumerate("abcde")
    }
    table = cells(noisy)
    sentence = verdict(table)[0]
    best = sentence.split("Load 1: ")[1].split(" ")[0]
    told = compared(table, best).query("metric == 'fixed_deadline_compliance_rate' and scheduler != @best")
    for row in told.itertuples():
        assert (f"{row.scheduler} (apart by" in sentence) == (row.p_holm >= 0.05)
        assert (row.difference_low <= 0 <= row.difference_high) == (row.p_holm >= 0.05)


def test_gap_of_the_policy_that_meets_most():
    table = cells({"a": ([0.96, 0.92], [0.084, 0.105]), "b": ([0.5, 0.5], [0.2, 0.2])})
    sentences = verdict(table, gaps(table, BOUNDS))
    assert sentences[2] == (
        "Load 1: no schedule can miss fewer than 4.00 % of the fixed deadlines (clairvoyant bound); a misses 2.00 points (−10.71 "
        "to 14.71) more, and its energy above idle is 35.0 % (−155.6 to 225.6) over the bound for as many misses."
    )


def test_gap_of_a_policy_with_unanswered_tasks_says_nothing_of_energy():
    table = cells({"a": ([0.96, 0.92], [0.084, 0.105])}).assign(unanswered=1)
    assert verdict(table, gaps(table, BOUNDS))[2].endswith("a misses 2.00 points (−10.71 to 14.71) more.")


def test_highest_loads_stand_last_the_best_first_and_the_rest_by_reason():
    table = load_limits(
        {
            ("a", "fifo"): limits(1.2, 1.2),
            ("b", "fifo"): limits(1.5, 1.5),
            ("c", "fifo"): limits(BELOW, BELOW),
            ("d", "fifo"): limits(BELOW, BELOW),
        }
    )
    assert verdict(cells(FOUR), None, table)[-2:] == [
        "Highest load (to within 0.05) at which 98 % of the achievable deadlines are met: b 1.50 (1.50 to 1.50) and a 1.20 "
        "(1.20 to 1.20).",
        "Highest load at which 98 % of the achievable deadlines are met by c and d: not reached: below 98 % at load 0.25 already "
        "(2 of 2 seeds).",
    ]


def test_narrow_intervals_are_written_with_more_digits_but_not_without_end():
    sentence = verdict(cells({"a": ([0.9, 0.900001], [2.5, 2.7]), "b": ([0.5, 0.5], [1.0, 1.1])}))[0]
    assert sentence.startswith("Load 1: a meets the most fixed deadlines, 90.000 % (89.999 to 90.001); 95.0 %")


def test_interval_that_leaves_out_0_does_not_look_as_if_it_held_it():
    ahead = (np.array([0.9503, 0.9502, 0.9504, 0.9501, 0.9502]), [0.07] * 5)
    sentence = verdict(cells({"a": ahead, "b": ([0.95] * 5, [0.07] * 5)}))[0]
    assert sentence.endswith("The other, b, meets fewer, by 0.024 points (0.010 to 0.038).")
    barely = (np.array([0.9504, 0.9502, 0.9504, 0.95, 0.9502]), [0.07] * 5)
    assert verdict(cells({"a": barely, "b": ([0.95] * 5, [0.07] * 5)}))[0].endswith("by 0.024 points (0.003 to 0.045).")


def noted(**changes):
    known = {
        "seeds": 10,
        "duration_s": 600.0,
        "warm_up_s": 60.0,
        "cool_down_s": 10.0,
        "schedulers": ["topsis", "earliest_completion"],
    }
    return notes(**{**known, **changes})


def test_notes_of_a_usual_sweep():
    assert noted() == [
        "Figures are of tasks that arrived from 60 s up to 590 s of 600 s: warm-up and cool-down are left out.",
        "Deadlines are the fixed ones, the same for every policy, unless a column says otherwise.",
        "Intervals are Student's t at 95 % over 10 seeds; differences are paired by seed. One family of tests holds everywhere: "
        "all pairs of policies of one load, queue discipline and metric. Holm's procedure adjusts its p-values, and the interval "
        "of a difference is as wide as its test: it holds 0 exactly where p is 0.05 or more.",
    ]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"seeds": 9}, "9 seeds: the field's practice is at least 10."),
        ({"seeds": 1}, "One seed: no intervals and no tests. The field's practice is at least 10 seeds."),
        (
            {"duration_s": 20.0, "warm_up_s": 2.0, "cool_down_s": 1 / 3},
            "Runs are shorter than 600 s, and 2 s of warm-up instead of 60 s are left out: the start counts more.",
        ),
        (
            {"schedulers": ["topsis", "random"]},
            "Differences are taken to topsis, the first policy listed, since earliest_completion is not in this sweep.",
        ),
        (
            {
                "loads": [{"load": 2.0, "dispatched_tasks_per_s": 62.04, "fraction_of_capacity": 1.128}],
                "capacity_tasks_per_s": 55.0,
            },
            "Load 2 is above capacity: 62.0 tasks/s, 113 % of the 55.0 tasks/s that the cluster can serve. Queues grow while the "
            "load lasts, so that the figures depend on the duration.",
        ),
    ],
)
def test_what_a_reader_must_know_is_said_only_where_it_holds(changes, note):
    assert note in noted(**changes)
    assert note not in noted()


def test_load_below_capacity_and_a_lone_policy_need_no_note():
    below = [{"load": 1.0, "dispatched_tasks_per_s": 31.0, "fraction_of_capacity": 0.56}]
    assert noted(loads=below, capacity_tasks_per_s=55.0) == noted()
    assert not [note for note in noted(schedulers=["topsis"]) if "first policy listed" in note]
