"""Whether an answer follows its prompt's instruction: the checks behind `instructions.yaml`.

Guarantees: each is a function of the answer's text alone, without the white space around it; an empty answer follows
nothing. What is said is never judged, only the form.

    follows({"kind": "words", "number": 3}, "Only three words")          # True
    results(doc, ["Only three words"])                                   # {"follows": 1.0, "words": 1.0}
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[str, Mapping[str, Any]], bool]
"""An answer, and the line of prompts.jsonl: `number`, `text` or `keys` say what its kind needs to know."""

_BULLET = re.compile(r"[-*•]\s+\S")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


def _has_keys(answer: str, doc: Mapping[str, Any]) -> bool:
    """A JSON object with all the keys, alone or in one fenced block."""
    fenced = _FENCE.fullmatch(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and set(doc["keys"]) <= value.keys()


def _bullets(answer: str, doc: Mapping[str, Any]) -> bool:
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    return len(lines) == doc["number"] and all(_BULLET.match(line) for line in lines)


def _says(answer: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) is not None


CHECKS: dict[str, Check] = {
    "words": lambda answer, doc: len(answer.split()) == doc["number"],
    "at_most": lambda answer, doc: len(answer.split()) <= doc["number"],
    "capitals": lambda answer, doc: answer.isupper(),
    "lower_case": lambda answer, doc: answer.islower(),
    "json": _has_keys,
    "ends": lambda answer, doc: answer.endswith(doc["text"]),
    "begins": lambda answer, doc: answer.startswith(doc["text"]),
    "contains": lambda answer, doc: _says(answer, doc["text"]),
    "avoids": lambda answer, doc: not _says(answer, doc["text"]),
    "bullets": _bullets,
    "sentences": lambda answer, doc: len(_SENTENCE_END.findall(answer)) == doc["number"],
    "quoted": lambda answer, doc: len(answer) > 2 and answer[0] == answer[-1] == '"',
}
"""By the kind of instruction."""


def follows(doc: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer does what the prompt asks for."""
    told = answer.strip()
    return bool(told) and CHECKS[doc["kind"]](told, doc)


def results(doc: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
    """What the harness averages: over all prompts, and over those of one kind."""
    share = float(follows(doc, answers[0]))
    return {"follows": share, doc["kind"]: share}
