"""What the command lines share: checked options, the stop request, standard streams that may break, and exit statuses."""

import argparse
import errno
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, NoReturn, TextIO, cast

from utils import NO_RESOURCES, HarnessError, Interrupted, StopRequested, UsageError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class OptionParser(argparse.ArgumentParser):
    """Takes options by their full names, and says what is wrong with one by a UsageError of one line."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(prog=program, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message.removeprefix("argument "))


def positive(text: str, expected: str) -> float:
    """A finite number above 0; the error says what was `expected`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def seconds(text: str) -> float:
    """A length of time."""
    return positive(text, "seconds above 0")


def seed(text: str, bits: int = 64) -> int:
    """A seed of so many bits."""
    if not text.isdecimal() or int(text) >= 2**bits:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^{bits} - 1, found {text!r}")
    return int(text)


def count(text: str, most: int = 10_000) -> int:
    """How many of something; at least one."""
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {most}, found {text!r}")
    return int(text)


def namespace(text: str) -> str:
    """A namespace of Kubernetes."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"expected a name of small letters, digits and -, found {text!r}")
    return text


class StopSignal:
    """Records SIGINT, SIGTERM and SIGHUP as a stop request, polled where stopping is safe.

    The third SIGINT raises StopRequested wherever the program is: nothing may keep it from ending.
    """

    def __init__(self) -> None:
        self.received = False
        self._interrupts = 0
        self.on_stop: Callable[[], None] | None = None

    def install(self) -> None:
        """Take over the signals; a SIGHUP that is ignored (`nohup`) stays so."""
        for number in _STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def tell(self, stop: Callable[[], None], at_once: bool = True) -> None:
        """Call `stop`, from the signal handler, when a stop request comes; now, if one has come and `at_once` says so."""
        self.on_stop = stop
        if self.received and at_once:
            stop()

    def _on_signal(self, number: int, frame: object) -> None:
        self.received = True
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 2:
            raise StopRequested
        if self.on_stop:
            self.on_stop()


@contextmanager
def interruptible(stop: StopSignal, by_earlier: bool = True) -> Iterator[None]:
    """Inside, a stop request raises StopRequested at once, `by_earlier` also one that came before."""
    before = stop.on_stop
    try:
        stop.tell(_raise_stop, by_earlier)
        yield
    finally:
        stop.on_stop = before


@contextmanager
def uninterruptible(stop: StopSignal) -> Iterator[None]:
    """Inside, a stop request waits; afterwards it does what it would have done before."""
    before = stop.on_stop
    stop.on_stop = None
    yield
    if before:
        stop.tell(before)


def _raise_stop() -> None:
    raise StopRequested


class _Output:
    """A standard stream that may break (a closed pipe or terminal, a full disk): what follows is dropped, and nothing raised."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a terminal that knows no dash shows a question mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        if self.error or self._stream.closed:
            return
        try:
            action(*arguments)
        except OSError as error:
            self.error = error
            with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())  # what the stream still holds goes there, at the latest at exit


@contextmanager
def _standard_streams() -> Iterator[_Output]:
    """Inside, standard output and error never raise; the first of them."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # a stream that was closed before the start is None
        output, errors = _Output(before[0] or nowhere), _Output(before[1] or nowhere)
        sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
        try:
            yield output
        finally:
            output.flush()
            errors.flush()
            sys.stdout, sys.stderr = before


def exit_status(program: str, run: Callable[[], int]) -> int:
    """The status of `run`, or of the error that ended it, which is then told in one line on standard error."""
    with _standard_streams() as output:
        status, line = _status_and_line(run)
        output.flush()
        if output.error and output.error.errno not in (errno.EPIPE, errno.EIO):  # nobody reads it any more: no matter
            line = line or f"standard output cannot be written any more: {output.error.strerror}"
        if line:
            print(f"{program}: {line}", file=sys.stderr)
    return status


def _status_and_line(run: Callable[[], int]) -> tuple[int, str]:
    """The exit status of `run`, and what to say of the error that ended it."""
    try:
        return run(), ""
    except HarnessError as error:
        interrupted = EXIT_INTERRUPTED if isinstance(error, Interrupted) else EXIT_FAILED
        return EXIT_USAGE if isinstance(error, UsageError) else interrupted, str(error)
    except StopRequested:
        return EXIT_INTERRUPTED, "interrupted"
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and not _NO_ROOM_TO_LOAD.search(str(error)):
            raise
        return EXIT_FAILED, "memory is not enough: expected a shorter run, fewer devices or less load, or more memory"
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None) not in NO_RESOURCES and str(error) != _NO_THREAD:
            raise
        return EXIT_FAILED, f"this machine gives the process no more: {error} (see ulimit -a)"


_NO_ROOM_TO_LOAD = re.compile("failed to map segment|[Cc]annot allocate memory")
"""What the dynamic loader says of a library that finds no room in memory."""
_NO_THREAD = "can't start new thread"


def stoppable(program: str, run: Callable[[StopSignal], int]) -> int:
    """`exit_status` of a program that looks at the stop request; warnings go to standard error as they are."""
    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    stop = StopSignal()
    stop.install()

    def run_stoppable() -> int:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        return run(stop)

    try:
        return exit_status(program, run_stoppable)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
