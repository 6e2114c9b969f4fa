"""Gate mass in whole numbers, and times as text.

apportioned(record)         # microtokens by expert id; they sum to exactly a million for every generated token
"""

import math
from datetime import UTC, datetime

from motet.serving.hooks import Record

MICROTOKENS = 1_000_000
"""Of a generated token's gate mass."""


def apportioned(record: Record) -> list[int]:
    """An answer's gate mass in microtokens by expert id, by the method of largest remainders.

    Shares are sums of float32, which do not sum to exactly one; whole microtokens do, and leave an expert at most one
    from where it was. Where a record has no shares of its tokens, all is the anchor's.
    """
    whole, mass = record.generated_tokens * MICROTOKENS, list(record.mass().values())
    total = math.fsum(mass)
    if not total > 0 or not math.isfinite(total):
        return [whole, *(0 for _ in mass[1:])]
    exact = [each / total * whole for each in mass]
    found = [math.floor(each) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: found[number] - exact[number])
    for number in by_remainder[: whole - sum(found)]:
        found[number] += 1
    return found


def moment(milliseconds: int) -> str:
    """A time as text."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
