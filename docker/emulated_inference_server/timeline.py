"""When an accelerator that serves one request after another is busy: pure arithmetic, on a clock of the caller's.

Every instant is in seconds on that one clock. The time of a call may not lie before that of an earlier call.
"""

from collections import deque
from dataclasses import dataclass

from inference_server import QueueFull

HISTORY_S = 2.0  # the last whole second began less than two seconds ago


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one request on the timeline.

    Attributes:
        ready_s: when it reaches the queue of the accelerator.
        free_before_s: when the accelerator is done with those ahead.
        start_s: when its service begins.
        service_s: how long it takes, in seconds.
        hold_after_s: how long its answer travels, in seconds.
        transfer_s: how long the host is at work on receiving it until `ready_s`, and again on answering from `end_s` on, in
            seconds; it began before this node knew of the request.
    """

    ready_s: float
    free_before_s: float
    start_s: float
    service_s: float
    hold_after_s: float
    transfer_s: float

    @property
    def end_s(self) -> float:
        """When its service ends and the accelerator is free for the next one."""
        return self.start_s + self.service_s

    @property
    def answer_s(self) -> float:
        """When its answer leaves."""
        return self.end_s + self.hold_after_s


class Timeline:
    """The slots of one accelerator, first come first served.

    Slots that ended more than `HISTORY_S` ago are kept only as a sum, so that memory stays bounded.

    Args:
        start_s: the instant at which the accelerator begins to be free.
        capacity: how many requests may wait for it.
    """

    def __init__(self, start_s: float, capacity: int) -> None:
        self._capacity = capacity
        self._free_s = start_s
        self._slots: deque[Slot] = deque()
        self._forgotten_busy_s = 0.0
        self._forgotten_transfer_s = 0.0

    def reserve(self, now_s: float, service_s: float, hold_s: float, transfer_s: float = 0.0) -> Slot:
        """Give a request that is received now its place.

        Args:
            now_s: the instant of receipt.
            service_s: its service time, in seconds.
            hold_s: travel time, in seconds, before the queue and again after the service.
            transfer_s: how long the host works on it, in seconds, before the queue and again after the service.

        Raises:
            QueueFull: when it reaches the queue, `capacity` requests will still be waiting there.
        """
        self._forget(now_s - HISTORY_S)
        ready_s = now_s + hold_s
        ahead = self._starting_after(ready_s)
        if ahead >= self._capacity:
            raise QueueFull(f"{ahead} requests are waiting already")
        slot = Slot(ready_s, self._free_s, max(ready_s, self._free_s), service_s, hold_s, transfer_s)
        self._slots.append(slot)
        self._free_s = slot.end_s
        return slot

    def withdraw(self, slot: Slot, now_s: float) -> bool:
        """Take a request back if its service has not begun; those behind it move up.

        Returns:
            Whether it was taken back.
        """
        if slot.start_s <= now_s:
            return False
        behind = []
        while (last := self._slots.pop()) is not slot:
            behind.append(last)
        self._free_s = slot.free_before_s
        self._forgotten_transfer_s += _overlap_s(slot.ready_s - slot.transfer_s, slot.ready_s, now_s)
        for follower in reversed(behind):
            follower.free_before_s = self._free_s
            follower.start_s = max(follower.ready_s, self._free_s, now_s)
            self._free_s = follower.end_s
            self._slots.append(follower)
        return True

    def waiting(self, now_s: float) -> int:
        """Requests that have been received and whose service has not begun."""
        return self._starting_after(now_s)

    def busy_s(self, until_s: float) -> float:
        """Seconds the accelerator was busy up to an instant, exactly.

        Args:
            until_s: no more than `HISTORY_S` before the time of the latest `reserve`.
        """
        total_s = self._forgotten_busy_s
        for slot in self._slots:
            if slot.start_s >= until_s:
                break
            total_s += min(slot.end_s, until_s) - slot.start_s
        return total_s

    def transfer_s(self, until_s: float) -> float:
        """Seconds that the host worked on receiving and answering requests up to an instant; two at once count twice.

        Args:
            until_s: as in `busy_s`.
        """
        return self._forgotten_transfer_s + sum(
            _overlap_s(slot.ready_s - slot.transfer_s, slot.ready_s, until_s)
            + _overlap_s(slot.end_s, slot.end_s + slot.transfer_s, until_s)
            for slot in self._slots
        )

    def _starting_after(self, instant_s: float) -> int:
        count = 0
        for slot in reversed(self._slots):
            if slot.start_s <= instant_s:
                break
            count += 1
        return count

    def _forget(self, before_s: float) -> None:
        while self._slots and self._slots[0].end_s + self._slots[0].transfer_s <= before_s:
            slot = self._slots.popleft()
            self._forgotten_busy_s += slot.end_s - slot.start_s
            self._forgotten_transfer_s += 2 * slot.transfer_s


def _overlap_s(start_s: float, end_s: float, until_s: float) -> float:
    """Length of an interval as far as it lies before `until_s`."""
    return max(0.0, min(end_s, until_s) - start_s)
