"""What the tests of the servers share: a client on a kept connection and a backend without a device. Valid Python 3.6."""

import http.client
import json
import threading
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from inference_server import Accelerator, Backend

DOCKER = Path(__file__).resolve().parents[2] / "docker"
PATIENCE_S = 30


def opened(accelerator: Accelerator) -> Accelerator:
    """The accelerator, once its device is open."""
    assert accelerator.opened.wait(PATIENCE_S)
    return accelerator


class Answer(NamedTuple):
    """An HTTP answer with its body decoded."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Client:
    """One kept connection to a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def request(self, method: str, path: str, body: Any = None, headers: Optional[Dict[str, str]] = None) -> Answer:
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def infer(self, image: Any, model: str = "resnet50", **headers: str) -> Answer:
        binary = {"Content-Type": "application/octet-stream"}
        return self.request("POST", "/infer?model=" + model, image, dict(binary, **headers))

    def close(self) -> None:
        self._connection.close()


class FakeBackend(Backend):
    """Answers with the first byte of the image; holds each inference while its gate is closed."""

    accelerator = "fake"

    def __init__(self) -> None:
        self.models = ["resnet50", "mobilenet"]
        self.absent = {"vgg16": "no file for this device"}
        self.details = {"driver": "1.2.3"}
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.calls: List[Tuple[str, int]] = []
        self.failure: Optional[Exception] = None
        self.made_in = threading.current_thread()
        self.closed_in: Optional[threading.Thread] = None

    def infer(self, model: str, image: bytes) -> int:
        self.calls.append((model, image[0]))
        self.begun.release()
        assert self.gate.wait(PATIENCE_S)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return image[0]

    def close(self) -> None:
        self.closed_in = threading.current_thread()
