"""The rows of the configuration: which node is measured by which sensor, and which host reads it.

    - {node: coral1, accelerator: coral, sensor: atorch_ble, address: "A4:C1:38:00:00:01"}
    - {node: jetson1, accelerator: jetson, sensor: atorch_ble, address: "A4:C1:38:00:00:02", host: coral1}
    - {node: jetson2, accelerator: jetson, sensor: ina3221}
    - {node: hailo1, accelerator: hailo, sensor: atorch_ble, address: "A4:C1:38:00:00:03", checksum: false}

`host` is the Kubernetes node that reads the sensor, by default the measured one. `address` is a Bluetooth address, or the name of
a rail of the INA3221 (default POM_5V_IN). An address in angle brackets is a placeholder: its row is left out. `checksum: false`
is for a meter whose frames do not end with the documented checksum, as a J7-C.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from power_agent.ina3221 import DEFAULT_RAIL

ATORCH_BLE = "atorch_ble"
INA3221 = "ina3221"
SENSORS = (ATORCH_BLE, INA3221)
KEYS = ("node", "accelerator", "sensor", "address", "host", "checksum")

_PLACEHOLDER = re.compile(r"<.*>")
_BLUETOOTH_ADDRESS = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){5}")

logger = logging.getLogger(__name__)


class InvalidRows(Exception):
    """The configuration cannot be used; says which row, what it holds and what was expected."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured node.

    Attributes:
        node: Kubernetes name of the measured node.
        accelerator: its kind of accelerator.
        sensor: one of SENSORS.
        address: Bluetooth address in capitals, or name of the rail.
        host: Kubernetes name of the node that reads the sensor.
        checksum: whether the meter's frames end with their checksum.
    """

    node: str
    accelerator: str
    sensor: str
    address: str
    host: str
    checksum: bool = True

    @property
    def is_placeholder(self) -> bool:
        """Whether the address has still to be filled in."""
        return bool(_PLACEHOLDER.fullmatch(self.address))


def load_rows(path: Path, host: str) -> list[Row]:
    """The rows that this host reads. All are checked, also those of other hosts.

    Args:
        path: YAML file with a list of rows.
        host: Kubernetes name of this host.

    Raises:
        InvalidRows: the file cannot be read, or a row in it is wrong.
    """
    content = _content(path)
    if not isinstance(content, list):
        raise InvalidRows(f"{path}: found {_shown(content)}, expected a list of rows")
    rows = []
    for number, fields in enumerate(content, start=1):
        try:
            rows.append(_row(fields))
        except InvalidRows as error:
            name = f" ({fields['node']})" if isinstance(fields, dict) and "node" in fields else ""
            raise InvalidRows(f"{path}: row {number}{name}: {error}") from None
    _refuse_twice(path, rows, "node", lambda row: row.node)
    meters = [row for row in rows if row.sensor == ATORCH_BLE and not row.is_placeholder]
    _refuse_twice(path, meters, "address", lambda row: row.address)
    return [row for row in rows if row.host == host and not _left_out(row)]


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice: where a dash is forgotten, the later row would take the place of the earlier."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key, _ in node.value:
            if key.value in keys:
                where = f"line {key.start_mark.line + 1}: key {_shown(key.value)}"
                raise InvalidRows(f"{where} stands twice in one row, expected a dash before each row")
            keys.append(key.value)
        return super().construct_mapping(node, deep)


def _content(path: Path) -> Any:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except InvalidRows as error:
        raise InvalidRows(f"{path}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # no text, or a wrong tag
        raise InvalidRows(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidRows(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    return [] if content is None else content


def _left_out(row: Row) -> bool:
    if row.is_placeholder:
        logger.warning("%s: left out: its address is still the placeholder %s", row.node, row.address)
    return row.is_placeholder


def _row(fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise InvalidRows(f"found {_shown(fields)}, expected the keys {', '.join(KEYS)}")
    if unknown := [str(key) for key in fields if key not in KEYS]:
        raise InvalidRows(f"unknown key {', '.join(unknown)}, expected {', '.join(KEYS)}")
    checksum = fields.get("checksum", True)
    if not isinstance(checksum, bool):
        raise InvalidRows(f"checksum is {_shown(checksum)}, expected true or false")
    for key, value in fields.items():
        if key == "checksum":
            continue
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise InvalidRows(f"{key} is {_shown(value)}, expected text (in quotes, if YAML takes it for something else)")
    if missing := [key for key in ("node", "accelerator", "sensor") if key not in fields]:
        raise InvalidRows(f"{', '.join(missing)} is missing")
    if fields["sensor"] not in SENSORS:
        raise InvalidRows(f"sensor is {_shown(fields['sensor'])}, expected {' or '.join(SENSORS)}")
    row = Row(
        node=fields["node"],
        accelerator=fields["accelerator"],
        sensor=fields["sensor"],
        address=fields.get("address", DEFAULT_RAIL if fields["sensor"] == INA3221 else ""),
        host=fields.get("host") or fields["node"],
        checksum=checksum,
    )
    if row.sensor == INA3221 and "checksum" in fields:
        raise InvalidRows(f"checksum is {_shown(checksum)}, but an INA3221 has none: expected it with {ATORCH_BLE} only")
    return _checked_meter(row) if row.sensor == ATORCH_BLE else _checked_rail(row)


def _checked_meter(row: Row) -> Row:
    address = row.address if row.is_placeholder else row.address.upper()
    if not row.is_placeholder and not _BLUETOOTH_ADDRESS.fullmatch(address):
        raise InvalidRows(f"address is {_shown(row.address)}, expected the meter's Bluetooth address, like A4:C1:38:00:00:01")
    return replace(row, address=address)


def _checked_rail(row: Row) -> Row:
    if row.host != row.node:
        raise InvalidRows(f"host is {_shown(row.host)}, but an INA3221 is read on its own board: expected {row.node} or no host")
    return row


def _refuse_twice(path: Path, rows: list[Row], key: str, value: Callable[[Row], str]) -> None:
    values = [value(row) for row in rows]
    if twice := sorted({each for each in values if values.count(each) > 1}):
        raise InvalidRows(f"{path}: {key} {', '.join(twice)} stands in more than one row, expected one row each")


def _shown(value: Any) -> str:
    return ascii(value)[:60]
