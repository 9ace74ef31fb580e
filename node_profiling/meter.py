"""Measures one node by itself: one request at a time on a kept connection, in the form the harness sends.

On accelerators that hold one model at a time an inference takes longer when the one before was of another model, so the order of
the models belongs to the measurement. What comes out are durations and what they come to; nothing is left out as an outlier.

A server reads its device's gauges at most once a second, between two inferences, and a request may have to wait for that. It may
in a load too, so such waits stay in the request overhead; they are told from the waits behind requests of others by coming one
at a time, a second apart.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from cluster.http_client import Answer, NodeClient, NodeError, NodeFull
from measurement.intervals import t_interval
from performance_profile import LARGEST_OVERHEAD_MS, NodeMeans, PerformanceProfile
from terminal.options import StopSignal
from utils import HarnessError, Interrupted

_WAITED_S = 2e-3
"""A queue time that a request to a node which serves nobody else does not reach."""
_GAUGES_APART_S, _GAUGES_TAKE_S = 0.9, 0.1
"""Two waits for gauges lie at least so far apart (a second, less what a network may jitter), and none is longer than this."""
_DISTURBED_AT_LEAST, _DISTURBED_SHARE = 2, 0.01
"""So many requests may be refused as full or wait behind others before a node counts as used by somebody else."""
_CLOCK_TOLERANCE = 1e-3
"""By this share the clocks of node and master may differ in pace."""
NOTHING = "nothing was written"


@dataclass(frozen=True, slots=True)
class Spread:
    """What durations come to, in milliseconds; `half_width` is that of the 95 % interval of the mean."""

    count: int
    mean: float
    half_width: float
    std: float
    p50: float
    p99: float
    largest: float

    @property
    def cv(self) -> float:
        """Coefficient of variation."""
        return self.std / self.mean


def spread_of(durations_s: Iterable[float]) -> Spread:
    """Mean, standard deviation (n - 1), percentiles (inverted CDF) and Student's t interval, which takes them as independent."""
    values = np.fromiter(durations_s, float) * 1e3
    mean, _, high = t_interval(values)
    p50, p99 = np.percentile(values, (50, 99), method="inverted_cdf")
    return Spread(len(values), mean, high - mean, float(values.std(ddof=1)), float(p50), float(p99), float(values.max()))


def pooled_cv(spreads: Iterable[Spread]) -> float:
    """Root mean square of the coefficients of variation."""
    return math.sqrt(float(np.mean([spread.cv**2 for spread in spreads])))


@dataclass(frozen=True, slots=True)
class Sample:
    """One counted request; durations in seconds."""

    round_trip_s: float
    inference_time_s: float
    model_switched: bool | None


@dataclass(frozen=True)
class NodeRecord:
    """What was measured on one node.

    Attributes:
        name: of the node.
        binary: whether images travelled as raw bytes, not as JSON.
        samples: its counted requests by model.
        refused: requests that it refused as full.
        waited: requests that waited longer, or sooner after another wait, than for gauges: behind those of others.
        gauge_waits_s: the other waits, which the server's reading of its gauges explains.
        tells_waits: whether all its answers said how long their requests waited.
    """

    name: str
    binary: bool
    samples: Mapping[str, Sequence[Sample]]
    refused: int = 0
    waited: int = 0
    gauge_waits_s: Sequence[float] = ()
    tells_waits: bool = True

    def inference(self) -> dict[str, Spread]:
        """Inference time by model."""
        return {model: spread_of(s.inference_time_s for s in samples) for model, samples in self.samples.items()}

    def overhead(self) -> Spread:
        """Request overhead: round trip minus inference time."""
        return spread_of(s.round_trip_s - s.inference_time_s for samples in self.samples.values() for s in samples)

    def inference_ms(self, model: str, switched: bool) -> list[float]:
        """Inference times in milliseconds where the server said that the inference before was of another model, or was not."""
        return [s.inference_time_s * 1e3 for s in self.samples[model] if s.model_switched is switched]

    def means(self) -> NodeMeans:
        """What the profile takes."""
        mean_ms = {model: spread.mean for model, spread in self.inference().items()}
        return NodeMeans(self.overhead().mean, mean_ms)


def cv_by_accelerator(
    records: Sequence[NodeRecord], profile: PerformanceProfile, absent: Mapping[str, Collection[str]]
) -> dict[str, float]:
    """Pooled coefficient of variation of each accelerator of which every model was measured.

    One number stands for all models of an accelerator, so that of a part of them has no place in a profile.

    Args:
        records: what was measured.
        profile: the profile before.
        absent: models that nodes were found not to serve, by node.
    """
    spreads: dict[str, dict[str, list[Spread]]] = {}
    for record in records:
        by_model = spreads.setdefault(profile.nodes[record.name].accelerator, {})
        for model, spread in record.inference().items():
            by_model.setdefault(model, []).append(spread)
    for name, node in profile.nodes.items():
        served = profile.service_time_s(name).keys() - absent.get(name, ())
        if not served <= spreads.get(node.accelerator, {}).keys():
            spreads.pop(node.accelerator, None)
    return {accelerator: pooled_cv(chain.from_iterable(of.values())) for accelerator, of in spreads.items()}


def planned_requests(
    models: Sequence[str], requests: int, warm_up: int, order: str, rng: np.random.Generator
) -> list[tuple[str, bool]]:
    """What is sent to one node: the model of each request, and whether it counts.

    Args:
        models: the models.
        requests: counted requests of each.
        warm_up: requests of each before, not counted.
        order: mixed or grouped.
        rng: shuffles a mix.
    """
    if order == "grouped":
        return [(model, number >= warm_up) for model in models for number in range(warm_up + requests)]

    def mixed(each: int) -> list[str]:
        return [models[index] for index in rng.permutation(np.repeat(np.arange(len(models)), each))]

    return [(model, False) for model in mixed(warm_up)] + [(model, True) for model in mixed(requests)]


class NodeMeter:
    """Sends planned requests to one node and keeps what it answers.

    Args:
        name: of the node.
        client: its connection.
        binary: send raw bytes, not JSON.
        stop: looked at before each request.
        wrong: why an answer cannot be one to a request for a model, None where it can.
    """

    def __init__(
        self,
        name: str,
        client: NodeClient,
        binary: bool,
        stop: StopSignal,
        wrong: Callable[[str, Answer], str | None] = lambda model, answer: None,
    ) -> None:
        self._name = name
        self._client = client
        self._binary = binary
        self._stop = stop
        self._wrong = wrong
        self._tells_waits = True
        self._refused = self._waited = 0
        self._gauge_waits_s: list[float] = []
        self._gauge_wait_ended_s = -math.inf

    def measure(
        self,
        models: Sequence[str],
        plan: Sequence[tuple[str, bool]],
        noise: np.random.Generator,
        sent: Callable[[], None],
    ) -> NodeRecord:
        """Send what is planned, one after the other.

        Args:
            models: those of the plan.
            plan: model of each request, and whether it counts.
            noise: what emulated nodes draw their service times from; real ones ignore it.
            sent: called after each request.

        Raises:
            HarnessError: the node did not answer, answered what cannot be, or serves somebody else.
            Interrupted: the person wishes so.
        """
        samples: dict[str, list[Sample]] = {model: [] for model in models}
        tolerated = max(_DISTURBED_AT_LEAST, int(_DISTURBED_SHARE * len(plan)))
        for model, counts in plan:
            sample = self._sample(model, float(noise.standard_normal()), tolerated)
            if sample and counts:
                samples[model].append(sample)
            sent()
        for model, counted in samples.items():
            if len(counted) < 2:
                raise HarnessError(f"{self._name} answered {len(counted)} counted requests of {model}, at least 2 are needed")
        record = NodeRecord(
            self._name, self._binary, samples, self._refused, self._waited, self._gauge_waits_s, self._tells_waits
        )
        if not 0 < (overhead_ms := record.overhead().mean) <= LARGEST_OVERHEAD_MS:
            raise HarnessError(f"{self._name}: a request overhead of {overhead_ms:.6g} ms cannot be; {NOTHING}")
        return record

    def _sample(self, model: str, noise: float, tolerated: int) -> Sample | None:
        """One request; None when the node was full."""
        self._require_going_on()
        try:
            self._client.connect()
            sent_s = time.monotonic()
            answer = self._client.infer(model, noise, self._binary)
            round_trip_s = time.monotonic() - sent_s
        except NodeFull as error:
            self._refused += 1
            self._require_alone(tolerated, f"; its last answer was {error}")
            return None
        except NodeError as error:
            self._require_going_on()  # else it was the wish to stop that broke the request off
            raise HarnessError(
                f"{self._name}, {model}: {error}; {NOTHING} (--nodes leaves a node out, --models a model)"
            ) from error
        self._require_plausible(model, answer, round_trip_s)
        if answer.queue_time_s is None:
            self._tells_waits = False
        elif answer.queue_time_s > _WAITED_S:
            self._note_wait(answer.queue_time_s, sent_s + round_trip_s - answer.inference_time_s)
            self._require_alone(tolerated, f"; the last one waited {answer.queue_time_s * 1e3:.3g} ms")
        return Sample(round_trip_s, answer.inference_time_s, answer.model_switched)

    def _note_wait(self, wait_s: float, ended_s: float) -> None:
        """Count a wait as one for gauges if it can be one, else as one behind others."""
        if wait_s <= _GAUGES_TAKE_S and ended_s - self._gauge_wait_ended_s >= _GAUGES_APART_S:
            self._gauge_waits_s.append(wait_s)
            self._gauge_wait_ended_s = ended_s
        else:
            self._waited += 1

    def _require_going_on(self) -> None:
        if self._stop.received:
            raise Interrupted(f"interrupted while {self._name} was measured; {NOTHING}")

    def _require_alone(self, tolerated: int, last: str) -> None:
        if self._refused + self._waited > tolerated:
            raise HarnessError(
                f"{self._name} refused {self._refused} requests and let {self._waited} wait behind others{last}. A node is "
                "measured alone: end what else uses it, or leave it out with --nodes (one wait a second of up to "
                f"{_GAUGES_TAKE_S * 1e3:.0f} ms is not counted, for the server reads its device's gauges; does that take longer "
                f"there?); {NOTHING}"
            )

    def _require_plausible(self, model: str, answer: Answer, round_trip_s: float) -> None:
        if problem := self._wrong(model, answer):
            raise HarnessError(f"{self._name}, {model}: answer is not as agreed: {problem}; {NOTHING}")
        queue_s, inference_s = answer.queue_time_s or 0.0, answer.inference_time_s
        if inference_s == 0 or queue_s + inference_s > round_trip_s * (1 + _CLOCK_TOLERANCE):
            raise HarnessError(
                f"{self._name}, {model}: claims {queue_s * 1e3:.6g} ms of waiting and {inference_s * 1e3:.6g} ms of inference "
                f"in a round trip of {round_trip_s * 1e3:.6g} ms, which cannot be; {NOTHING}"
            )
