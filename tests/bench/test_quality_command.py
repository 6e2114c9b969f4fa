"""`motet bench quality` on toy stages: from a configuration to JSON and pages."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from motet.cli import run

Ran = Callable[[], list[tuple[int, int]]]
CONFIG = """
name = "toy"
seeds = 2
public = "public.jsonl"
[domains]
law = "law.jsonl"
code = "code.jsonl"
"""


@pytest.fixture
def command(toys_ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command with the toys' plan in the place of the real one."""
    monkeypatch.setitem(sys.modules, "motet.bench.quality.plan", importlib.import_module("motet_toys"))
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    for name in ("public", "law", "code"):
        (corpora / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    (tmp_path / "toy.toml").write_text(CONFIG)
    places = {"config": tmp_path / "toy.toml", "corpora": corpora, "cache": tmp_path / "cache"}
    return ["bench", "quality", *(word for name, path in places.items() for word in (f"--{name}", str(path)))]


def test_a_run_a_dry_run_and_more_seeds(
    command: list[str], toys_ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--dry-run", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["missing"] == len(seen["stages"]) == 2 * 5
    assert not any(stage["cached"] for stage in seen["stages"])
    assert seen["seconds"] > 0
    assert toys_ran() == []

    assert run([*command, "--json", "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert {"systems", "intervals", "gap_closed", "seeds", "seconds"} < set(found)
    assert list(found["systems"]) == ["anchor", "specialist", "soup", "dare+public", "composite:filter"]
    assert list(found["systems"]["soup"]) == ["public", "law", "code", "average"]
    assert found["systems"]["composite:filter"]["law"] == pytest.approx(2.1, abs=0.05)
    assert found["gap_closed"]["composite:filter"]["law"] == pytest.approx(0.95, abs=0.05)
    low, high = found["intervals"]["soup"]["average"]
    assert low < found["systems"]["soup"]["average"] < high
    assert found["seeds"] == 2
    assert found["stages"] == 10
    assert found["machine"]["cores"] >= 1
    assert found["corpora"].keys() == {"public", "law", "code"}
    assert next((each["a"], each["b"]) for each in found["comparisons"]) == ("composite:filter", "dare+public")
    assert "10 of 10" in said.err
    assert len(toys_ran()) == 6

    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    assert "composite:filter" in (tmp_path / "out" / "results.md").read_text()
    assert "<html" in (tmp_path / "out" / "results.html").read_text()

    assert run([*command, "--seeds", "3", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cached   anchor, seed 0"
    assert "missing  expert:law, seed 2" in lines
    assert lines[-1].startswith("5 of 15 stages to do, about ")

    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["public", "law", "code", "average", "gap", "worst"]
    assert any(line.startswith("composite:filter v dare+public: -") for line in lines)
    assert toys_ran() == []


def test_a_wrong_call(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpora" / "law.jsonl").unlink()
    assert run(command) == 3
    assert "law.jsonl" in capsys.readouterr().err
    (tmp_path / "toy.toml").write_text(CONFIG + 'fraud = "x"\n[routing]\nodds = 3\n')
    assert run(command) == 3
    assert "routing.odds" in capsys.readouterr().err
    assert run([*command, "--workers", "0"]) == 2
