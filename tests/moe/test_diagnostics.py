"""Diagnostics: sums that equal a loop over tokens, whatever the batches, none over few, and a model left as it was."""

import math
from pathlib import Path

import pytest
import torch

from motet.moe.anchor import Anchor
from motet.moe.composite import MotetForCausalLM, compose
from motet.moe.diagnostics import Watch, buckets_of, gates_of
from motet.moe.evidence import Evidence
from motet.moe.experts import Expert
from motet.moe.routing import RoutingRows
from motet.moe.scoring import score_windows, windows_of
from motet.protocols.evaluation.positions import Positions
from motet.protocols.evaluation.reliability import Histogram

DOCUMENTS = ["short", "a longer document, cut into several windows " * 2, "Ödem, 心臓, 🫀", "b" * 15]
LENGTH = 24


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


@pytest.fixture(scope="module", params=["token", "filter"])
def composite(anchor: Anchor, request: pytest.FixtureRequest) -> MotetForCausalLM:
    evidence = Evidence(stay=0.9, temperature=2.0) if request.param == "filter" else None
    ffn, experts = {name: tensor.float() for name, tensor in anchor.ffn().items()}, []
    for number, name in enumerate(("medicine", "law"), start=1):
        draw = torch.Generator().manual_seed(number)
        shape = (anchor.manifest.layers, anchor.manifest.hidden_size)
        rows = RoutingRows(weight=torch.randn(shape, generator=draw), bias=torch.zeros(shape[0]))
        experts.append(Expert(name=name, contribution=f"sha256:{number:064}", ffn=ffn, rows=rows))
    return compose(anchor.model(torch.float32), experts, evidence=evidence)


def watched(model: MotetForCausalLM, anchor: Anchor, batch_size: int) -> Watch:
    windows = windows_of(anchor.tokenizer(), DOCUMENTS, sequence_length=LENGTH, batch_size=batch_size)
    watch = Watch(model.config.names)
    with watch.gates(model):
        score_windows(model, windows, watch=watch)
    return watch


def token_by_token(model: MotetForCausalLM, anchor: Anchor) -> tuple[list[list[list[float]]], list[tuple[int, float]]]:
    """Layer by layer the gate's weights of each scored token, and of each token its position and its loss."""
    tokenizer = anchor.tokenizer()
    seen: list[list[list[float]]] = [[] for _ in gates_of(model)]
    losses: list[tuple[int, float]] = []
    hooks = [
        gate.register_forward_hook(lambda _module, _inputs, weights, layer=layer: seen[layer].extend(weights.tolist()))
        for layer, gate in enumerate(gates_of(model))
    ]
    for document in DOCUMENTS:
        tokens = tokenizer(document, add_special_tokens=False)["input_ids"]
        for start in range(0, len(tokens), LENGTH - 1):
            window = [tokenizer.bos_token_id, *tokens[start : start + LENGTH - 1]]
            with torch.no_grad():
                logits = model(torch.tensor([window[:-1]])).logits[0].float().log_softmax(dim=-1)
            losses += [(place, -float(logits[place, token])) for place, token in enumerate(window[1:])]
    for hook in hooks:
        hook.remove()
    return seen, losses


def test_gate_sums_equal_a_loop_over_tokens(composite: MotetForCausalLM, anchor: Anchor) -> None:
    seen, _ = token_by_token(composite, anchor)
    watch = watched(composite, anchor, batch_size=8)
    assert len(watch.layers()) == len(seen)
    for layer, tokens in zip(watch.layers(), seen, strict=True):
        assert watch.tokens == len(tokens)
        for number, name in enumerate(composite.config.names):
            weights = [token[number] for token in tokens]
            assert layer.mass[name] == pytest.approx(sum(weights), rel=1e-4)
            bins = [[weight for weight in weights if min(9, int(weight * 10)) == place] for place in range(10)]
            fine = Histogram(tokens=tuple(map(len, bins)), mass=tuple(map(sum, bins)))
            assert layer.histograms[name].tokens == fine.coarse().tokens
            assert min(count for count in layer.histograms[name].tokens if count) >= 10
            assert sum(layer.histograms[name].mass) == pytest.approx(layer.mass[name], abs=1e-4)
        assert sum(layer.mass.values()) == pytest.approx(watch.tokens, rel=1e-5)
        entropy = sum(-weight * math.log(weight) for token in tokens for weight in token if weight > 0)
        assert layer.entropy == pytest.approx(entropy, rel=1e-4)


def test_loss_by_position_equals_a_loop_over_tokens(composite: MotetForCausalLM, anchor: Anchor) -> None:
    _, losses = token_by_token(composite, anchor)
    buckets = {(0, 1): 0, (2, 3): 1, (4, 7): 2, (8, 15): 3, (16, 31): 4}
    nats, tokens = [0.0] * 5, [0] * 5
    for position, loss in losses:
        place = next(place for (first, last), place in buckets.items() if first <= position <= last)
        nats[place] += loss
        tokens[place] += 1
    found = watched(composite, anchor, batch_size=3).positions()
    wanted = Positions(nats=tuple(nats), tokens=tuple(tokens)).coarse()
    assert found.tokens == wanted.tokens
    assert list(found.nats) == pytest.approx(wanted.nats, rel=1e-5)


@pytest.mark.parametrize(("tokens", "told"), [(9, ()), (10, (0, 0, 10, 0)), (26, (0, 0, 0, 16, 10))])
def test_no_sum_over_few_tokens_is_told(composite: MotetForCausalLM, tokens: int, told: tuple[int, ...]) -> None:
    watch, ids = Watch(composite.config.names), torch.arange(tokens)[None] + 1
    with watch.gates(composite), torch.no_grad():
        composite(ids)
        watch.note(torch.ones(1, tokens, dtype=torch.float64), torch.ones(1, tokens, dtype=torch.bool))
    assert watch.tokens == tokens
    assert watch.positions().tokens == told
    assert bool(watch.layers()) == bool(told)


def test_batches_and_their_padding_change_nothing(composite: MotetForCausalLM, anchor: Anchor) -> None:
    one, many = (watched(composite, anchor, batch_size) for batch_size in (1, 64))
    assert one.tokens == many.tokens
    for alone, together in zip(one.layers(), many.layers(), strict=True):
        assert alone.mass == pytest.approx(together.mass, rel=1e-4)


def test_the_model_is_left_as_it_was(composite: MotetForCausalLM, anchor: Anchor) -> None:
    watch = watched(composite, anchor, batch_size=8)
    with pytest.raises(RuntimeError, match="stop"), watch.gates(composite):
        raise RuntimeError("stop")
    assert all(not gate._forward_hooks for gate in gates_of(composite))
    before = watch.layers()
    score_windows(composite, windows_of(anchor.tokenizer(), DOCUMENTS, sequence_length=LENGTH))
    assert watch.layers() == before


def test_a_dense_model_has_positions_and_no_layers(anchor: Anchor) -> None:
    watch = Watch()
    windows = windows_of(anchor.tokenizer(), DOCUMENTS, sequence_length=LENGTH)
    whole = score_windows(anchor.model(torch.float32), windows, watch=watch)
    assert watch.layers() == ()
    assert sum(watch.positions().nats) == pytest.approx(whole.nats)


def test_buckets_double() -> None:
    assert buckets_of(17).tolist() == [0, 0, 1, 1, *[2] * 4, *[3] * 8, 4]
