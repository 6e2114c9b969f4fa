"""A judge that scores validation text, made to be asked some hundred times.

Guarantees: the same bits per byte as `motet.moe.scoring.score_windows` gives with these networks in place of the
anchor's; neither the model nor its gradients are touched.

    judge = TextJudge(anchor.model(torch.float32), {"public": windows, "medicine": other_windows})
    judge(expert.ffn)                            # averaged over the domains
    judge.by_domain(expert.ffn)["medicine"]
    judge.loss(ffn, step).backward()             # reaches `ffn` alone
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from motet.coordinator.merging.problem import Networks
from motet.moe.scoring import Windows
from motet.moe.spans import IGNORED
from motet.protocols.errors import DataError


class TextJudge:
    """The anchor's dense model over the windows of each domain; see `motet.coordinator.merging.problem.Judge`."""

    def __init__(self, model: PreTrainedModel, domains: Mapping[str, Windows]) -> None:
        """Raises DataError when there is no domain."""
        if not domains:
            raise DataError("saw no domain to judge by, wanted public text at least; name validation text")
        self._model = model
        self._domains = dict(domains)
        self._frozen = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._bits_per_nat = {name: _bits_per_nat(windows) for name, windows in domains.items()}

    def __call__(self, ffn: Networks) -> float:
        """Bits per byte, averaged over the domains."""
        scores = self.by_domain(ffn)
        return sum(scores.values()) / len(scores)

    @torch.inference_mode()
    def by_domain(self, ffn: Networks) -> dict[str, float]:
        """Bits per byte of each domain."""
        return {
            name: sum(float(self._nats(ffn, ids, labels)) for ids, labels, _ in windows.batches)
            / (math.log(2) * sum(windows.sizes))
            for name, windows in self._domains.items()
        }

    def loss(self, ffn: Networks, step: int) -> Tensor:
        """One batch of every domain, drawn by `step`: the mean of their bits per byte, a scalar."""
        draw = torch.Generator().manual_seed(step)
        losses = []
        for name, windows in self._domains.items():
            ids, labels, _ = windows.batches[int(torch.randint(len(windows.batches), (), generator=draw))]
            losses.append(self._nats(ffn, ids, labels) / _scored(labels) * self._bits_per_nat[name])
        return torch.stack(losses).mean()

    def _nats(self, ffn: Networks, ids: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of a batch, ids and labels (batch, seq), with `ffn` in place of the model's own."""
        device = self._model.device
        changed = {name: tensor.to(self._frozen[name]) for name, tensor in ffn.items()}
        arguments = {"input_ids": ids[:, :-1].to(device), "use_cache": False}
        logits = functional_call(self._model, self._frozen | changed, kwargs=arguments).logits
        targets = labels[:, 1:].to(device)
        return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def _bits_per_nat(windows: Windows) -> float:
    """What a nat of a domain's average token is in bits of its average byte."""
    return sum(_scored(labels) for _, labels, _ in windows.batches) / sum(windows.sizes) / math.log(2)


def _scored(labels: Tensor) -> int:
    return int((labels != IGNORED).sum())
