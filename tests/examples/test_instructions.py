"""The instruction-following prompts: every kind is checked as it says, and every prompt can be followed and missed."""

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "examples" / "instructions"
PROMPTS = [json.loads(line) for line in (FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]

FOLLOWED = {
    "words": lambda doc: " ".join(["word"] * doc["number"]),
    "at_most": lambda doc: " ".join(["word"] * doc["number"]) + "\n",
    "capitals": lambda doc: "3 APPLES, PLEASE!",
    "lower_case": lambda doc: "a cat, 3 dogs.",
    "json": lambda doc: "```json\n" + json.dumps(dict.fromkeys(doc["keys"], 1) | {"more": []}) + "\n```",
    "ends": lambda doc: f"So it was. {doc['text']}",
    "begins": lambda doc: f"{doc['text']} and so on",
    "contains": lambda doc: f"It was {doc['text'].upper()}, or so.",
    "avoids": lambda doc: f"Some{doc['text']}ing else.",
    "bullets": lambda doc: "\n\n".join(["- item"] * doc["number"]),
    "sentences": lambda doc: "It cost 3.50, yes! " * doc["number"],
    "quoted": lambda doc: '"Well done."',
}
MISSED = {
    "words": lambda doc: " ".join(["word"] * (doc["number"] + 1)),
    "at_most": lambda doc: " ".join(["word"] * (doc["number"] + 1)),
    "capitals": lambda doc: "APPLEs",
    "lower_case": lambda doc: "a Cat",
    "json": lambda doc: "Here you are: " + json.dumps(dict.fromkeys(doc["keys"], 1)),
    "ends": lambda doc: f"{doc['text']} I hope that helps",
    "begins": lambda doc: f"Well. {doc['text']}",
    "contains": lambda doc: f"It was {doc['text']}ish",
    "avoids": lambda doc: f"It was {doc['text'].capitalize()}.",
    "bullets": lambda doc: "Sure:\n" + "\n".join(["- item"] * doc["number"]),
    "sentences": lambda doc: "One more. " * (doc["number"] + 1),
    "quoted": lambda doc: 'He said "well done."',
}


@cache
def checks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("instruction_checks", FOLDER / "checks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("doc", PROMPTS, ids=lambda doc: doc["id"])
def test_a_prompt_can_be_followed_and_missed(doc: dict) -> None:
    assert checks().results(doc, [f"  {FOLLOWED[doc['kind']](doc)} \n"]) == {"follows": 1.0, doc["kind"]: 1.0}
    assert checks().results(doc, [MISSED[doc["kind"]](doc)]) == {"follows": 0.0, doc["kind"]: 0.0}
    assert not checks().follows(doc, " \n")


@pytest.mark.parametrize("answer", ["[1]", "3", "{", "[" * 100_000, "```json\n{}\n```"])
def test_what_is_no_object_with_the_keys_is_none(answer: str) -> None:
    assert not checks().follows({"kind": "json", "keys": ["a"]}, answer)


def test_every_kind_is_measured_and_no_prompt_is_there_twice() -> None:
    kinds = {doc["kind"] for doc in PROMPTS}
    task = yaml.safe_load((FOLDER / "instructions.yaml").read_text().replace("!function ", ""))
    assert {each["metric"] for each in task["metric_list"]} == {"follows", *kinds}
    assert kinds == checks().CHECKS.keys() == FOLLOWED.keys() == MISSED.keys()
    for name in ("id", "prompt"):
        assert len({doc[name] for doc in PROMPTS}) == len(PROMPTS)
    assert all(doc.keys() == PROMPTS[0].keys() for doc in PROMPTS)  # one table, of one type a column
