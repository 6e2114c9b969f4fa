"""A period's usage as people and programs read it.

usage_json(total)                   # what /v1/usage and `motet usage --json` tell
rows_of(total)                      # its experts, a row each
"""

from typing import Any

from motet.serving.usage.shares import MICROTOKENS, moment
from motet.serving.usage.statement import NOTICE
from motet.serving.usage.store import ExpertUsage, Period, Total


def usage_json(total: Total) -> dict[str, Any]:
    """A period's usage as a JSON object."""
    until = None if total.period.until == Period().until else moment(total.period.until)
    return {
        "object": "usage",
        "since": moment(total.period.since),
        "until": until,
        "answers": total.answers,
        "prompt_tokens": total.prompt_tokens,
        "generated_tokens": total.generated_tokens,
        "experts": rows_of(total),
        "notice": NOTICE,
    }


def rows_of(total: Total) -> list[dict[str, Any]]:
    """The experts of a period; `share` is of the gate mass of all its generated tokens."""
    whole = total.generated_tokens * MICROTOKENS
    return [_row(each, each.microtokens / whole if whole else 0.0) for each in total.experts]


def _row(usage: ExpertUsage, share: float) -> dict[str, Any]:
    return {
        "name": usage.expert.name,
        "contribution": usage.expert.contribution,
        "owner": usage.expert.owner,
        "answers": usage.answers,
        "generated_tokens": usage.generated_tokens,
        "microtokens": usage.microtokens,
        "share": share,
    }
