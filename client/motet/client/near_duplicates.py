"""Finding documents that repeat one another, so that held-out text is not trained on under another name.

Guarantees that no kept document shares `SHARED_LIMIT` or more of its twelve-word shingles with the longer ones
kept, whichever of them the shingles come from; exact, and the same answer whatever the order.

    texts = [texts[index] for index in distinct(texts)]
    train = [train[index] for index in apart(train, held_out)]
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

SHINGLE_WORDS = 12
SHARED_LIMIT = 0.5

_WORD = re.compile(r"\w+")


def distinct(texts: Sequence[str]) -> list[int]:
    """Indices of the documents to keep, ascending: those that repeat no longer one, and hold a word.

    Longest first, and equally long ones in the order of their content: a short document inside a long one goes,
    wherever it stands, if it has twelve words or more. Memory is some 150 bytes for each word of the texts.
    """
    found = [_shingles(text) for text in texts]
    order = sorted(range(len(texts)), key=lambda index: (-len(found[index]), texts[index], index))
    seen: set[bytes] = set()
    kept = []
    for index in order:
        own = found[index]
        if own and len(own & seen) < SHARED_LIMIT * len(own):
            seen |= own
            kept.append(index)
    return sorted(kept)


def apart(texts: Sequence[str], others: Sequence[str]) -> list[int]:
    """Indices of the texts to keep beside `others`, ascending, which all stay.

    A text goes if half of its shingles stand in the others, or if it holds half of those of any one of them.
    """
    sizes: list[int] = []
    holders: dict[bytes, list[int]] = {}
    for number, other in enumerate(others):
        found = _shingles(other)
        sizes.append(len(found))
        for shingle in found:
            holders.setdefault(shingle, []).append(number)
    return [index for index, text in enumerate(texts) if not _repeats(_shingles(text), holders, sizes)]


def _repeats(own: frozenset[bytes], holders: dict[bytes, list[int]], sizes: Sequence[int]) -> bool:
    shared = [holders[shingle] for shingle in own if shingle in holders]
    held = Counter(number for numbers in shared for number in numbers)
    most_of_own = bool(own) and len(shared) >= SHARED_LIMIT * len(own)
    return most_of_own or any(count >= SHARED_LIMIT * sizes[number] for number, count in held.items())


def _shingles(text: str) -> frozenset[bytes]:
    """Short hashes of every run of twelve lower-cased words; a shorter text is one shingle, an empty one has none."""
    words = _WORD.findall(text.lower())
    if not words:
        return frozenset()
    return frozenset(
        hashlib.blake2b(" ".join(words[start : start + SHINGLE_WORDS]).encode(), digest_size=8).digest()
        for start in range(max(1, len(words) - SHINGLE_WORDS + 1))
    )
