"""What command lines share: which values options take, what is told of an error, and when the wish to stop is heard."""

import argparse
import errno
import importlib
import os
import signal
import subprocess
import sys

import pytest

from terminal.options import (
    OptionParser,
    StopSignal,
    count,
    exit_status,
    interruptible,
    positive,
    seconds,
    seed,
    stoppable,
    uninterruptible,
)
from utils import PROJECT_ROOT, HarnessError, Interrupted, StopRequested, UsageError


@pytest.fixture
def parser():
    made = OptionParser("program.py", "Does nothing.")
    made.add_argument("--seconds", type=seconds)
    return made


def test_option_has_its_value(parser):
    assert parser.parse_args(["--seconds", "1.5"]).seconds == 1.5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seconds", "-1"], "--seconds: expected seconds above 0, found '-1'"),
        (["--seconds"], "--seconds: expected one argument"),
        (["--sec", "1"], "unrecognized arguments: --sec 1"),
    ],
)
def test_what_is_wrong_with_an_option_is_raised_in_one_line(parser, arguments, told):
    with pytest.raises(UsageError) as caught:
        parser.parse_args(arguments)
    assert str(caught.value) == told


@pytest.mark.parametrize("text", ["0", "-0.5", "nan", "inf", "1e400", "", "one"])
def test_number_that_is_not_above_0_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^expected a load above 0, found '{text}'$"):
        positive(text, "a load above 0")


@pytest.mark.parametrize(("bits", "most"), [(64, 18446744073709551615), (63, 9223372036854775807)])
def test_seed_ends_where_its_bits_do(bits, most):
    assert [seed("0", bits), seed(str(most), bits)] == [0, most]
    for text in (str(most + 1), "-1", "1.0", "²", ""):
        with pytest.raises(
            argparse.ArgumentTypeError, match=rf"^expected a whole number from 0 to 2\^{bits} - 1, found '{text}'$"
        ):
            seed(text, bits)


def test_count_has_two_ends():
    assert (count("1"), count("10000")) == (1, 10_000)
    for text in ("0", "-1", "2.5", "", "10001", "1000000000000"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^expected a whole number from 1 to 10000, found '{text}'$"):
            count(text)


@pytest.mark.parametrize(
    ("error", "status"), [(HarnessError("no room"), 1), (UsageError("no such thing"), 2), (Interrupted("was stopped"), 130)]
)
def test_error_of_the_harness_is_one_line_and_a_status(capsys, error, status):
    def run():
        raise error

    assert exit_status("program.py", run) == status
    assert capsys.readouterr() == ("", f"program.py: {error}\n")


def test_run_without_an_error_gives_its_own_status_and_any_other_error_goes_through(capsys):
    assert exit_status("program.py", lambda: 130) == 130
    with pytest.raises(ZeroDivisionError):
        exit_status("program.py", lambda: 1 // 0)
    with pytest.raises(ImportError):
        exit_status("program.py", lambda: len(str(importlib.import_module("no_such_module"))))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (StopRequested(), 130, "interrupted"),
        (MemoryError(), 1, "memory is not enough"),
        (ImportError("libtiff.so.6: failed to map segment from shared object"), 1, "memory is not enough"),
        (ImportError("libz.so.1: cannot allocate memory in static TLS block"), 1, "memory is not enough"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 1, "Too many open files"),
        (RuntimeError("can't start new thread"), 1, "can't start new thread"),
    ],
)
def test_what_the_machine_or_the_person_ends_costs_one_line(capsys, error, status, says):
    def run():
        raise error

    assert exit_status("program.py", run) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("program.py: ") and says in err and err.count("\n") == 1


@pytest.fixture
def signals_stay_as_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_stop_signal_is_kept_until_somebody_listens(signals_stay_as_they_were):
    stop, heard = StopSignal(), []
    stop.install()
    signal.raise_signal(signal.SIGINT)
    assert stop.received
    stop.tell(lambda: heard.append("stop"))
    assert heard == ["stop"]
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["stop", "stop"]


def test_every_third_ctrl_c_ends_whatever_runs(signals_stay_as_they_were):
    stop = StopSignal()
    stop.install()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    with pytest.raises(StopRequested):
        signal.raise_signal(signal.SIGINT)


def test_closed_terminal_stops_the_run_unless_it_was_started_with_nohup(signals_stay_as_they_were):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with_nohup = StopSignal()
    with_nohup.install()
    signal.raise_signal(signal.SIGHUP)
    assert not with_nohup.received
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    without = StopSignal()
    without.install()
    signal.raise_signal(signal.SIGHUP)
    assert without.received


def test_stop_request_raises_where_it_may_and_waits_where_it_may_not():
    stop, done = StopSignal(), []
    with pytest.raises(StopRequested), interruptible(stop):
        with uninterruptible(stop):
            stop._on_signal(signal.SIGTERM, None)
            done.append("kept")
        done.append("never")
    assert done == ["kept"]
    with pytest.raises(StopRequested), interruptible(stop):
        done.append("never")
    with interruptible(stop, by_earlier=False):
        done.append("although it came before")
    assert done == ["kept", "although it came before"]


PRINTS = """
import sys
from rich.console import Console
from terminal.options import stoppable

def run(stop):
    for _ in range(3):
        print("–", "x" * 5000)
        Console().print("─", "x" * 5000)
    print("done", file=sys.stderr)
    return 7

sys.exit(stoppable("program.py", run))
"""


@pytest.mark.parametrize(
    ("shell", "told"),
    [
        ('"$0" -c "$1" | :; exit ${PIPESTATUS[0]}', ""),
        ('"$0" -c "$1" >/dev/full', "program.py: standard output cannot be written any more: No space left on device\n"),
        ('"$0" -c "$1" >&-', ""),
    ],
    ids=["reader that went away", "full disk", "closed"],
)
def test_standard_output_that_breaks_ends_nothing(shell, told):
    done = _printed(["bash", "-c", shell, sys.executable, PRINTS])
    assert (done.returncode, done.stderr) == (7, f"done\n{told}")


def test_terminal_that_knows_no_dash_shows_a_question_mark():
    done = _printed([sys.executable, "-c", PRINTS])
    assert (done.returncode, done.stderr) == (7, "done\n")
    assert done.stdout.startswith("? xxx")


def _printed(command):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "PYTHONIOENCODING": "ascii"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_standard_streams_are_given_back():
    before = sys.stdout, sys.stderr
    assert exit_status("program.py", lambda: 0) == 0
    assert (sys.stdout, sys.stderr) == before


def test_handlers_of_signals_are_given_back(signals_stay_as_they_were):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert stoppable("program.py", lambda stop: 0) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("program", ["main_pregenerated.py", "compare_schedulers.py", "profile_nodes.py", "report.py"])
def test_programs_run_from_anywhere_without_their_folder_on_the_path(tmp_path, program):
    command = [sys.executable, "-P", PROJECT_ROOT / program, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {program}")
