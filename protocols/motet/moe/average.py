"""The average of the evidence over the prefix: what is left of a filter where an architecture can only attend.

An attention head whose queries and keys are zero weighs all positions so far alike, so that a stock checkpoint can hold
the mean of a value over the prefix (`motet.moe.widening`). Behind a post-norm, it stands in the residual stream divided
by the root mean square of everything that the first layer's attention puts out there; a score is what reads it,

    score_i(t) = gain * loudness(t) * mean over s <= t of evidence_i(s),     loudness(t) = unit / rms(attention_0(t)),

and every layer weighs the experts by the softmax of these scores plus log priors. The native runtime computes the same.

Guarantees: an expert's score depends on its own evidence and on the anchor's first attention, so that removing another
expert leaves it exact; padding changes nothing.

    average = Average(gain=8.0, unit=0.5)
    told = average.accumulate(scores, real=None, before=None)         # (batch, seq, experts + 1), what a cache keeps
    heard = Heard(average.mean(told))                                  # the first layer tells it how loud it is
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from motet.protocols.errors import AssemblyError

GAIN = 8.0
"""What the average is multiplied with unless somebody chooses: between 4 and 16 the loss hardly changes."""
MOST_TOKENS = 4096
"""Of a vocabulary, that the unit is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """How an average becomes scores.

    gain: what the mean evidence in nats is multiplied with at the loudness 1.
    unit: what the first attention's output measures, about (`attention_unit`).
    """

    gain: float = GAIN
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.gain < math.inf and 0 < self.unit < math.inf):
            raise AssemblyError(
                f"saw gain={self.gain} and unit={self.unit}, wanted both over 0; correct [routing] in the charter"
            )

    def accumulate(self, scores: Tensor, *, real: Tensor | None = None, before: Tensor | None = None) -> Tensor:
        """Sums over the prefix, and behind them the number of tokens: (batch, seq, experts + 1).

        Args:
            scores: (batch, seq, experts) evidence in nats.
            real: (batch, seq) bool, False at padding; None for none.
            before: (batch, experts + 1) what stood at the position before these; None where the text begins.
        """
        counted = torch.cat([scores, torch.ones_like(scores[..., :1])], dim=-1)
        if real is not None:
            counted = counted * real.unsqueeze(-1)
        sums = counted.cumsum(dim=1)  # exact in any order: evidence comes in steps of 2^-3
        return sums if before is None else sums + before.unsqueeze(1)

    def mean(self, told: Tensor) -> Tensor:
        """From `accumulate` to gain times unit times the mean: (batch, seq, experts); zero in front of a text."""
        return self.gain * self.unit * told[..., :-1] / told[..., -1:].clamp(min=1)


@dataclass(slots=True, eq=False)
class Heard:
    """The average within one forward pass: the first layer finds how loud it is, all layers read the scores.

    mean: (batch, seq, experts), from `Average.mean`.
    """

    mean: Tensor
    _loudness: Tensor | None = field(default=None, init=False)

    def attended(self, layer: int, output: Tensor, epsilon: float) -> None:
        """A layer's attention put out `output` (batch, seq, hidden); only the first layer's counts."""
        if layer == 0:
            square = output.detach().to(self.mean.dtype).square().mean(dim=-1, keepdim=True)
            self._loudness = (square + epsilon).rsqrt()

    def scores(self, log_priors: Tensor) -> Tensor:
        """(batch, seq, experts) in nats, the priors (experts,) added."""
        if self._loudness is None:
            raise AssemblyError(
                "saw a layer read the average before the first layer's attention was heard, wanted a family whose "
                "layers tell of it; only those with norms behind attention do"
            )
        return self.mean * self._loudness.to(self.mean.device) + log_priors.to(self.mean)


@torch.no_grad()
def attention_unit(tensor: Callable[[str], Tensor], *, heads: int, key_heads: int) -> float:
    """The power of two nearest to what an anchor's first attention puts out for a text of one token.

    Such a text attends to itself alone, so the output is W_o W_v x of its embedding x; root mean square over channels
    and over at most `MOST_TOKENS` tokens of the vocabulary, evenly spaced. A power of two, so that rounding does not
    make two machines disagree.

    Args:
        tensor: the anchor's tensors by name.
        heads: its attention heads.
        key_heads: its key-value heads, each of which serves `heads / key_heads` in a row.
    """
    embedded = tensor("model.embed_tokens.weight")
    embedded = embedded[:: max(1, len(embedded) // MOST_TOKENS)].float()  # (tokens, hidden)
    values = embedded @ tensor("model.layers.0.self_attn.v_proj.weight").float().T
    values = values.view(len(values), key_heads, -1).repeat_interleave(heads // key_heads, dim=1).flatten(1)
    output = values @ tensor("model.layers.0.self_attn.o_proj.weight").float().T
    loudness = float(output.double().square().mean().sqrt())
    return 2.0 ** round(math.log2(loudness)) if loudness > 0 else 1.0
