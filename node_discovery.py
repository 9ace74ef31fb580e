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
PIPE_PATIENCE_S = 10.0

_STANDARD_INPUT = "standard input"
_CHECK_S = 0.1
_NO_CONFIGURATION = (
    "on a k3s master, `export KUBECONFIG=/etc/rancher/k3s/k3s.yaml`, which only root may read unless k3s was installed with "
    "--write-kubeconfig-mode 644; or pipe `kubectl get pods -o json` into this program"
)


def discover_workers(
    known_nodes: Sequence[str], tell: Callable[[str], None], stopping: Callable[[], bool] = lambda: False
) -> dict[str, str]:
    """Address of `/infer` by node, as in WORKERS, of every inference server that is ready.

    Args:
        known_nodes: the nodes in the order in which they shall come; others come after them.
        tell: told in one line of each pod that is left out and why, and of what was found.
        stopping: asked again and again while standard input is waited for; True gives up.

    Raises:
        UsageError: what was given is no list of pods, two servers are ready on one node, or the cluster's API is not configured.
        HarnessError: no server is ready, or the API does not answer.
        Interrupted: `stopping` said so.
    """
    text = read_given(sys.stdin, stopping)
    source = _STANDARD_INPUT if text.strip() else "the Kubernetes API"
    found = workers_of(pods_in(text if text.strip() else _pods_of_cluster(), source), known_nodes)
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
    """One pod, as far as it is of interest here."""

    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()

    @property
    def is_server(self) -> bool:
        """Whether it is an inference server, by its labels."""
        return LABELS.items() <= self.metadata.labels.items()

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
    """The pods in what `kubectl get … -o json` or the API says: a list, a list of several kinds of things, or a single pod.

    Args:
        text: JSON.
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
        return [Pod.model_validate(item) for item in items if not isinstance(item, dict) or item.get("kind", "Pod") == "Pod"]
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        where = ".".join(map(str, error["loc"])) or "an item"
        raise UsageError(f"{expected}, found a pod that is none: {where}: {error['msg']}") from None


def workers_of(pods: Iterable[Pod], known_nodes: Sequence[str]) -> Found:
    """The workers among the pods, in the order of `known_nodes`, those on other nodes last.

    Raises:
        UsageError: two inference servers are ready on one node.
    """
    ready: dict[str, Pod] = {}
    left_out: list[str] = []
    for pod in filter(lambda pod: pod.is_server, pods):
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


def read_given(stream: TextIO | None, stopping: Callable[[], bool] = lambda: False) -> bytes:
    """What a pipe or a file holds; nothing for a terminal, for /dev/null, and for a pipe on which nothing comes.

    Args:
        stream: standard input.
        stopping: asked again and again while a pipe is waited for; True gives up.

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
    while _something_comes(descriptor, stopping):
        try:
            part = os.read(descriptor, 1 << 16)
        except OSError as error:
            raise UsageError(f"{_STANDARD_INPUT}: cannot be read: {error.strerror}") from None
        if not part:
            return b"".join(parts)
        parts.append(part)
    if parts:
        raise UsageError(f"{_STANDARD_INPUT}: expected a whole list of pods, found one that stops for {PIPE_PATIENCE_S:g} s")
    return b""


def _something_comes(descriptor: int, stopping: Callable[[], bool]) -> bool:
    """Wait until there is something to read, or the end; False when it takes too long."""
    give_up_s = time.monotonic() + PIPE_PATIENCE_S
    while not select.select([descriptor], [], [], _CHECK_S)[0]:
        if stopping():
            raise Interrupted(f"stopped while {_STANDARD_INPUT} was waited for")
        if time.monotonic() > give_up_s:
            return False
    return True


def _pods_of_cluster() -> bytes:
    """The API's list of the inference servers, JSON.

    Raises:
        UsageError: there is no configuration of the API.
        HarnessError: the API does not answer, or refuses.
    """
    from kubernetes.client import ApiClient, ApiException, CoreV1Api  # half a second, which only this way should take

    configuration = _api_configuration()
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
