"""Finds the inference servers of the Kubernetes cluster: the node and the address of each pod that is ready.

The list of pods comes from standard input, where `kubectl get pods -o json` is given there, else from the cluster's API.
"""

import json
import os
import select
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TextIO

import yaml
from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, ValidationError, model_validator
from urllib3.exceptions import HTTPError, HTTPWarning, NewConnectionError
from urllib3.exceptions import TimeoutError as HttpTimeout

from utils import HarnessError, Interrupted, UsageError

LABELS = {"app.kubernetes.io/part-of": "edge-accelerator-harness", "app.kubernetes.io/component": "inference-server"}
"""Of every inference server's pod, whatever its accelerator."""
LABEL_SELECTOR = ",".join(f"{key}={value}" for key, value in LABELS.items())
NAMESPACE = "default"
DEFAULT_PORT = 8080
API_TIMEOUT_S = 5.0
COPY_OF_K3S = 'mkdir -p ~/.kube && sudo install -m 600 -o "$USER" /etc/rancher/k3s/k3s.yaml ~/.kube/config'
"""Command that gives a user of a k3s master a kubeconfig, which others cannot read."""

_STANDARD_INPUT = "standard input"
_CHECK_S = 0.1
_NO_CONFIGURATION = (
    f"on a k3s master, `{COPY_OF_K3S}` and `export KUBECONFIG=$HOME/.kube/config`; "
    "or pipe `kubectl get pods -o json` into this program"
)


class Patience(NamedTuple):
    """How long a pipe may say nothing: until that is told, and until it is given up; a password may have to be typed for it."""

    told_after_s: float = 2.0
    given_up_after_s: float = 60.0


PATIENCE = Patience()


def discover_workers(
    known_nodes: Sequence[str],
    tell: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
    patience: Patience = PATIENCE,
) -> dict[str, str]:
    """Address of `/infer` by node, as in WORKERS, of every inference server that is ready.

    Args:
        known_nodes: the nodes in the order in which they shall come; others come after them.
        tell: told in one line of what is waited for, which API is asked, each pod that is left out and why, and what was found.
        stopping: asked again and again while standard input is waited for; True gives up.
        patience: with a pipe that says nothing; afterwards the API is asked.

    Raises:
        UsageError: what was given is no list of pods, two servers are ready on one node, or the cluster's API is not configured.
        HarnessError: no server is ready, or the API does not answer.
        Interrupted: `stopping` said so.
    """
    source, text = _STANDARD_INPUT, read_given(sys.stdin, tell, stopping, patience)
    if not text.strip():
        source, configuration = "the Kubernetes API", _api_configuration()
        tell(f"asking {source} at {configuration.host}")
        text = _pods_of_cluster(configuration)
    found = workers_of(pods_in(text, source), known_nodes)
    for line in found.left_out:
        tell(line)
    if not found.workers:
        look = f"`kubectl get pods -n {NAMESPACE} -l {LABEL_SELECTOR} -o wide`"
        raise HarnessError(f"{source}: no pod that is ready has the labels {LABEL_SELECTOR}; look at {look}")
    missing = [name for name in known_nodes if name not in found.workers]
    without = f"; no server on {', '.join(missing)}" if missing else ""
    tell(f"{source}: servers on {', '.join(found.workers)}{without}")
    return found.workers


class _Part(BaseModel):
    """What is read of an object of Kubernetes; what else it holds is ignored, and what is null or empty counts as absent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        return {key: each for key, each in value.items() if each not in (None, "")} if isinstance(value, dict) else value


class _Metadata(_Part):
    name: str
    labels: dict[str, str] = {}
    deleted: str | None = Field(default=None, validation_alias="deletionTimestamp")


class _Port(_Part):
    name: str = ""
    number: int = Field(alias="containerPort", ge=1, le=65535)


class _Container(_Part):
    ports: list[_Port] = []


class _Spec(_Part):
    node: str | None = Field(default=None, validation_alias="nodeName")
    containers: list[_Container] = []


class _Condition(_Part):
    type: str
    status: str


class _Waiting(_Part):
    reason: str = ""


class _State(_Part):
    waiting: _Waiting = _Waiting()


class _ContainerStatus(_Part):
    state: _State = _State()


class _Status(_Part):
    phase: str = "Unknown"
    reason: str = ""
    ip: IPvAnyAddress | None = Field(default=None, validation_alias="podIP")
    conditions: list[_Condition] = []
    containers: list[_ContainerStatus] = Field(default=[], validation_alias="containerStatuses")


class Pod(_Part):
    """One inference server's pod, as far as it is of interest here."""

    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()

    @property
    def problem(self) -> str | None:
        """Why no request can be sent to it, or None."""
        status = self.status
        waits_for = [each.state.waiting.reason for each in status.containers if each.state.waiting.reason]
        because = f" ({', '.join(filter(None, [status.reason, *waits_for]))})" if status.reason or waits_for else ""
        if self.metadata.deleted:
            return "it is being deleted"
        if status.phase != "Running":
            return f"its phase is {status.phase}{because}, not Running"
        if not any(condition.type == "Ready" and condition.status == "True" for condition in status.conditions):
            return f"it is not ready{because}"
        return None if status.ip and self.spec.node else "it has no address yet"

    @property
    def infer_url(self) -> str:
        """Address of `/infer`, at the container port named http."""
        ports = [port.number for container in self.spec.containers for port in container.ports if port.name == "http"]
        host = f"[{self.status.ip}]" if self.status.ip and self.status.ip.version == 6 else str(self.status.ip)
        return f"http://{host}:{ports[0] if ports else DEFAULT_PORT}/infer"


class Found(NamedTuple):
    """The workers, and one line for each inference server that cannot be one."""

    workers: dict[str, str]
    left_out: list[str]


def pods_in(text: bytes, source: str) -> list[Pod]:
    """The inference servers' pods in what `kubectl get … -o json` or the API says; what has other labels is passed over unread.

    Args:
        text: JSON: a list, a list of several kinds of things, or a single pod.
        source: where it came from, for the error text.

    Raises:
        UsageError: it is something else.
    """
    expected = f"{source}: expected what `kubectl get pods -o json` prints"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{expected}, found {text[:60].decode(errors='replace')!r}, which is not JSON") from None
    kind = content.get("kind") if isinstance(content, dict) else None
    items = [content] if kind == "Pod" else content.get("items") or [] if kind in ("PodList", "List") else None
    if not isinstance(items, list):
        raise UsageError(f"{expected}, found {f'the kind {kind}' if kind else 'JSON of another kind'}")
    try:
        return [Pod.model_validate(item) for item in items if not _is_another_thing(item)]
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        where = ".".join(map(str, error["loc"])) or "an item"
        raise UsageError(f"{expected}, found a pod that is none: {where}: {error['msg']}") from None


def _is_another_thing(item: Any) -> bool:
    """Whether an item of a list is surely none of our pods, by its kind or its labels."""
    if not isinstance(item, dict):
        return False
    metadata = item.get("metadata")
    labels = (metadata.get("labels") or {}) if isinstance(metadata, dict) else None
    return item.get("kind", "Pod") != "Pod" or (isinstance(labels, dict) and not LABELS.items() <= labels.items())


def workers_of(pods: Iterable[Pod], known_nodes: Sequence[str]) -> Found:
    """The workers among the servers' pods, in the order of `known_nodes`, those on other nodes last.

    Raises:
        UsageError: two inference servers are ready on one node.
    """
    ready: dict[str, Pod] = {}
    left_out: list[str] = []
    for pod in pods:
        node = pod.spec.node or "no node"
        if pod.problem:
            left_out.append(f"pod {pod.metadata.name} on {node} is left out: {pod.problem}")
        elif node in ready:
            both = f"{ready[node].metadata.name} and {pod.metadata.name}"
            raise UsageError(f"node {node}: expected one inference server that is ready, found two, {both}: delete one of them")
        else:
            ready[node] = pod
    order = [*known_nodes, *sorted(ready.keys() - set(known_nodes))]
    return Found({node: ready[node].infer_url for node in order if node in ready}, left_out)


def read_given(
    stream: TextIO | None,
    tell: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
    patience: Patience = PATIENCE,
) -> bytes:
    """What a pipe or a file holds; nothing for a terminal, for /dev/null, and for a pipe on which nothing comes.

    Args:
        stream: standard input.
        tell: told in one line that a pipe is waited for, and that a pipe or a file held nothing.
        stopping: asked again and again while a pipe is waited for; True gives up.
        patience: with a pipe that says nothing.

    Raises:
        UsageError: it cannot be read, or stops in the middle.
        Interrupted: `stopping` said so.
    """
    try:
        descriptor = stream.fileno() if stream else -1
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # it is closed, or stands for no file
        return b""
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return b""
    parts: list[bytes] = []
    while _something_comes(descriptor, tell if not parts else None, stopping, patience):
        try:
            part = os.read(descriptor, 1 << 16)
        except OSError as error:
            raise UsageError(f"{_STANDARD_INPUT}: cannot be read: {error.strerror}") from None
        if not part:
            if not b"".join(parts).strip():
                tell(f"{_STANDARD_INPUT}: expected a list of pods, found nothing")
            return b"".join(parts)
        parts.append(part)
    silence = f"{patience.given_up_after_s:g} s"
    if parts:
        raise UsageError(f"{_STANDARD_INPUT}: expected a whole list of pods, found one that stops for {silence}")
    tell(f"{_STANDARD_INPUT}: expected a list of pods, found nothing within {silence}")
    return b""


def _something_comes(
    descriptor: int, tell: Callable[[str], None] | None, stopping: Callable[[], bool], patience: Patience
) -> bool:
    """Wait until there is something to read, or the end, and say so where `tell` is given; False when it takes too long."""
    since_s = time.monotonic()
    while not select.select([descriptor], [], [], _CHECK_S)[0]:
        if stopping():
            raise Interrupted(f"stopped while {_STANDARD_INPUT} was waited for")
        silent_s = time.monotonic() - since_s
        if tell and silent_s > patience.told_after_s:
            tell(f"waiting up to {patience.given_up_after_s:g} s for a list of pods on {_STANDARD_INPUT}, which is a pipe")
            tell = None
        if silent_s > patience.given_up_after_s:
            return False
    return True


def _pods_of_cluster(configuration: Any) -> bytes:
    """The API's list of the inference servers, JSON.

    Args:
        configuration: how to reach it.

    Raises:
        HarnessError: it does not answer, or refuses.
    """
    from kubernetes.client import ApiClient, ApiException, CoreV1Api  # half a second, which only this way should take

    configuration.retries = False
    api = f"the Kubernetes API at {configuration.host}"
    try:
        with warnings.catch_warnings(), ApiClient(configuration) as client:
            warnings.simplefilter("ignore", HTTPWarning)  # a kubeconfig may do without certificates; that is its owner's choice
            response: Any = CoreV1Api(client).list_namespaced_pod(
                NAMESPACE, label_selector=LABEL_SELECTOR, _preload_content=False, _request_timeout=API_TIMEOUT_S
            )
            return bytes(response.data)
    except ApiException as error:
        raise HarnessError(f"{api} {_refusal(error.status, error.reason)}") from None
    except NewConnectionError as error:
        reason = error.__cause__ or error
        raise HarnessError(f"{api} cannot be reached: {getattr(reason, 'strerror', None) or reason}") from None
    except HttpTimeout:
        raise HarnessError(f"{api} did not answer within {API_TIMEOUT_S:g} s") from None
    except (HTTPError, OSError, ValueError) as error:
        raise HarnessError(f"{api} cannot be asked: {error}") from None


def _refusal(status: int | None, reason: str | None) -> str:
    if status == 401:
        return "does not accept the credentials of the kubeconfig (401)"
    if status == 403:
        return f"does not let the user of the kubeconfig list pods in the namespace {NAMESPACE} (403)"
    return f"answers {status}: {reason}" if status else f"cannot be asked: {reason}"


def _api_configuration() -> Any:
    """How to reach the API: the kubeconfig of KUBECONFIG or ~/.kube/config, or what a pod is given.

    Raises:
        UsageError: there is none, or it cannot be used.
    """
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

    path = os.environ.get("KUBECONFIG") or "~/.kube/config"
    configuration = Configuration()
    try:
        load_kube_config(path, client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]  # typed in part
    except ConfigException as error:
        try:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # typed in part
        except ConfigException:
            raise UsageError(f"no configuration of the Kubernetes API in {path} ({error}); {_NO_CONFIGURATION}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; {_NO_CONFIGURATION}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:  # YAML of any other shape
        raise UsageError(f"{path}: expected a kubeconfig, found something else ({type(error).__name__})") from None
    return configuration
