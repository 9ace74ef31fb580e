"""Finds the inference servers of the Kubernetes cluster: the node and the address of each pod that is ready.

The list of pods comes from standard input, where `kubectl get pods -o json` is given there, else from the cluster's API.
"""

import json
import math
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import yaml
from pydantic import AliasPath, BaseModel, ConfigDict, Field, IPvAnyAddress, ValidationError, model_validator

from cluster.kubernetes_api import COPY_ANEW, COPY_OF_K3S, LARGEST_LIST_BYTES, Api
from utils import HarnessError, Interrupted, UsageError, printable

LABELS = {"app.kubernetes.io/part-of": "edge-accelerator-harness", "app.kubernetes.io/component": "inference-server"}
"""Of every inference server's pod, whatever its accelerator."""
LABEL_SELECTOR = ",".join(f"{key}={value}" for key, value in LABELS.items())
NAMESPACE = "default"
DEFAULT_PORT = 8080
API_TIMEOUT_S = 10.0
"""For one question to the API and the whole of its answer."""

_STANDARD_INPUT = "standard input"
_CHECK_S = 0.1
_PART_BYTES = 1 << 16
_NO_CONFIGURATION = (
    f"on a k3s master, `{COPY_OF_K3S}` and `export KUBECONFIG=$HOME/.kube/config`; "
    "or pipe `kubectl get pods -o json` into this program"
)


class Patience(NamedTuple):
    """How long a pipe may say nothing: until that is told, and until it is given up; a password may have to be typed for it.

    The whole list may take `whole_s` from its first byte on.
    """

    told_after_s: float = 2.0
    given_up_after_s: float = 60.0
    whole_s: float = 120.0


PATIENCE = Patience()

_SELECTED = {"labelSelector": LABEL_SELECTOR}
_LISTS: dict[str, dict[str, str]] = {"List": {}, **{f"{kind}List": {"kind": kind} for kind in ("Pod", "Node", "DaemonSet")}}
"""Lists by kind, each with what their items leave out, as in what the API answers."""
_NODE_TERMS = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")


def discover_workers(
    known_nodes: Sequence[str],
    tell: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
    patience: Patience = PATIENCE,
    namespace: str = NAMESPACE,
) -> dict[str, str]:
    """Address of `/infer` by node, as in WORKERS, of every inference server that is ready.

    Args:
        known_nodes: the nodes in the order in which they shall come; others come after them.
        tell: told in one line of what is waited for, which API is asked, each pod that is left out and why, and what was found.
        stopping: asked again and again while standard input or the API is waited for; True gives up.
        patience: with a pipe that says nothing; afterwards the API is asked.
        namespace: the one whose pods are taken.

    Raises:
        UsageError: what was given is no list of pods, two servers are ready on one node, or the cluster's API is not configured.
        HarnessError: no server is ready, or the API does not answer.
        Interrupted: `stopping` said so.
    """
    source, text = _STANDARD_INPUT, read_given(sys.stdin, tell, stopping, patience)
    api = None if text.strip() else Api(_api_configuration(), API_TIMEOUT_S, stopping)
    if api:
        source = "the Kubernetes API"
        tell(f"asking {api.name}")
        text = api.get(f"/api/v1/namespaces/{namespace}/pods", f"list pods in the namespace {namespace}", _SELECTED)
    items = _items_of(text, source)
    pods = _pods_among(items, source)
    found = workers_of(pods, known_nodes, namespace)
    for line in found.left_out:
        tell(line)
    missing = [name for name in known_nodes if name not in found.workers]
    if missing:
        others = _nodes_and_daemonsets(api, namespace, bool(pods), tell) if api else items
        for line in _reasons(others, namespace, bool(pods)):
            tell(line)
    if not found.workers:
        look = f"`kubectl get pods -n {namespace} -l {LABEL_SELECTOR} -o wide`"
        also = "" if pods else f" and `kubectl get daemonsets -n {namespace}`"
        raise HarnessError(f"{source}: no pod that is ready has the labels {LABEL_SELECTOR}; look at {look}{also}")
    without = f"; no server on {', '.join(missing)}" if missing else ""
    tell(printable(f"{source}: servers on {', '.join(found.workers)}{without}", 1000))
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
    namespace: str = ""
    labels: dict[str, str] = {}
    deleted: str | None = Field(default=None, validation_alias="deletionTimestamp")


class _Port(_Part):
    name: str = ""
    number: int = Field(alias="containerPort", ge=1, le=65535)


class _Container(_Part):
    ports: list[_Port] = []


class _Field(_Part):
    key: str = ""
    values: list[str] = []


class _NodeTerm(_Part):
    fields: list[_Field] = Field(default=[], validation_alias="matchFields")


class _Spec(_Part):
    node: str | None = Field(default=None, validation_alias="nodeName")
    containers: list[_Container] = []
    terms: list[_NodeTerm] = Field(default=[], validation_alias=AliasPath(*_NODE_TERMS))


class _Condition(_Part):
    type: str
    status: str
    reason: str = ""
    message: str = ""


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
        because = self._because()
        if self.metadata.deleted:
            return "it is being deleted"
        if status.phase != "Running":
            return f"its phase is {status.phase}{because}, not Running"
        if not any(condition.type == "Ready" and condition.status == "True" for condition in status.conditions):
            return f"it is not ready{because}"
        return None if status.ip and self.spec.node else "it has no address yet"

    def _because(self) -> str:
        """What Kubernetes says of a pod that does not run, in brackets."""
        waits_for = [each.state.waiting.reason for each in self.status.containers]
        not_placed = [
            f"{condition.reason}: {condition.message}" if condition.message else condition.reason
            for condition in self.status.conditions
            if condition.type == "PodScheduled" and condition.status != "True"
        ]
        reasons = list(filter(None, [self.status.reason, *waits_for, *not_placed]))
        return f" ({', '.join(reasons)})" if reasons else ""

    @property
    def node(self) -> str:
        """Where it runs, or where its DaemonSet wants it while it is not placed."""
        wanted = [name for term in self.spec.terms for each in term.fields if each.key == "metadata.name" for name in each.values]
        return self.spec.node or (wanted[0] if len(wanted) == 1 else "no node")

    @property
    def infer_url(self) -> str:
        """Address of `/infer`, at the container port named http."""
        ports = [port.number for container in self.spec.containers for port in container.ports if port.name == "http"]
        host = f"[{self.status.ip}]" if self.status.ip and self.status.ip.version == 6 else str(self.status.ip)
        return f"http://{host}:{ports[0] if ports else DEFAULT_PORT}/infer"


class _Node(_Part):
    metadata: _Metadata
    status: _Status = _Status()


class _DaemonSetStatus(_Part):
    desired: int = Field(default=0, validation_alias="desiredNumberScheduled")
    current: int = Field(default=0, validation_alias="currentNumberScheduled")


class _DaemonSet(_Part):
    metadata: _Metadata
    selector: dict[str, str] = Field(default={}, validation_alias=AliasPath("spec", "template", "spec", "nodeSelector"))
    status: _DaemonSetStatus = _DaemonSetStatus()


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
    return _pods_among(_items_of(text, source), source)


def _expected(source: str) -> str:
    return f"{source}: expected what `kubectl get pods -o json` prints"


def _items_of(text: bytes, source: str) -> list[Any]:
    """What a list holds, each with its kind; a single pod is a list of one.

    Raises:
        UsageError: it is no such list.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{_expected(source)}, found {text[:60].decode(errors='replace')!r}, which is not JSON") from None
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind == "Pod":
        return [content]
    of_kind = _LISTS.get(kind) if isinstance(kind, str) else None
    items = content.get("items") or [] if of_kind is not None else None
    if of_kind is None or not isinstance(items, list):
        raise UsageError(f"{_expected(source)}, found {f'the kind {printable(str(kind))}' if kind else 'JSON of another kind'}")
    return [{**of_kind, **item} if isinstance(item, dict) else item for item in items]


def _pods_among(items: Iterable[Any], source: str) -> list[Pod]:
    try:
        return [Pod.model_validate(item) for item in items if not _is_another_thing(item)]
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        where = ".".join(map(str, error["loc"])) or "an item"
        raise UsageError(f"{_expected(source)}, found a pod that is none: {where}: {error['msg']}") from None


def _is_another_thing(item: Any) -> bool:
    """Whether an item of a list is surely none of our pods, by its kind or its labels."""
    if not isinstance(item, dict):
        return False
    metadata = item.get("metadata")
    labels = (metadata.get("labels") or {}) if isinstance(metadata, dict) else None
    return item.get("kind", "Pod") != "Pod" or (isinstance(labels, dict) and not LABELS.items() <= labels.items())


def workers_of(pods: Iterable[Pod], known_nodes: Sequence[str], namespace: str = NAMESPACE) -> Found:
    """The workers among the servers' pods of a namespace, in the order of `known_nodes`, those on other nodes last.

    Raises:
        UsageError: two inference servers are ready on one node.
    """
    ready: dict[str, Pod] = {}
    left_out: list[str] = []
    for pod in pods:
        elsewhere = pod.metadata.namespace not in ("", namespace)
        where = f"it is in the namespace {pod.metadata.namespace}, not {namespace}: `--namespace` names the one that is taken"
        problem = where if elsewhere else pod.problem
        if problem:
            left_out.append(printable(f"pod {printable(pod.metadata.name)} on {printable(pod.node)} is left out: {problem}", 500))
        elif pod.node in ready:
            both = f"{printable(ready[pod.node].metadata.name)} and {printable(pod.metadata.name)}"
            raise UsageError(
                f"node {printable(pod.node)}: expected one inference server that is ready, found two, {both}: "
                f"delete one of them (both are in the namespace {namespace})"
            )
        else:
            ready[pod.node] = pod
    order = [*known_nodes, *sorted(ready.keys() - set(known_nodes))]
    return Found({node: ready[node].infer_url for node in order if node in ready}, left_out)


def _nodes_and_daemonsets(api: Api, namespace: str, has_pods: bool, tell: Callable[[str], None]) -> list[Any]:
    """What the API says of them; what it does not say is told."""

    def ask(path: str, question: str, query: Mapping[str, str]) -> list[Any] | None:
        try:
            return _items_of(api.get(path, question, query), f"{api.name} ({path})")
        except Interrupted:
            raise
        except HarnessError as error:
            tell(printable(f"not asked why servers are missing: {error}", 500))
            return None

    nodes = ask("/api/v1/nodes", "list nodes", {})
    where = f"in the namespace {namespace}"
    daemonsets = ask(f"/apis/apps/v1/namespaces/{namespace}/daemonsets", f"list DaemonSets {where}", _SELECTED)
    if daemonsets == [] and not has_pods:
        tell(f"no DaemonSet {where} has these labels: `kubectl apply -f yaml/`, or another `--namespace`")
    return [*(nodes or []), *(daemonsets or [])]


def _reasons(items: Iterable[Any], namespace: str, has_pods: bool) -> Iterator[str]:
    """Why servers may be missing, by nodes and DaemonSets: one line for each that has something to say."""
    for item in items:
        kind = item.get("kind") if isinstance(item, dict) else None
        try:
            if kind == "Node":
                yield from _of_node(_Node.model_validate(item))
            elif kind == "DaemonSet" and not _is_another_thing({**item, "kind": "Pod"}):
                yield from _of_daemonset(_DaemonSet.model_validate(item), namespace, has_pods)
        except ValidationError:  # they only explain; what cannot be read explains nothing
            continue


def _of_node(node: _Node) -> Iterator[str]:
    for condition in node.status.conditions:
        if condition.type == "Ready" and condition.status != "True":
            why = condition.message or condition.reason or f"its condition Ready is {condition.status}"
            yield printable(f"node {printable(node.metadata.name)} is NotReady: {why}", 500)


def _of_daemonset(daemonset: _DaemonSet, namespace: str, has_pods: bool) -> Iterator[str]:
    name, status = printable(daemonset.metadata.name), daemonset.status
    if daemonset.metadata.namespace not in ("", namespace):
        return
    if not status.desired:
        label = ", ".join(f"{key}={value}" for key, value in daemonset.selector.items()) or "that it asks for"
        why = f"no node has the label {label}, or those that have it have a taint that it does not tolerate"
        yield printable(f"DaemonSet {name} wants no pod (DESIRED 0): {why}", 500)
    elif status.current < status.desired or not has_pods:
        look = f"`kubectl -n {namespace} describe daemonset {name}` says why"
        yield printable(f"DaemonSet {name} wants {status.desired} pods and has {status.current}: {look}", 500)


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
        UsageError: it cannot be read, stops in the middle, is too long, or has no end.
        Interrupted: `stopping` said so.
    """
    try:
        descriptor = stream.fileno() if stream else -1
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):  # it is closed, or stands for no file
        return b""
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return b""
    text = bytearray()
    given_up_s = math.inf
    while _something_comes(descriptor, None if text else tell, stopping, patience):
        try:
            part = os.read(descriptor, _PART_BYTES)
        except OSError as error:
            raise UsageError(f"{_STANDARD_INPUT}: cannot be read: {error.strerror}") from None
        if not part:
            if not text.strip():
                tell(f"{_STANDARD_INPUT}: expected a list of pods, found nothing")
            return bytes(text)
        text += part
        given_up_s = min(given_up_s, time.monotonic() + patience.whole_s)
        if len(text) > LARGEST_LIST_BYTES:
            instead = f"give it those of the servers alone, `kubectl get pods -l {LABEL_SELECTOR} -o json`"
            most = f"at most {LARGEST_LIST_BYTES >> 20} MiB"
            raise UsageError(f"{_STANDARD_INPUT}: expected a list of pods of {most}, found more: {instead}")
        if time.monotonic() > given_up_s:
            raise UsageError(
                f"{_STANDARD_INPUT}: expected a whole list of pods within {patience.whole_s:g} s, found no end of it"
            )
    silence = f"{patience.given_up_after_s:g} s"
    if text:
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


def _api_configuration() -> Any:
    """How to reach the API: the kubeconfig of KUBECONFIG or ~/.kube/config, or what a pod is given.

    Raises:
        UsageError: there is none, or it cannot be used.
    """
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

    path = os.environ.get("KUBECONFIG") or "~/.kube/config"
    configuration = Configuration()
    configuration.proxy = None  # none of the environment, as to pods; a kubeconfig may name its own (proxy-url)
    try:
        load_kube_config(path, client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]  # typed in part
    except ConfigException as error:
        try:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # typed in part
        except ConfigException:
            if any(os.path.exists(os.path.expanduser(each)) for each in path.split(os.pathsep)):
                raise UsageError(f"{path}: expected a whole kubeconfig, found that {error}; {COPY_ANEW}") from None
            raise UsageError(f"no configuration of the Kubernetes API in {path} ({error}); {_NO_CONFIGURATION}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; {_NO_CONFIGURATION}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:  # YAML of any other shape
        found = f"found something else ({type(error).__name__})"
        raise UsageError(f"{path}: expected a kubeconfig, {found}; {COPY_ANEW}") from None
    return configuration
