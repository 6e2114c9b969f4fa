"""Which documents stand for a text when all of them would take too long.

The choice depends on the documents and the seed alone: the same in every order, and on every machine.

    documents = sample(corpus.train, 512, seed=0)
"""

import hashlib
from collections.abc import Iterable


def sample(texts: Iterable[str], count: int, *, seed: int) -> list[str]:
    """At most `count` different documents, none of them blank: those with the lowest hashes, in the hashes' order."""
    ranked = {_rank(text, seed): text for text in texts if text.strip()}
    return [ranked[rank] for rank in sorted(ranked)[:count]]


def _rank(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"motet.documents/1\n{seed}\n{text}".encode()).digest()
