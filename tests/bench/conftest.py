"""Toy stages for tests of `motet bench quality`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

TOYS = Path(__file__).parent / "toys"


@pytest.fixture
def toys_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[tuple[int, int]]]:
    """Install the toys of `motet_toys`, here and in child processes; tells (value, process) of those that ran since."""
    ran = tmp_path / "ran.jsonl"
    ran.touch()
    monkeypatch.syspath_prepend(TOYS)
    monkeypatch.setenv("PYTHONPATH", str(TOYS))
    monkeypatch.setenv("TOYS_RAN", str(ran))

    def since() -> list[tuple[int, int]]:
        lines = ran.read_text().splitlines()
        ran.write_text("")
        return [tuple(json.loads(line)) for line in lines]

    return since
