"""What the client of one node reads out of an answer, beside the durations, and out of /health."""

import pytest

from inference_request import require_worker_urls
from node_client import NodeClient, NodeFault, NodeUnreachable
from tests.helpers import Reply, default_settings, scripted_server


def asked_of(reply, ask):
    """What `ask` gets from a client whose node answers everything with `reply`."""
    with scripted_server(lambda asked: reply) as server:
        url = require_worker_urls({"coral1": f"{server.url}/infer"})["coral1"]
        client = NodeClient(url, default_settings().requests)
        try:
            client.connect()
            return ask(client)
        finally:
            client.close()


def answered(fields):
    return asked_of(Reply(content=fields), lambda client: client.infer("resnet50", 0.0, True))


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        ({"model_switched": True}, True),
        ({"model_switched": False}, False),
        ({}, None),
        ({"model_switched": None}, None),
        ({"model_switched": "yes"}, None),
        ({"model_switched": 1}, None),
    ],
)
def test_switch_of_the_model_is_known_where_the_server_says_so(told, understood):
    answer = answered({"queue_time": 0.25, "inference_time": 0.5, **told})
    assert (answer.queue_time_s, answer.inference_time_s) == (0.25, 0.5)
    assert answer.model_switched is understood


@pytest.mark.parametrize("content", [[], "done", 1, {"queue_time": 0.25}, {"queue_time": -1, "inference_time": 0.5}])
def test_what_is_no_answer_is_the_node_s_fault(content):
    with pytest.raises(NodeFault):
        answered(content)


def health_told(fields):
    return asked_of(Reply(content={"models": ["resnet50"], **fields}), lambda client: client.health())


def test_health_says_who_answers_and_what_it_drives():
    health = health_told({"server": "coral1", "accelerator": "coral", "binary": True})
    assert health == (frozenset({"resnet50"}), True, "coral1", "coral")


@pytest.mark.parametrize("fields", [{}, {"server": None, "accelerator": None}, {"server": 1, "accelerator": ["coral"]}])
def test_health_that_does_not_say_who_answers_is_still_one(fields):
    assert health_told(fields) == (frozenset({"resnet50"}), False, None, None)


def test_health_that_is_no_mapping_is_none():
    with pytest.raises(NodeUnreachable, match="/health is not as agreed"):
        asked_of(Reply(content=["resnet50"]), lambda client: client.health())
