"""Questions to the API of the Kubernetes cluster, each with an end, and what its refusals and certificates mean."""

import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from urllib3.exceptions import HTTPWarning, NewConnectionError, SSLError
from urllib3.exceptions import TimeoutError as HttpTimeout

from utils import HarnessError, Interrupted, printable

COPY_OF_K3S = 'mkdir -p ~/.kube && sudo install -m 600 -o "$USER" /etc/rancher/k3s/k3s.yaml ~/.kube/config'
"""Command that gives a user of a k3s master a kubeconfig, which others cannot read."""
LARGEST_LIST_BYTES = 16 << 20
"""Of a list of pods, which has about 10 kB for each."""

_CHECK_S = 0.1
_PART_BYTES = 1 << 16
COPY_ANEW = f"copy it anew: `{COPY_OF_K3S}`"


class Api:
    """Questions to the cluster's API.

    Args:
        configuration: how to reach it.
        timeout_s: for one question and the whole of its answer.
        stopping: asked again and again while an answer is waited for; True gives up.
    """

    def __init__(self, configuration: Any, timeout_s: float, stopping: Callable[[], bool]) -> None:
        configuration.retries = False
        self.name = f"the Kubernetes API at {printable(configuration.host)}"
        self._configuration = configuration
        self._timeout_s = timeout_s
        self._stopping = stopping

    def get(self, path: str, question: str, query: Mapping[str, str]) -> bytes:
        """A list, JSON. Asked in a thread, as no timeout of a socket ends an answer that comes byte by byte.

        Args:
            path: of the list.
            question: what is asked, for the error text.
            query: such as a label selector.

        Raises:
            HarnessError: the API does not answer in time, or refuses.
            Interrupted: `stopping` said so.
        """
        answer: Future[bytes] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._get(path, query))
            except BaseException as error:  # goes to the one who waits for it
                answer.set_exception(error)

        given_up_s = time.monotonic() + self._timeout_s
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HTTPWarning)  # a kubeconfig may do without certificates; that is its owner's choice
            threading.Thread(target=ask, name="kubernetes-api", daemon=True).start()
            while not wait([answer], _CHECK_S).done:
                if self._stopping():
                    raise Interrupted(f"stopped while {self.name} was waited for")
                if time.monotonic() > given_up_s:
                    raise HarnessError(f"{self.name} did not answer within {self._timeout_s:g} s")
        try:
            return answer.result()
        except Exception as error:  # whatever it is, it is an answer that is none, and stands in the error text
            raise HarnessError(f"{self.name} {self._problem(error, question)}") from None

    def _get(self, path: str, query: Mapping[str, str]) -> bytes:
        from kubernetes.client import ApiClient  # half a second, which only this way should take

        url, headers = self._configuration.host + path, {"Accept": "application/json"}
        with ApiClient(self._configuration) as client:
            client.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
            ask = partial(client.rest_client.pool_manager.request, preload_content=False, redirect=False)
            with ask("GET", url, fields=dict(query), headers=headers, timeout=self._timeout_s) as response:
                if response.status != 200:
                    raise _Refused(response.status, response.reason or "", bytes(response.read1(_PART_BYTES)))
                text = bytearray()
                while part := response.read1(_PART_BYTES):
                    text += part
                    if len(text) > LARGEST_LIST_BYTES:
                        raise ValueError(f"its answer is longer than {LARGEST_LIST_BYTES >> 20} MiB")
                return bytes(text)

    def _problem(self, error: Exception, question: str) -> str:
        match error:
            case _Refused():
                return _refusal(error, question)
            case SSLError():
                return f"cannot be asked: {_certificate_problem(str(error))}"
            case NewConnectionError():
                reason = error.__cause__ or error
                return f"cannot be reached: {getattr(reason, 'strerror', None) or printable(str(reason))}"
            case HttpTimeout() | TimeoutError():
                return f"did not answer within {self._timeout_s:g} s"
        return f"cannot be asked: {printable(str(error) or type(error).__name__)}"


class _Refused(Exception):
    """Status, reason and the start of the text of an answer that is none."""


def _refusal(refused: _Refused, question: str) -> str:
    status, reason, text = refused.args
    if status == 401 or (status == 403 and b"system:anonymous" in text):
        return f"does not accept the credentials of the kubeconfig ({status}): expired, of another cluster, or none; {COPY_ANEW}"
    if status == 403:
        return f"does not let the user of the kubeconfig {question} (403)"
    return f"answers {status}: {printable(reason)}"


_CERTIFICATE_PROBLEMS = {
    r"certificate has expired": (
        "its certificate has expired, or the clock here is wrong: look at `date`; "
        f"restart k3s on the master, which makes a new one; if the kubeconfig does not fit then, {COPY_ANEW}"
    ),
    r"certificate is not yet valid": (
        "its certificate is of the future: look at `date`, here and on the master; if both are right, "
        f"the kubeconfig is old: {COPY_ANEW}"
    ),
    r"self.signed certificate|unable to get local issuer|signature failure|bad signature": (
        "its certificate is not signed by the one in the kubeconfig, which is of another cluster or of an earlier installation, "
        f"or has none; {COPY_ANEW}"
    ),
    r"mismatch, certificate is not valid for": (
        "its certificate does not name this address: use one that it names, or give this one to the k3s server (`--tls-san`)"
    ),
    r"alert .*(certificate|unknown ca|access denied|handshake failure)": (
        f"it does not accept the certificate of the kubeconfig: expired, of another cluster, or none; {COPY_ANEW}"
    ),
    r"\bPEM\b|X509|KEY_VALUES_MISMATCH": f"a certificate or key in the kubeconfig cannot be read; {COPY_ANEW}",
}
"""What OpenSSL says, and what it means here."""


def _certificate_problem(said: str) -> str:
    means = next((meaning for pattern, meaning in _CERTIFICATE_PROBLEMS.items() if re.search(pattern, said, re.IGNORECASE)), None)
    return f"{means} ({printable(said)})" if means else printable(said)
