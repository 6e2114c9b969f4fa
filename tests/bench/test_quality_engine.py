"""The engine does what is missing, once, and keeps it whatever happens; workers end with it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from motet.bench.quality.cache import Cache
from motet.bench.quality.crew import Crew
from motet.bench.quality.engine import missing, run
from motet.bench.quality.stages import File, Stage
from motet.bench.quality.worker import Event, Job
from motet.protocols.errors import ConfigurationError, FederationError

Ran = Callable[[], list[tuple[int, int]]]


def toy(value: int, *parts: Stage, text: File | None = None, **spec: object) -> Stage:
    inputs: dict[str, Stage | File] = {f"part-{at}": part for at, part in enumerate(parts)}
    return Stage("number", {"value": value, **spec}, inputs | ({"text": text} if text else {}), f"number {value}")


def value(folder: Path) -> int:
    return json.loads((folder / "number.json").read_text())


def values(ran: list[tuple[int, int]]) -> list[int]:
    return [value for value, _ in ran]


def wait_until_dead(process: psutil.Process) -> None:
    """Wait, and leave it to its parent to notice."""
    deadline = time.monotonic() + 10
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)


def test_stages_are_done_once_by_processes_that_stay(toys_ran: Ran, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("seven..")
    base = toy(1, text=File.of(text))
    middle = [toy(10, base), toy(20, base), toy(30, base)]
    top = toy(100, *middle)
    told: list[str] = []
    folders = run([top], tmp_path / "cache", workers=2, tell=told.append)
    assert value(folders[top.digest]) == 100 + 60 + 3 * 8
    ran = toys_ran()
    assert sorted(values(ran)) == [1, 10, 20, 30, 100]
    assert ran[0][0], ran[-1][0] == (1, 100)
    assert len({process for _, process in ran}) <= 2
    assert folders.keys() == {stage.digest for stage in (base, *middle, top)}
    assert len(told) == 5
    assert told[0].startswith("1 of 5  number 1  ")
    assert told[0].endswith(" left")
    assert told[-1].startswith("5 of 5  number 100  ")
    assert not any("left" in line for line in told[-1:])

    cache = Cache(tmp_path / "cache")
    record = cache.record(top)
    assert (record.kind, record.spec, record.label) == ("number", {"value": 100}, "number 100")
    assert record.inputs == {f"part-{at}": part.digest for at, part in enumerate(middle)}
    assert record.seconds >= 0
    assert record.peak_rss_mb > 5
    assert record.versions.keys() == {"python", "torch", "transformers", "motet"}
    assert cache.log(top).read_text().splitlines() == ["a library prints 100", "and so does its child"]

    again = toy(5, *middle)
    assert [stage.label for stage in missing([again, top], cache)] == ["number 5"]
    assert value(run([again, top], tmp_path / "cache", workers=1)[again.digest]) == 5 + 60 + 3 * 8
    assert values(toys_ran()) == [5]


def test_what_is_there_is_enough(toys_ran: Ran, tmp_path: Path) -> None:
    """What a finished stage was made of is not made again, unless something else needs it."""
    base = toy(1)
    top = toy(2, base)
    folders = run([top], tmp_path, workers=1)
    folders[base.digest].rename(tmp_path / "gone")
    assert run([top], tmp_path, workers=1).keys() == {top.digest}
    assert values(toys_ran()) == [1, 2]
    run([toy(3, base)], tmp_path, workers=1)
    assert values(toys_ran()) == [1, 3]


def test_a_stage_does_not_depend_on_the_one_before(toys_ran: Ran, tmp_path: Path) -> None:
    first, second = toy(1), toy(2)
    both = run([first, second], tmp_path / "both", workers=1)
    alone = run([second], tmp_path / "alone", workers=1)
    assert (both[second.digest] / "random.json").read_text() == (alone[second.digest] / "random.json").read_text()
    assert (both[first.digest] / "random.json").read_text() != (alone[second.digest] / "random.json").read_text()


def test_a_failure_takes_down_only_what_is_made_of_it(toys_ran: Ran, tmp_path: Path) -> None:
    ways = {"die": "was killed", "exit": "ended with code 3", "motet": "TrainingError", "here": "ZeroDivisionError"}
    bad = {how: toy(at, fails=how) for at, how in enumerate(ways)}
    fine, lost = toy(7), toy(8, toy(9, bad["die"]))
    told: list[str] = []
    with pytest.raises(FederationError, match=r"4 of 7 stages fail, and 2 .* not begun") as caught:
        run([*bad.values(), lost, fine], tmp_path, workers=1, tell=told.append)
    message = str(caught.value)
    cache = Cache(tmp_path)
    for how, said in ways.items():
        assert said in message, how
        assert str(cache.log(bad[how])) in message
        assert not cache.holds(bad[how])
    assert "the last words" in message
    assert value(cache.folder(fine)) == 7
    assert sorted(values(toys_ran())) == [0, 1, 2, 3, 7]
    assert list((tmp_path / "partial").iterdir()) == []
    with pytest.raises(FederationError, match="1 of 3"):
        run([lost], tmp_path, workers=1)
    assert values(toys_ran()) == [0]


def test_where_stages_under_way_are_is_told(toys_ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.bench.quality.engine._PROGRESS_SECONDS", 0.0)
    told: list[str] = []
    run([toy(1)], tmp_path, workers=1, tell=told.append)
    assert told[0] == "  number 1: at 1"
    assert not list((tmp_path / "logs").glob("worker-*"))


def test_a_file_that_changed_meanwhile_is_noticed(toys_ran: Ran, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("before")
    stage = toy(1, text=File.of(text))
    text.write_text("after")
    with pytest.raises(FederationError, match="has changed since the run began"):
        run([stage], tmp_path / "cache", workers=1)


def test_a_wrong_call(toys_ran: Ran, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the kind bread, wanted any of .*number"):
        run([Stage("bread", {}, {}, "bread")], tmp_path, workers=1)
    with pytest.raises(ConfigurationError, match="--workers"):
        run([toy(1)], tmp_path, workers=0)


def test_two_runs_share_a_cache(toys_ran: Ran, tmp_path: Path) -> None:
    shared = [toy(at, seconds=0.3) for at in range(4)]
    told: list[str] = []
    found: list[dict[str, Path]] = []

    def other() -> None:
        found.append(run(list(reversed(shared)), tmp_path, workers=1, tell=told.append))

    thread = threading.Thread(target=other)
    thread.start()
    found.append(run(shared, tmp_path, workers=1, tell=told.append))
    thread.join()
    assert found[0] == found[1]
    assert sorted(values(toys_ran())) == [0, 1, 2, 3]
    assert len(told) == 8
    assert any("done by another run" in line for line in told)


def test_a_worker_killed_between_stages_is_replaced(toys_ran: Ran, tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def job(stage: Stage) -> Job:
        return Job(
            digest=stage.digest,
            identity=stage.identity(),
            label=stage.label,
            weight=stage.weight,
            paths={},
            out=str(cache.begin(stage)),
            log=str(cache.log(stage)),
        )

    with Crew(size=1, logs=cache.logs) as crew:
        for number in (1, 2):
            crew.give(job(toy(number)))
            said: list[Event] = []
            while crew.busy:
                said.extend(event for _, event in crew.listen(timeout=10))
            assert [event.kind for event in said] == ["progress", "done"]
            if number == 1:
                worker = psutil.Process(toys_ran()[0][1])
                worker.kill()
                wait_until_dead(worker)
    assert values(toys_ran()) == [2]


SCRIPT = """
import sys
from pathlib import Path
from motet.bench.quality.engine import run
from motet.bench.quality.stages import Stage
slow = [Stage("number", {"value": at, "seconds": 60}, {}, f"slow {at}") for at in (1, 2)]
run([Stage("number", {"value": 0}, {}, "quick", weight=100), *slow], Path(sys.argv[1]), workers=2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_run(number: signal.Signals, toys_ran: Ran, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path], stderr=subprocess.PIPE) as engine:
        processes, deadline = dict[int, int](), time.monotonic() + 20
        ran = Path(os.environ["TOYS_RAN"])
        while len(processes) < 3 and time.monotonic() < deadline:
            processes = dict(json.loads(line) for line in ran.read_text().splitlines())
            time.sleep(0.02)
        assert len(processes) == 3
        workers = [psutil.Process(processes[each]) for each in (1, 2)]
        os.kill(engine.pid, number)
        engine.wait(timeout=10)
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    cache = Cache(tmp_path)
    assert cache.holds(toy(0))
    if number != signal.SIGKILL:
        assert list((tmp_path / "partial").iterdir()) == []
    stage = toy(1, seconds=60)
    with cache.claimed(stage):
        assert list(cache.begin(stage).parent.glob(f"{stage.name}.*")) == [
            next(cache.root.glob(f"partial/{stage.name}*"))
        ]
