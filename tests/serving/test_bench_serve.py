"""`motet bench serve`: what it tells follows from what it measured, and it measures in the smallest size."""

import pytest

from motet.serving.bench.material import different_sets
from motet.serving.bench.report import Report, Run, Settings
from motet.serving.bench.rounds import run_serve
from motet.serving.expert_sets import Roster

KEYS = {
    "throughput_vs_generate",
    "mixed_sets_overhead_percent",
    "mixed_sets_overhead_percent_of_equal_size",
    "batching_speedup_16",
    "switch_ms",
    "ttft_ms",
}


def run(slow: float = 1.0, **changes: float) -> Run:
    speeds = {"generate-4": 50.0, "server-1": 10.0, "server-4": 100.0, "server-16": 60.0}
    speeds |= {"same-4": 40.0, "mixed-4": 40.0, "same-16": 44.0, "mixed-16": 40.0} | changes
    first = {"server-1": (0.1,), "server-4": (0.2, 0.3, 0.2, 0.2), "server-16": (0.4,) * 16}
    by_processor = {name: 2 * value for name, value in speeds.items()}
    return Run(speeds={name: value / slow for name, value in speeds.items()}, by_processor=by_processor, first=first)


def test_ratios_are_medians_of_rounds_so_that_a_slow_round_does_not_count() -> None:
    runs = [run(), run(slow=30), run(**{"server-4": 1000.0})]
    report = Report.of(Settings(), {"composite": 1, "stock": 2}, runs, [2e-5, 3e-5, 9.0])
    assert report.as_json() == {
        "throughput_vs_generate": 2.0,
        "mixed_sets_overhead_percent": 150.0,
        "mixed_sets_overhead_percent_of_equal_size": pytest.approx(10.0),
        "batching_speedup_16": 6.0,
        "switch_ms": 0.03,
        "ttft_ms": {"1": 100.0, "4": 200.0, "16": 400.0},
    }
    assert report.overhead_by_processor(16) == pytest.approx(10.0)
    assert any("2 in the stock export" in line for line in report.lines())


def test_sets_are_of_equal_size_and_as_different_as_there_are() -> None:
    names = ("anchor", "full-0", "full-1", *(f"lowrank-{number}" for number in range(2, 9)))
    contributions = tuple(f"sha256:{number:064x}" for number in range(9))
    roster = Roster(names=names, contributions=contributions, anchor="sha256:" + "0" * 64)
    sets = different_sets(roster, 16)
    assert len({each.digest for each in sets}) == 16
    assert {len(each.names) for each in sets} == {8}
    few = Roster(names=names[:3], contributions=contributions[:2], anchor=roster.anchor)
    assert [each.names for each in different_sets(few, 3)] == [
        names[:1] + names[2:3],
        names[:2],
        names[:1] + names[2:3],
    ]


def test_it_measures() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "layers": 1, "heads": 2, "vocabulary_size": 64}
    settings = Settings(full=1, lowrank=3, rank=2, prompt=2, generated=2, rounds=1, **sizes)
    report = run_serve(settings, tell=lambda line: None)
    assert report.as_json().keys() == KEYS
    assert set(report.runs[0].speeds) == {"generate-4"} | {f"server-{n}" for n in (1, 4, 16)} | {
        f"{kind}-{n}" for kind in ("same", "mixed") for n in (4, 16)
    }
    assert all(speed > 0 for speed in report.runs[0].speeds.values())
    assert report.as_json()["switch_ms"] > 0
