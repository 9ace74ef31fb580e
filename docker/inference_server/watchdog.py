"""Ends the process when the device hangs, since a thread that waits inside a driver cannot be ended otherwise.

A driver that hangs may hold the interpreter's lock, so that no other thread of Python runs. `start_watchdog` needs the lock and
says what is wrong in the log; `ended_after` needs none, and comes a moment later.
"""

import faulthandler
import logging
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator, Optional

if TYPE_CHECKING:
    from inference_server.accelerator import BaseAccelerator

logger = logging.getLogger(__name__)

EXIT_HANGS = 70
CHECK_EVERY_S = 0.25
LOCK_LEAD_S = 1.0


@contextmanager
def ended_after(limit_s: Optional[float]) -> Iterator[None]:
    """End the process with status 1 if the block takes `LOCK_LEAD_S` longer than it may, whoever holds the interpreter's lock.

    The thread that waits is not one of Python. It writes to standard error where each thread of Python stands. There is one such
    timer in a process: blocks must not overlap.

    Args:
        limit_s: how long the block may take, in seconds; None: for ever.
    """
    if limit_s is None:
        yield
        return
    faulthandler.dump_traceback_later(limit_s + LOCK_LEAD_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def start_watchdog(
    accelerator: "BaseAccelerator",
    inference_timeout_s: float,
    open_timeout_s: float,
    end_process: Callable[[int], None] = os._exit,
) -> None:
    """Watch an accelerator from a thread of its own.

    Args:
        accelerator: what is watched.
        inference_timeout_s: an inference older than this, in seconds, ends the process.
        open_timeout_s: the same for opening the device with its models, closing it and asking for its gauges.
        end_process: called with the exit status 70.
    """

    def watch() -> None:
        """Look again and again, until there is a reason to end."""
        while True:
            defect = accelerator.defect()
            if defect is not None:
                logger.critical("%s: the process ends", defect)
                end_process(EXIT_HANGS)
                return
            for what, age_s, limit_s in (
                ("an inference", accelerator.oldest_inference_age_s(), inference_timeout_s),
                ("opening, closing or reading the accelerator", accelerator.upkeep_age_s(), open_timeout_s),
            ):
                if age_s > limit_s:
                    logger.critical("%s has taken %.1f s, more than %g s: the process ends", what, age_s, limit_s)
                    end_process(EXIT_HANGS)
                    return
            time.sleep(CHECK_EVERY_S)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
