"""Which nodes and models are measured: what was asked for, what the profile knows, and what the nodes say of themselves."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.http_client import NO_MODELS, Health, NodeClient, NodeUnreachable, wrong_node
from experiment import choose_cluster
from inference_request import placeholders
from performance_profile import PerformanceProfile
from utils import HarnessError, UsageError, did_you_mean

logger = logging.getLogger(__name__)


def choose_nodes(
    cluster: str, asked: Sequence[str] | None, profile: PerformanceProfile, path: Path, workers: Mapping[str, str]
) -> tuple[str, str | None, list[str]]:
    """Which nodes to measure.

    Args:
        cluster: what `--cluster` says: auto, workers or emulated.
        asked: names of nodes, or None for all.
        profile: the profile before.
        path: its file.
        workers: address of each worker.

    Returns:
        The kind of cluster, the line that says so where `auto` chose the emulated one, and the names of the nodes.

    Raises:
        UsageError: a node is unknown or has no address yet.
    """
    if cluster == "auto" and len(placeholders(workers)) == len(workers):
        kind, notice = choose_cluster("auto", workers)
    else:  # only the nodes that are measured need an address
        meant = {name: url for name, url in workers.items() if name in (asked or workers)}
        kind, notice = choose_cluster("emulated" if cluster == "emulated" else "workers", meant)
    known = list(workers if kind == "workers" else profile.nodes)
    names = list(asked or known)
    for name in names:
        if name not in known:
            whose = "the workers" if kind == "workers" else path
            raise UsageError(f"--nodes: {name} is not among {whose}: {', '.join(known)}{did_you_mean(name, known)}")
        if name not in profile.nodes:
            raise UsageError(f"worker {name} is not in {path}, which must hold a row with its accelerator and power")
    return kind, notice, names


def ask_health(clients: Mapping[str, NodeClient], profile: PerformanceProfile) -> dict[str, Health]:
    """What each node says of itself.

    Raises:
        HarnessError: a node is not ready, or another node than the one meant answers.
    """
    healths: dict[str, Health] = {}
    unreachable: dict[str, str] = {}
    for name, client in clients.items():
        try:
            healths[name] = client.health()
        except NodeUnreachable as error:
            unreachable[name] = str(error)
    if unreachable:
        reasons = "; ".join(f"{name}: {why}" for name, why in unreachable.items())
        others = f" (the others alone: --nodes {','.join(healths)})" if healths else ""
        raise HarnessError(f"not every node is ready, nothing was measured: {reasons}{others}")
    for name, health in healths.items():
        if health.models is None:
            logger.warning("%s: %s", name, NO_MODELS)
            healths[name] = health._replace(models=frozenset(profile.service_time_s(name)))
        if problem := wrong_node(name, health, profile):
            raise HarnessError(f"{name}: {problem}, nothing was measured")
    return healths


def choose_models(asked: Sequence[str] | None, profile: PerformanceProfile, healths: Mapping[str, Health]) -> list[str]:
    """The models to measure: those of the profile, or those asked for, which may be new to it if a node serves them.

    Raises:
        UsageError: a model is unknown.
    """
    known = dict.fromkeys([*profile.latency, *sorted(model for health in healths.values() for model in health.models or ())])
    for model in asked or ():
        if model not in known:
            raise UsageError(
                f"--models: neither the profile nor a node knows {model!r}, known: {', '.join(known)}{did_you_mean(model, known)}"
            )
    return list(asked or profile.latency)
