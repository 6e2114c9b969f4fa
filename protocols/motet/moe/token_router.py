"""The router that reads tokens: evidence of every expert by token id, added up over the prefix.

A filter makes posteriors of it, an average running sums; what it has found stands in the key-value cache.

    router = TokenRouter(vocabulary_size, evidence, log_priors)
    found = router(input_ids, expert_mask=None, real=None, before=None)    # (batch, seq, experts), or one more
    model(..., routing=router.routing(found, expert_mask=None))
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from motet.moe.average import Average, Heard
from motet.moe.evidence import Evidence
from motet.moe.gate import Routing
from motet.moe.wide import Wide, wide_dtype

TOKEN_ROUTER = "token_router.weight"  # noqa: S105 - a tensor's name
"""The name of its tensor in a composite: (experts, vocabulary)."""


def real_positions(attention_mask: Tensor | None, length: int, *, past: int = 0) -> Tensor | None:
    """Which of the `length` positions after the first `past` hold a token: (batch, length) bool; None for all of them.

    From an attention mask (batch, positions so far), ones and zeros, or one spread over queries and keys (batch, 1,
    length, keys), as generation makes for caches of fixed size: there only padding does not attend to itself.
    """
    if attention_mask is None or attention_mask.ndim not in (2, 4):
        return None
    if attention_mask.ndim == 2:
        return attention_mask[:, -length:].bool()
    itself = attention_mask[:, 0, :, past : past + length].diagonal(dim1=-2, dim2=-1)
    return itself if itself.dtype == torch.bool else itself == 0


class TokenRouter(Wide):
    """Evidence in nats, `weight` (experts, vocabulary), the anchor's row zero; frozen."""

    def __init__(self, vocabulary_size: int, evidence: Evidence | Average, log_priors: Sequence[float]) -> None:
        super().__init__()
        shape = (len(log_priors), vocabulary_size)
        self.weight = nn.Parameter(torch.zeros(shape, dtype=wide_dtype()), requires_grad=False)
        self.evidence, self.log_priors = evidence, tuple(log_priors)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        *,
        expert_mask: Tensor | None = None,
        real: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """What the prefix says at every position. Without gradient: nothing that it depends on is trained.

        A filter's posterior (batch, seq, experts), or an average's sums (batch, seq, experts + 1).

        Args:
            input_ids: (batch, seq).
            expert_mask: (batch, experts) bool, None for all.
            real: (batch, seq) bool, False at padding, None for none.
            before: what was found at the position before these, None where the texts begin.
        """
        device, dtype = self.weight.device, self.weight.dtype
        scores = self.weight[:, input_ids.to(device)].movedim(0, -1)  # (batch, seq, experts)
        real = None if real is None else real.to(device)
        before = None if before is None else before.to(device, dtype)
        if isinstance(self.evidence, Average):
            return self.evidence.accumulate(scores, real=real, before=before)
        return self.evidence.filter(
            scores,
            torch.tensor(self.log_priors, device=device, dtype=dtype),
            mask=None if expert_mask is None else expert_mask.to(device),
            real=real,
            before=before,
        )

    def routing(self, found: Tensor, expert_mask: Tensor | None) -> Routing:
        """What the mixtures are told of it."""
        if isinstance(self.evidence, Average):
            priors = torch.tensor(self.log_priors, dtype=found.dtype)
            return Routing(expert_mask=expert_mask, heard=Heard(self.evidence.mean(found)), log_priors=priors)
        return Routing(expert_mask=expert_mask, posterior=found)
