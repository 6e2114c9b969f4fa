"""Evidence by token: how much more often a token occurs in an owner's text than in public text.

The ratio of two unigram models, log p_own(token) / p_public(token), made of the owner's and the public text alone. It
depends on token ids and on nothing that a layer computes: it is the same at every depth, beside any other experts, and
for a composite as for the anchor. One token says little; a filter adds them up (`motet.moe.evidence`).

What it tells about the text is bounded: tokens of few documents count as absent, and values are clipped and rounded
(docs/routing.md says what it still reveals).

    tokens = token_evidence(count(tokenizer, own), count(tokenizer, public), vocabulary_size)   # (vocabulary,) nats
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from motet.protocols.errors import StatisticsError
from motet.protocols.expert_files import EVIDENCE_LIMIT, EVIDENCE_STEP

LEAST_DOCUMENTS = 3
"""A token that occurs in fewer of the owner's documents counts as one that does not occur."""
PSEUDO_TOKENS = 100.0
"""Tokens of public text that are added to the owner's, so that what was never seen is rare and not impossible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCounts:
    """How often each token id occurs, and in how many documents."""

    tokens: Counter[int] = field(default_factory=Counter)
    documents: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, tokenizer: Any, texts: Iterable[str]) -> Self:  # noqa: ANN401 - transformers is untyped
        """Count a text's tokens, without special ones that are not written out; memory does not grow with the text.

        Nor is the token counted that opens every text for a model, even where it also stands in one (behind the answers
        of a conversation, say): it would tell of all texts that they are like this one, most of all in an average.
        """
        counts = cls()
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
            counts.tokens.update(ids)
            counts.documents.update(set(ids))
        opening = opening_token(tokenizer)
        counts.tokens.pop(opening, None)
        counts.documents.pop(opening, None)
        return counts


def opening_token(tokenizer: Any) -> int:  # noqa: ANN401 - transformers is untyped
    """The id of the token that opens every text that is trained on or scored; -1 if the tokenizer has none."""
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return -1 if found is None else int(found)


def token_evidence(own: TokenCounts, public: TokenCounts, vocabulary_size: int) -> Tensor:
    """log p_own(token) / p_public(token) in nats, clipped and rounded: (vocabulary,) float32.

    The public model adds half a count to every token (Jeffreys' prior), the owner's `PSEUDO_TOKENS` of the public model
    (a Dirichlet prior; Zhai and Lafferty, A Study of Smoothing Methods for Language Models, 2004, section 3). Tokens of
    neither text, special ones among them, say nothing.
    Raises StatisticsError when one of the texts has no token.
    """
    if not own.tokens or not public.tokens:
        raise StatisticsError("saw a text without tokens, wanted own and public text to compare; give more text")
    told = {token: number for token, number in own.tokens.items() if own.documents[token] >= LEAST_DOCUMENTS}
    seen, known = _counted(told, vocabulary_size), _counted(public.tokens, vocabulary_size)
    p_public = (known + 0.5) / (known + 0.5).sum()
    p_own = (seen + PSEUDO_TOKENS * p_public) / (seen.sum() + PSEUDO_TOKENS)
    ratio = (p_own / p_public).log().masked_fill((seen == 0) & (known == 0), 0.0)
    clipped = ratio.clamp(-EVIDENCE_LIMIT, EVIDENCE_LIMIT)
    return ((clipped / EVIDENCE_STEP).round() * EVIDENCE_STEP).float()


def _counted(counts: dict[int, int], vocabulary_size: int) -> Tensor:
    """Counts by token id: (vocabulary,) float64."""
    found = torch.zeros(vocabulary_size, dtype=torch.float64)
    found[torch.tensor(list(counts), dtype=torch.long)] = torch.tensor(list(counts.values()), dtype=torch.float64)
    return found
