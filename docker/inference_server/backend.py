"""What a device's server implements, and the errors that pass between a device, its queue and the HTTP application."""

import logging
import time
from abc import ABC, abstractmethod
from typing import Dict, List, NamedTuple, Optional

logger = logging.getLogger(__name__)

IMAGE_SIDE = 224
IMAGE_BYTES = IMAGE_SIDE * IMAGE_SIDE * 3
BREATH_S = 0.01


class QueueFull(Exception):
    """As many requests wait as may wait; the client should try another node."""


class AcceleratorGone(Exception):
    """The device is lost or cannot be opened, or the server is closing; the message says which."""


class OutOfMemory(Exception):
    """The device has no memory for this inference now; a later one may succeed."""


class InvalidRequest(ValueError):
    """The accelerator cannot take this request; the message says what was found and what was expected."""


class UnusableModel(Exception):
    """A model cannot be served by this device; the message says why."""


class Gauge(NamedTuple):
    """One value that a device reports of itself, for `/metrics`."""

    name: str
    documentation: str
    value: float


class Backend(ABC):
    """One device with its models loaded. Made, used and closed by one and the same thread.

    Attributes:
        accelerator: the kind of device, such as "coral".
        models: names of the models that are really loaded.
        absent: why each of the other models is not served, by its name.
        details: what else `/health` should say, such as versions.
        last_model: the model that the device computed last before it serves requests; None if there was none.
    """

    accelerator: str
    models: List[str]
    absent: Dict[str, str]
    details: Dict[str, str]
    last_model: Optional[str] = None

    @abstractmethod
    def infer(self, model: str, image: bytes) -> int:
        """Classify one image.

        Args:
            model: one of `models`.
            image: exactly 224 * 224 * 3 uint8, row by row, RGB.

        Returns:
            Index of the most likely class.

        Raises:
            AcceleratorGone: the device is lost.
            OutOfMemory: the device has no memory for it now.
        """

    def gauges(self) -> List[Gauge]:
        """What the device reports of itself now; asked about once a second, between two inferences."""
        return []

    def close(self) -> None:  # noqa: B027 -- not every device needs closing
        """Release the device."""


def let_others_run() -> None:
    """Leave the interpreter to other threads for a moment.

    Loading a model may hold its lock for seconds. Called between two of them, this has /livez answered in between.
    """
    time.sleep(BREATH_S)


def described(error: Exception) -> str:
    """Kind and text of an error that was not meant for people; the text alone of one that was."""
    meant = isinstance(error, (AcceleratorGone, OutOfMemory, UnusableModel))
    return str(error) if meant else f"{type(error).__name__}: {error}"


def warmed_up(backend: Backend) -> Backend:
    """The backend after one inference of each model; those that fail are absent from then on.

    Raises:
        AcceleratorGone: the device is lost, or none of its models can be served. The backend is closed then.
    """
    try:
        for model in list(backend.models):
            began_s = time.monotonic()
            try:
                backend.infer(model, bytes(IMAGE_BYTES))
            except AcceleratorGone:
                raise
            except Exception as error:  # this model only; the others may be fine
                backend.models.remove(model)
                backend.absent[model] = f"its first inference failed: {described(error)}"
            else:
                backend.last_model = model
                logger.info("model ready", extra={"model": model, "first_inference_s": round(time.monotonic() - began_s, 4)})
        for model, reason in backend.absent.items():
            logger.warning("model absent", extra={"model": model, "reason": reason})
        if not backend.models:
            reasons = "; ".join(f"{model}: {reason}" for model, reason in backend.absent.items())
            raise AcceleratorGone(f"none of the models can be served ({reasons or 'the manifest names none'})")
    except BaseException:
        backend.close()
        raise
    return backend
