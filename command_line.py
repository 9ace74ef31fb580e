"""What the command lines share: options that are checked, the wish to stop, exit statuses, and one line for what went wrong."""

import argparse
import logging
import math
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from utils import HarnessError, Interrupted, UsageError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


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


def count(text: str) -> int:
    """How many of something; at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


class StopSignal:
    """Turns SIGINT and SIGTERM into a wish that is looked at where stopping is safe."""

    def __init__(self) -> None:
        self.received = False
        self._tell: Callable[[], None] | None = None

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def tell(self, stop: Callable[[], None]) -> None:
        """Call `stop`, from the signal handler, when the wish comes; at once if it has come."""
        self._tell = stop
        if self.received:
            stop()

    def _on_signal(self, number: int, frame: object) -> None:
        self.received = True
        if self._tell:
            self._tell()


def exit_status(program: str, run: Callable[[], int]) -> int:
    """The status of `run`, or of the error that ended it, which is then told in one line on standard error."""
    try:
        return run()
    except HarnessError as error:
        print(f"{program}: {error}", file=sys.stderr)
        if isinstance(error, Interrupted):
            return EXIT_INTERRUPTED
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


def stoppable(program: str, run: Callable[[StopSignal], int]) -> int:
    """`exit_status` of a program that looks at the wish to stop; warnings go to standard error as they are."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop = StopSignal()
    stop.install()
    return exit_status(program, lambda: run(stop))
