"""Two hundred clients at once before one accelerator. Valid Python 3.6."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference_server import Accelerator, create_app
from inference_server.backend import IMAGE_BYTES
from tests.docker.servers import PATIENCE_S, Client, FakeBackend, opened

CLIENTS = 200


class OrderedAccelerator(Accelerator):
    """Remembers in which order requests came to the queue; its `all_came` is set when each client's did."""

    def __init__(self, backend, queue_capacity):
        super().__init__(lambda: backend, queue_capacity)
        self.order = []
        self.tried = 0
        self.all_came = threading.Event()

    def submit(self, model, image, headers):
        self.tried += 1
        try:
            future = super().submit(model, image, headers)
            self.order.append(image[0])
            return future
        finally:
            if self.tried == CLIENTS:
                self.all_came.set()


def ask(port, number):
    client = Client(port)
    answer = client.infer(bytes([number]) + bytes(IMAGE_BYTES - 1))
    client.close()
    return answer


@pytest.mark.parametrize("capacity, served", [(200, 200), (199, 200), (50, 51)])
def test_as_many_as_may_wait_are_served_in_order_and_exactly_the_others_are_told_to_come_again(run_app, capacity, served):
    backend = FakeBackend()
    accelerator = OrderedAccelerator(backend, capacity)
    opened(accelerator)
    port = run_app(create_app("fake1", accelerator)).port
    backend.gate.clear()
    with ThreadPoolExecutor(CLIENTS) as pool:
        first = pool.submit(ask, port, 0)
        assert backend.begun.acquire(timeout=PATIENCE_S)  # one is computed, the others come while it is
        asked = [first] + [pool.submit(ask, port, number) for number in range(1, CLIENTS)]
        assert accelerator.all_came.wait(PATIENCE_S)
        assert accelerator.queue_depth == served - 1
        backend.gate.set()
        answers = [future.result(PATIENCE_S) for future in asked]
    accelerator.close()

    assert [first_byte for _, first_byte in backend.calls] == accelerator.order
    done = [number for number, answer in enumerate(answers) if answer.status == 200]
    assert sorted(accelerator.order) == done
    assert len(done) == served
    assert all(answers[number].json["top1"] == number for number in done)
    refused = [answer for answer in answers if answer.status != 200]
    assert {answer.status for answer in refused} <= {503}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
