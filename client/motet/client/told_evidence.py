"""What a packed contribution's evidence by token tells, for its owner to see before it leaves.

Read from the update itself, not from what it was made of: whatever the file holds is what is shown.

    told = told_evidence(packed, home)        # None: the table is all zeros, and tells nothing
    told.lines(), told.as_json()
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from motet.client.outbox import Packed
from motet.client.owner import OwnerHome
from motet.protocols.canonical import file_digest
from motet.protocols.codec import UpdateReader
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.errors import TransferError
from motet.protocols.expert_files import ROUTER_TOKENS

SHOWN = 12
"""How many of the largest values are shown as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToldEvidence:
    """`tokens` have a value of their own: neither 0 nor the lowest, which every token gets that counts as absent.

    `largest` are those that most of all are more frequent than in public text, as printable text, and their nats.
    """

    tokens: int
    largest: tuple[tuple[str, float], ...]

    def lines(self) -> list[str]:
        """For the consent screen."""
        shown = ", ".join(f"{text} {nats:+g}" for text, nats in self.largest)
        return [
            f"evidence     how much more or less often than in public text {self.tokens:,} tokens occur in yours, in "
            "nats: whoever has a composite can read it",
            f"  most of all: {shown or 'none more often'}",
        ]

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {"tokens": self.tokens, "largest": [{"text": text, "nats": nats} for text, nats in self.largest]}


def told_evidence(packed: Packed, home: OwnerHome) -> ToldEvidence | None:
    """What the table in the update tells; None if it is all zeros, as charters that count no evidence want it.

    Raises TransferError when the update is not the one that was signed: what is shown is what leaves.
    """
    if (saw := file_digest(packed.update)) != packed.contribution.update:
        raise TransferError(
            f"{packed.update}: saw {saw}, the manifest says {packed.contribution.update}; pack and sign the "
            "contribution again"
        )
    with UpdateReader(packed.update, paths=NumpyKernels()) as update:
        values = update.tensor(ROUTER_TOKENS)
    if not values.any():
        return None
    told = (values != 0) & (values != min(values.min(), 0))
    largest = [int(token) for token in np.argsort(-values, kind="stable")[:SHOWN] if values[token] > 0]
    return ToldEvidence(tokens=int(told.sum()), largest=_named(largest, values, home))


def _named(tokens: list[int], values: NDArray[np.float32], home: OwnerHome) -> tuple[tuple[str, float], ...]:
    """Each token as the anchor's tokenizer writes it, quoted, whatever cannot be printed escaped."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home.anchor, local_files_only=True)
    return tuple((repr(tokenizer.decode([token])), float(values[token])) for token in tokens)
