"""Finding documents that repeat one another, so that held-out text is not trained on under another name.

Guarantees that no kept document shares `SHARED_LIMIT` or more of its twelve-word shingles with the longer ones
kept, whichever of them the shingles come from; exact, and the same answer whatever the order.

    texts = [texts[index] for index in distinct(texts)]
"""

import hashlib
import re
from collections.abc import Sequence

SHINGLE_WORDS = 12
SHARED_LIMIT = 0.5

_WORD = re.compile(r"\w+")


def distinct(texts: Sequence[str]) -> list[int]:
    """Indices of the documents to keep, ascending: those that repeat no longer one, and hold a word.

    Longest first, and equally long ones in the order of their content: a short document inside a long one goes,
    wherever it stands. Takes 8 bytes and a set's entry for each shingle.
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


def _shingles(text: str) -> frozenset[bytes]:
    """Short hashes of every run of twelve lower-cased words; a shorter text is one shingle, an empty one has none."""
    words = _WORD.findall(text.lower())
    if not words:
        return frozenset()
    return frozenset(
        hashlib.blake2b(" ".join(words[start : start + SHINGLE_WORDS]).encode(), digest_size=8).digest()
        for start in range(max(1, len(words) - SHINGLE_WORDS + 1))
    )
