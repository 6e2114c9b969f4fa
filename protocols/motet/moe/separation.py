"""How well routing separates an owner's text from public text, layer by layer, in the states of a model.

A row is fitted on the frozen anchor's states, and reads the composite's, in which other experts have spoken by then:
what is measured on both tells what depth does to it. The figure is the area under the ROC curve (AUC): the probability
that a position of the own text scores above one of public text, ties counting half (Mann and Whitney 1947; Hanley and
McNeil, Radiology 1982). 0.5 is chance; no threshold, prior or scale enters. Padding and each window's first position
are left out. Positions of one document are alike, so the documents are the sample; their number is told.

    found = separation(model, {"law": rows}, tokenizer, own={"law": held_out}, public=…, sequence_length=128)
    found["law"].layers[12]                             # AUC of the row of layer 12
    evidence_separation(rows.tokens, evidence, tokenizer, own=…, public=…, sequence_length=128).posterior
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motet.moe.evidence import Evidence
from motet.moe.routing import RoutingRows
from motet.moe.scoring import Windows, windows_of
from motet.protocols.errors import StatisticsError

_Scores = tuple[Tensor, Tensor]
"""Every counted position's score, (layers, positions), and every document's mean, (layers, documents)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Separation:
    """AUC by layer, and what it was measured on."""

    layers: tuple[float, ...]
    """Position by position: of a row's score of the layer's MLP input."""
    documents: tuple[float, ...]
    """The same of each document's mean score."""
    own_positions: int
    public_positions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceSeparation:
    """AUC of what the tokens' ids say; the same at every depth."""

    token: float
    """Of one token's evidence."""
    posterior: float
    """Of the filter's posterior of the expert against the anchor alone, at every position given those before it."""


def separation(
    model: PreTrainedModel,
    rows: Mapping[str, RoutingRows],
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped
    *,
    own: Mapping[str, Sequence[str]],
    public: Sequence[str],
    sequence_length: int,
    batch_size: int = 8,
) -> dict[str, Separation]:
    """The AUC of every expert's rows in a model's states, own text against public text; each text is read once.

    Args:
        model: the anchor, or a composite of it.
        rows: by expert.
        own: by expert, documents that neither its rows nor itself were made from.
        public: such documents of public text.
        sequence_length: tokens of a window, the opening one included.

    Raises:
        DataError: one of the texts is empty.
        StatisticsError: a text has no position to count, or the rows are for other layers.
    """

    def scored(texts: Sequence[str], names: Sequence[str]) -> dict[str, _Scores]:
        windows = windows_of(tokenizer, texts, sequence_length=sequence_length, batch_size=batch_size)
        return dict(zip(names, _scores(model, [rows[name] for name in names], windows), strict=True))

    of_public = scored(public, list(rows))
    return {name: _compared(scored(own[name], [name])[name], of_public[name]) for name in rows}


def evidence_separation(
    tokens: Tensor,
    evidence: Evidence,
    tokenizer: Any,  # noqa: ANN401
    *,
    own: Sequence[str],
    public: Sequence[str],
    sequence_length: int,
    log_priors: tuple[float, float] = (0.0, 0.0),
) -> EvidenceSeparation:
    """The AUC of an expert's evidence by token id: (vocabulary,) nats.

    Args:
        tokens: what each id says.
        evidence: the filter's settings.
        log_priors: the anchor's and the expert's, in nats.

    Raises:
        DataError, StatisticsError: as `separation`.
    """
    single, filtered = [], []
    for texts in (own, public):
        windows = windows_of(tokenizer, texts, sequence_length=sequence_length)
        told = [_heard(tokens, evidence, ids, real, log_priors) for ids, real, _ in _read(windows)]
        single.append(torch.cat([each[0] for each in told]))
        filtered.append(torch.cat([each[1] for each in told]))
    return EvidenceSeparation(token=auc(*single), posterior=auc(*filtered))


def auc(positive: Tensor, negative: Tensor) -> float:
    """The probability that one of `positive` (n,) is above one of `negative` (m,), ties counting half.

    Raises StatisticsError when one of them is empty or holds NaN.
    """
    if not len(positive) or not len(negative) or bool(positive.isnan().any() or negative.isnan().any()):
        raise StatisticsError(
            f"saw {len(positive)} own and {len(negative)} public scores to compare, wanted numbers on either side; "
            "give more text"
        )
    ordered = negative.double().sort().values.contiguous()
    wanted = positive.double().contiguous()
    below = torch.searchsorted(ordered, wanted).double()
    up_to = torch.searchsorted(ordered, wanted, right=True).double()
    return float((below + up_to).mean() / (2 * len(ordered)))


def _compared(own: _Scores, public: _Scores) -> Separation:
    return Separation(
        layers=tuple(auc(*each) for each in zip(own[0], public[0], strict=True)),
        documents=tuple(auc(*each) for each in zip(own[1], public[1], strict=True)),
        own_positions=own[0].shape[1],
        public_positions=public[0].shape[1],
    )


def _scores(model: PreTrainedModel, rows: Sequence[RoutingRows], windows: Windows) -> list[_Scores]:
    """For each of `rows` what every position and every document has."""
    layers: list[Any] = list(model.get_submodule("model.layers").children())
    for each in rows:
        if len(layers) != each.layers:
            raise StatisticsError(f"saw rows for {each.layers} layers and a model of {len(layers)}, wanted as many")
    found: list[list[Tensor]] = [[] for _ in layers]
    documents: list[Tensor] = []

    def hook_of(layer: int) -> Any:  # noqa: ANN401
        return lambda module, arguments: found[layer].append(
            torch.stack([each.scores(arguments[0].cpu()[real], layer=layer) for each in rows])
        )

    hooks = [layer.mlp.register_forward_pre_hook(hook_of(number)) for number, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            for ids, real, document in _read(windows):  # the hooks read `real`
                documents.append(document[:, None].expand_as(ids)[real])
                model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    document = torch.cat(documents)
    scores = torch.stack([torch.cat(each, dim=1) for each in found], dim=1)  # (rows, layers, positions)
    return [(each, _means(each, document)) for each in scores]


def _means(scores: Tensor, document: Tensor) -> Tensor:
    """(layers, positions) and (positions,) -> (layers, documents that have any)."""
    present, place = torch.unique(document, return_inverse=True)
    sums = torch.zeros(scores.shape[0], len(present), dtype=torch.float64).index_add_(1, place, scores.double())
    return sums / torch.bincount(place)


def _read(windows: Windows) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids (batch, seq), which of them are counted: neither padding nor the first, and their documents (batch,)."""
    for ids, labels, document in windows.batches:
        real = labels >= 0
        real[:, 0] = False
        yield ids, real, document


def _heard(
    tokens: Tensor, evidence: Evidence, ids: Tensor, real: Tensor, log_priors: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """What each counted token says, and the expert's posterior there: both (positions,)."""
    scores = torch.stack([torch.zeros(ids.shape), tokens[ids]], dim=-1)  # (batch, seq, anchor and expert)
    there = real.clone()
    there[:, 0] = True
    posterior = evidence.filter(scores, torch.tensor(log_priors), real=there)[..., 1]
    return tokens[ids][real], posterior[real]
