"""The counter of requests on a terminal."""

from io import StringIO

from rich.console import Console

from node_profiling.counter import Counter


def test_counter_is_drawn_on_a_terminal_and_nowhere_else():
    drawn = {}
    for terminal, quiet in ((True, False), (True, True), (False, False)):
        screen = StringIO()
        with Counter(Console(file=screen, force_terminal=terminal), quiet) as counter:
            counter.begin("coral1", 3)
            counter.advance()
        drawn[terminal, quiet] = screen.getvalue()
    assert "coral1" in drawn[True, False] and "1/3" in drawn[True, False]
    assert drawn[True, True] == drawn[False, False] == ""
