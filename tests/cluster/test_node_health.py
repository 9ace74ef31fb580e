"""What the answers of a node come to, by hand and on a clock that is a number: outages, withheld models, pauses."""

import pytest

from cluster.node_health import NodeHealth

OWN = {"own_fault": True, "lacks_model": False, "served_elsewhere": False}
REFUSAL = {"own_fault": False, "lacks_model": False, "served_elsewhere": True}
SHARED = {"own_fault": False, "lacks_model": False, "served_elsewhere": False}
ABSENT = {"own_fault": False, "lacks_model": True, "served_elsewhere": True}


def up(at_s=0.0, interval_s=1.0):
    health = NodeHealth(interval_s)
    health.came_back(at_s)
    return health


def out_by_bad_answers(at_s=1.0):
    health = up()
    assert [health.refused("resnet50", at_s, **OWN) for _ in range(3)] == [False, False, True]
    health.went_out(at_s, offers_nothing=False)
    return health


def test_outage_lasts_from_the_last_good_answer_until_the_node_is_offered_again():
    health = up(9.5)
    health.answered(10.0)
    assert health.went_out(12.5, offers_nothing=False)  # noticed late
    assert not health.went_out(13.0, offers_nothing=False)
    health.answered(14.0)  # the answer to an older request
    assert health.outages(0.0, 15.0) == [(10.0, 15.0)]
    assert health.came_back(18.0)
    assert not health.came_back(19.0)
    assert health.outages(0.0, 19.0) == [(10.0, 18.0)]


def test_outages_count_from_the_start_of_the_load():
    health = up()
    for out_s, back_s in ((1.0, 2.0), (3.0, 5.0), (7.0, 8.0)):
        health.answered(out_s)
        health.went_out(out_s + 0.1, offers_nothing=False)
        health.came_back(back_s)
    assert health.outages(4.0, 8.5) == [(0.0, 1.0), (3.0, 4.0)]


def test_node_that_never_answered_is_out_from_the_start_of_the_load():
    health = NodeHealth(1.0)
    health.went_out(1.0, offers_nothing=False)
    assert health.outages(5.0, 7.0) == [(0.0, 2.0)]


def test_silence_that_nobody_noticed_is_an_outage():
    health = up()
    for at_s in (1.0, 2.9):  # within the interval and a second
        health.answered(at_s)
    assert health.outages(0.0, 3.0) == []
    health.answered(5.4)
    assert health.outages(0.0, 6.0) == [(2.9, 5.4)]
    assert health.outages(0.0, 8.0) == [(2.9, 5.4), (5.4, 8.0)]


def test_request_that_is_kept_waiting_is_an_outage_however_good_health_is():
    health = up()
    sent_answered = [(0.2, 0.3), (0.9, 2.3), (1.0, 2.32), (2.4, 3.5), (3.2, 4.6)]  # the second and the third in one spell
    for at_s in range(1, 6):
        health.answered(at_s)
    for sent_s, answered_s in sent_answered:
        health.answered_task(sent_s, 0.1, answered_s)
    assert health.outages(0.0, 5.0) == [(0.9, 2.3)]
    health.answered_task(4.6, 3.0, 8.5)  # an inference of 3 s may take 3 s, and 1 s more
    assert health.outages(0.0, 5.0) == [(0.9, 2.3)]


def test_outages_that_overlap_are_one():
    health = up()
    health.answered(1.0)
    health.answered_task(0.5, 0.1, 3.0)
    health.went_out(2.0, offers_nothing=False)
    health.came_back(4.0)
    health.answered(4.5)
    health.answered_task(3.5, 0.1, 6.0)
    assert health.outages(0.0, 6.2) == [(0.5, 6.0)]


def test_node_stopped_for_two_and_a_half_seconds_again_and_again_is_out_most_of_the_time():
    """It answers only between 2.5 and 3.5, 6.0 and 7.0 …; its outages are noticed at every other time."""
    health, at_s = up(), 0.0
    for spell in range(8):
        if spell % 2:
            health.went_out(at_s + 2.0, offers_nothing=False)
        health.came_back(at_s + 2.5)
        health.answered(at_s + 3.5)
        at_s += 3.5
    assert health.outages(0.0, at_s) == [(3.5 * spell, 3.5 * spell + 2.5) for spell in range(8)]


def test_pauses_after_lost_connections_grow_to_two_seconds():
    health = up()
    health.lost()
    health.went_out(1.0, offers_nothing=False)
    pauses_s = []
    for number in range(6):
        pauses_s.append(health.pause_s(1.0))
        health.try_failed(1.0 + number)
    assert pauses_s == [0.5, 1.0, 2.0, 2.0, 2.0, 2.0]
    assert not health.distrusted
    health.came_back(20.0)
    assert health.pause_s(20.0) == 1.0  # the interval of a node that is up
    health.went_out(21.0, offers_nothing=False)
    assert health.pause_s(21.0) == 0.5


def test_pauses_after_bad_answers_grow_to_half_a_minute():
    health = out_by_bad_answers()
    pauses_s = []
    for _ in range(9):
        pauses_s.append(health.pause_s(1.0))
        health.try_failed(1.0, probed="resnet50")
    assert pauses_s == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    health.try_failed(1.0)  # then its server is started anew
    assert health.pause_s(1.0) == 2.0


def test_pauses_are_endless_never():
    health = out_by_bad_answers()
    for _ in range(5000):
        health.try_failed(1.0, probed="resnet50")
    assert health.pause_s(1.0) == 30.0


def test_only_a_served_task_lets_the_pauses_begin_anew():
    health = out_by_bad_answers()
    for expected_s in (0.5, 1.0, 2.0):
        assert health.pause_s(1.0) == expected_s
        health.served("resnet50", 1.0, probe=True)
        health.came_back(1.0)
        for _ in range(3):
            health.refused("resnet50", 1.0, **OWN)
        health.went_out(1.0, offers_nothing=False)
    health.served("resnet50", 1.0, probe=True)
    health.came_back(1.0)
    health.served("resnet50", 1.0)
    for _ in range(3):
        health.refused("resnet50", 1.0, **OWN)
    health.went_out(1.0, offers_nothing=False)
    assert health.pause_s(1.0) == 0.5


def test_lost_connections_one_after_another_without_a_served_task_are_not_healed_by_health_alone():
    health = up()
    for number in range(3):
        health.lost()
        health.went_out(1.0, offers_nothing=False)
        assert health.distrusted is (number == 2)
        if number < 2:
            health.came_back(1.0)
    assert health.probe_of(["vgg16"], 1.0) == "vgg16"


@pytest.mark.parametrize("kind, out", [(OWN, True), (REFUSAL, True), (SHARED, False), (ABSENT, False)])
def test_third_bad_answer_in_a_row_takes_the_node_out_unless_it_is_shared_or_of_a_model(kind, out):
    health = up()
    assert [health.refused("resnet50", 1.0, **kind) for _ in range(3)] == [False, False, out]
    health.served("resnet50", 2.0)
    assert not health.refused("resnet50", 3.0, **kind)


@pytest.mark.parametrize("kind, withheld", [(REFUSAL, True), (ABSENT, True), (SHARED, False), (OWN, True)])
def test_model_that_the_node_alone_is_to_blame_for_is_withheld_after_three_refusals_in_a_row(kind, withheld):
    health = up()
    for _ in range(3):
        health.refused("vgg16", 1.0, **kind)
        health.served("resnet50", 1.0)
    assert health.withheld == ({"vgg16"} if withheld else set())


def test_withheld_model_is_probed_ever_less_often_however_well_the_others_do():
    health = up()
    for _ in range(3):
        health.refused("vgg16", 0.0, **ABSENT)
    models, now_s, probed_at_s = ["resnet50", "vgg16"], 0.0, []
    while now_s < 130.0:
        now_s += 0.25
        health.served("resnet50", now_s)
        if health.probe_of(models, now_s) == "vgg16":
            probed_at_s.append(now_s)
            health.try_failed(now_s, probed="vgg16")
        assert health.pause_s(now_s) <= 1.0  # /health is asked as ever
    assert probed_at_s == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5]
    health.served("vgg16", now_s, probe=True)
    assert health.withheld == set()


def test_probe_asks_for_the_refused_model_first_and_then_for_each_in_turn():
    health = out_by_bad_answers()
    asked = []
    for _ in range(4):
        asked.append(health.probe_of(["mobilenet", "resnet50", "vgg16"], 1.0))
        health.try_failed(1.0, probed=asked[-1])
    assert asked[:3] == ["resnet50", "mobilenet", "vgg16"]
    health.served("vgg16", 5.0, probe=True)
    health.came_back(5.0)
    assert health.withheld == {"mobilenet", "resnet50"}
    assert health.probe_of(["mobilenet", "resnet50", "vgg16"], 5.0) in health.withheld  # the others are tried at once


def test_node_that_is_trusted_is_not_probed():
    health = up()
    assert health.probe_of(["resnet50"], 100.0) is None
    health.went_out(1.0, offers_nothing=False)
    assert health.probe_of(["resnet50"], 100.0) is None
    assert out_by_bad_answers().probe_of([], 100.0) is None
