"""Routing rows by logistic regression: what tells an owner's text from public text at every layer's MLP input.

The fitted log odds, less those of the sample, are the log density ratio (Qin, Inferences for case-control and
semiparametric two-sample density ratio models, 1998): fitted on own and public text alone, so no row depends on another
owner. Separable data would make it over-confident: how far the weights are shrunk is chosen by the log loss on
documents that the fit has not seen.

    rows = logistic_rows(anchor, own_texts, public_texts)
    rows = logistic_rows(anchor, own_texts, public_texts, intercept=False)      # for a router without biases
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from motet.moe.layer_inputs import LayerInputs, layer_inputs
from motet.moe.routing import RoutingRows

if TYPE_CHECKING:
    from motet.moe.anchor import Anchor

MAX_TOKENS = 1 << 15
"""Positions of either text after which no further ones are fitted on."""
MEMORY_BYTES = 1 << 30
"""Layers are taken together, in one pass over the text, as long as their inputs fit into this."""
SHRINKAGES = (1e-4, 1e-3, 1e-2)
"""Weights of the squared row, in units of each channel's spread, that are tried."""
HELD_OUT = 5
"""Every fifth document is held out while the shrinkage is chosen."""


def logistic_rows(
    anchor: Anchor,
    own: Iterable[str],
    public: Iterable[str],
    *,
    max_tokens: int = MAX_TOKENS,
    intercept: bool = True,
    device: str | torch.device = "cpu",
) -> RoutingRows:
    """Fit one row a layer on about `max_tokens` positions of either text, or on all there are.

    They are those of the first documents, in the order given, up to the batch in which the number is reached: of a
    longer text that is sorted in any way the rows follow what comes first, so shuffle it before.

    Without `intercept` the biases are zero, and own and public positions count in equal shares, since there is nothing
    that the sampling odds could be taken out of.

    Raises StatisticsError when a text has no positions to count.
    """
    own, public = list(own), list(public)
    size = anchor.manifest.hidden_size
    tokenizer = anchor.tokenizer()
    most = sum(min(max_tokens, _tokens(tokenizer, texts)) for texts in (own, public))
    together = max(1, MEMORY_BYTES // max(1, most * size * 4))
    weights, biases = [], []
    for start in range(0, anchor.manifest.layers, together):
        layers = range(start, min(start + together, anchor.manifest.layers))
        sides = [
            layer_inputs(anchor, texts, layers=layers, max_tokens=max_tokens, device=device) for texts in (own, public)
        ]
        for layer in layers:
            weight, bias = _fit(sides[0], sides[1], layer, intercept)
            weights.append(weight)
            biases.append(bias)
    return RoutingRows(weight=torch.stack(weights), bias=torch.stack(biases))


def _tokens(tokenizer: Any, texts: Iterable[str]) -> int:  # noqa: ANN401 - transformers is untyped
    """How many tokens the texts have: as many positions are counted at the most."""
    return sum(len(tokenizer.encode(text, add_special_tokens=False, verbose=False)) for text in texts)


def _fit(own: LayerInputs, public: LayerInputs, layer: int, intercept: bool = True) -> tuple[Tensor, Tensor]:
    """The row (hidden,) and its intercept () of a layer."""
    inputs = torch.cat([own.values[layer], public.values[layer]])
    mean, spread = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-6)
    is_own = torch.cat([torch.ones(len(own.document)), torch.zeros(len(public.document))])
    held_out = torch.cat([own.document, public.document]) % HELD_OUT == 0
    if not intercept:
        return _fit_through_zero(inputs / spread, is_own, held_out) / spread, torch.zeros(())
    inputs = (inputs - mean) / spread
    shrinkage = _best_shrinkage(inputs, is_own, held_out)
    weight, bias = _descend(inputs, is_own, shrinkage)
    weight = weight / spread
    odds = math.log(len(own.document) / len(public.document))
    return weight, bias - odds - weight @ mean


def _fit_through_zero(inputs: Tensor, is_own: Tensor, held_out: Tensor) -> Tensor:
    """The row (hidden,) without intercept; each side counts for one half, whatever its number of positions."""
    share = (is_own / is_own.sum() + (1 - is_own) / (1 - is_own).sum()) * len(is_own) / 2
    shrinkage = _best_shrinkage(inputs, is_own, held_out, share)
    return _descend(inputs, is_own, shrinkage, share)[0]


def _best_shrinkage(inputs: Tensor, is_own: Tensor, held_out: Tensor, share: Tensor | None = None) -> float:
    """The one whose fit on the other documents tells those held out best; the strongest when there are too few."""
    if any(bool((is_own[side] == is_own[side][:1]).all()) for side in (held_out, ~held_out)):
        return SHRINKAGES[-1]
    parts = [None, None] if share is None else [share[~held_out], share[held_out]]

    def loss(shrinkage: float) -> float:
        weight, bias = _descend(inputs[~held_out], is_own[~held_out], shrinkage, parts[0])
        scores = inputs[held_out] @ weight + bias
        return float(functional.binary_cross_entropy_with_logits(scores, is_own[held_out], weight=parts[1]))

    return min(SHRINKAGES, key=loss)


def _descend(inputs: Tensor, is_own: Tensor, shrinkage: float, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logistic regression by L-BFGS from zero: inputs (tokens, hidden), is_own (tokens,) -> row and intercept.

    With `share` (tokens,), how much each token counts, the intercept stays zero.
    """
    weight = torch.zeros(inputs.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=share is None)
    parameters = [weight, bias] if share is None else [weight]
    optimizer = torch.optim.LBFGS(parameters, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(inputs @ weight + bias, is_own, weight=share)
        loss = loss + shrinkage * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
