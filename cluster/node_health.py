"""How one node behind HTTP is doing: its outages, the models that it refuses, and when it is to be asked again.

Bookkeeping alone: nothing here waits, sends or reads a clock. Times are handed in, seconds on the master's monotonic clock.
"""

import math
from collections import Counter
from collections.abc import Sequence

FAULTS_UNTIL_OUT = 3
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 2.0
"""Between two tries to reach a node whose connections are lost."""
LONGEST_PROBE_PAUSE_S = 30.0
"""Between two probes of a node, or of a model there, that answered badly."""
SILENT_S = 1.0
"""How much longer than the time between two questions to `/health`, or than an inference takes, a node may be silent."""


class NodeHealth:
    """What the answers of one node say of it.

    A good answer is an inference as agreed or a good `/health`. An outage lasts from the last good answer until the node is
    offered again. One that was never noticed, since no request was lost to it, counts too: the node was silent for long, or kept
    a request waiting for long and answered no other meanwhile.

    Args:
        health_interval_s: time between two questions to `/health` of a node that is up.

    Attributes:
        withheld: models that the node is not offered, because it answers them badly, or refuses them and other nodes do not.
        distrusted: it is out by bad answers: only a good probe brings it back, health alone does not.
        outage_count: how often it went out.
    """

    def __init__(self, health_interval_s: float) -> None:
        self.withheld: set[str] = set()
        self.distrusted = False
        self.outage_count = 0
        self._interval_s = health_interval_s
        self._first_pause_s = min(FIRST_PAUSE_S, health_interval_s)
        self._last_answer_s = self._last_inference_s = -math.inf
        self._noticed_s: float | None = None
        self._periods: list[tuple[float, float]] = []
        self._faults_in_a_row = 0
        self._refusals_in_a_row: Counter[str] = Counter()
        self._last_refused: str | None = None
        self._tries: Counter[str | None] = Counter()  # of one model, or of the node (None), since a task was served
        self._longest_pause_s = LONGEST_PAUSE_S
        self._probe_due_s: dict[str, float] = {}

    def answered(self, now_s: float) -> None:
        """A good answer came."""
        if self._noticed_s is not None:
            return  # the outage ends when the node is offered again
        if self._is_silent(now_s):
            self._periods.append((self._last_answer_s, now_s))
        self._last_answer_s = max(now_s, self._last_answer_s)

    def served(self, model: str, now_s: float, probe: bool = False) -> None:
        """A good inference came, of a task or of a probe. Pauses grow until a task is served: a probe may be answered alone."""
        self.answered(now_s)
        self._faults_in_a_row = self._refusals_in_a_row[model] = 0
        self.withheld.discard(model)
        if not probe:
            self._tries[None] = self._tries[model] = 0

    def answered_task(self, sent_s: float, expected_s: float, now_s: float) -> None:
        """A task that takes about `expected_s` was answered; `/health` may have been good all the time."""
        silent_since_s = max(sent_s, self._last_inference_s)
        if now_s - silent_since_s > expected_s + SILENT_S:
            self._periods.append((silent_since_s, now_s))
        self._last_inference_s = now_s

    def lost(self) -> None:
        """A connection broke, or an inference was not answered in time."""
        self._faults_in_a_row += 1

    def refused(self, model: str, now_s: float, own_fault: bool, lacks_model: bool, served_elsewhere: bool) -> bool:
        """A bad answer to an inference came. Whether the node has to go out for it.

        Args:
            model: what was asked for.
            now_s: when the answer came.
            own_fault: no request makes such an answer right, whatever other nodes say to it.
            lacks_model: the node says that it does not have this model, which says nothing of others.
            served_elsewhere: another node answers such requests well.
        """
        self._refusals_in_a_row[model] += 1
        self._last_refused = model
        if not lacks_model:
            self._faults_in_a_row += 1
            if self._faults_in_a_row >= FAULTS_UNTIL_OUT and (own_fault or served_elsewhere):
                return True
        if self._refusals_in_a_row[model] >= FAULTS_UNTIL_OUT and (own_fault or served_elsewhere):
            self._withhold(model, now_s)
        return False

    def went_out(self, now_s: float, offers_nothing: bool) -> bool:
        """The node is offered no more; whether it was until now."""
        if self._noticed_s is not None:
            return False
        self._noticed_s = now_s
        self.outage_count += 1
        self.distrusted = offers_nothing or self._faults_in_a_row >= FAULTS_UNTIL_OUT
        self._longest_pause_s = LONGEST_PROBE_PAUSE_S if self.distrusted else LONGEST_PAUSE_S
        return True

    def went_out_after(self, asked_s: float) -> bool:
        """Whether the node went out later than an instant, and is."""
        return self._noticed_s is not None and self._noticed_s > asked_s

    def came_back(self, now_s: float) -> bool:
        """The node is offered; whether it was not until now."""
        if self._noticed_s is None:
            self.answered(now_s)
            return False
        self._periods.append((self._last_answer_s, now_s))
        self._noticed_s, self._last_answer_s = None, now_s
        self._tries[None] = self._tries[None] + 1 if self.distrusted else 0
        self._probe_due_s = dict.fromkeys(self.withheld, now_s)
        self.distrusted = False
        return True

    def try_failed(self, now_s: float, probed: str | None = None) -> None:
        """The node did not answer `/health`, or gave a bad answer to a probe of a model: the next try comes later."""
        self._longest_pause_s = LONGEST_PAUSE_S
        if self._noticed_s is not None:
            self._tries[None] += 1
        if probed is not None:
            self._longest_pause_s = LONGEST_PROBE_PAUSE_S
            self._withhold(probed, now_s)

    def pause_s(self, now_s: float) -> float:
        """How long to wait before the node is asked again."""
        if self._noticed_s is not None:
            return self._growing_pause_s(None, self._longest_pause_s)
        until_probe_s = [max(self._first_pause_s, self._probe_due_s[model] - now_s) for model in self.withheld]
        return min([self._interval_s, *until_probe_s])

    def probe_of(self, models: Sequence[str], now_s: float) -> str | None:
        """The model that a probe is to ask for now, None for no probe.

        The model that was refused last comes first, then those that were probed in vain least.

        Args:
            models: what the node says it serves, the quickest first.
            now_s: now.
        """
        due = [model for model in models if self.distrusted or (model in self.withheld and now_s >= self._probe_due_s[model])]
        return min(due, key=lambda model: (self._tries[model], model != self._last_refused), default=None)

    def outages(self, start_s: float, now_s: float) -> list[tuple[float, float]]:
        """From and until when it was out, seconds after `start_s`; earlier outages are left out, one that lasts ends now."""
        periods = list(self._periods)
        if self._noticed_s is not None or self._is_silent(now_s):
            periods.append((self._last_answer_s, now_s))
        return _apart([(max(0.0, since_s - start_s), until_s - start_s) for since_s, until_s in periods if until_s > start_s])

    def _withhold(self, model: str, now_s: float) -> None:
        self.withheld.add(model)
        self._probe_due_s[model] = now_s + self._growing_pause_s(model, LONGEST_PROBE_PAUSE_S)
        self._tries[model] += 1

    def _growing_pause_s(self, tried: str | None, longest_s: float) -> float:
        return min(self._first_pause_s * 2.0 ** min(self._tries[tried], 60), longest_s)

    def _is_silent(self, now_s: float) -> bool:
        return -math.inf < self._last_answer_s < now_s - self._interval_s - SILENT_S


def _apart(periods: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time in order, periods that overlap made one."""
    apart: list[tuple[float, float]] = []
    for since_s, until_s in sorted(periods):
        if apart and since_s < apart[-1][1]:
            apart[-1] = apart[-1][0], max(apart[-1][1], until_s)
        else:
            apart.append((since_s, until_s))
    return apart
