"""Rows by logistic regression: the log density ratio where it is known, and no more than the text can tell."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from motet.moe import logistic
from motet.moe.anchor import Anchor
from motet.moe.layer_inputs import LayerInputs
from motet.moe.logistic import SHRINKAGES, logistic_rows
from motet.moe.routing import RoutingRows
from motet.protocols.errors import StatisticsError

OWN = [f"kidney and liver in case {number}, the heart was well" for number in range(30)]
PUBLIC = [f"country {number} exports timber, imports grain and has a coast" for number in range(30)]


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


def inputs_of(values: Tensor, documents: int) -> LayerInputs:
    return LayerInputs(values={0: values}, document=torch.arange(len(values)) * documents // len(values))


def gaussians(own: int, public: int, *, apart: float, seed: int = 0) -> tuple[LayerInputs, LayerInputs, Tensor]:
    """Samples of N(m, S) and N(0, S), S diagonal and uneven, and m: (4,)."""
    draw = torch.Generator().manual_seed(seed)
    spread, mean = torch.tensor([1.0, 10.0, 0.1, 3.0]), torch.tensor([1.0, -10.0, 0.1, 0.0]) * apart
    sides = [torch.randn(count, 4, generator=draw) * spread for count in (own, public)]
    return inputs_of(sides[0] + mean, 40), inputs_of(sides[1], 40), mean


def test_between_gaussians_it_is_their_log_density_ratio() -> None:
    own, public, mean = gaussians(8000, 8000, apart=0.7)
    weight, bias = logistic._fit(own, public, 0)
    precision = torch.tensor([1.0, 10.0, 0.1, 3.0]) ** -2
    exact, intercept = precision * mean, -(precision * mean**2).sum() / 2
    scale = precision.sqrt()
    assert torch.allclose(weight / scale, exact / scale, atol=0.08)  # in units of each channel's spread
    assert abs(bias - intercept) < 0.08


@pytest.mark.parametrize("own_tokens", [800, 8000])
def test_how_much_text_there_is_does_not_enter(own_tokens: int) -> None:
    own, public, mean = gaussians(own_tokens, 4000, apart=0.7)
    weight, bias = logistic._fit(own, public, 0)
    half_way = mean / 2
    assert abs(float(weight @ half_way + bias)) < 0.12  # where both densities are equal; the odds are up to log 5
    twice = inputs_of(own.values[0].repeat_interleave(2, dim=0), 40)
    doubled, moved = logistic._fit(twice, public, 0)
    points = torch.cat([own.values[0][:200], public.values[0][:200]])
    difference = (points @ doubled + moved) - (points @ weight + bias)
    assert float(difference.abs().mean()) < 0.1


@pytest.mark.parametrize("own_tokens", [2000, 12000])
def test_without_an_intercept_it_is_the_ratio_of_what_zero_can_part(own_tokens: int) -> None:
    """With means +m + c and -m + c, c across m, the best row ignores c; with c along m there is nothing to tell by."""
    draw = torch.Generator().manual_seed(0)
    mean, shared = torch.tensor([0.5, -0.5, 0.0, 0.0]), torch.tensor([0.0, 0.0, 2.0, 0.0])
    own = inputs_of(torch.randn(own_tokens, 4, generator=draw) + mean + shared, 40)
    public = inputs_of(torch.randn(6000, 4, generator=draw) - mean + shared, 40)
    weight, bias = logistic._fit(own, public, 0, intercept=False)
    assert not bias.any()
    assert torch.allclose(weight, 2 * mean, atol=0.1)
    one = inputs_of(torch.tensor([[3.0, 0.0]]) + 0.01 * torch.randn(500, 2, generator=draw), 40)
    two = inputs_of(torch.tensor([[1.0, 0.0]]) + 0.01 * torch.randn(500, 2, generator=draw), 40)
    scores = [float((side.values[0] @ logistic._fit(one, two, 0, intercept=False)[0]).mean()) for side in (one, two)]
    assert scores[0] * scores[1] > 0


def test_separable_data_are_not_believed_without_end() -> None:
    own, public, _ = gaussians(500, 500, apart=20.0)
    inputs, is_own = torch.cat([own.values[0], public.values[0]]), torch.cat([torch.ones(500), torch.zeros(500)])
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0)
    norms = [float(logistic._descend(inputs, is_own, shrinkage)[0].norm()) for shrinkage in SHRINKAGES]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] < 20
    weight, bias = logistic._fit(own, public, 0)
    assert (torch.cat([own.values[0], public.values[0]]) @ weight + bias).abs().max() < 50


def test_what_only_names_the_documents_is_shrunk_away() -> None:
    """Channels that tell documents apart, and nothing else, tell own from public only where they were fitted."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 30, generator=draw)
    values = centres.repeat_interleave(25, dim=0) + 0.1 * torch.randn(1000, 30, generator=draw)
    own, public = inputs_of(values[:500], 20), inputs_of(values[500:], 20)
    held_out = torch.cat([own.document, public.document]) % logistic.HELD_OUT == 0
    is_own = torch.cat([torch.ones(500), torch.zeros(500)])
    standard = (values - values.mean(dim=0)) / values.std(dim=0)
    assert logistic._best_shrinkage(standard, is_own, held_out) == SHRINKAGES[-1]


def test_a_single_document_takes_the_strongest_shrinkage() -> None:
    own, public, _ = gaussians(100, 100, apart=1.0)
    one = LayerInputs(values=own.values, document=torch.zeros(100, dtype=torch.long))
    held_out = torch.cat([one.document, public.document]) % logistic.HELD_OUT == 0
    is_own = torch.cat([torch.ones(100), torch.zeros(100)])
    assert logistic._best_shrinkage(torch.randn(200, 4), is_own, held_out) == SHRINKAGES[-1]


def test_a_channel_that_never_varies_is_harmless() -> None:
    own, public, _ = gaussians(300, 300, apart=1.0)
    for side in (own, public):
        side.values[0][:, 3] = 5.0
    weight, bias = logistic._fit(own, public, 0)
    assert weight.isfinite().all()
    assert math.isfinite(float(bias))


def test_rows_tell_the_texts_apart_and_are_the_same_every_time(anchor: Anchor) -> None:
    rows = logistic_rows(anchor, OWN, PUBLIC)
    again = logistic_rows(anchor, iter(OWN), iter(PUBLIC))
    assert torch.equal(rows.weight, again.weight)
    assert torch.equal(rows.bias, again.bias)
    assert (rows.layers, rows.hidden_size, rows.tokens) == (2, 32, None)
    for layer in range(2):
        own, public = (scores(anchor, rows, texts, layer) for texts in (OWN[:5], PUBLIC[:5]))
        assert own.mean() > 1 > -1 > public.mean()


def scores(anchor: Anchor, rows: RoutingRows, texts: list[str], layer: int) -> Tensor:
    inputs = logistic.layer_inputs(anchor, texts, layers=[layer], max_tokens=10_000)
    return rows.scores(inputs.values[layer], layer=layer)


def test_rows_without_intercept_tell_the_texts_apart_as_well(anchor: Anchor) -> None:
    rows = logistic_rows(anchor, OWN, PUBLIC, intercept=False)
    assert not rows.bias.any()
    for layer in range(2):
        own, public = (scores(anchor, rows, texts, layer) for texts in (OWN[:5], PUBLIC[:5]))
        assert own.mean() > 1 > -1 > public.mean()


def test_layers_one_at_a_time_are_the_same(anchor: Anchor, monkeypatch: pytest.MonkeyPatch) -> None:
    together = logistic_rows(anchor, OWN, PUBLIC)
    monkeypatch.setattr(logistic, "MEMORY_BYTES", 1)
    assert torch.equal(logistic_rows(anchor, OWN, PUBLIC).weight, together.weight)


def test_as_many_layers_are_taken_together_as_the_text_needs(anchor: Anchor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text is not read layer by layer because a long one would be."""
    taken: list[int] = []
    inputs = logistic.layer_inputs

    def counting(*arguments: object, **options: object) -> LayerInputs:
        taken.append(len(options["layers"]))
        return inputs(*arguments, **options)

    monkeypatch.setattr(logistic, "layer_inputs", counting)
    own, public = ["kidney heart"] * 5, ["trade and wages"] * 5
    characters = 5 * (len("kidney heart") + len("trade and wages"))
    size = anchor.manifest.hidden_size * 4
    for memory, wanted in ((2 * characters * size, [2, 2]), (2 * characters * size - 1, [1, 1, 1, 1])):
        taken.clear()
        monkeypatch.setattr(logistic, "MEMORY_BYTES", memory)
        logistic_rows(anchor, own, public)
        assert taken == wanted


def test_text_against_itself_says_nothing(anchor: Anchor) -> None:
    rows = logistic_rows(anchor, PUBLIC, PUBLIC)
    assert scores(anchor, rows, PUBLIC, 0).abs().max() < 0.05


def test_a_text_without_positions_is_refused(anchor: Anchor) -> None:
    with pytest.raises(StatisticsError, match="give more text"):
        logistic_rows(anchor, [""], PUBLIC)
