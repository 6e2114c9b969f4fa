"""Several dense models that answer together: baselines that run every specialist on every token.

Guarantees: causal, what a position is given depends on the tokens up to it alone. Both behave as a language model does
whose logits are log probabilities (or scores) of the mixture, so that `motet.moe.scoring` scores them like any other.

    document_nats(BranchTrainMerge([anchor_model, medicine_model, law_model]), windows)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motet.coordinator.quality.material import read_ffn
from motet.coordinator.quality.measuring import Bench, System


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What scoring reads: logits (batch, seq, vocabulary)."""

    logits: Tensor


class Ensemble(ABC):
    """Models of one vocabulary, whose logits are combined."""

    def __init__(self, models: Sequence[PreTrainedModel]) -> None:
        self._models = list(models)
        self.device: torch.device = self._models[0].device

    def __call__(self, *, input_ids: Tensor, **forward: Any) -> Answer:  # noqa: ANN401 - as the models take it
        """input_ids (batch, seq) -> logits (batch, seq, vocabulary)."""
        each = [model(input_ids=input_ids, **forward).logits.float() for model in self._models]
        return Answer(logits=self._together(each, input_ids))

    @abstractmethod
    def _together(self, each: list[Tensor], input_ids: Tensor) -> Tensor:
        """Every model's logits (batch, seq, vocabulary) -> the ensemble's."""


class LogitAverage(Ensemble):
    """The mean of the logits: the geometric mean of the models' probabilities."""

    def _together(self, each: list[Tensor], input_ids: Tensor) -> Tensor:
        return torch.stack(each).mean(dim=0)


class BranchTrainMerge(Ensemble):
    """Probabilities mixed by the posterior over models, given what each made of the prefix.

    Output ensembling of Branch-Train-Merge (arXiv 2208.03306, section 2), the prior uniform and no expert left out:
    p(x_t | x_<t) = sum_d p(d | x_<t) p_d(x_t | x_<t) with p(d | x_<t) ~ prod_(s<t) p_d(x_s | x_<s).
    """

    def _together(self, each: list[Tensor], input_ids: Tensor) -> Tensor:
        each = [logits.log_softmax(dim=-1) for logits in each]
        seen = input_ids[:, 1:, None]
        told = torch.stack([log_p[:, :-1].gather(-1, seen).squeeze(-1) for log_p in each])  # (models, batch, seq - 1)
        evidence = torch.cat([told.new_zeros(*told.shape[:-1], 1), told.cumsum(dim=-1)], dim=-1)
        posterior = evidence.log_softmax(dim=0)  # (models, batch, seq)
        mixed = torch.full_like(each[0], -torch.inf)
        for log_p, weight in zip(each, posterior, strict=True):
            mixed = torch.logaddexp(mixed, log_p + weight.unsqueeze(-1))
        return mixed


ENSEMBLES: dict[str, type[Ensemble]] = {"btm": BranchTrainMerge, "logit-average": LogitAverage}
"""By the name of the system."""


def ensembles(bench: Bench, *, wanted: Sequence[str]) -> Iterator[System]:
    """The anchor and all specialists, `specialist:NAME` of the bench's material, answering together."""
    models = [bench.material.dense()]
    for folder in bench.material.each("specialist:").values():
        model = bench.material.dense()
        model.load_state_dict(read_ffn(folder, bench.material.anchor), strict=False)
        models.append(model)
    for name in wanted:
        yield System(name=name, nats=bench.measure(ENSEMBLES[name](models)))
