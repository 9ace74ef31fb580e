"""What the chip and the module that carries it tell of themselves: firmware, temperatures and, where there is a sensor, power.

Temperatures come at once. Power is never sampled: readings are taken between two inferences, so that an instant's value would
always be of a chip at rest. The firmware averages instead, from one reading to the next.
"""

import logging
from collections.abc import Callable
from typing import Any

from inference_server.backend import Gauge

logger = logging.getLogger(__name__)

POWER_OFF_DETAIL = "the board could report its power, but HAILO_POWER=off"
POWER_ON_DETAIL = "measured by the board; its overcurrent protection is off meanwhile, HAILO_POWER=off leaves it on"
NO_POWER_DETAIL = "this board does not report its power: use the external meter"
NO_CONTROL_DETAIL = "not measured: the chip cannot be asked ({})"


class Board:
    """Readings of one chip, through the control channel of its device.

    Each request is one message to the firmware and back, with Python's interpreter lock held: a few milliseconds at most, as
    far as HailoRT's source tells.

    Args:
        device: a `hailo_platform.Device`, released by `close`.
        measure_power: have the firmware average the module's power where it has a sensor. HailoRT warns that the module's
            overcurrent protection is off meanwhile.

    Attributes:
        details: what `/health` should say.
        firmware_version: such as 4.23.0.
    """

    def __init__(self, device: Any, measure_power: bool) -> None:
        self._device = device
        self._control = device.control
        self._measures_power = False
        self._failing: set[str] = set()
        identity = self._control.identify()
        firmware = identity.firmware_version
        self.firmware_version = f"{firmware.major}.{firmware.minor}.{firmware.revision}"
        self.details = {
            "firmware": self.firmware_version,
            "architecture": str(identity.device_architecture),
            "power": self._started_power(measure_power),
        }

    def gauges(self) -> list[Gauge]:
        """Temperatures of the chip, and the power of its module where that is measured; what cannot be read is left out."""
        gauges = self._reading("temperature", self._temperatures)
        if self._measures_power:
            gauges += self._reading("power", self._power)
        return gauges

    def close(self) -> None:
        """Stop the power measurement, which turns the overcurrent protection on again, and let go of the device."""
        try:
            if self._measures_power:
                self._control.stop_power_measurement()
        except Exception:  # the device may be lost; it is let go of all the same
            logger.exception("stopping the power measurement failed: the module's overcurrent protection may still be off")
        finally:
            self._device.release()

    def _started_power(self, wanted: bool) -> str:
        """Start measuring where that is possible and wanted; what `/health` says of it."""
        try:
            if not self._control.get_extended_device_information().supported_features.current_monitoring:
                return NO_POWER_DETAIL
            if not wanted:
                return POWER_OFF_DETAIL
            self._control.set_power_measurement()
            self._control.start_power_measurement()
        except Exception as error:  # inferences do not depend on it
            logger.warning("the board's power cannot be measured: %s", error)
            return f"not measured: {error}"
        self._measures_power = True
        logger.warning("power: %s", POWER_ON_DETAIL)
        return POWER_ON_DETAIL

    def _reading(self, what: str, read: Callable[[], list[Gauge]]) -> list[Gauge]:
        """What `read` gives, or nothing; a failure is logged once until it works again."""
        try:
            gauges = read()
        except Exception as error:  # one reading that fails must not take the others away
            if what not in self._failing:
                self._failing.add(what)
                logger.warning("reading the %s of the Hailo chip failed: %s", what, error)
            return []
        self._failing.discard(what)
        return gauges

    def _temperatures(self) -> list[Gauge]:
        measured = self._control.get_chip_temperature()
        return [
            Gauge("hailo_temperature_ts0_celsius", "Temperature of the chip at its sensor 0.", measured.ts0_temperature),
            Gauge("hailo_temperature_ts1_celsius", "Temperature of the chip at its sensor 1.", measured.ts1_temperature),
        ]

    def _power(self) -> list[Gauge]:
        measured = self._control.get_power_measurement(should_clear=True)
        if measured.total_number_of_samples == 0:  # the sensor averages over 0.56 s: too soon for a new value
            return []
        help_text = "Mean power of the Hailo module since the reading before, by its own sensor; without the Raspberry Pi."
        return [Gauge("hailo_power_watts", help_text, measured.average_value)]
