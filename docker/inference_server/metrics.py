"""Prometheus metrics of one inference server, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from inference_server.accelerator import BaseAccelerator, InferenceResult

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_MODEL = "unknown"
DURATION_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0)


class ServerMetrics:
    """Counts requests and inferences of one server, and whatever its accelerator adds."""

    def __init__(self, accelerator: BaseAccelerator) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("inference_requests_total", "Requests to /infer.", ["model", "code"], registry=self._registry)
        self._durations = Histogram(
            "inference_duration_seconds",
            "Time on the accelerator, without waiting.",
            ["model"],
            buckets=DURATION_BUCKETS_S,
            registry=self._registry,
        )
        self._switches = Counter(
            "inference_model_switches_total", "Inferences that followed one of another model.", registry=self._registry
        )
        self._queue_full = Counter(
            "inference_queue_full_total", "Requests that were refused because the queue was full.", registry=self._registry
        )
        depth = Gauge("inference_queue_depth", "Requests that wait for the accelerator.", registry=self._registry)
        depth.set_function(lambda: accelerator.queue_depth)
        accelerator.register_metrics(self._registry)

    def request_answered(self, model: str, code: int) -> None:
        """Count one request; `model` is a served model or `UNKNOWN_MODEL`, so that the labels stay few."""
        self._requests.labels(model, str(code)).inc()

    def queue_was_full(self) -> None:
        """Count one request that found no place in the queue; it also counts as a request answered with 503."""
        self._queue_full.inc()

    def inference_done(self, model: str, result: InferenceResult) -> None:
        """Count one inference, its time on the accelerator and whether the model changed."""
        self._durations.labels(model).observe(result.inference_time)
        if result.model_switched:
            self._switches.inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
