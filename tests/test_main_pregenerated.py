"""The command line: what it refuses and how, which cluster it takes, and what it puts together."""

import argparse
import queue
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import datetime
from io import StringIO
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote_plus

import pytest
from rich.console import Console

import main_pregenerated
from experiment import WallClock, choose_cluster
from inference_request import WORKERS
from main_pregenerated import _power_poller, main, parse_options, say_power_metrics
from measurement.repeats import METRICS, Repeats
from metric_collector import DEVICE_COLUMNS, RESULT_COLUMNS, RunFolder, decision_columns
from prometheus_collector import PrometheusCollector
from scenario import build_scenario
from settings import PowerMetrics, load_settings
from slo_monitor import VIOLATION_COLUMNS
from task import PowerSample
from task_generator import save_trace, scenario_sha256
from terminal.run_summary import Progress, print_repeats, print_summary
from tests.helpers import Reply, default_profile, default_settings, scripted_server
from utils import PROJECT_ROOT, HarnessError, UsageError

REAL = {name: f"http://10.42.1.{number}:8080/infer" for number, name in enumerate(WORKERS, start=1)}


@pytest.fixture(autouse=True)
def signals_stay_as_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_server_is_started(monkeypatch):
    """A refusal comes before anything is started; what gets past it shows as an error."""

    def refuse(*arguments, **options):
        raise AssertionError("the bad input was not noticed")

    monkeypatch.setattr(main_pregenerated, "EmulatedNodes", refuse)
    monkeypatch.setattr(main_pregenerated, "Run", refuse)


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs the command line with arguments that must be refused; gives the line that says why."""

    def run(*arguments, output=tmp_path / "results"):
        status = main([*map(str, arguments), "--output", str(output)])
        out, err = capsys.readouterr()
        assert status == 2
        assert err.endswith("\n") and err.count("\n") == 1, err
        assert err.startswith("main_pregenerated.py: ")
        assert "Traceback" not in out + err
        assert not (tmp_path / "results").exists() or not any((tmp_path / "results").iterdir())
        return err

    return run


@pytest.mark.parametrize("value", ["0", "-1", "-0.0", "nan", "inf", "-inf", "ten", "", "1e400"])
def test_duration_that_is_no_length_is_refused(refused, value):
    assert "--duration: expected seconds above 0" in refused(f"--duration={value}")


def test_duration_that_no_memory_can_hold_is_refused(refused):
    assert "duration" in refused("--duration", "1e300")


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "", "18446744073709551616", "²"])
def test_seed_that_is_no_whole_number_is_refused(refused, value):
    assert "--seed: expected a whole number" in refused(f"--seed={value}")


@pytest.mark.parametrize("value", ["Simulated", "Emulated", "", "k3s"])
def test_cluster_that_does_not_exist_is_refused_with_the_known_ones(refused, value):
    line = refused(f"--cluster={value}")
    assert "--cluster: invalid choice" in line and "emulated" in line


@pytest.mark.parametrize("arguments", [["--durations", "3"], ["--dur", "3"], ["extra"], ["--seed"], ["--load", "2"]])
def test_unknown_option_or_missing_value_is_refused(refused, arguments):
    assert arguments[0] in refused(*arguments) or "expected one argument" in refused(*arguments)


def test_unknown_scheduler_is_refused_with_the_nearest_and_the_known_ones(refused):
    line = refused("--scheduler", "topsi")
    assert "no policy 'topsi'; did you mean topsis?" in line and "minimum_energy" in line


@pytest.mark.parametrize(
    "path, says",
    [
        ("no_such_module:Policy", "module 'no_such_module' cannot be imported"),
        (":Policy", "cannot be imported"),
        ("json:", "has no class ''"),
        ("scheduler:NoSuch", "scheduler has no class 'NoSuch'"),
        ("json:JSONDecoder", "must be a class derived from scheduler.BaseScheduler"),
        ("json:loads", "must be a class derived from scheduler.BaseScheduler"),
        ("scheduler:BaseScheduler", "cannot be made: TypeError"),
    ],
)
def test_class_path_that_leads_nowhere_is_refused(refused, path, says):
    assert says in refused("--scheduler", path)


@pytest.mark.parametrize("source, says", [("raise ValueError('one\\ntwo')", "ValueError: one"), ("def x(:\n", "SyntaxError")])
def test_module_of_the_user_that_cannot_be_imported_costs_one_line(refused, tmp_path, monkeypatch, source, says):
    (tmp_path / "policy_that_breaks.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert says in refused("--scheduler", "policy_that_breaks:Policy")


# Settings files.


def test_settings_file_that_is_missing_is_refused(refused, tmp_path):
    assert "nowhere.yaml: no such file" in refused("--config", tmp_path / "nowhere.yaml")


def test_settings_file_that_is_a_folder_is_refused(refused, tmp_path):
    assert "cannot be read" in refused("--config", tmp_path)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"seed: 3\nload: [1, 2\n", ".yaml:3: not YAML"),
        (b"seed: 3\n\tload: 1\n", ".yaml:2: not YAML"),
        (b"seed: 3\nload: 1\x00\n", "not YAML"),
        (b"\xff\xfe\x00", "settings.yaml: "),
        (b"- seed\n- load\n", "expected a mapping of settings, found list"),
        (b"just a text\n", "expected a mapping of settings, found str"),
        (b"seed: 3\n\nload: fast\n", ".yaml:3: load: expected"),
        (b"seed: 1.5\n", ".yaml:1: seed: expected"),
        (b"seed: true\n", ".yaml:1: seed: expected"),
        (b"seed: 2020-13-45\n", "settings.yaml"),
        (b"requests:\n  max_attempts: 0\n", ".yaml:2: requests.max_attempts: expected"),
        (b"requests: 7\n", ".yaml:1: requests: expected a mapping, found 7"),
        (b"duration_s: -5\n", ".yaml:1: duration_s: expected"),
        (b"duration_s: .nan\n", ".yaml:1: duration_s: expected"),
        (b"seed: 3\nlaod: 2\n", ".yaml:2: unknown key laod; did you mean load?"),
        (b"power:\n  max_ages: 2\n", ".yaml:2: unknown key power.max_ages; did you mean max_age_s?"),
        (b"seed: 1\nseed: 2\n", ".yaml:2: key seed stands twice"),
        (b"models: [resnet50, lenet]\n", "lenet is not in the performance profile"),
        (b"performance_profile: nowhere.yaml\n", "nowhere.yaml: no such file"),
        (b"scheduler: fastest\n", "no policy 'fastest'"),
    ],
)
def test_settings_that_are_wrong_are_refused_in_one_line_that_names_key_and_line(refused, tmp_path, content, says):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    assert says in refused("--config", path)


# Workers.


def test_partly_edited_workers_are_refused_naming_the_rest(refused, monkeypatch):
    monkeypatch.setattr(main_pregenerated, "WORKERS", {**WORKERS, "coral1": REAL["coral1"], "hailo2": REAL["hailo2"]})
    assert "no address yet for coral2, jetson1, jetson2, hailo1\n" in refused()


@pytest.mark.parametrize("url", ["10.42.1.7:8080", "http://10.42.1.7:8080", "https://10.42.1.7:8080/infer", "http://:8080/infer"])
def test_malformed_worker_url_is_refused_by_name(refused, monkeypatch, url):
    monkeypatch.setattr(main_pregenerated, "WORKERS", {**REAL, "jetson2": url})
    line = refused()
    assert "WORKERS: jetson2: expected an address such as" in line and repr(url) in line


def test_worker_that_the_profile_does_not_know_is_refused_before_power_is_asked_for(refused, monkeypatch):
    monkeypatch.setattr(main_pregenerated, "WORKERS", {**REAL, "toaster": "http://10.42.1.9:8080/infer"})
    assert "worker toaster is not in the performance profile, which knows coral1, coral2" in refused("--cluster", "workers")


def test_host_metrics_of_emulated_nodes_are_refused_before_these_are_started(refused, tmp_path):
    (tmp_path / "hosts.yaml").write_text("power: {host_metrics: true}\n")
    line = refused("--cluster", "emulated", "--config", tmp_path / "hosts.yaml")
    assert "power.host_metrics: emulated nodes have none of their own; give --prometheus-url" in line


@pytest.mark.parametrize("url", ["localhost:9090", "nonsense", "http://"])
def test_malformed_prometheus_url_is_refused(refused, url):
    assert "--prometheus-url: expected an address such as" in refused("--prometheus-url", url)


@pytest.mark.parametrize("port", ["0", "-1", "65536", "http", "", "²", "9105.0"])
def test_metrics_port_that_is_no_port_is_refused(refused, port):
    assert "--metrics-port: expected a port from 1 to 65535" in refused(f"--metrics-port={port}")


def test_metrics_port_in_virtual_time_is_refused(refused):
    assert "--metrics-port: a run in virtual time" in refused("--metrics-port", "9105", "--cluster", "simulated")


def test_prometheus_in_virtual_time_is_refused(refused):
    problem = refused("--prometheus-url", "http://127.0.0.1:9090", "--cluster", "simulated")
    assert "--prometheus-url: power in virtual time is that of the profile" in problem


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_metrics_port_that_is_taken_is_refused_before_anything_is_started(refused, address):
    with socket.create_server((address, 0)) as other:
        port = other.getsockname()[1]
        assert f"--metrics-port: port {port} cannot be served: Address already in use" in refused("--metrics-port", port)


def test_nodes_without_power_data_or_without_a_counter_are_named_in_one_line_each():
    lines: list[str] = []
    both = ("node_energy_joules_total", "node_power_watts")
    found = {"coral1": both, "coral2": both[:1], "jetson1": (), "jetson2": (), "hailo1": both[1:]}
    say_power_metrics(found, lines.append)
    nothing, gauge_only = lines
    assert nothing.startswith("no power data of jetson1, jetson2: expected node_energy_joules_total or node_power_watts")
    assert gauge_only == "no node_energy_joules_total of hailo1: energy is the integral of node_power_watts"


def test_nodes_without_power_data_are_named_with_the_names_of_the_settings():
    names = PowerMetrics(
        power_w=["a_watt", "b_watt"], energy_j=[], measured_s=[], label="instance", nodes={"coral1": "10.0.0.7:8000"}
    )
    lines: list[str] = []
    say_power_metrics({"coral1": (), "coral2": ("node_power_watts",)}, lines.append, names)
    assert lines == [
        'no power data of coral1: expected a_watt or b_watt with 10.0.0.7:8000 in the label "instance"',
        "no energy counter of coral2: energy is the integral of a_watt or b_watt",
    ]


@pytest.mark.parametrize(("interval_s", "looks_back"), [(0.1, "[15000ms]"), (1.0, "[15000ms]"), (2.0, "[20000ms]")])
def test_slow_exporters_are_met_by_a_look_back_of_at_least_15_s(interval_s, looks_back):
    settings = default_settings(power={"poll_interval_s": interval_s})
    at_s = time.time() - 2.0  # the exporter took long to answer
    sample = {"metric": {"__name__": "node_power_watts", "node": "coral1"}, "values": [[at_s, "5"], [at_s + 1, "5000"]]}
    answer = Reply(content={"status": "success", "data": {"resultType": "matrix", "result": [sample]}})
    with scripted_server(lambda asked: answer) as server:
        power = _power_poller(server.url, None, ["coral1"], settings, default_profile(), lambda: False)
        power.poll()
        assert unquote_plus(server.asked[0].path).endswith(looks_back)
    assert power.latest["coral1"].power_w is None  # 5000 W cannot be
    assert power.history().samples["coral1"][0].power_w == 5.0


def test_nothing_is_said_of_power_where_every_node_has_its_counter():
    say_power_metrics({"coral1": ("node_energy_joules_total",)}, lambda line: pytest.fail(line))


@pytest.mark.parametrize(
    "option, workers, expected",
    [
        ("auto", WORKERS, "emulated"),
        ("emulated", WORKERS, "emulated"),
        ("emulated", REAL, "emulated"),
        ("emulated", {**WORKERS, "coral1": REAL["coral1"]}, "emulated"),
        ("auto", REAL, "workers"),
        ("workers", REAL, "workers"),
    ],
)
def test_cluster_is_chosen_by_option_and_placeholders(option, workers, expected):
    kind, notice = choose_cluster(option, workers)
    assert kind == expected
    assert (notice is not None) == (option == "auto" and expected == "emulated")  # auto says in one line what it took
    assert notice is None or "\n" not in notice


@pytest.mark.parametrize("option, workers", [("workers", WORKERS), ("auto", {**REAL, "coral2": WORKERS["coral2"]})])
def test_workers_without_an_address_are_named(option, workers):
    with pytest.raises(UsageError, match=r"no address yet for .*coral2") as refusal:
        choose_cluster(option, workers)
    assert "coral1" not in str(refusal.value) or option == "workers"


@pytest.mark.parametrize("cluster", ["emulated", "simulated"])
def test_discovering_workers_for_a_cluster_that_has_none_is_refused(refused, cluster):
    assert f"--discover: finds workers, and --cluster {cluster} has none" in refused("--discover", "--cluster", cluster)


@pytest.mark.parametrize("arguments", [[], ["--cluster", "auto"], ["--cluster", "workers"]])
@pytest.mark.parametrize("in_the_file", [WORKERS, REAL])
def test_discovered_workers_take_the_place_of_those_in_the_file(monkeypatch, tmp_path, in_the_file, arguments):
    class Started(Exception):
        """The run got as far as this."""

    def run(settings, scenario, kind, profile, node_names, make_cluster, folder):
        raise Started(kind, node_names, dict(make_cluster.args[0]))

    found = {"coral2": "http://10.42.9.9:8080/infer", "hailo1": "http://10.42.9.8:8080/infer"}
    monkeypatch.setattr(main_pregenerated, "WORKERS", in_the_file)
    monkeypatch.setattr(main_pregenerated, "Run", run)
    monkeypatch.setattr(main_pregenerated, "_power_poller", lambda *arguments: nullcontext(argparse.Namespace(latest={})))
    monkeypatch.setattr(main_pregenerated, "discover_workers", lambda known_nodes, tell, stopping: found)
    with pytest.raises(Started) as reached:
        main(["--discover", "--duration", "1", "--output", str(tmp_path), *arguments])
    assert reached.value.args == ("workers", list(found), found)


@pytest.mark.parametrize("error", [UsageError("one line"), HarnessError("one line")])
def test_discovery_that_fails_costs_one_line_and_its_exit_status(monkeypatch, tmp_path, capsys, error):
    def fail(known_nodes, tell, stopping):
        assert known_nodes == list(WORKERS)
        raise error

    monkeypatch.setattr(main_pregenerated, "discover_workers", fail)
    assert main(["--discover", "--output", str(tmp_path / "results")]) == (2 if isinstance(error, UsageError) else 1)
    assert capsys.readouterr().err == "main_pregenerated.py: one line\n"
    assert not (tmp_path / "results").exists()


# Output folder and traces.


@pytest.mark.parametrize("below", ["", "deeper", "deeper/and/deeper"])
def test_output_where_a_file_stands_is_refused(refused, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("precious")
    line = refused("--duration", "1", output=file / below)
    assert "--output: " in line and str(file) in line
    assert file.read_text() == "precious"


def test_trace_that_cannot_be_saved_is_refused(refused, tmp_path):
    assert "--save-trace: " in refused("--duration", "1", "--save-trace", tmp_path / "no such folder" / "trace.csv")


def test_trace_that_is_missing_is_refused(refused, tmp_path):
    assert "nowhere.csv: no such file" in refused("--trace", tmp_path / "nowhere.csv")


def test_duration_before_the_first_task_of_the_trace_is_refused(refused, tmp_path):
    settings, scenario = build_scenario(default_settings(duration_s=3.0), None, None)
    save_trace(scenario.trace, tmp_path / "trace.csv")
    assert "holds no task before 1e-09 s" in refused("--trace", tmp_path / "trace.csv", "--duration", "1e-9")


def test_replayed_scenario_is_the_same_scenario(tmp_path):
    settings, scenario = build_scenario(default_settings(duration_s=3.0), None, None)
    save_trace(scenario.trace, tmp_path / "trace.csv")
    again, replayed = build_scenario(default_settings(seed=99), tmp_path / "trace.csv", None)
    assert list(replayed.trace.rows()) == list(scenario.trace.rows())
    assert again.duration_s == 3.0
    assert scenario_sha256(again, replayed.trace) == scenario_sha256(settings, scenario.trace)


def test_replay_may_be_cut_but_not_stretched(tmp_path):
    _, scenario = build_scenario(default_settings(duration_s=3.0), None, None)
    save_trace(scenario.trace, tmp_path / "trace.csv")
    cut, shorter = build_scenario(default_settings(), tmp_path / "trace.csv", 1.5)
    assert cut.duration_s == 1.5
    assert list(shorter.trace.rows()) == [row for row in scenario.trace.rows() if row[5] < 1.5]
    uncut, whole = build_scenario(default_settings(), tmp_path / "trace.csv", 100.0)
    assert (uncut.duration_s, len(whole.trace)) == (3.0, len(scenario.trace))


def test_run_folder_is_named_after_the_start_and_unique(tmp_path):
    started = datetime(2026, 1, 2, 3, 4, 5)
    first, second, third = (RunFolder(tmp_path / "a" / "b", started) for _ in range(3))
    assert [f.experiment_id for f in (first, second, third)] == ["20260102_030405", "20260102_030405_2", "20260102_030405_3"]
    assert first.path.is_dir() and third.path.is_dir()


def test_run_folder_holds_the_files_of_the_design(tmp_path):
    folder = RunFolder(tmp_path, datetime(2026, 1, 2, 3, 4, 5))
    headers = {path.name: tuple(columns) for path, columns in folder.columns(["coral1"], VIOLATION_COLUMNS).items()}
    assert headers == {
        "master_inference_results.csv": RESULT_COLUMNS,
        "slo_violations_20260102_030405.csv": VIOLATION_COLUMNS,
        "scheduling_decisions_20260102_030405.csv": decision_columns(["coral1"]),
        "devices_20260102_030405.csv": DEVICE_COLUMNS,
    }
    assert folder.summary.name == "experiment_summary_20260102_030405.json"


# The rest of the command line.


def test_defaults_are_those_of_the_design():
    options = parse_options([])
    assert options == argparse.Namespace(
        config=None,
        duration=None,
        seed=None,
        scheduler=None,
        cluster="auto",
        discover=False,
        namespace=None,
        trace=None,
        save_trace=None,
        prometheus_url=None,
        metrics_port=None,
        output=options.output,
        repeat=1,
        no_report=False,
        quiet=False,
    )
    assert str(options.output) == "results"
    settings = default_settings()
    assert (settings.duration_s, settings.scheduler) == (600.0, "power_aware_topsis")


def test_summary_on_the_terminal_shows_reasons_as_they_stand():
    # What a node said may hold brackets, which must not be taken for markup.
    said = '/health says 503: [/dev/apex_0] is [red]gone["x"]'
    summary = {
        **dict.fromkeys(
            ["slo_compliance_rate", "fixed_deadline_compliance_rate", "achievable_slo_rate", "delivered_rate", "load_fairness"]
        ),
        **dict.fromkeys(["response_time_s", "dispatch_lag_s", "throughput_tasks_per_s"]),
        "invalid_reasons": [said],
        "energy_valid": False,
        "energy_invalid_reasons": [said],
        "warnings": [said],
        "valid": False,
        "interrupted": False,
        "scheduler": "topsis",
        "cluster": "workers",
        "seed": 1,
        "trace": None,
        "delivered_rate_is_estimate": False,
        "tasks": {"generated": 0},
        "slo_compliance_rate_by_class": {},
        "window_s": 1.0,
        "energy_j": {"total": None, "above_idle": None, "above_idle_per_task": None},
        "utilisation": {},
    }
    text = StringIO()
    print_summary(Console(file=text, width=200), summary, PROJECT_ROOT)
    assert text.getvalue().count(said) == 3


def test_program_refuses_bad_usage_as_a_process_does():
    command = [sys.executable, str(PROJECT_ROOT / "main_pregenerated.py"), "--cluster", "k3s"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("main_pregenerated.py: --cluster: invalid choice")


class OneMeter:
    """Power samples of coral1 alone, one at each poll: 3 W until the load begins, 9 W from then on."""

    def __init__(self):
        self.watts = 3.0

    def read(self):
        return {"coral1": [PowerSample(time.monotonic(), self.watts)]}


def test_energy_of_real_workers_is_taken_against_the_idle_power_measured_before_the_load(tmp_path):
    config = tmp_path / "experiment.yaml"
    config.write_text("power: {idle_baseline_s: 0.6, poll_interval_s: 0.02}\n")
    settings, source = load_settings(config), OneMeter()
    said: list[str] = []
    shown: dict[str, float] = {}
    nodes = [SimpleNamespace(name=name, idle_w=4.5) for name in ("coral1", "coral2")]
    cluster: Any = SimpleNamespace(
        nodes=nodes, unreachable_at_start={}, stopping=False, clock=time.monotonic, down_periods=lambda: []
    )

    def load():
        source.watts, began_s = 9.0, time.monotonic()
        cluster.now_s = lambda: time.monotonic() - began_s
        time.sleep(0.5)

    with PrometheusCollector(source, ["coral1", "coral2"], settings.power.poll_interval_s) as power:
        clock = WallClock(settings, power, None, nullcontext(), said.append, shown.update)
        found = clock.measured(cluster, load)
    assert found["idle_w"] == {"coral1": pytest.approx(3.0), "coral2": 4.5} == shown
    assert said == [
        "measuring idle power for 0.6 s …",
        "idle power of coral2 could not be measured: the profile's is taken",
    ]
    energy = found["energy"]["coral1"]
    assert energy.above_idle_j == pytest.approx(energy.total_j * 6 / 9, rel=0.1)  # the step from 3 W lies at the window's edge
    assert energy.total_j == pytest.approx(9.0 * found["window_s"], rel=0.1)


def test_display_that_dies_stops_the_run_and_is_named(monkeypatch):
    stopped: queue.Queue[HarnessError] = queue.Queue()
    cluster: Any = SimpleNamespace(stop=stopped.put, now_s=lambda: 1.0)
    monkeypatch.setattr("terminal.run_summary._PLAIN_REFRESH_S", 0.001)
    nothing: Any = SimpleNamespace()
    with Progress(Console(file=StringIO()), cluster, nothing, nothing, default_settings()):
        text = str(stopped.get(timeout=10))
    assert "the thread progress died of AttributeError" in text


def test_no_digit_of_several_runs_is_cut_off_on_a_narrow_terminal():
    long_row = Repeats("response_p99_s", 3, 3, 19.75993, 16.53308, 22.98679, 1.29898, 18.4864, 21.08295)
    table = [long_row if metric == "response_p99_s" else Repeats(metric, 3, 0) for metric in METRICS]
    text = StringIO()
    print_repeats(Console(file=text, width=80), table, PROJECT_ROOT)
    shown = text.getvalue()
    assert all(number in shown for number in ("19759.93", "16533.08 to 22986.79", "18486.40", "21082.95"))
    assert "…" not in shown and "– to –" not in shown
