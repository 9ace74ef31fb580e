"""Helpers of several rooms: YAML with line numbers, random streams, row files, JSON written whole, the commit of a run."""

import errno
import json
import math
import os
import queue
import subprocess
import sys
import threading
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

import utils
from utils import (
    PROJECT_ROOT,
    RANDOM_STREAMS,
    HarnessError,
    Interrupted,
    Positive,
    RowFiles,
    StrictModel,
    UsageError,
    YamlDumper,
    did_you_mean,
    git_commit,
    printable,
    random_stream,
    read_yaml,
    supervised_thread,
    validated,
    write_json_atomically,
)

FULL_DISK = Path("/dev/full")
needs_full_disk = pytest.mark.skipif(not FULL_DISK.exists(), reason="no /dev/full here")
PATIENCE_S = 30


# Texts of others


@pytest.mark.parametrize(
    "text, shown",
    [
        ("", ""),
        ("Modell ä, 모델, C:\\temp", "Modell ä, 모델, C:\\temp"),
        ("two\nlines\r\n", "two\\nlines\\r\\n"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("\x9b31m\x85\u2028\u202e", "\\x9b31m\\x85\\u2028\\u202e"),
        ("\ud800\x00", "\\ud800\\x00"),
    ],
)
def test_text_of_others_is_shown_in_one_line_without_control_characters(text, shown):
    assert printable(text) == shown
    assert str(HarnessError(f"x{text}y")).isprintable()


@pytest.mark.parametrize("text", ["a" * 11, "\n" * 6, "a" * 10**7])
def test_long_text_of_others_is_cut(text):
    assert len(printable(text, 10)) == 10 and printable(text, 10).endswith("...")
    assert printable("a" * 10, 10) == "a" * 10


# Threads


@pytest.mark.parametrize("end", [ValueError("two\nlines"), SystemExit(0), KeyboardInterrupt(), RecursionError("deep")])
def test_thread_that_dies_tells_why_and_where(end):
    told: queue.Queue[HarnessError] = queue.Queue()

    def live():
        raise end

    thread = supervised_thread("reader", live, told.put)
    assert thread.daemon and not thread.is_alive()
    thread.start()
    text = str(told.get(timeout=PATIENCE_S))
    thread.join(PATIENCE_S)
    assert text.startswith(f"the thread reader died of {type(end).__name__}") and "test_utils.py:" in text and text.isprintable()
    assert told.empty()


def test_thread_that_ends_by_itself_tells_nothing():
    told: list[HarnessError] = []
    thread = supervised_thread("reader", lambda: None, told.append)
    thread.start()
    thread.join(PATIENCE_S)
    assert told == []


@pytest.mark.parametrize("flush_interval_s", [0.001, None])
def test_row_that_cannot_be_written_is_told_and_does_not_hang_the_end(tmp_path, flush_interval_s):
    told: queue.Queue[Exception] = queue.Queue()
    files = RowFiles({tmp_path / "rows.csv": ("a",)}, told.put, flush_interval_s)
    files.append(tmp_path / "rows.csv", ("\ud800",))
    files.close()
    assert "surrogates not allowed" in str(told.get(timeout=PATIENCE_S))
    assert files.error is not None and told.empty()


# YAML


def written(tmp_path, content):
    path = tmp_path / "file.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_key_has_its_line(tmp_path):
    path = written(tmp_path, "# first\na: 1\nb:\n  c: 2\n\n  d: [x,\n    {e: 3}]\n")
    content, lines = read_yaml(path)
    assert content == {"a": 1, "b": {"c": 2, "d": ["x", {"e": 3}]}}
    assert lines == {
        ("a",): 2,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "d"): 6,
        ("b", "d", 0): 6,
        ("b", "d", 1): 7,
        ("b", "d", 1, "e"): 7,
    }


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n"])
def test_file_without_content_is_an_empty_mapping(tmp_path, text):
    assert read_yaml(written(tmp_path, text)) == ({}, {})


def test_anchors_may_be_used(tmp_path):
    content, _ = read_yaml(written(tmp_path, "a: &it {x: 1}\nb: *it\n"))
    assert content == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: key a stands twice"),
        ("a:\n  b: 1\n  b: 2\n", ":3: key b stands twice"),
        ("a: [1\n", ":2: not YAML: "),
        ("a: 1\n\tb: 2\n", ":2: not YAML: "),
        ("a: *nowhere\n", ":1: not YAML: "),
        ("x: !!python/object:os.system {}\n", ":1: not YAML: "),
        ("a: 1\n---\nb: 2\n", ":2: not YAML: "),
        ("- a\n", ": expected a mapping of settings, found list"),
        ("5\n", ": expected a mapping of settings, found int"),
        (b"a: \xff\xfe\n", ": cannot be read: "),
        (b"a: \x00\n", ": not YAML: "),
        ("a: !!timestamp 2001-99-99\n", ""),
        ("a: !!timestamp soon\n", ""),
        ("a: !!bool perhaps\n", ""),
        ("a: !!int many\n", ""),
        ("a: " + "9" * 5000 + "\n", ""),
        ("a: &a [*a]\n", ""),
        ("a: " + "[" * 3000 + "]" * 3000 + "\n", ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_settings_file_is_refused_in_one_line(tmp_path, text, expected):
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{expected}")
    assert "\n" not in message


def test_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e0", 1.0),
        ("-1.5E3", -1500.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("yes", "yes"),
        ("off", "off"),
        ("2001-02-03", "2001-02-03"),
        ("True", True),
        ("~", None),
        ("'010'", "010"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(tmp_path, text, value):
    # YAML 1.2.2, section 10.3.2, the core schema.
    content, _ = read_yaml(written(tmp_path, f"a: {text}\n"))
    assert content == {"a": value} and type(content["a"]) is type(value)


@pytest.mark.parametrize("text", ["1e5", "0o17", "0x1f", "1:30", "1_000", "yes", "2001-02-03", "010", "~", "<<", "plain"])
def test_text_that_is_written_is_read_as_text(tmp_path, text):
    for written_text in (yaml.dump({"a": text}, Dumper=YamlDumper), yaml.safe_dump({"a": text}, default_style="'")):
        assert read_yaml(written(tmp_path, written_text))[0] == {"a": text}
    assert yaml.safe_load(yaml.dump({"a": text}, Dumper=YamlDumper)) == {"a": text}


def bomb(one):
    """Nine aliases of nine aliases …: 335 bytes for 3.5 million values."""
    names = "abcdefghi"
    levels = [f"{this}: &{this} {one.format(','.join([f'*{before}'] * 9))}" for before, this in pairwise(names)]
    return "\n".join(["a: &a {k: v}", *levels])


@pytest.mark.parametrize("one", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_that_multiply_are_refused(tmp_path, one):
    with pytest.raises(UsageError, match=": expected at most 100000 values, found more"):
        read_yaml(written(tmp_path, bomb(one)))


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(fifo := tmp_path / "fifo")
    with pytest.raises(UsageError, match=f"^{fifo}: cannot be read: expected a regular file, found a pipe; save"):
        read_yaml(fifo)
    with pytest.raises(UsageError, match="^/dev/zero: cannot be read: expected a regular file, found a device"):
        read_yaml(Path("/dev/zero"))
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match=f"^{large}: cannot be read: expected at most 1048576 bytes, found {2**40}$"):
        read_yaml(large)
    assert read_yaml(Path(os.devnull)) == ({}, {})


def test_error_shows_the_beginning_of_what_is_long(tmp_path):
    content, lines = read_yaml(written(tmp_path, f"one: {{width: {'x' * 9000}}}"))
    with pytest.raises(UsageError) as told:
        validated(Outer, content, "file", lines)
    assert len(str(told.value)) < 200


class Inner(StrictModel):
    width: Positive
    height: Positive = 1


class Outer(StrictModel):
    parts: dict[str, Inner] = {}
    rows: list[Inner] = []
    one: Inner | None = None


@pytest.mark.parametrize(
    "text", ["parts: {a: {width: 1, hight: 1}}", "rows: [{width: 1, hight: 1}]", "one: {width: 1, hight: 1}"]
)
def test_nearest_key_is_found_at_every_depth(tmp_path, text):
    content, lines = read_yaml(written(tmp_path, text))
    with pytest.raises(UsageError, match=r"^file:1: unknown key [a-z0-9.]+\.hight; did you mean height\?$"):
        validated(Outer, content, "file", lines)


def test_misspelt_key_that_may_not_be_left_out_is_met_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"^file: unknown key one\.widht; did you mean width\?$"):
        validated(Outer, {"one": {"widht": 1}}, "file", {})


def test_content_without_lines_is_still_named():
    with pytest.raises(UsageError, match=r"^options: parts\.a\.width is missing$"):
        validated(Outer, {"parts": {"a": {}}}, "options", {})


def test_models_from_yaml_are_immutable():
    inner: BaseModel = Inner(width=1)
    with pytest.raises(ValueError, match="frozen"):
        inner.width = 2  # type: ignore[attr-defined]


def test_nearest_name_is_offered_only_where_one_is_near():
    assert did_you_mean("topsys", ["random", "topsis"]) == "; did you mean topsis?"
    assert did_you_mean("xyzzy", ["random", "topsis"]) == ""


def test_every_error_of_the_harness_is_a_harness_error():
    assert issubclass(UsageError, HarnessError)
    assert issubclass(Interrupted, HarnessError)


# Random streams


def test_stream_is_the_child_of_the_seed_at_its_names_place():
    # numpy's own spawn(), the documented way to independent streams, is the independent source here.
    children = np.random.SeedSequence(42).spawn(len(RANDOM_STREAMS))
    for name, child in zip(RANDOM_STREAMS, children, strict=True):
        np.testing.assert_array_equal(random_stream(42, name).random(9), np.random.default_rng(child).random(9))


def test_drawing_from_one_stream_moves_no_other():
    alone = {name: random_stream(7, name).random(50) for name in RANDOM_STREAMS}
    together = {name: random_stream(7, name) for name in RANDOM_STREAMS}
    drawn: dict[str, list[float]] = {name: [] for name in RANDOM_STREAMS}
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(RANDOM_STREAMS)), 50))
    for position in order:
        name = RANDOM_STREAMS[position]
        drawn[name].append(together[name].random())
    for name in RANDOM_STREAMS:
        np.testing.assert_array_equal(drawn[name], alone[name])


def test_streams_leave_the_global_generator_alone():
    np.random.seed(3)
    expected = np.random.random_sample()
    np.random.seed(3)
    random_stream(42, "arrivals").random(1000)
    assert np.random.random_sample() == expected


def test_streams_of_one_seed_and_of_neighbouring_seeds_are_uncorrelated():
    n = 10_000
    draws = [random_stream(seed, name).standard_normal(n) for seed in (1, 2) for name in RANDOM_STREAMS]
    correlation = np.asarray(np.corrcoef(draws))[np.triu_indices(len(draws), k=1)]
    # Between independent normal samples r is close to normal with deviation 1/sqrt(n); 5 deviations for 153 pairs.
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_each_name_has_a_stream_of_its_own():
    first = {name: random_stream(0, name).integers(2**62) for name in RANDOM_STREAMS}
    assert all(first[a] != first[b] for a, b in combinations(RANDOM_STREAMS, 2))


def test_every_choice_of_the_design_has_its_stream():
    # design.md, section 4, "Random streams".
    named = {"arrivals", "models", "slo_classes", "deadlines", "placement", "movement", "service_noise", "policy"}
    assert named <= set(RANDOM_STREAMS)


def test_unknown_stream_is_refused():
    with pytest.raises(ValueError, match=r"not in tuple|index"):
        random_stream(1, "weather")


# Row files


def unexpected(error: Exception) -> None:
    pytest.fail(f"a write failed: {error}")


@pytest.mark.parametrize("flush_interval_s", [0.001, None])
def test_rows_stand_in_order_under_their_header(tmp_path, flush_interval_s):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    files = RowFiles({one: ("a", "b"), two: ("c",)}, unexpected, flush_interval_s)
    for number in range(5000):
        files.append(one, (number, number / 10))
        files.append(two, (-number,))
    files.close()
    assert one.read_bytes() == b"a,b\n" + b"".join(b"%d,%r\n" % (n, n / 10) for n in range(5000))
    assert two.read_text().split() == ["c", *(str(-n) for n in range(5000))]


def test_without_a_thread_rows_are_written_as_they_pile_up(tmp_path):
    path, before = tmp_path / "rows.csv", threading.active_count()
    files = RowFiles({path: ("a",)}, unexpected, flush_interval_s=None)
    for number in range(10_000):
        files.append(path, (number,))
    assert threading.active_count() == before
    assert len(path.read_text().splitlines()) > 5_000
    files.close()
    assert len(path.read_text().splitlines()) == 10_001


def test_values_are_written_as_the_files_of_a_run_need_them(tmp_path):
    path = tmp_path / "rows.csv"
    files = RowFiles({path: ("x",) * 6}, unexpected)
    files.append(path, (None, True, False, 0.1 + 0.2, 'a,"b"', 0))
    files.close()
    assert path.read_text().splitlines()[1] == ',true,false,0.30000000000000004,"a,""b""",0'


def test_rows_of_many_threads_all_arrive_whole(tmp_path):
    path = tmp_path / "rows.csv"
    files = RowFiles({path: ("thread", "row")}, unexpected, flush_interval_s=0.001)

    def produce(thread):
        for row in range(500):
            files.append(path, (thread, row))

    threads = [threading.Thread(target=produce, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files.close()
    rows = [tuple(map(int, line.split(","))) for line in path.read_text().splitlines()[1:]]
    assert sorted(rows) == [(thread, row) for thread in range(4) for row in range(500)]
    for number in range(4):
        assert [row for thread, row in rows if thread == number] == list(range(500))


def test_rows_reach_a_reader_while_the_run_goes_on(tmp_path):
    fifo = tmp_path / "rows"
    os.mkfifo(fifo)
    lines: queue.Queue[str] = queue.Queue()

    def read():
        with open(fifo) as file:
            for line in file:
                lines.put(line)

    reader = threading.Thread(target=read)
    reader.start()
    files = RowFiles({fifo: ("a",)}, unexpected, flush_interval_s=0.01)
    assert lines.get(timeout=PATIENCE_S) == "a\n"
    files.append(fifo, (1,))
    assert lines.get(timeout=PATIENCE_S) == "1\n"
    files.close()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()


@pytest.mark.parametrize("flush_interval_s", [None, 0.01])
def test_closing_twice_is_harmless(tmp_path, flush_interval_s):
    files = RowFiles({tmp_path / "rows.csv": ("a",)}, unexpected, flush_interval_s)
    files.close()
    files.close()
    assert files.error is None


@needs_full_disk
def test_full_disk_is_told_once_without_a_thread_too(tmp_path):
    told: list[Any] = []
    files = RowFiles({tmp_path / "other.csv": ("a",), FULL_DISK: ("b",)}, told.append, flush_interval_s=None)
    for _ in range(20_000):
        files.append(FULL_DISK, (1,))
    assert [error.errno for error in told] == [errno.ENOSPC]  # known long before the end
    files.close()
    assert len(told) == 1 and files.error is told[0]


@needs_full_disk
def test_full_disk_is_told_once_and_kept(tmp_path):
    told: queue.Queue[Any] = queue.Queue()
    other = tmp_path / "other.csv"
    files = RowFiles({other: ("a",), FULL_DISK: ("b",)}, told.put, flush_interval_s=0.001)
    error = told.get(timeout=PATIENCE_S)
    assert error.errno == errno.ENOSPC
    for _ in range(100):
        files.append(FULL_DISK, (1,))
        files.append(other, (1,))
    files.close()
    assert files.error is error
    assert told.empty()


@pytest.mark.parametrize("flush_interval_s", [None, 0.001])
@pytest.mark.parametrize("loss", ["removed", "moved", "replaced"])
def test_folder_that_goes_away_is_noticed_at_once(tmp_path, loss, flush_interval_s):
    told: queue.Queue[Any] = queue.Queue()
    path = tmp_path / "run" / "rows.csv"
    path.parent.mkdir()
    files = RowFiles({path: ("a",)}, told.put, flush_interval_s)
    if loss == "moved":
        path.parent.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    if loss == "replaced":
        path.write_text("")
    if flush_interval_s is None:
        for number in range(5000):
            files.append(path, (number,))
    assert told.get(timeout=PATIENCE_S).errno == errno.ENOENT
    files.close()
    assert told.empty()


def test_file_that_cannot_be_made_is_refused_and_the_others_are_closed(tmp_path):
    with pytest.raises(FileNotFoundError):  # a file left open would make a ResourceWarning, here an error
        RowFiles({tmp_path / "rows.csv": ("a",), tmp_path / "absent" / "rows.csv": ("a",)}, unexpected)


FILL_THE_DISK = """
import json, resource, sys, threading
from pathlib import Path
from utils import RowFiles, write_json_atomically

folder = Path(sys.argv[1])
(folder / "summary.json").write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
told = []
full = threading.Event()
def on_error(error):
    told.append(type(error).__name__)
    full.set()
files = RowFiles({folder / "rows.csv": ("number",)}, on_error, flush_interval_s=0.001)
number = 0
while not full.is_set():
    number += 1
    files.append(folder / "rows.csv", (number,))
    if number % 1000 == 0:
        full.wait(0.01)
files.close()
try:
    write_json_atomically(folder / "summary.json", ["x"] * 20_000)
except OSError as error:
    told.append("summary refused")
print(json.dumps(told))
"""


def test_disk_that_fills_up_keeps_what_was_written_before(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path)], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == ["OSError", "summary refused"]
    *whole, last = (tmp_path / "rows.csv").read_text().split("\n")
    numbers = [str(number) for number in range(1, len(whole))]
    assert whole == ["number", *numbers]
    assert len(whole) > 1000
    assert last == ""  # only whole rows
    assert (tmp_path / "summary.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "summary.json"]


# JSON


def test_json_is_written_whole_and_reads_back(tmp_path):
    path = tmp_path / "summary.json"
    content = {"a": [1, None, 0.1], "b": {"naïve": "한국어"}}
    write_json_atomically(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert path.read_bytes().endswith(b"}\n")
    assert "한국어" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "error"), [([float("nan")], ValueError), ([float("inf")], ValueError), ([object()], TypeError)]
)
def test_what_is_no_json_leaves_the_old_file_and_no_rubbish(tmp_path, content, error):
    path = tmp_path / "summary.json"
    path.write_text("old")
    with pytest.raises(error):
        write_json_atomically(path, content)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json_atomically(path, ["old"])
    seen = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(json.loads(path.read_text())))
    write_json_atomically(path, ["new"])
    assert seen == [["old"]]
    assert json.loads(path.read_text()) == ["new"]


def test_json_into_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="absent"):
        write_json_atomically(tmp_path / "absent" / "summary.json", {})


# Commit


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setattr(utils, "PROJECT_ROOT", tmp_path)

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        run = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return run.stdout.strip()

    return git


def commit_now():
    """What a process that starts now would be told."""
    git_commit.cache_clear()
    return git_commit()


def test_commit_of_a_checkout_says_whether_it_was_changed(checkout, tmp_path):
    checkout("init", "--quiet")
    (tmp_path / "file").write_text("1")
    checkout("add", "file")
    checkout("commit", "--quiet", "-m", "one")
    commit = checkout("rev-parse", "HEAD")
    assert commit_now() == commit
    (tmp_path / "results").write_text("not of the checkout")
    assert commit_now() == commit
    (tmp_path / "file").write_text("2")
    assert commit_now() == f"{commit}+dirty"


def test_there_is_no_commit_outside_git(checkout):
    assert commit_now() is None
