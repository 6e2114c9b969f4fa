"""However a demonstration ends before its time, no process of it stays behind."""

import os
import re
import signal
import time

import pytest

pytestmark = pytest.mark.slow

RUNNING = 6
"""SuperLink, data plane, three workers and the run; more follow from these."""


@pytest.mark.parametrize(("number", "nodes"), [(signal.SIGINT, 3), (signal.SIGTERM, 0)])
def test_a_signal_ends_every_process(demo, number: signal.Signals, nodes: int) -> None:
    run = demo()
    children = run.await_processes(RUNNING)
    assert len(children) >= RUNNING
    run.await_processes(nodes, "work supernode")
    run.send(number)
    code, said = run.await_end()
    assert code == 130
    assert "Traceback" not in said
    assert "motet: interrupted" in said
    run.await_no_children(seconds=2)
    left = {path.name for path in run.directory.iterdir()}
    assert left == {".motet-demo", "logs", "coordinator"}
    assert not list((run.directory / "coordinator").iterdir())


def test_an_impatient_second_signal_leaves_nothing_either(demo) -> None:
    run = demo()
    run.await_processes(RUNNING)
    run.send(signal.SIGINT)
    time.sleep(0.3)
    run.send(signal.SIGINT)
    code, said = run.await_end()
    assert code == 130
    assert "Traceback" not in said
    run.await_no_children(seconds=20)


def test_children_do_not_outlive_a_demo_that_was_killed(demo) -> None:
    run = demo()
    run.await_processes(3, "work supernode")
    run.send(signal.SIGKILL)
    run.await_end()
    run.await_no_children(seconds=20)


def test_a_child_that_dies_fails_the_demo_and_says_which(demo) -> None:
    run = demo()
    children = run.await_processes(RUNNING)
    (data_plane,) = [pid for pid, line in children.items() if re.search(r"coordinate data-plane", line)]
    os.kill(data_plane, signal.SIGKILL)
    code, said = run.await_end()
    assert code == 15
    (message,) = [line for line in said.splitlines() if line.startswith("motet: ")]
    assert "data-plane ended early with code -9" in message
    assert str(run.directory / "logs" / "data-plane.log") in message
    assert (run.directory / "logs" / "data-plane.log").exists()
    run.await_no_children(seconds=2)
