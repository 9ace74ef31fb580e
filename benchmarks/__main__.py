"""Command line of the benchmarks."""

import argparse

from benchmarks.decision import decision
from benchmarks.dispatch import emulated, http_at_once, in_process
from benchmarks.figures import print_table
from benchmarks.generation import generation
from benchmarks.power import power
from benchmarks.server import server_health, server_memory, server_overhead
from benchmarks.virtual_time import growing_cluster, large_cluster, virtual_time, whole_run, whole_sweep


def main() -> None:
    """Measure what is asked and print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each run that dispatches tasks (60)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats, of which the median is printed (3)")
    names = (
        "decision",
        "generation",
        "virtual_time",
        "growing",
        "large",
        "run",
        "in_process",
        "http_at_once",
        "emulated",
        "power",
        "server_overhead",
        "server_health",
        "server_memory",
        "sweep",
    )
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (all but sweep, which takes long)")
    options = parser.parse_args()
    if unknown := set(options.only) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    groups = {
        "decision": lambda: decision(options.repeats),
        "generation": lambda: generation(options.repeats),
        "virtual_time": lambda: virtual_time(options.repeats),
        "growing": lambda: growing_cluster(options.repeats),
        "large": lambda: large_cluster(options.repeats),
        "run": lambda: whole_run(options.repeats),
        "in_process": lambda: in_process(options.seconds, options.repeats),
        "http_at_once": lambda: http_at_once(options.seconds, options.repeats),
        "emulated": lambda: emulated(options.seconds, options.repeats),
        "power": lambda: power(options.seconds, options.repeats),
        "server_overhead": lambda: server_overhead(options.repeats),
        "server_health": lambda: server_health(options.seconds, options.repeats),
        "server_memory": server_memory,
        "sweep": lambda: whole_sweep(options.repeats),
    }
    print_table([groups[name] for name in options.only or names[:-1]])


if __name__ == "__main__":
    main()
