"""Measure the nodes and write a new performance profile; the old one is kept beside it.

    python3 profile_nodes.py --requests 200

Each node is measured by itself, one request at a time on a kept connection, in the form the harness sends. On accelerators that
hold one model at a time an inference takes longer when the one before was of another model. The load of an experiment mixes the
models, so the default order is a random mix of them, the same on every node. `--order grouped` sends one model after the other:
warm figures, which a mixed load does not reach. A load differs all the same: here a device rests between two requests, there it
may run back to back; and a policy may give a node another mix of models than this uniform one.

`mean_ms` is the mean of the server's inference_time, outliers and all. `request_overhead_ms` is the mean of round trip minus
inference_time over all counted requests to a node; where they wait for the server to read its device's gauges, which it does at
most once a second in a load too, that is part of it. `cv` of an accelerator is the root mean square of the coefficients of
variation (standard deviation with n - 1, divided by the mean) of all its pairs of node and model; it stays as it was where not
every model that the accelerator serves was measured. Power is not measured here.
"""

import os
import signal
import sys

if __name__ == "__main__":  # until main() has its own handlers: an end without a traceback, while the imports take their time
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, lambda *_: sys.exit(130))
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out

import argparse
import errno
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from cluster.discovery import NAMESPACE, discover_workers
from cluster.emulated import EmulatedNodes
from cluster.http_client import Health, NodeClient, wrong_answer
from inference_request import WORKERS, low_latency, require_worker_urls
from node_profiling.choice import ask_health, choose_models, choose_nodes
from node_profiling.counter import Counter
from node_profiling.meter import NodeMeter, NodeRecord, cv_by_accelerator, planned_requests
from node_profiling.tables import print_results, remarks
from performance_profile import Measurement, PerformanceProfile, load_profile, profile_text, remeasured, replace_keeping_old
from settings import load_settings
from terminal.options import OptionParser, StopSignal, namespace, seed, stoppable
from utils import HarnessError, Interrupted, UsageError, random_stream, write_failure

PROGRAM = "profile_nodes.py"
DEFAULT_REQUESTS, DEFAULT_WARM_UP, DEFAULT_SEED = 200, 10, 42
COLUMNS = """
idle_w, busy_w: watts of the whole node at its supply, accelerator idle and accelerator busy; not measured by profile_nodes.py.
overhead_w, overhead_cv: watts above idle while a request is received or answered, and the coefficient of variation of
    request_overhead_ms from request to request; not measured by profile_nodes.py.
mean_ms: mean accelerator time inside the server (input copy + invoke), HTTP excluded, batch 1, 224x224x3 uint8.
cv: coefficient of variation (std / mean) of that time: root mean square over the measured nodes and models of an accelerator;
    as before where not every model of the accelerator was measured.
request_overhead_ms: mean of HTTP round trip minus accelerator time, seen from the machine that measured, one request at a time.
provenance: measured, published (a vendor's or a paper's figure), estimated, or mixed (differs from node to node).
note: of the figures that no entry of measurements names, unless it says otherwise.
measurements: how profile_nodes.py measured, oldest first; a later one replaced the figures of the nodes and models it names.
    A device rests between requests then; a load may run it back to back, and a policy may give it another than this uniform mix.
Which file a model's name stands for on a node is told by that node's models.yaml.
"""

Say = Callable[[str], None]


def measure_nodes(
    clients: Mapping[str, NodeClient],
    healths: Mapping[str, Health],
    profile: PerformanceProfile,
    models: Sequence[str],
    absent: Mapping[str, Sequence[str]],
    options: argparse.Namespace,
    counter: Counter,
    say: Say,
    stop: StopSignal,
) -> list[NodeRecord]:
    """Measure one node after the other; those that serve none of the models are left out.

    Raises:
        HarnessError: a node could not be measured, or none serves any of the models.
        Interrupted: the person wishes so.
    """
    records = []
    noise = random_stream(options.seed, "service_noise")
    for name, client in clients.items():
        if absent[name]:
            say(f"{name} does not serve {', '.join(absent[name])}")
        served = [model for model in models if model not in absent[name]]
        if not served:
            continue
        order = random_stream(options.seed, "models")
        plan = planned_requests(served, options.requests, options.warm_up, options.order, order)
        if not options.quiet:
            say(f"measuring {name}: {len(plan)} requests, {options.warm_up * len(served)} of them to warm up")
        counter.begin(name, len(plan))
        stop.tell(client.abort)
        wrong = partial(wrong_answer, name, healths[name], profile)
        meter = NodeMeter(name, client, healths[name].binary, stop, wrong)
        with low_latency():
            records.append(meter.measure(served, plan, noise, counter.advance))
    if not records:
        raise HarnessError(f"no node serves any of {', '.join(models)}: nothing was measured")
    return records


def comment_of(how: Measurement, arguments: Sequence[str]) -> list[str]:
    """First lines of the new file: how and when it was measured, and what the columns mean."""
    emulated = ["Its nodes were EMULATED, which answer with the figures they are given: it says nothing of real nodes."]
    return [
        "Latency and power of the nodes, one row per node and one per model.",
        f"Written by profile_nodes.py on {how.measured_at:%Y-%m-%d %H:%M %z} after measuring {', '.join(how.nodes)}:",
        f"{how.requests} counted requests of each model to each node, {how.warm_up} before to warm up, {how.order} order.",
        f"Command: {shlex.join(['python3', PROGRAM, *arguments])}",
        *(emulated if how.cluster == "emulated" else []),
        *COLUMNS.strip().splitlines(),
    ]


def run(options: argparse.Namespace, arguments: Sequence[str], console: Console, stop: StopSignal) -> int:
    """One measurement from options to files; the exit status.

    Raises:
        HarnessError: it could not be done.
    """
    target = options.output or options.profile
    old = load_profile(options.profile)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    where = {"namespace": options.namespace} if options.namespace else {}
    workers = discover_workers(list(old.nodes), say, lambda: stop.received, **where) if options.discover else WORKERS
    kind, notice, names = choose_nodes(options.cluster, options.nodes, old, options.profile, workers)
    if kind == "emulated":
        _require_another_file(target, options.profile, notice)
    _require_writable(target)
    if notice:
        say(notice)
    with ExitStack() as stack:
        emulated = stack.enter_context(EmulatedNodes(old, lambda: stop.received)) if kind == "emulated" else None
        workers = emulated.workers if emulated else workers
        urls = require_worker_urls({name: workers[name] for name in names})
        requests = load_settings().requests
        clients = {name: stack.enter_context(closing(NodeClient(url, requests))) for name, url in urls.items()}
        healths = ask_health(clients, old)
        models = choose_models(options.models, old, healths)
        absent = {name: [model for model in models if model not in (health.models or ())] for name, health in healths.items()}
        with Counter(console, options.quiet) as counter:
            records = measure_nodes(clients, healths, old, models, absent, options, counter, say, stop)
    how = _measurement(options, kind, [record.name for record in records], models)
    cv = cv_by_accelerator(records, old, absent)
    new = remeasured(old, how, {record.name: record.means() for record in records}, absent, cv)
    print_results(console, old, records, cv)
    for line in remarks(old, new, records, healths, cv):
        say(line)
    if stop.received:
        raise Interrupted("interrupted; nothing was written")
    try:
        kept = replace_keeping_old(target, profile_text(new, comment_of(how, arguments)))
    except OSError as error:
        raise write_failure(f"{target} cannot be written", error) from error
    say(f"profile: {target}" + (f", the one before: {kept}" if kept else ""))
    return 0


def _measurement(options: argparse.Namespace, kind: str, nodes: list[str], models: list[str]) -> Measurement:
    return Measurement(
        measured_at=datetime.now().astimezone().replace(microsecond=0),
        cluster="workers" if kind == "workers" else "emulated",
        nodes=nodes,
        models=models,
        requests=options.requests,
        warm_up=options.warm_up,
        order=options.order,
        seed=options.seed,
    )


def _require_another_file(target: Path, profile: Path, notice: str | None) -> None:
    for real in (profile, load_settings().performance_profile):
        if target.resolve() == real.resolve() or (target.exists() and real.exists() and target.samefile(real)):
            because = notice or "these are emulated nodes."
            raise UsageError(f"--output: {because} What they answer must not take the place of {real}: name another file")


def _require_writable(path: Path) -> None:
    """Find out before the measurement, not after it."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise write_failure(f"--output: {path} cannot be written", error) from None


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, parsed.

    Raises:
        UsageError: an option is unknown or has a value that it cannot have.
    """
    parser = OptionParser(PROGRAM, "Measure the nodes and write a new performance profile; the old one is kept beside it.")
    add = parser.add_argument
    add(
        "--requests",
        type=_whole_number(2),
        default=DEFAULT_REQUESTS,
        metavar="N",
        help=f"counted requests of each model to each node ({DEFAULT_REQUESTS})",
    )
    add(
        "--warm-up",
        type=_whole_number(0),
        default=DEFAULT_WARM_UP,
        metavar="N",
        help=f"requests of each model before, not counted ({DEFAULT_WARM_UP})",
    )
    add("--nodes", type=_names, metavar="A,B", help="the nodes to measure; the others keep their figures (all of WORKERS)")
    add("--models", type=_names, metavar="A,B", help="the models to measure (all that the profile knows)")
    add(
        "--order",
        choices=("mixed", "grouped"),
        default="mixed",
        help="models in random order, as in a load, or one after the other: warm figures that a load does not reach (mixed)",
    )
    add("--seed", type=seed, default=DEFAULT_SEED, metavar="N", help=f"seed of the random order ({DEFAULT_SEED})")
    profile = load_settings().performance_profile
    add("--profile", type=Path, default=profile, metavar="FILE", help="the old profile (config/performance_profile.yaml)")
    add("--output", type=Path, metavar="FILE", help="the new profile; a file that stands there is kept beside it (--profile)")
    add(
        "--cluster",
        choices=("auto", "workers", "emulated"),
        default="auto",
        help="the pods in WORKERS, or local emulated nodes (with --output); auto: emulated while WORKERS holds placeholders",
    )
    add(
        "--discover",
        action="store_true",
        help="take the workers from the ready pods of the cluster, or of `kubectl get pods -o json` on standard input",
    )
    add("--namespace", type=namespace, metavar="NAME", help=f"where --discover looks for the pods ({NAMESPACE})")
    add("--quiet", action="store_true", help="no progress display")
    options = parser.parse_args(arguments)
    if options.namespace and not options.discover:
        parser.error("--namespace: says where --discover looks; give --discover, too, or leave it out")
    if options.discover and options.cluster == "emulated":
        parser.error("--discover: finds workers, and --cluster emulated has none; leave one of the two out")
    return options


def _whole_number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, found {text!r}")
        return int(text)

    return number


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"expected different names with commas between them, found {text!r}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    return stoppable(PROGRAM, lambda stop: run(parse_options(given), given, Console(), stop))


if __name__ == "__main__":
    sys.exit(main())
