"""Drawing the next token, each sequence by its own generator, so that an answer does not depend on its neighbours.

sampler = Sampler(Sampling(temperature=0.7, top_p=0.9, seed=3), sample=0)
token = sampler.draw(logits)                                      # (vocabulary,)
"""

import torch
from torch import Tensor

from motet.serving.engine.job import Sampling

SEEDS = 2**63


class Sampler:
    """One sequence's way of drawing."""

    def __init__(self, sampling: Sampling, *, sample: int) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((sampling.seed + sample) % SEEDS)

    def draw(self, logits: Tensor) -> int:
        """A token id, from logits (vocabulary,)."""
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        behind = logits.double().cpu() - float(logits.max())  # the likeliest stays 0, however low the temperature
        probabilities = torch.softmax(behind / self.sampling.temperature, dim=-1)
        if self.sampling.top_p < 1:
            probabilities = nucleus(probabilities, self.sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Only the likeliest tokens, as few as reach `top_p` together and at least one; the others' probability is zero.

    Nucleus sampling (Holtzman et al., The Curious Case of Neural Text Degeneration, 2020, section 3.1), not normalised.
    """
    falling, order = probabilities.sort(descending=True, stable=True)
    beyond = falling.cumsum(-1) - falling >= top_p  # those in front reach it without this one
    beyond[0] = False
    return probabilities.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)


def likeliest(logits: Tensor, token: int, number: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log probability in nats of `token`, and the `number` likeliest tokens with theirs: logits (vocabulary,)."""
    logarithms = torch.log_softmax(logits.double(), dim=-1)
    top = logarithms.topk(min(number, len(logarithms)))
    return float(logarithms[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
