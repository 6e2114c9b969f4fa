"""Evidence over the prefix: which domain a text is in, told from all of its tokens so far.

A token's routing scores are log density ratios, and say little one by one. The filter is the forward step of a hidden
Markov model whose hidden state is the domain (Rabiner, A Tutorial on Hidden Markov Models, 1989, section III.A): the
domain stays with probability `stay`, or is drawn anew from the prior; each token multiplies in its density ratio,
tempered since neighbouring tokens are not independent,

    p_t ~ exp(r_t / temperature) (stay p_(t-1) + (1 - stay) prior).

Guarantees: a masked expert has probability zero, and the others have, to the last bit, what they would have if it did
not exist; positions that are not real (padding) change nothing and are given what came before them; a text's first
real token, in front of which there is nothing, gives no evidence; nor does one that contradicts prior and past beyond
what floating point can hold.

    evidence = Evidence(stay=0.98, temperature=4.0)
    posteriors = evidence.filter(scores, log_prior)                        # (batch, seq, experts), sums to 1
    more = evidence.filter(next_scores, log_prior, before=posteriors[:, -1])
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.moe.gating import sum_in_order
from motet.protocols.errors import AssemblyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The filter's two settings, which a charter names and a composite carries.

    stay: the probability that the next token is of the same domain, 0 to 1 (exclusive).
    temperature: what scores, in nats, are divided by.
    """

    stay: float
    temperature: float

    def __post_init__(self) -> None:
        if not 0 <= self.stay < 1 or not self.temperature > 0:
            raise AssemblyError(
                f"saw stay={self.stay} and temperature={self.temperature}, wanted 0 <= stay < 1 and a temperature over "
                "0; correct [routing] in the charter"
            )

    def filter(
        self,
        scores: Tensor,
        log_prior: Tensor,
        *,
        mask: Tensor | None = None,
        real: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """The posterior over domains at every position: (batch, seq, experts).

        Args:
            scores: (batch, seq, experts) log density ratios in nats, without priors.
            log_prior: (experts,) in nats, up to a constant.
            mask: (batch, experts) bool, the experts that may take part; None for all.
            real: (batch, seq) bool, False at padding; None for none.
            before: (batch, experts) the posterior at the last position before these; None where the text begins. A row
                of zeros is a text that has not begun.
        """
        prior = _allowed_prior(log_prior.expand(scores.shape[0], -1), mask)  # (batch, experts)
        likelihoods = _likelihoods(scores / self.temperature, mask)
        posterior = torch.zeros_like(prior) if before is None else before
        begun = sum_in_order(posterior) > 0  # (batch, 1)
        found = []
        for position in range(scores.shape[1]):
            predicted = self.stay * posterior + (1 - self.stay) * prior
            weighed = predicted * likelihoods[:, position]
            total = sum_in_order(weighed)  # zero if a token is for none but experts whose prior is next to nothing
            after = torch.where(begun, torch.where(total > 0, weighed / total, predicted), prior)
            if real is None:
                posterior, begun = after, torch.ones_like(begun)
            else:
                here = real[:, position, None]
                posterior, begun = torch.where(here, after, posterior), begun | here
            found.append(posterior)
        return torch.stack(found, dim=1)


def _allowed_prior(log_prior: Tensor, mask: Tensor | None) -> Tensor:
    """The prior over the experts that may take part: (batch, experts)."""
    allowed = log_prior if mask is None else log_prior.masked_fill(~mask, -torch.inf)
    weights = (allowed - allowed.amax(dim=-1, keepdim=True)).exp()
    return weights / sum_in_order(weights)


def _likelihoods(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Each token's density ratios over the largest one among those allowed: (batch, seq, experts), at most 1."""
    allowed = scores if mask is None else scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
    return (allowed - allowed.amax(dim=-1, keepdim=True)).exp()
