"""How well routing separates two texts: the area under the curve, counted by hand, in anchors and composites."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from motet.moe.anchor import Anchor
from motet.moe.composite import compose
from motet.moe.evidence import Evidence
from motet.moe.experts import Expert
from motet.moe.logistic import logistic_rows
from motet.moe.routing import RoutingRows
from motet.moe.separation import Separation, auc, evidence_separation, separation
from motet.protocols.errors import DataError, StatisticsError

OWN = [f"kidney heart {word} liver bone acute {word}" for word in ("mild", "severe", "benign", "left", "right", "lung")]
PUBLIC = [f"THE {word} OF 19{n}77: 4{n}, 5{n}0" for n, word in enumerate(("TRADE", "EXPORT", "PRICE", "WAGE", "TAX"))]
TEXT = {"own": OWN, "public": PUBLIC, "sequence_length": 24}
EACH = TEXT | {"own": {"medicine": OWN}}


def separated(model, rows: RoutingRows, anchor: Anchor, **options) -> Separation:
    return separation(model, {"medicine": rows}, anchor.tokenizer(), **EACH | options)["medicine"]


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


def pairs(positive: list[float], negative: list[float]) -> float:
    wins = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    return wins / (len(positive) * len(negative))


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    draw = torch.Generator().manual_seed(0)
    own, public = torch.randint(0, 9, (40,), generator=draw) + 2, torch.randint(0, 9, (70,), generator=draw)
    assert auc(own.float(), public.float()) == pytest.approx(pairs(own.tolist(), public.tolist()))
    assert auc(torch.ones(3), torch.ones(5)) == 0.5
    assert auc(torch.tensor([2.0, 3.0]), torch.tensor([1.0])) == 1.0
    assert auc(torch.tensor([0.0]), torch.tensor([1.0, 2.0])) == 0.0


@pytest.mark.parametrize("bad", [torch.empty(0), torch.tensor([float("nan")])])
def test_nothing_to_compare_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(StatisticsError, match="wanted numbers on either side"):
        auc(torch.ones(1), bad)


def test_rows_fitted_on_the_texts_separate_them_and_random_ones_do_not(anchor: Anchor) -> None:
    model = anchor.model(torch.float32)
    fitted = separated(model, logistic_rows(anchor, OWN, PUBLIC), anchor)
    assert len(fitted.layers) == len(fitted.documents) == 2
    assert min(fitted.layers) > 0.9
    assert fitted.documents == (1.0, 1.0)
    assert fitted.own_positions == sum(map(len, OWN))
    assert fitted.public_positions == sum(map(len, PUBLIC))
    nothing = RoutingRows(weight=torch.zeros(2, 32), bias=torch.ones(2))
    assert separated(model, nothing, anchor).layers == (0.5, 0.5)


def test_batches_change_nothing_and_the_model_is_left_as_it_was(anchor: Anchor) -> None:
    model, draw = anchor.model(torch.float32), torch.Generator().manual_seed(1)
    rows = RoutingRows(weight=torch.randn(2, 32, generator=draw), bias=torch.zeros(2))
    found = [separated(model, rows, anchor, batch_size=size) for size in (1, 8)]
    assert found[0].layers == pytest.approx(found[1].layers, abs=1e-3)
    assert not any(layer.mlp._forward_pre_hooks for layer in model.model.layers)


def test_a_composites_states_are_those_after_its_experts_have_spoken(anchor: Anchor) -> None:
    draw = torch.Generator().manual_seed(2)
    rows = RoutingRows(weight=torch.randn(2, 32, generator=draw), bias=torch.zeros(2))
    ffn = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in anchor.ffn().items()}
    expert = Expert(name="law", contribution=f"sha256:{'0' * 64}", ffn=ffn, rows=rows)
    composite = compose(anchor.model(torch.float32), [expert], evidence=Evidence(stay=0.9, temperature=2.0))
    before = separated(anchor.model(torch.float32), rows, anchor)
    after = separated(composite, rows, anchor)
    assert after.layers[0] == pytest.approx(before.layers[0], abs=1e-6)  # nothing has spoken before the first
    assert abs(after.layers[1] - before.layers[1]) > 0.01


def test_evidence_adds_up(anchor: Anchor) -> None:
    tokenizer, vocabulary = anchor.tokenizer(), anchor.manifest.vocabulary_size
    tokens = torch.zeros(vocabulary)
    for letter, told in (("e", 1.0), ("i", 1.0), ("T", -1.0)):
        tokens[tokenizer(letter, add_special_tokens=False)["input_ids"]] = told
    found = evidence_separation(tokens, Evidence(stay=0.99, temperature=1.0), tokenizer, **TEXT)
    of = {letter: float(tokens[number]) for letter in set("".join(OWN + PUBLIC)) for number in tokenizer.encode(letter)}
    expected = pairs([of[each] for text in OWN for each in text], [of[each] for text in PUBLIC for each in text])
    assert found.token == pytest.approx(expected)
    assert 0.5 < found.token < found.posterior


def test_rows_for_other_layers_and_empty_texts_are_refused(anchor: Anchor) -> None:
    model, rows = anchor.model(torch.float32), RoutingRows(weight=torch.zeros(3, 32), bias=torch.zeros(3))
    with pytest.raises(StatisticsError, match="saw rows for 3 layers and a model of 2"):
        separated(model, rows, anchor)
    with pytest.raises(DataError, match="wanted text in each"):
        separated(model, replace(rows, weight=torch.zeros(2, 32), bias=torch.zeros(2)), anchor, own={"medicine": []})


def test_several_experts_have_what_each_has_alone(anchor: Anchor) -> None:
    model, tokenizer = anchor.model(torch.float32), anchor.tokenizer()
    rows = {"medicine": logistic_rows(anchor, OWN, PUBLIC), "trade": logistic_rows(anchor, PUBLIC, OWN)}
    options = {"public": PUBLIC, "sequence_length": 24}
    both = separation(model, rows, tokenizer, own={"medicine": OWN, "trade": OWN[:2]}, **options)
    assert both["medicine"] == separated(model, rows["medicine"], anchor)
    assert both["trade"] == separated(model, rows["trade"], anchor, own={"medicine": OWN[:2]})
    assert max(both["trade"].layers) < 0.1
