"""The harness's example tasks: made of text that nobody trains on, and as their script makes them."""

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from motet.protocols.split import is_held_out

EXAMPLES = Path(__file__).parents[2] / "examples"
DOMAINS = ("public", "medicine", "mathematics")


@cache
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness_build", EXAMPLES / "harness" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_are_what_the_script_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build(), "HERE", tmp_path)
    build().main()
    for kind in ("choice", "text"):
        for domain in DOMAINS:
            written, shipped = (root / kind / f"{domain}.jsonl" for root in (tmp_path, EXAMPLES / "harness"))
            assert written.read_bytes() == shipped.read_bytes()


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_text_is_the_slices_held_out_part(domain: str) -> None:
    slices = lines(EXAMPLES / "quickstart" / "text" / f"{domain}.jsonl")
    wanted = [document for document in slices if is_held_out(document["text"], 0.1, 0)]
    assert lines(EXAMPLES / "harness" / "text" / f"{domain}.jsonl") == wanted


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_right_choice_goes_on_and_the_others_do_not(domain: str) -> None:
    texts = {line["id"]: line["text"] for line in lines(EXAMPLES / "harness" / "text" / f"{domain}.jsonl")}
    questions = lines(EXAMPLES / "harness" / "choice" / f"{domain}.jsonl")
    assert len(questions) == 2 * len(texts)
    for question in questions:
        text = texts[question["id"].rpartition("@")[0]]
        assert [question["context"] + choice in text for choice in question["choices"]] == [
            number == question["target"] for number in range(4)
        ]


def test_the_right_choice_stands_in_every_place() -> None:
    targets = [q["target"] for domain in DOMAINS for q in lines(EXAMPLES / "harness" / "choice" / f"{domain}.jsonl")]
    assert all(targets.count(place) > len(targets) / 8 for place in range(4))
