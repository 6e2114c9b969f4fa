"""`motet bench composite` at sizes of a moment: what is counted, and what is made of it."""

from pathlib import Path

from motet.bench.composite import KINDS, Job, Measured, Report, Settings, measure, write_composite
from motet.bench.composite_commands import _lines

SMALL = Settings(hidden_size=64, intermediate_size=128, layers=1, vocabulary_size=64, experts=2, rank=4, batch=1)


def test_what_is_counted_of_each_composite(tmp_path: Path) -> None:
    found = {}
    for kind in KINDS:
        write_composite(SMALL, kind, tmp_path / kind)
        found[kind] = measure(Job(settings=SMALL, folder=str(tmp_path / kind)))
        assert found[kind].seconds > 0
    anchor, low, full = (found[kind].parts_bytes for kind in KINDS)
    rows = 4 * (64 + 1)
    assert low - anchor == 2 * (4 * 3 * 4 * (64 + 128) + rows)
    assert full - anchor == 2 * (4 * 3 * 64 * 128 + rows)


def test_ratios_and_lines_are_those_of_the_measurements() -> None:
    def measured(parts: int, resident: int, seconds: float) -> Measured:
        return Measured(
            parts_bytes=parts, resident_bytes=resident, peak_bytes=resident, seconds=seconds, exact_memory=True
        )

    composites = {
        "anchor": measured(100, 101, 1.0),
        "lowrank": measured(200, 210, 1.5),
        "full": measured(900, 905, 9.0),
    }
    report = Report(settings=Settings(), composites=composites)
    assert (report.memory_ratio, report.cost, report.speedup) == (1.05, 1.5, 6.0)
    assert list(_lines(report))[-1].startswith("8 low-rank experts of rank 16 take 1.50 times the anchor's time")
