"""The load: Poisson arrivals, shares and ranges as configured, streams that move no other, files that replay the same world."""

import csv
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

import task_generator
from mobility.mobility_manager import MobilityManager
from settings import load_settings
from task import Device, Task
from task_generator import (
    TRACE_COLUMNS,
    Names,
    Trace,
    generate_trace,
    load_trace,
    recorded_mobility,
    save_trace,
    scenario_sha256,
)
from utils import HarnessError, UsageError, random_stream

DEFAULTS = load_settings()
IMPROBABLE = 1e-4
"""Below this p a sample is taken for not distributed as it should be; the seeds are fixed."""


def changed(settings, **changes):
    """Settings with values replaced; a key is a path, its steps joined by double underscores."""
    content = settings.model_dump()
    for path, value in changes.items():
        *outer, last = path.split("__")
        mapping = content
        for key in outer:
            mapping = mapping[key]
        assert last in mapping
        mapping[last] = value
    return settings.replace(**content)


def generated(settings):
    return generate_trace(settings, MobilityManager(settings.devices, settings.seed))


def column_values(trace):
    """Each column of the trace file, as a list."""
    return {name: list(values) for name, values in zip(TRACE_COLUMNS, zip(*trace.rows(), strict=True), strict=True)}


LONG_S = 1500.0


@pytest.fixture(scope="module")
def long_trace():
    """57,000 tasks of the default load."""
    return generated(DEFAULTS.replace(duration_s=LONG_S, seed=2026))


@pytest.fixture(scope="module")
def short():
    """A minute of few devices: settings and trace."""
    settings = changed(DEFAULTS, duration_s=60.0, devices__count=20, devices__placement="area")
    return settings, generated(settings)


def texts(names):
    return np.array(names.names)[names.codes]


# Arrivals


def test_gaps_are_exponential_with_the_sum_of_the_rates(long_trace):
    # 50 pedestrians at 0.2, 30 vehicles at 0.6, 20 drones at 0.5 tasks/s are 38 tasks/s (design.md, section 4, "Load").
    gaps = np.diff(long_trace.arrival_time_s, prepend=0.0)
    assert stats.kstest(gaps, stats.expon(scale=1 / 38).cdf).pvalue > IMPROBABLE
    assert stats.kstest(gaps[:-1] * 38 + gaps[1:] * 38, stats.gamma(2).cdf).pvalue > IMPROBABLE  # neighbours are independent


def test_counts_have_the_mean_and_the_variance_of_a_poisson_process(long_trace):
    windows = int(LONG_S / 0.1)
    counts, _ = np.histogram(long_trace.arrival_time_s, bins=windows, range=(0, LONG_S))
    # Deviation of the mean: sqrt(3.8/n). Index of dispersion: (n-1) s^2/mean is chi-square (Cox and Lewis 1966, section 6.3).
    assert counts.mean() == pytest.approx(3.8, abs=4 * math.sqrt(3.8 / windows))
    assert counts.var(ddof=1) / counts.mean() == pytest.approx(1, abs=4 * math.sqrt(2 / windows))


def test_these_tests_would_notice_gaps_that_were_cut(long_trace):
    gaps = np.minimum(np.diff(long_trace.arrival_time_s, prepend=0.0), 0.08)
    times = np.cumsum(gaps / gaps.mean() / 38)
    counts, _ = np.histogram(times, bins=int(LONG_S / 0.1), range=(0, LONG_S))
    assert stats.kstest(np.diff(times), stats.expon(scale=1 / 38).cdf).pvalue < 1e-9
    assert counts.var() / counts.mean() < 1 - 4 * math.sqrt(2 / len(counts))


@pytest.mark.parametrize(("kind", "devices", "rate"), [("pedestrian", 50, 0.2), ("vehicle", 30, 0.6), ("drone", 20, 0.5)])
def test_each_type_sends_at_its_rate(long_trace, kind, devices, rate):
    times = long_trace.arrival_time_s[texts(long_trace.device_type) == kind]
    expected = devices * rate * LONG_S
    assert len(times) == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert stats.kstest(np.diff(times, prepend=0.0), stats.expon(scale=1 / (devices * rate)).cdf).pvalue > IMPROBABLE


def test_each_device_sends_at_the_rate_of_its_type(long_trace):
    manager = MobilityManager(DEFAULTS.devices, 2026)
    rates = np.array([kind.tasks_per_s for kind in DEFAULTS.devices.types.values()])[manager.type_code]
    counts = np.bincount(long_trace.device_id, minlength=manager.device_count)
    assert stats.chisquare(counts, rates / rates.sum() * len(long_trace)).pvalue > IMPROBABLE
    gaps = np.diff(long_trace.arrival_time_s[long_trace.device_id == 60])
    assert stats.kstest(gaps, stats.expon(scale=1 / 0.6).cdf).pvalue > IMPROBABLE


@pytest.mark.parametrize("load", [0.1, 2.0, 5.0])
def test_load_multiplies_the_rate(load):
    trace = generated(DEFAULTS.replace(load=load, duration_s=200.0))
    expected = 38 * load * 200
    assert len(trace) == pytest.approx(expected, abs=4 * math.sqrt(expected))
    assert stats.kstest(np.diff(trace.arrival_time_s, prepend=0.0), stats.expon(scale=1 / (38 * load)).cdf).pvalue > IMPROBABLE


def test_arrivals_that_need_several_blocks_of_gaps_have_no_seam(monkeypatch):
    drawn: list[np.ndarray] = []

    class Hasty:
        """Gaps a tenth as long as expected, so that the first block ends long before the run does."""

        def exponential(self, scale, size):
            drawn.append(np.random.default_rng(len(drawn)).exponential(scale / 10, size))
            return drawn[-1].copy()

    def stream(seed, name):
        return Hasty() if name == "arrivals" else random_stream(seed, name)

    monkeypatch.setattr(task_generator, "random_stream", stream)
    trace = generated(DEFAULTS.replace(duration_s=30.0))
    times = np.cumsum(np.concatenate(drawn))
    assert len(drawn) > 5
    np.testing.assert_array_equal(trace.arrival_time_s, times[times < 30])


def test_arrivals_are_in_order_and_within_the_run(long_trace):
    assert (np.diff(long_trace.arrival_time_s) >= 0).all()
    assert long_trace.arrival_time_s[0] >= 0
    assert long_trace.arrival_time_s[-1] < LONG_S
    assert long_trace.task_id.tolist() == list(range(len(long_trace)))
    assert long_trace.duration_s == LONG_S


def test_type_without_a_rate_sends_nothing():
    trace = generated(changed(DEFAULTS, duration_s=100.0, devices__types__vehicle__tasks_per_s=0.0))
    assert set(texts(trace.device_type)) == {"pedestrian", "drone"}
    assert len(trace) == pytest.approx(2000, abs=4 * math.sqrt(2000))


def test_population_that_sends_nothing_is_refused():
    rates = {f"devices__types__{kind}__tasks_per_s": 0.0 for kind in ("pedestrian", "vehicle", "drone")}
    with pytest.raises(UsageError, match="none of the devices sends tasks"):
        generated(changed(DEFAULTS, **rates))


def test_run_too_short_for_a_task_has_an_empty_trace():
    trace = generated(DEFAULTS.replace(duration_s=1e-9))
    assert len(trace) == 0
    assert list(trace.arrivals()) == []


# What a task is


def test_models_are_drawn_uniformly(long_trace):
    counts = np.bincount(long_trace.model_name.codes, minlength=4)
    assert long_trace.model_name.names == ("mobilenet", "resnet50", "efficientnet", "vgg16")
    assert stats.chisquare(counts).pvalue > IMPROBABLE


def test_classes_have_their_shares(long_trace):
    # hard 15 %, normal 35 %, soft 50 % (design.md, section 4, "Load").
    counts = np.bincount(long_trace.slo_class.codes, minlength=3)
    assert long_trace.slo_class.names == ("hard", "normal", "soft")
    assert stats.chisquare(counts, np.array([0.15, 0.35, 0.50]) * len(long_trace)).pvalue > IMPROBABLE


@pytest.mark.parametrize(("name", "low", "high"), [("hard", 0.05, 0.15), ("normal", 0.10, 0.30), ("soft", 0.30, 0.60)])
def test_deadlines_are_uniform_in_the_range_of_their_class(long_trace, name, low, high):
    deadlines = long_trace.base_deadline_s[texts(long_trace.slo_class) == name]
    assert low <= deadlines.min() < deadlines.max() <= high
    assert stats.kstest(deadlines, stats.uniform(low, high - low).cdf).pvalue > IMPROBABLE


def test_service_noise_is_standard_normal(long_trace):
    assert stats.kstest(long_trace.service_noise, "norm").pvalue > IMPROBABLE


def test_choices_are_independent_of_each_other(long_trace):
    columns = [
        long_trace.arrival_time_s,
        long_trace.device_id,
        long_trace.model_name.codes,
        long_trace.slo_class.codes,
        long_trace.service_noise,
        np.diff(long_trace.arrival_time_s, prepend=0.0),
    ]
    correlation = np.corrcoef(columns)[np.triu_indices(len(columns), k=1)]
    assert np.abs(correlation).max() < 5 / math.sqrt(len(long_trace))


def test_device_of_a_task_is_where_its_path_is_at_the_arrival(short):
    settings, trace = short
    manager = MobilityManager(settings.devices, settings.seed)
    for index, arrival in enumerate(trace.arrivals()):
        assert arrival.device == manager.device(arrival.task.device_id, arrival.task.arrival_time_s) == trace.device(index)


def test_arrival_holds_the_row_and_a_deadline_not_yet_adapted(short):
    _, trace = short
    for arrival, row in zip(trace.arrivals(), trace.rows(), strict=True):
        task_id, device_id, kind, model, slo, time_s, base_s, x, y, vx, vy, inside, noise = row
        assert arrival.task == Task(task_id, device_id, kind, model, slo, time_s, base_s, base_s, base_s)
        assert arrival.device == Device(device_id, kind, x, y, vx, vy, inside)
        assert arrival.service_noise == noise


# Streams


DURATIONS = st.floats(0.5, 200)


@hypothesis_settings(max_examples=25)
@given(DURATIONS, DURATIONS, st.integers(0, 2**64 - 1))
def test_shorter_run_is_the_beginning_of_a_longer_one(one_s, other_s, seed):
    few = changed(DEFAULTS, devices__count=7, seed=seed)
    shorter, longer = (generated(few.replace(duration_s=duration_s)) for duration_s in sorted([one_s, other_s]))
    assert list(shorter.rows()) == list(longer.rows())[: len(shorter)]
    assert list(longer.before(shorter.duration_s).rows()) == list(shorter.rows())


def test_same_seed_draws_the_same_trace_and_another_seed_another_one(short):
    settings, trace = short
    assert list(generated(settings).rows()) == list(trace.rows())
    other = generated(settings.replace(seed=settings.seed + 1))
    assert not set(other.arrival_time_s) & set(trace.arrival_time_s)


PATH = {"device_x_m", "device_y_m", "device_vx_mps", "device_vy_mps", "in_coverage"}


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"devices__placement": "cell"}, PATH),
        ({"devices__types__vehicle__turn_probability": 0.5}, PATH),
        ({"devices__types__vehicle__speed_mps": (1, 2)}, PATH),
        ({"devices__cell_radius_m": 100.0}, {"in_coverage"}),
        ({"models": ["vgg16", "resnet50"]}, {"model_name"}),
        ({"slo_classes__hard__base_deadline_s": (0.1, 0.2)}, {"base_deadline_s"}),
        ({"slo_classes__hard__share": 0.35, "slo_classes__normal__share": 0.15}, {"slo_class", "base_deadline_s"}),
        ({"scheduler": "random"}, set()),
        ({"queue_discipline": "edf"}, set()),
        ({"deadline_adaptation": False}, set()),
        ({"safety_margin": 0.5, "exit_safety": 0.5}, set()),
        ({"power_aware_topsis__power_budget_w": 20.0}, set()),
    ],
    ids=lambda value: ",".join(sorted(value)),
)
def test_changing_one_feature_moves_no_other_stream(short, changes, moved):
    settings, trace = short
    before, after = column_values(trace), column_values(generated(changed(settings, **changes)))
    assert {name for name in TRACE_COLUMNS if before[name] != after[name]} == moved


def test_load_moves_the_arrivals_and_not_what_the_first_tasks_are(short):
    settings, trace = short
    n = len(trace)
    before, after = column_values(trace), column_values(generated(settings.replace(load=2.0)))
    unmoved = {name for name in TRACE_COLUMNS if before[name] == after[name][:n]}
    assert unmoved == {"task_id", "device_id", "device_type", "model_name", "slo_class", "base_deadline_s", "service_noise"}


# Files


def saved(trace, folder):
    path = folder / "trace.csv"
    save_trace(trace, path)
    return path


def test_saved_and_loaded_the_trace_is_the_same_to_the_last_bit(short, tmp_path):
    settings, trace = short
    path = saved(trace, tmp_path)
    loaded = load_trace(path, settings)
    assert list(loaded.rows()) == list(trace.rows())
    assert list(loaded.arrivals()) == list(trace.arrivals())
    assert scenario_sha256(settings, loaded) == scenario_sha256(settings, trace)
    again = tmp_path / "again.csv"
    save_trace(loaded, again)
    assert again.read_bytes() == path.read_bytes()


@hypothesis_settings(max_examples=20)
@given(st.integers(0, 2**64 - 1), st.integers(1, 30), st.sampled_from(["cell", "area"]), st.floats(5, 40))
def test_any_generated_trace_is_accepted_and_reads_back(tmp_path_factory, seed, count, placement, duration_s):
    settings = changed(DEFAULTS, seed=seed, devices__count=count, devices__placement=placement, duration_s=duration_s, load=3.0)
    trace = generated(settings)
    if len(trace):
        loaded = load_trace(saved(trace, tmp_path_factory.getbasetemp()), settings)
        assert list(loaded.rows()) == list(trace.rows())


def test_noise_of_the_request_overhead_is_a_last_column_that_moves_nothing_else(short, tmp_path):
    settings, trace = short
    noisy = generate_trace(settings, MobilityManager(settings.devices, settings.seed), overhead_varies=True)
    expected = random_stream(settings.seed, "overhead_noise").standard_normal(len(trace))
    assert list(noisy.rows()) == [(*row, z) for row, z in zip(trace.rows(), expected.tolist(), strict=True)]
    assert [arrival._replace(overhead_noise=None) for arrival in noisy.arrivals()] == list(trace.arrivals())
    assert [row[-1] for row in noisy.before(12.5).rows()] == expected[: len(noisy.before(12.5))].tolist()
    path = saved(noisy, tmp_path)
    loaded = load_trace(path, settings)
    assert path.read_text().splitlines()[0].endswith(",in_coverage,service_noise,overhead_noise")
    assert list(loaded.arrivals()) == list(noisy.arrivals())
    hashes = [scenario_sha256(settings, of) for of in (trace, noisy, loaded, replace(noisy, overhead_noise=-expected))]
    assert hashes[1] == hashes[2] and len(set(hashes)) == 3


def test_file_has_the_columns_of_the_design(short, tmp_path):
    # design.md, section 5, "Trace file (CSV)".
    _, trace = short
    header = saved(trace, tmp_path).read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "task_id,device_id,device_type,model_name,slo_class,arrival_time_s,base_deadline_s,device_x_m,device_y_m,"
        "device_vx_mps,device_vy_mps,in_coverage,service_noise"
    )


def test_longer_than_a_block_of_rows_the_trace_is_still_whole(long_trace, tmp_path):
    path = saved(long_trace, tmp_path)
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(long_trace) + 1 > 50_000
    assert [int(row[0]) for row in rows[1:]] == long_trace.task_id.tolist()
    assert [float(row[-1]) for row in rows[1:]] == long_trace.service_noise.tolist()


def test_loaded_trace_lasts_until_the_whole_second_after_its_last_arrival(short, tmp_path):
    settings, trace = short
    loaded = load_trace(saved(trace.before(12.5), tmp_path), settings)
    assert loaded.duration_s == math.floor(trace.before(12.5).arrival_time_s[-1]) + 1


def test_columns_may_stand_in_any_order_and_others_beside_them(short, tmp_path):
    settings, trace = short
    rows = [[*row[::-1], "x"] for row in trace.rows()]
    path = tmp_path / "other.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([[*TRACE_COLUMNS[::-1], "remark"], *rows])
    assert list(load_trace(path, settings).rows()) == list(trace.rows())


def test_cut_trace_holds_the_tasks_before_the_cut(short):
    _, trace = short
    cut_s = float(trace.arrival_time_s[100])
    cut = trace.before(cut_s)
    assert len(cut) == 100  # a task that arrives at the very end of a run is not part of it
    assert cut.duration_s == cut_s
    assert list(cut.rows()) == list(trace.rows())[:100]
    assert cut.device(99) == trace.device(99)
    assert len(trace.before(math.nextafter(cut_s, 1e9))) == 101


def test_replayed_devices_are_where_the_trace_says(short):
    settings, trace = short
    mobility = recorded_mobility(settings, trace)
    for arrival in trace.arrivals():
        assert mobility.device(arrival.task.device_id, arrival.task.arrival_time_s) == arrival.device


def test_full_disk_is_one_clear_line(short):
    with pytest.raises(HarnessError, match="--save-trace: /dev/full cannot be written: No space left on device") as raised:
        save_trace(short[1], Path("/dev/full"))
    assert not isinstance(raised.value, UsageError)  # which would be exit status 2


@pytest.mark.parametrize("name", ["absent/trace.csv", "."])
def test_trace_that_cannot_be_written_is_refused(short, tmp_path, name):
    with pytest.raises(UsageError, match="--save-trace: .* cannot be written: "):
        save_trace(short[1], tmp_path / name)


# Refusals


LINE = 5
INDEX = LINE - 2


def edit(column, text):
    """Puts `text` into `column` of line LINE."""

    def edited(rows):
        rows[INDEX + 1][rows[0].index(column)] = text(rows) if callable(text) else text

    return edited


def value(rows, line, column):
    return rows[line - 1][rows[0].index(column)]


def opposite_coverage(rows):
    return {"true": "false", "false": "true"}[value(rows, LINE, "in_coverage")]


@pytest.fixture
def refused(short, tmp_path):
    """A function that writes the trace after `edited` has changed its rows, and gives the text of the refusal."""
    settings, trace = short
    path = saved(trace, tmp_path)

    def refuse(edited, settings=settings):
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        edited(rows)
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        with pytest.raises(UsageError) as caught:
            load_trace(path, settings)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(str(path))
        return message.removeprefix(str(path))

    return refuse


@pytest.mark.parametrize(
    ("column", "text", "expected"),
    [
        ("model_name", "resnet51", "one of mobilenet, resnet50, efficientnet, vgg16; did you mean resnet50?"),
        ("slo_class", "softer", "one of hard, normal, soft; did you mean soft?"),
        ("arrival_time_s", "0.0", "times in non-decreasing order"),
        ("arrival_time_s", "soon", "a number"),
        ("arrival_time_s", "nan", "a finite number"),
        ("arrival_time_s", "", "a number"),
        ("base_deadline_s", "0", "a deadline above 0"),
        ("base_deadline_s", "-0.1", "a deadline above 0"),
        ("base_deadline_s", "inf", "a finite number"),
        ("device_x_m", "-inf", "a finite number"),
        ("device_x_m", "500.1", "a position within 0 … 500"),
        ("device_y_m", "-0.1", "a position within 0 … 500"),
        ("device_vx_mps", "nan", "a finite number"),
        ("device_vy_mps", "1e999", "a finite number"),
        ("service_noise", "NaN", "a finite number"),
        ("service_noise", "11", "a standard normal number within ±10"),
        ("task_id", "2", "each id once"),
        ("task_id", "1.5", "a whole number"),
        ("task_id", "9" * 30, "a whole number"),
        ("device_id", "three", "a whole number"),
        ("in_coverage", "maybe", "true or false"),
        ("in_coverage", "1", "true or false"),
        ("in_coverage", opposite_coverage, "what the device's position and the cell of the settings give"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_with_its_line(refused, column, text, expected):
    found = []

    def edited(rows):
        edit(column, text)(rows)
        found.append(value(rows, LINE, column))

    assert refused(edited) == f":{LINE}: {column}: expected {expected}, found {found[0]!r}"


def test_time_before_the_start_is_refused(refused):
    def edited(rows):
        rows[1][rows[0].index("arrival_time_s")] = "-0.5"

    assert refused(edited) == ":2: arrival_time_s: expected a time from 0 on, found '-0.5'"


def test_first_of_several_wrong_lines_is_named(refused):
    def edited(rows):
        for line in (9, 7, 11):
            rows[line - 1][rows[0].index("service_noise")] = "x"

    assert refused(edited).startswith(":7: service_noise: ")


@pytest.mark.parametrize("column", TRACE_COLUMNS)
def test_missing_column_is_named(refused, column):
    def edited(rows):
        at = rows[0].index(column)
        for row in rows:
            del row[at]

    assert refused(edited).startswith(f":1: missing column {column}; expected task_id,device_id,")


@pytest.mark.parametrize(("keep", "found"), [(12, 12), (0, 0), (14, 14)])
def test_wrong_number_of_fields_is_refused_with_its_line(refused, keep, found):
    def edited(rows):
        rows[LINE - 1] = [*rows[LINE - 1], "more"][:keep]

    assert refused(edited) == f":{LINE}: expected 13 fields, found {found}"


def test_file_cut_in_the_middle_of_its_last_line_is_refused(short, tmp_path):
    settings, trace = short
    path = saved(trace, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b",")])
    with pytest.raises(UsageError, match=rf":{len(trace) + 1}: expected 13 fields, found 12"):
        load_trace(path, settings)


def test_model_that_the_settings_do_not_run_is_refused(refused, short):
    line = short[1].model_name.slice(0, len(short[1])).index("vgg16") + 2
    message = refused(lambda rows: None, changed(short[0], models=["mobilenet", "resnet50", "efficientnet"]))
    assert message.startswith(f":{line}: model_name: expected one of mobilenet, resnet50, efficientnet")


def test_trace_of_another_cell_is_refused(refused, short):
    assert "in_coverage: expected what the device's position" in refused(
        lambda rows: None, changed(short[0], devices__cell_radius_m=50.0)
    )


def test_header_alone_is_refused(refused):
    assert refused(lambda rows: rows.__delitem__(slice(1, None))) == ": holds no task"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ":1: missing column task_id"),
        (b"\n\n", ":1: missing column task_id"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", ": cannot be read: "),
        (b"\x00" * 100, ":1: missing column task_id"),
        (b"not,a,trace\n1,2,3\n", ":1: missing column task_id"),
        (b'"' + b"x" * 200_000, ": cannot be read: "),
    ],
    ids=["empty", "blank", "png", "zeros", "other", "endless field"],
)
def test_what_is_no_trace_at_all_is_refused(tmp_path, content, expected):
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(f"{path}{expected}")):
        load_trace(path, DEFAULTS)


@given(st.binary(max_size=300))
def test_garbage_never_gives_anything_but_a_refusal(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "garbage.csv"
    path.write_bytes(",".join(TRACE_COLUMNS).encode() + b"\n" + content)
    with pytest.raises(UsageError):
        load_trace(path, DEFAULTS)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="absent.csv: no such file"):
        load_trace(tmp_path / "absent.csv", DEFAULTS)


@pytest.mark.parametrize("end", ["\r\n", "\r\n\r\n", "\n  \n", "," * 12 + "\r\n"])
def test_blank_last_lines_hold_no_task(short, tmp_path, end):
    settings, trace = short
    path = saved(trace, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + end.encode())
    assert list(load_trace(path, settings).rows()) == list(trace.rows())


@pytest.mark.parametrize("arrival", ["1700000000.0", "1700000000000", "1000000"])
def test_unix_time_is_refused_with_a_hint(refused, arrival):
    def edited(rows):
        rows[-1][rows[0].index("arrival_time_s")] = arrival

    assert "arrival_time_s: expected seconds below 1e+06 (times start at 0" in refused(edited)


def test_semicolons_are_named(short, tmp_path):
    settings, trace = short
    path = saved(trace, tmp_path)
    path.write_text(path.read_text().replace(",", ";"))
    with pytest.raises(UsageError, match="missing column task_id; .* separated by commas, not by semicolons$"):
        load_trace(path, settings)


def test_trace_that_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(fifo := tmp_path / "fifo")
    for path, kind in ((fifo, "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(UsageError, match=f"{path}: cannot be read: expected a regular file, found {kind}"):
            load_trace(path, DEFAULTS)
    with (tmp_path / "zeros.csv").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UsageError, match="zeros.csv:1: missing column"):
        load_trace(tmp_path / "zeros.csv", DEFAULTS)


# Scenario


@pytest.mark.parametrize(
    "changes",
    [
        {"devices__area_side_m": 600.0},
        {"devices__cell_radius_m": 200.0},
        {"exit_safety": 0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_scenario_changes_with_the_settings_that_bear_on_it(short, changes):
    settings, trace = short
    assert scenario_sha256(changed(settings, **changes), trace) != scenario_sha256(settings, trace)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "random"},
        {"queue_discipline": "edf"},
        {"deadline_adaptation": False},
        {"safety_margin": 0.3},
        {"slo_classes__soft__extension_factor": 1.5},
        {"requests__connections_per_node": 4},
        {"power__poll_interval_s": 0.5},
        {"topsis__weights__slack": 1.0},
        {"power_aware_topsis__power_budget_w": 20.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_scenario_does_not_change_with_the_policy_or_the_measuring(short, changes):
    settings, trace = short
    assert scenario_sha256(changed(settings, **changes), trace) == scenario_sha256(settings, trace)


def other_value(column):
    """A copy of a column with one entry in its middle changed."""
    if isinstance(column, Names):
        return replace(column, codes=other_value(column.codes))
    copy = column.copy()
    middle = copy.reshape(-1)[copy.size // 2 :]
    middle[0] = not middle[0] if copy.dtype == bool else middle[0] + 1
    return copy


COLUMNS = [name for name in Trace.__dataclass_fields__ if name != "duration_s"]


@pytest.mark.parametrize("column", COLUMNS)
def test_scenario_changes_with_every_column(short, column):
    settings, trace = short
    trace = replace(trace, overhead_noise=trace.service_noise)
    trace = replace(trace, slo_class=replace(trace.slo_class, names=(*trace.slo_class.names, "x")))
    trace = replace(trace, model_name=replace(trace.model_name, names=(*trace.model_name.names, "x")))
    trace = replace(trace, device_type=replace(trace.device_type, names=(*trace.device_type.names, "x")))
    other = replace(trace, **{column: other_value(getattr(trace, column))})
    assert scenario_sha256(settings, other) != scenario_sha256(settings, trace)


def test_scenario_does_not_depend_on_the_order_in_which_names_were_met(short):
    settings, trace = short
    backwards = {
        name: Names(column.names[::-1], (len(column.names) - 1 - column.codes).astype(np.int16))
        for name, column in (("model_name", trace.model_name), ("slo_class", trace.slo_class))
    }
    assert list(replace(trace, **backwards).rows()) == list(trace.rows())
    assert scenario_sha256(settings, replace(trace, **backwards)) == scenario_sha256(settings, trace)


def test_scenario_is_a_sha256(short):
    assert re.fullmatch(r"[0-9a-f]{64}", scenario_sha256(*short))
