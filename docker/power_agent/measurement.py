"""What was measured at one node: watts over the last whole second, joules so far, and what went wrong."""

import logging
import math
from collections import Counter
from dataclasses import dataclass

LONGEST_GAP_S = 5.0
"""Two samples further apart are not joined: no energy is added in between. A sample older than this is no longer exposed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sensor showed at one moment.

    Attributes:
        voltage_v: in volts.
        current_a: in amperes.
    """

    voltage_v: float
    current_a: float

    @property
    def power_w(self) -> float:
        """Watts."""
        return self.voltage_v * self.current_a


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a measurement after a sample.

    Attributes:
        time_s: when the sample was taken, on the monotonic clock.
        energy_j: joules since the agent started.
        measured_s: seconds that these joules were measured over, gaps left out.
        mean_power_w: mean watts over the last whole second of the clock that lies between samples; None while there is none.
    """

    time_s: float
    energy_j: float
    measured_s: float
    mean_power_w: float | None

    def age_s(self, now_s: float) -> float:
        """Seconds since the sample."""
        return now_s - self.time_s


class EnergyIntegral:
    """Joins samples by straight lines (trapezoidal rule), except over gaps.

    Both figures come from the same lines, so that a mean of the watts and an increase of the joules agree.
    """

    def __init__(self) -> None:
        self._energy_j = self._measured_s = 0.0
        self._last: tuple[float, float] | None = None
        self._second: tuple[int, float] | None = None
        self._mean_power_w: float | None = None

    def add(self, time_s: float, power_w: float) -> Snapshot:
        """Take a sample.

        Args:
            time_s: monotonic seconds, not before those of the sample before.
            power_w: watts at that moment.
        """
        if self._last is None or time_s - self._last[0] > LONGEST_GAP_S:
            self._second = self._mean_power_w = None
            if time_s.is_integer():
                self._second = int(time_s), self._energy_j
        else:
            self._join(*self._last, time_s, power_w)
        self._last = time_s, power_w
        return Snapshot(time_s, self._energy_j, self._measured_s, self._mean_power_w)

    def _join(self, from_s: float, from_w: float, to_s: float, to_w: float) -> None:
        for second in range(math.floor(from_s) + 1, math.floor(to_s) + 1):
            part_s = second - from_s
            at_second_w = from_w + (to_w - from_w) * part_s / (to_s - from_s)
            self._whole_second(second, self._energy_j + (from_w + at_second_w) / 2 * part_s)
        self._energy_j += (from_w + to_w) / 2 * (to_s - from_s)
        self._measured_s += to_s - from_s

    def _whole_second(self, second: int, energy_j: float) -> None:
        if self._second is not None:
            self._mean_power_w = energy_j - self._second[1]
        self._second = second, energy_j


class Measurement:
    """What one sensor says of one node. The event loop writes; whoever exposes it reads `snapshot` and `errors`.

    Args:
        node: the node that is measured.
        accelerator: its kind of accelerator.
        error_kinds: what may go wrong with this sensor.
    """

    def __init__(self, node: str, accelerator: str, error_kinds: tuple[str, ...]) -> None:
        self.node = node
        self.accelerator = accelerator
        self.snapshot: Snapshot | None = None
        self.errors = Counter(dict.fromkeys(error_kinds, 0))
        self._integral = EnergyIntegral()
        self._delivers = False
        self._logged: set[str] = set()

    def add(self, time_s: float, reading: Reading) -> None:
        """Take a reading.

        Args:
            time_s: when, on the monotonic clock.
            reading: volts and amperes.
        """
        if not self.is_fresh(time_s):
            logger.info("%s: reads %.2f V, %.2f A", self.node, reading.voltage_v, reading.current_a)
            self._logged.clear()
        self.snapshot = self._integral.add(time_s, reading.power_w)
        self._delivers = True

    def lost(self) -> None:
        """The sensor is known to deliver nothing any more, until it adds a reading again."""
        self._delivers = False

    def is_fresh(self, now_s: float) -> bool:
        """Whether the latest sample may be exposed: the sensor was not lost since, and it is at most `LONGEST_GAP_S` old."""
        return self._delivers and self.snapshot is not None and self.snapshot.age_s(now_s) <= LONGEST_GAP_S

    def failed(self, kind: str, reason: str) -> None:
        """Count a failure; log the first of its kind since the sensor began, or began again, to deliver."""
        self.errors[kind] += 1
        if kind not in self._logged:
            logger.warning("%s: %s: %s", self.node, kind, " ".join(reason.split()))
        self._logged.add(kind)
