"""Which documents are held out from training: a function of the text alone, so that both sides agree.

A document falls on the same side on every machine, in every order and beside any other documents, and a copy of it
falls on the same side as it does. Near-duplicates do not: remove them first.

    held_out = [text for text in texts if is_held_out(text, share=0.1, seed=0)]
    document_id(text)                     # how a public document is named to the other side
"""

import hashlib

from motet.protocols.canonical import bytes_digest

PUBLIC_SHARE = 0.1
"""The share of the public text that nobody trains on, so that everybody can be scored on it."""
PUBLIC_SEED = 0


def is_held_out(text: str, share: float, seed: int) -> bool:
    """Whether a document belongs to the held-out share, decided by the SHA-256 of the seed and its content.

    Args:
        text: the document; white space around it does not count.
        share: the fraction held out, 0 to 1: the expected one, since each document is decided by itself.
        seed: another seed holds out other documents.

    Raises:
        ValueError: `share` is outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"saw a held-out share of {share}, wanted 0 to 1")
    content = f"motet.split/1\n{seed}\n{text.strip()}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8]) < share * 2**64


def document_id(text: str) -> str:
    """The id of a public document: the digest of its text in UTF-8, exactly as it stands in the file."""
    return bytes_digest(text.encode("utf-8", "surrogatepass"))
