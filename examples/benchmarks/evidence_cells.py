"""The cells of the routing experiments: where scores come from, how they add up, the few settings to choose among."""

from collections.abc import Sequence
from typing import Any

Cells = Sequence[dict[str, Any]]

EVIDENCE: dict[str, list[dict[str, Any]]] = {
    "token": [{"evidence": "token"}],
    "sharpened": [{"evidence": "token", "gain": gain} for gain in (1.5, 2.5, 4.0)],
    "leak": [
        {"evidence": "leak", "decay": decay, "gain": gain} for decay, gain in ((0.9, 0.4), (0.95, 0.3), (0.95, 0.1))
    ],
    "step": [{"evidence": "step", "stay": 0.99, "temperature": temperature} for temperature in (2.0, 4.0, 12.0)],
    "average": [{"evidence": "average", "gain": gain} for gain in (2.0, 8.0, 32.0)],
}
"""Name -> what validation documents choose among. `sharpened` is one token's evidence at a gain like the others'."""


def cell(rows: str, evidence: str, *, name: str | None = None, members: Sequence[str] | None = None) -> dict[str, Any]:
    """One kind of rows under one kind of evidence."""
    choices = [{"rows": rows, **choice} for choice in EVIDENCE[evidence]]
    found: dict[str, Any] = {"name": name or f"{rows} {evidence}", "choices": choices}
    return found | ({"members": list(members)} if members else {})


FACTORIAL = [
    *(cell(rows, evidence) for rows in ("own", "lda", "tokens") for evidence in EVIDENCE),
    cell("shuffled", "step"),
    cell("random", "step"),
]
"""`own` are the layers' rows by logistic regression, `lda` those in closed form, `tokens` the evidence by token id."""
MAIN = [
    cell("own", "token"),
    cell("own", "sharpened"),
    cell("own", "leak"),
    cell("own", "step"),
    cell("tokens", "step"),
]
PAIR = [cell("own", "token"), cell("tokens", "step")]
"""What a `token` and a `filter` composite do, settings aside."""


def of_set(members: Sequence[str]) -> list[dict[str, Any]]:
    """The two kinds of routing over a part of the experts."""
    return [
        cell("own", "token", name=f"{len(members)} owners, token", members=members),
        cell("tokens", "step", name=f"{len(members)} owners, filter", members=members),
    ]
