"""Runs the sensors of one host on one event loop, and serves or writes what they measure, until it is told to end."""

import asyncio
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server

from power_agent import ina3221, meter
from power_agent.measurement import Measurement
from power_agent.metrics import TEXTFILE, registry_of, write_textfile
from power_agent.rows import ATORCH_BLE, Row

TEXTFILE_PERIOD_S = 1.0

logger = logging.getLogger(__name__)

Sensor = meter.AtorchMeter | ina3221.Ina3221


def measurement_of(row: Row) -> Measurement:
    """An empty measurement of the row's node."""
    kinds = meter.ERROR_KINDS if row.sensor == ATORCH_BLE else ina3221.ERROR_KINDS
    return Measurement(row.node, row.accelerator, kinds)


def sensor_of(row: Row, measurement: Measurement, sysfs: Path, radio: asyncio.Lock) -> Sensor:
    """The row's sensor, which writes into `measurement`."""
    if row.sensor == ATORCH_BLE:
        return meter.AtorchMeter(row.address, measurement, radio, row.checksum)
    return ina3221.Ina3221(row.address, measurement, sysfs)


async def run(rows: Sequence[Row], sysfs: Path, listen: tuple[str, int] | None, textfile: Path | None) -> None:
    """Measure until SIGTERM or SIGINT.

    Args:
        rows: what this host reads.
        sysfs: where the host's sysfs is mounted.
        listen: address and port for Prometheus; None: not served.
        textfile: folder of node-exporter's textfile collector; None: not written.

    Raises:
        OSError: the port cannot be opened, or the folder not be written.
        BluetoothHangs: the host's Bluetooth service does not answer; its sensors are read no more.
    """
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    measurements = [measurement_of(row) for row in rows]
    registry = registry_of(measurements)
    radio = asyncio.Lock()
    with _served(registry, listen):
        if textfile is not None:
            write_textfile(textfile, registry)
        works = [sensor_of(row, of, sysfs, radio).run() for row, of in zip(rows, measurements, strict=True)]
        tasks = [asyncio.create_task(work) for work in works]
        if textfile is not None:
            tasks.append(asyncio.create_task(_keep_textfile(textfile, registry)))
        if not rows:
            logger.info("no row names this host: nothing to measure")
        told = asyncio.create_task(ending.wait())
        done, _ = await asyncio.wait([told, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in (told, *tasks):
            task.cancel()
        await asyncio.gather(told, *tasks, return_exceptions=True)
        if textfile is not None:
            (textfile / TEXTFILE).unlink(missing_ok=True)
    for task in done - {told}:
        task.result()
    logger.info("ended")


@contextmanager
def _served(registry: CollectorRegistry, listen: tuple[str, int] | None) -> Iterator[None]:
    if listen is None:
        yield
        return
    address, port = listen
    server, thread = start_http_server(port, address, registry)
    logger.info("serves http://%s:%d/metrics", address, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def _keep_textfile(folder: Path, registry: CollectorRegistry) -> None:
    written = True
    while True:
        await asyncio.sleep(TEXTFILE_PERIOD_S)
        try:
            write_textfile(folder, registry)
        except OSError as error:
            if written:
                logger.warning("%s cannot be written, tried again each second: %s", folder / TEXTFILE, error)
            written = False
        else:
            written = True
