"""The command line that measures the nodes: what it writes and keeps, what it refuses, and what it gives back of known nodes."""

import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter as Tally
from contextlib import ExitStack
from itertools import count

import pytest

import profile_nodes
from inference_request import WORKERS
from performance_profile import load_profile, profile_text
from profile_nodes import main
from settings import DEFAULT_CONFIG, require_known_models
from tests.helpers import PATIENCE_S, Reply, default_settings, scripted_server, small_profile
from utils import PROJECT_ROOT, UsageError

MODELS = ["mobilenet", "resnet50", "efficientnet", "vgg16", "inception"]
MEAN_US = {"mobilenet": 20.0, "resnet50": 40.0, "efficientnet": 60.0, "vgg16": 80.0, "inception": 50.0}
FULL = Reply(503, {"detail": "64 requests are waiting"}, {"Retry-After": "1"})


@pytest.fixture(autouse=True)
def signals_stay_as_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Node:
    """A server whose inferences take, in turn, half and one and a half of a mean that fits into every round trip.

    Args:
        name: of the server.
        models: what it serves.
        instead: what it does at its n-th inference (from 0) in place of answering, by n.
        health: fields of /health that are different.
        says_switches: whether answers hold model_switched.
    """

    def __init__(self, name, models=MODELS, instead=None, health=None, says_switches=False):
        self.name = name
        self.models = models
        self.health = {
            "status": "ok",
            "server": name,
            "accelerator": name[:-1],
            "models": models,
            "binary": True,
            **(health or {}),
        }
        self.inferred = []
        self.says_waits = True
        self._instead = instead or {}
        self._says_switches = says_switches
        self._numbers = count()

    def __call__(self, asked):
        if asked.path == "/health":
            return Reply(content=self.health)
        number = next(self._numbers)
        if number in self._instead:
            return self._instead[number]() if callable(self._instead[number]) else self._instead[number]
        model = asked.path.partition("=")[2] or "mobilenet"
        factor = (0.5, 1.5)[sum(before == model for before in self.inferred) % 2]
        answer = {"queue_time": 0.0, "inference_time": MEAN_US.get(model, 10.0) * factor / 1e6}
        if not self.says_waits:
            del answer["queue_time"]
        if self._says_switches:
            answer["model_switched"] = not self.inferred or self.inferred[-1] != model
        self.inferred.append(model)
        return Reply(content=answer)


@pytest.fixture
def profile_file(tmp_path):
    """A profile of the six nodes that may be replaced."""
    path = tmp_path / "profiles" / "performance_profile.yaml"
    path.parent.mkdir()
    path.write_bytes(b"# as it was\n" + (DEFAULT_CONFIG.parent / "performance_profile.yaml").read_bytes())
    return path


@pytest.fixture
def run(profile_file, capsys):
    """Runs the command line on that profile; gives exit status, standard output and standard error."""

    def run(*arguments, requests=4, warm_up=1):
        counts = ["--requests", str(requests), "--warm-up", str(warm_up)]
        status = main([*counts, "--profile", str(profile_file), *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, err

    return run


def addresses(servers):
    return {name: f"{server.url}/infer" for name, server in servers.items()}


@pytest.fixture
def workers(monkeypatch):
    """Starts servers as the workers; gives them by name."""
    servers = {}

    def start(*nodes):
        for node in nodes:
            servers[node.name] = stack_of.enter_context(scripted_server(node))
        monkeypatch.setattr(profile_nodes, "WORKERS", addresses(servers))
        return servers

    with ExitStack() as stack_of:
        yield start


@pytest.fixture
def refused(run, profile_file):
    """Runs what must fail; gives the one line that says why, after checking that nothing was written."""

    def run_and_look(*arguments, status=2, **counts):
        before = {path: path.read_bytes() for path in profile_file.parent.iterdir()}
        ended, _, err = run(*arguments, **counts)
        assert ended == status, err
        assert err.startswith("profile_nodes.py: ") and err.count("\n") == 1
        assert {path: path.read_bytes() for path in profile_file.parent.iterdir()} == before
        return err

    return run_and_look


def files_of(profile_file):
    return sorted(path.name for path in profile_file.parent.iterdir())


# What is measured and written.


def test_workers_are_measured_and_the_old_profile_is_kept_byte_for_byte(run, workers, profile_file):
    old, before = load_profile(profile_file), profile_file.read_bytes()
    workers(Node("coral1"), Node("hailo1"))
    status, out, err = run()
    assert (status, err) == (0, "")

    kept = [path for path in profile_file.parent.iterdir() if path != profile_file]
    assert len(kept) == 1 and kept[0].name.startswith("performance_profile_2") and kept[0].read_bytes() == before
    new = load_profile(profile_file)
    # Two inferences of half the mean and two of one and a half: deviations of half the mean, variance (4/3) (mean/2)².
    cv = math.sqrt(4 / 3) / 2
    for model in MODELS:
        measured = dict.fromkeys(("coral1", "hailo1"), MEAN_US[model] / 1e3)
        assert new.latency[model].mean_ms == pytest.approx({**old.latency[model].mean_ms, **measured})
    assert new.cv == pytest.approx({"coral": cv, "hailo": cv, "jetson": old.cv["jetson"]}, rel=1e-3)
    assert new.nodes["coral2"] == old.nodes["coral2"]
    assert new.nodes["coral1"].overhead_provenance == "measured"
    assert 0 < new.nodes["coral1"].request_overhead_ms != old.nodes["coral1"].request_overhead_ms
    assert (new.nodes["coral1"].idle_w, new.nodes["coral1"].busy_w) == (old.nodes["coral1"].idle_w, old.nodes["coral1"].busy_w)
    (how,) = new.measurements
    assert (how.cluster, how.nodes, how.models) == ("workers", ["coral1", "hailo1"], MODELS)
    assert (how.requests, how.warm_up, how.order, how.seed) == (4, 1, "mixed", 42)

    text = profile_file.read_text(encoding="utf-8")
    assert (
        text.startswith("# ") and f"Command: python3 profile_nodes.py --requests 4 --warm-up 1 --profile {profile_file}" in text
    )
    assert f"{how.measured_at:%Y-%m-%d}" in text.splitlines()[1]
    assert "kept as before: power of every node; all figures of coral2, jetson1, jetson2, hailo2" in out
    assert "the new cv of coral holds for coral2 too" in out
    assert f"profile: {profile_file}, the one before: {kept[0]}" in out
    assert "-99.9%" in out  # 13.89 ms before, 0.02 ms now


def test_requests_go_one_by_one_over_one_connection_in_a_mix_that_is_the_same_for_every_node(run, workers):
    coral, hailo = Node("coral1"), Node("hailo1")
    servers = workers(coral, hailo)
    assert run(requests=10, warm_up=2)[0] == 0
    assert Tally(coral.inferred) == dict.fromkeys(MODELS, 12)
    assert Tally(coral.inferred[: 2 * len(MODELS)]) == dict.fromkeys(MODELS, 2)  # the warm-up
    assert coral.inferred == hailo.inferred
    assert sum(a != b for a, b in zip(coral.inferred, coral.inferred[1:], strict=False)) > 20  # grouped it would be four
    for server in servers.values():
        assert {asked.connection for asked in server.asked} == {0}
        assert {asked.headers["Content-Type"] for asked in server.asked if asked.method == "POST"} == {"application/octet-stream"}


def test_seed_decides_the_order(run, workers):
    orders = []
    for seed in (1, 1, 2):
        node = Node("coral1")
        workers(node)
        assert run("--seed", seed)[0] == 0
        orders.append(node.inferred)
    assert orders[0] == orders[1] != orders[2]


def test_grouped_order_is_said_to_give_warm_figures(run, workers, profile_file):
    node = Node("coral1")
    workers(node)
    status, out, _ = run("--order", "grouped", requests=3, warm_up=2)
    assert status == 0 and node.inferred == [model for model in MODELS for _ in range(5)]
    assert "warm figures" in out
    new = load_profile(profile_file)
    assert new.measurements[-1].order == "grouped" and "warm figures" in new.latency["mobilenet"].note
    assert "grouped order" in profile_file.read_text(encoding="utf-8")


def test_times_with_and_without_a_switch_are_shown_where_the_server_tells(run, workers):
    workers(Node("coral1", says_switches=True), Node("hailo1"))
    status, out, _ = run("--order", "grouped", "--models", "mobilenet,vgg16", requests=4, warm_up=0)
    assert status == 0
    shown = out[out.index("by the inference before") :].splitlines()
    # Half, 1.5, half and 1.5 of 80 us, the first of them after the other model.
    assert next(line for line in shown if "coral1, vgg16" in line).split("vgg16")[1].split() == [
        *["0.04", "(1", "times)"],
        *["0.09", "(3", "times)"],
    ]
    assert not any("hailo1, " in line for line in shown)


def test_nothing_is_said_of_switches_where_no_server_tells(run, workers):
    workers(Node("coral1"))
    assert "inference before" not in run()[1]


def test_node_without_raw_bytes_is_sent_json_and_that_is_said(run, workers):
    servers = workers(Node("coral1", health={"binary": False}))
    status, out, _ = run("--models", "mobilenet")
    assert status == 0 and "coral1 takes images as JSON only" in out
    assert {asked.headers["Content-Type"] for asked in servers["coral1"].asked if asked.method == "POST"} == {"application/json"}


def test_model_that_a_node_lacks_is_left_out_of_its_figures(run, workers, profile_file):
    workers(Node("coral1", MODELS[:3]), Node("jetson1"))
    status, out, _ = run()
    assert status == 0 and "coral1 does not serve vgg16" in out
    assert "coral1" not in load_profile(profile_file).latency["vgg16"].mean_ms
    assert load_profile(profile_file).latency["vgg16"].mean_ms["jetson1"] == pytest.approx(0.08)


def test_model_that_no_node_serves_any_more_is_dropped_and_the_settings_then_refuse_it(run, workers, profile_file):
    workers(*(Node(name, MODELS[:3]) for name in WORKERS))
    status, out, _ = run("--quiet", requests=2, warm_up=0)
    assert status == 0 and "no node serves vgg16" in out and "take it out of `models`" in out
    new = load_profile(profile_file)
    assert list(new.latency) == MODELS[:3]
    with pytest.raises(UsageError, match="vgg16 is not in the performance profile"):
        require_known_models(default_settings(), new.latency)


def test_node_that_serves_none_of_the_models_loses_their_means_and_keeps_its_other_figures(run, workers, profile_file):
    old = load_profile(profile_file)
    workers(Node("coral1", ["mobilenet"]), Node("jetson1"))
    status, out, _ = run("--models", "vgg16")
    assert status == 0 and "coral1 does not serve vgg16" in out
    new = load_profile(profile_file)
    assert new.measurements[-1].nodes == ["jetson1"] and new.nodes["coral1"] == old.nodes["coral1"]
    assert list(new.latency["vgg16"].mean_ms) == [name for name in WORKERS if name != "coral1"]
    assert new.latency["mobilenet"] == old.latency["mobilenet"]
    assert "vgg16 is taken out of the figures of nodes that do not serve it: coral1" in out
    assert "all other figures of coral1, coral2" in out and "efficientnet, inception on every node" in out


def test_model_that_only_a_node_knows_is_told_and_measured_when_it_is_asked_for(run, workers, profile_file):
    workers(Node("coral1", [*MODELS, "squeezenet"]))
    status, out, _ = run()
    assert status == 0 and "coral1 serves squeezenet too, unknown to the profile: --models adds a model" in out
    assert "squeezenet" not in load_profile(profile_file).latency
    status, out, _ = run("--models", ",".join([*MODELS, "squeezenet"]))
    assert status == 0 and "unknown to the profile" not in out
    assert load_profile(profile_file).latency["squeezenet"].mean_ms == pytest.approx({"coral1": 0.01})


def test_part_of_the_models_is_said_to_be_another_mix(run, workers, profile_file):
    old = load_profile(profile_file)
    workers(Node("coral1"))
    status, out, _ = run("--models", "resnet50,mobilenet")
    assert status == 0 and "measured in a mix without efficientnet, vgg16" in out
    assert load_profile(profile_file).latency["vgg16"] == old.latency["vgg16"]


def test_cv_stays_as_it_was_where_a_part_of_the_models_was_measured(run, workers, profile_file):
    old = load_profile(profile_file)
    workers(Node("coral1"), Node("hailo1", ["mobilenet"]))
    status, out, _ = run("--models", "mobilenet")
    assert status == 0 and load_profile(profile_file).cv == old.cv
    assert "cv of coral, hailo (one number for all models of an accelerator, and not all were measured)" in out
    assert "cv, pooled" not in out and "the new cv" not in out


def test_cv_is_new_where_all_models_that_the_accelerator_serves_were_measured(run, workers, profile_file):
    workers(Node("hailo1", ["mobilenet"]), Node("hailo2", ["mobilenet"]), Node("coral1"))
    status, out, _ = run()
    assert status == 0
    assert load_profile(profile_file).cv["hailo"] == pytest.approx(math.sqrt(4 / 3) / 2, rel=1e-3)
    assert "cv of" not in out.partition("kept as before")[2].partition("\n")[0]


def test_new_profile_says_in_what_a_load_differs_from_its_measurement(run, workers, profile_file):
    workers(Node("coral1"))
    assert run()[0] == 0
    header = [line for line in profile_file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("A device rests between requests then" in line and "back to back" in line and "mix" in line for line in header)


def test_only_the_named_nodes_need_an_address_and_are_asked(run, workers, monkeypatch):
    servers = workers(Node("coral1"), Node("hailo1"))
    monkeypatch.setattr(profile_nodes, "WORKERS", WORKERS | addresses(servers))
    assert run("--nodes", "hailo1")[0] == 0
    assert servers["hailo1"].asked and not servers["coral1"].asked
    status, _, err = run("--nodes", "hailo1,jetson2")
    assert status == 2 and "no address yet for jetson2" in err
    status, _, err = run()
    assert status == 2 and "no address yet for coral2, jetson1, jetson2, hailo2" in err


def test_other_output_leaves_the_profile_alone(run, workers, profile_file, tmp_path):
    before = profile_file.read_bytes()
    workers(Node("coral1"))
    status, out, _ = run("--output", tmp_path / "new.yaml")
    assert status == 0 and "the one before" not in out
    assert files_of(profile_file) == ["performance_profile.yaml"] and profile_file.read_bytes() == before
    assert load_profile(tmp_path / "new.yaml").measurements


def test_second_measurement_keeps_the_first_under_its_date(run, workers, profile_file):
    workers(Node("coral1"))
    assert run()[0] == run()[0] == 0
    first, second = load_profile(profile_file).measurements
    assert f"performance_profile_{first.measured_at:%Y%m%d_%H%M%S}.yaml" in files_of(profile_file)
    assert first.measured_at <= second.measured_at and len(files_of(profile_file)) == 3


def test_servers_of_the_cluster_can_be_discovered(run, workers, monkeypatch):
    servers = workers(Node("coral1"))
    monkeypatch.setattr(profile_nodes, "WORKERS", WORKERS)
    monkeypatch.setattr(profile_nodes, "discover_workers", lambda known, tell, stopping: addresses(servers))
    assert run("--discover")[0] == 0
    assert servers["coral1"].asked


# What ends a measurement.


def test_node_that_cannot_be_reached_is_named_before_any_is_measured(refused, workers):
    node = Node("coral1")
    servers = workers(node, Node("hailo1"))
    servers["hailo1"].stop()
    line = refused(status=1)
    assert "hailo1: connection refused" in line and "--nodes coral1" in line
    assert node.inferred == []


def test_node_that_is_not_ready_is_named_with_its_reason(refused, workers):
    node = Node("coral1")
    servers = workers(node)
    servers["coral1"].reply = lambda asked: Reply(503, {"detail": "no Edge TPU found"})
    line = refused(status=1)
    assert "coral1: /health says 503" in line and "no Edge TPU found" in line and "--nodes" not in line


def test_addresses_that_are_swapped_are_noticed(refused, workers, monkeypatch):
    one, other = addresses(workers(Node("coral1"), Node("coral2"))).values()
    monkeypatch.setattr(profile_nodes, "WORKERS", {"coral1": other, "coral2": one})
    assert "coral1: its address is that of coral2, nothing was measured" in refused(status=1)


def test_server_that_tells_neither_its_models_nor_waits_is_measured_and_that_is_said(run, workers, caplog):
    node = Node("coral1")
    del node.health["models"]
    node.says_waits = False
    workers(node)
    status, out, _ = run()
    assert status == 0 and set(node.inferred) == set(MODELS)
    assert "coral1: answers hold no queue_time" in out
    assert ["coral1: /health lists no models" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("wrong", [{"model": "vgg16"}, {"server": "hailo1"}])
def test_answer_of_another_server_or_model_is_noticed(refused, workers, wrong):
    answer = {"queue_time": 0.0, "inference_time": 1e-6, "model": "mobilenet", **wrong}
    workers(Node("coral1", instead=dict.fromkeys(range(40), Reply(content=answer))))
    assert "answer is not as agreed: it is of the" in refused(status=1)


def test_server_under_a_name_of_its_own_is_no_mistake(run, workers):
    workers(Node("coral1", health={"server": "rpi-5-kitchen", "accelerator": None}))
    assert run()[0] == 0


def test_server_of_another_accelerator_is_noticed(refused, workers):
    workers(Node("coral1", health={"server": "x", "accelerator": "hailo"}))
    assert "coral1: its server drives 'hailo', the profile expects 'coral'" in refused(status=1)


@pytest.mark.parametrize(
    ("instead", "told"),
    [
        (Reply(reset=True), "coral1, "),
        (Reply(500, {"detail": "out of luck"}), "HTTP 500"),
        (Reply(content={"queue_time": 0.0}), "answer is not as agreed"),
        (Reply(content={"queue_time": 0.0, "inference_time": 3600.0}), "3.6e+06 ms of inference"),
    ],
)
def test_node_that_fails_in_the_middle_ends_it_all(refused, workers, instead, told):
    workers(Node("hailo1"), Node("coral1", instead={7: instead, 8: instead}))
    line = refused(status=1)
    assert told in line and "coral1" in line and "nothing was written" in line


def test_node_that_is_full_for_a_moment_is_told_and_for_longer_refused(run, workers, profile_file, refused):
    workers(Node("coral1", instead={7: FULL}))
    status, out, _ = run()
    assert status == 0 and "coral1 was not always alone: it refused 1 requests and let 0 wait behind others" in out
    workers(Node("coral1", instead=dict.fromkeys(range(7, 10), FULL)))
    assert "64 requests are waiting" in refused(status=1)


def test_nodes_that_serve_none_of_the_models_are_nothing_to_measure(refused, workers):
    workers(Node("coral1", ["squeezenet"]))
    assert "no node serves any of mobilenet, resnet50, efficientnet, vgg16" in refused(status=1)


def test_ctrl_c_breaks_off_a_request_that_hangs_and_writes_nothing(refused, workers, monkeypatch):
    for_ever = default_settings(requests={"request_timeout_s": 3600.0})
    monkeypatch.setattr(profile_nodes, "load_settings", lambda: for_ever)
    main_thread = threading.get_ident()

    def hang():
        signal.pthread_kill(main_thread, signal.SIGINT)
        return Reply(after=threading.Event())

    node = Node("coral1", instead={9: hang})
    workers(node)
    assert "interrupted while coral1 was measured; nothing was written" in refused(status=130)
    assert len(node.inferred) == 9


def test_disk_that_is_full_is_a_failure_and_the_old_profile_stays(refused, workers, monkeypatch):
    def fsync(descriptor):
        raise OSError(28, os.strerror(28))

    workers(Node("coral1"))
    monkeypatch.setattr("performance_profile.os.fsync", fsync)
    assert "cannot be written: No space left on device" in refused(status=1)


# What is refused at once.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--requests=1"], "--requests: expected a whole number from 2 on, found '1'"),
        (["--requests=2.5"], "--requests: expected a whole number"),
        (["--requests="], "--requests: expected a whole number"),
        (["--warm-up=-1"], "--warm-up: expected a whole number from 0 on"),
        (["--nodes="], "--nodes: expected different names"),
        (["--nodes=coral1,coral1"], "--nodes: expected different names"),
        (["--models=a,,b"], "--models: expected different names"),
        (["--order=sorted"], "--order: invalid choice"),
        (["--seed=x"], "--seed: expected a whole number"),
        (["--cluster=simulated"], "--cluster: invalid choice"),
        (["--discover", "--cluster=emulated"], "--discover: finds workers, and --cluster emulated has none"),
        (["--profile=nowhere.yaml"], "nowhere.yaml: no such file"),
        (["coral1"], "unrecognized arguments: coral1"),
        (["--nodes=corall1"], "--nodes: corall1 is not among the workers: coral1; did you mean coral1?"),
        (["--models=resnet"], "--models: neither the profile nor a node knows 'resnet'"),
        (["--output=nowhere/new.yaml"], "--output: nowhere/new.yaml cannot be written: No such file or directory"),
        (["--output=."], "--output: . cannot be written: Is a directory"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_measured(refused, workers, arguments, told):
    node = Node("coral1")
    workers(node)
    assert told in refused(*arguments)
    assert node.inferred == []


def test_placeholders_are_no_workers(refused):
    assert "no address yet for coral1, coral2, jetson1" in refused("--cluster", "workers")


def test_worker_that_the_profile_does_not_know_is_refused(refused, workers):
    workers(Node("coral3"))
    assert "worker coral3 is not in" in refused()


def test_wrong_address_is_refused(refused, monkeypatch):
    monkeypatch.setattr(profile_nodes, "WORKERS", {"coral1": "10.42.1.7:8080/infer"})
    assert "WORKERS: coral1: expected an address" in refused()


# Emulated nodes.


@pytest.fixture
def no_server_is_started(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the bad input was not noticed")

    monkeypatch.setattr(profile_nodes, "EmulatedNodes", refuse)


def test_what_emulated_nodes_answer_does_not_replace_a_profile(refused, profile_file, tmp_path, no_server_is_started):
    line = refused()
    assert "still holds its placeholders" in line and f"must not take the place of {profile_file}" in line
    assert "must not take the place of" in refused("--cluster", "emulated")
    assert "must not take the place of" in refused("--output", profile_file.parent / ".." / "profiles" / profile_file.name)
    for name, make in (("symbolic", os.symlink), ("hard", os.link)):
        make(profile_file, tmp_path / name)
        assert "must not take the place of" in refused("--output", tmp_path / name)
    real = default_settings().performance_profile
    assert f"must not take the place of {real}" in refused("--output", real)


def test_emulated_nodes_are_measured_as_what_they_are(run, profile_file, tmp_path):
    known = small_profile(
        {"a": {"mobilenet": 2.0, "resnet50": 4.0}, "b": {"mobilenet": 1.0, "resnet50": 3.0}}, overhead_ms=30.0, cv=0.2
    )
    profile_file.write_text(profile_text(known, []), encoding="utf-8")
    requests = 100
    status, out, err = run("--output", tmp_path / "new.yaml", requests=requests, warm_up=2)
    assert (status, err) == (0, "")
    assert "running on local emulated nodes" in out and "nothing here was measured on real ones" in out
    new = load_profile(tmp_path / "new.yaml")
    for model, figures in known.latency.items():
        for name, mean_ms in figures.mean_ms.items():
            error_ms = 0.2 * mean_ms / math.sqrt(requests)  # of the mean of so many; the seed is fixed, so this does not flicker
            assert new.latency[model].mean_ms[name] == pytest.approx(mean_ms, abs=4 * error_ms)
            assert new.latency[model].mean_ms[name] != mean_ms
        assert new.latency[model].provenance == "estimated"
    for accelerator, cv in new.cv.items():  # its relative error is near 1 / sqrt(2 n)
        assert cv == pytest.approx(known.cv[accelerator], rel=4 / math.sqrt(2 * 2 * requests))
    for node in new.nodes.values():  # they hold the 30 ms less what the local connection takes by itself
        assert node.request_overhead_ms > 10 and node.overhead_provenance == "estimated"
    assert new.measurements[-1].cluster == "emulated"
    assert "EMULATED" in (tmp_path / "new.yaml").read_text(encoding="utf-8")
    assert files_of(profile_file) == ["performance_profile.yaml"]


def test_stopped_program_ends_with_130_no_traceback_and_no_file(profile_file, tmp_path):
    arguments = ["--requests", "10000", "--profile", str(profile_file), "--output", str(tmp_path / "new.yaml")]
    command = [sys.executable, "-u", "profile_nodes.py", "--cluster", "emulated", *arguments]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stderr is not None
        assert "measuring coral1" in program.stdout.readline()
        program.send_signal(signal.SIGINT)
        assert program.wait(PATIENCE_S) == 130
        assert program.stderr.read() == "profile_nodes.py: interrupted while coral1 was measured; nothing was written\n"
    assert not (tmp_path / "new.yaml").exists()
    assert files_of(profile_file) == ["performance_profile.yaml"]


# What is shown.


def test_quiet_says_only_what_came_out(run, workers):
    workers(Node("coral1"))
    assert "measuring coral1: 25 requests, 5 of them to warm up" in run()[1]
    out = run("--quiet")[1]
    assert "measuring" not in out and "mobilenet" in out and "profile: " in out


def test_tables_fit_a_terminal_of_80_columns(run, workers, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    workers(*(Node(name, says_switches=True) for name in WORKERS))
    out = run("--quiet")[1]
    rows = [line for line in out.splitlines() if any(name in line for name in (*MODELS, "max")) and ":" not in line]
    assert len(rows) == 2 * 6 * len(MODELS) + 2  # every model of every node in one line, with and without switches; two heads
    assert all(len(row) <= 80 and "…" not in row for row in rows)
