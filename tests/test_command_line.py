"""What command lines share: which values options take, what is told of an error, and when the wish to stop is heard."""

import argparse
import signal

import pytest

from command_line import OptionParser, StopSignal, count, exit_status, positive, seconds, seed
from utils import HarnessError, Interrupted, UsageError


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


def test_count_begins_at_1():
    assert count("1") == 1
    for text in ("0", "-1", "2.5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^expected a whole number from 1 on, found '{text}'$"):
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
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def signals_stay_as_they_were():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
