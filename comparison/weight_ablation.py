"""Settings of a TOPSIS policy with one criterion taken out, to see what that criterion is worth."""

from typing import Any

from settings import Settings
from utils import UsageError

CRITERIA = ("slack", "performance", "power", "load")

_WEIGHTS = {"topsis": ("weights",), "power_aware_topsis": ("weights_calm", "weights_busy")}
"""Settings that hold the weights, by the policy, whose own settings bear its name."""

ABLATED = tuple(_WEIGHTS)
"""The policies whose weights can be taken out."""


def without(settings: Settings, scheduler_name: str, criterion: str) -> Settings:
    """`settings` with weight 0 for `criterion` in every set of weights of the policy called `scheduler_name`.

    Args:
        settings: settings of the experiment.
        scheduler_name: one of `ABLATED`.
        criterion: one of `CRITERIA`.

    Raises:
        UsageError: no other criterion of one of these sets has a weight above 0.
    """
    own: dict[str, Any] = getattr(settings, scheduler_name).model_dump()
    for name in _WEIGHTS[scheduler_name]:
        own[name] = {**own[name], criterion: 0.0}
        if not any(own[name].values()):
            raise UsageError(f"{scheduler_name}.{name}: nothing is left without {criterion}, the only weight above 0")
    return settings.replace(**{scheduler_name: own})
