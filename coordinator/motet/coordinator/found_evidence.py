"""A contribution's evidence by token, held to what the owner promised: pure, no torch.

An honest table is log p_own(token) / p_public(token) of two models of the same tokens, so that p_public times its
exponential adds up to p_own's 1. That is what keeps an expert from speaking everywhere: a table that says more of every
token adds up to more. Rounding, clipping and the tokens of neither text allow a little above 1, and `most` is all that
they can; nothing is asked from below, since text in another script than the public one is clipped far under 1, and who
claims less only silences its own expert. The token that opens every text is nobody's.

    found = FoundEvidence.of(values, public_tokens)         # in the child that reads the update
    evidence_problem(found, largest=5.5, counted=True)      # None, or why it is refused
"""

import math
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from motet.protocols.documents import Strict
from motet.protocols.expert_files import EVIDENCE_LIMIT, EVIDENCE_STEP

SLACK = 1.1
"""Times what an honest table can add up to: another version of the tokenizer may count a little differently."""
OPENING = -1
"""In place of a count: the token that opens every text, which is counted in none."""


class FoundEvidence(Strict):
    """What decoding a table of evidence showed."""

    stepped: bool
    """Whether every value is a multiple of `EVIDENCE_STEP`."""
    mass: float
    """What p_public times the exponential of the table adds up to."""
    most: float
    """The most that it adds up to when it was counted, with some slack."""
    opening: float = 0.0
    """The value of the token that opens every text; 0 if it is below."""

    @classmethod
    def of(cls, values: NDArray[Any], public_tokens: NDArray[Any]) -> Self:
        """Look at a table of finite values (vocabulary,), beside public text's count of each token, or `OPENING`."""
        opening, public_tokens = public_tokens == OPENING, np.maximum(public_tokens, 0)
        values = np.clip(values.astype(np.float64), -2 * EVIDENCE_LIMIT, 2 * EVIDENCE_LIMIT)
        public = (public_tokens + 0.5) / (public_tokens + 0.5).sum()  # the owner's public model
        steps = values / EVIDENCE_STEP
        return cls(
            stepped=bool((steps == np.rint(steps)).all()),
            mass=float(public @ np.exp(values)),
            most=_most(float(public[public_tokens == 0].sum())),
            opening=float(values[opening].max(initial=0.0)),
        )


def _most(unseen: float) -> float:
    """Half a step of rounding on p_own's 1, public tokens clipped from below, and 0 nats for tokens of neither text."""
    return SLACK * (math.exp(EVIDENCE_STEP / 2) + math.exp(-EVIDENCE_LIMIT) + unseen)


def evidence_problem(found: FoundEvidence | None, *, largest: float, counted: bool) -> str | None:
    """Why a table whose largest magnitude is `largest` is refused, `counted` if the charter asks for one; else None."""
    if not counted:
        return None if largest == 0 else "saw evidence by token, wanted zeros under a charter that asks for none"
    if found is None:
        return "saw no look at the evidence by token, wanted one"
    if not found.stepped:
        return f"saw evidence by token between the steps, wanted multiples of {EVIDENCE_STEP:g} nats"
    if found.opening > 0:
        return f"saw evidence of {found.opening:g} nats by the token that opens every text, wanted none"
    if found.mass > found.most:
        return (
            f"saw evidence by token that adds up to {found.mass:.3g} over the public text, wanted at most "
            f"{found.most:.3g}: it claims more tokens than any text has"
        )
    return None
