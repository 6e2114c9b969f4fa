"""Ensembles: the arithmetic of their papers, and nothing from the future."""

import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from motet.coordinator.quality.ensembles import BranchTrainMerge, LogitAverage
from motet.moe.anchor import Anchor
from motet.moe.scoring import Windows, document_nats, windows_of

TEXTS = ["It rained in the town.", "No party shall.", "x", "y"]
"""The last two make a batch of windows with one token to score."""


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


@pytest.fixture(scope="module")
def models(anchor: Anchor) -> list[PreTrainedModel]:
    return [changed(anchor, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def windows(anchor: Anchor) -> Windows:
    return windows_of(anchor.tokenizer(), TEXTS, sequence_length=64, batch_size=2)


def changed(anchor: Anchor, seed: int) -> PreTrainedModel:
    model = anchor.model(torch.float32)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in anchor.ffn():
            model.get_parameter(name).add_(torch.randn(model.get_parameter(name).shape, generator=draw) * 0.2)
    return model


def test_branch_train_merge_is_a_bayesian_mixture(models: list[PreTrainedModel], windows: Windows) -> None:
    """The product of the predictions telescopes: p(text) = sum_d p(d) p_d(text), each document one window here."""
    each = torch.stack([document_nats(model, windows) for model in models])  # (models, documents)
    assert float((each[0] - each[1]).abs().max()) > 0.1
    wanted = math.log(len(models)) - (-each).logsumexp(dim=0)
    torch.testing.assert_close(document_nats(BranchTrainMerge(models), windows), wanted, rtol=1e-5, atol=1e-4)


def test_branch_train_merge_answers_with_probabilities(models: list[PreTrainedModel], windows: Windows) -> None:
    ids = windows.batches[0][0]
    answer = BranchTrainMerge(models)(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(answer.exp().sum(dim=-1), torch.ones(ids.shape), rtol=1e-4, atol=1e-4)
    first = torch.stack([model(input_ids=ids).logits.softmax(dim=-1)[:, 0] for model in models]).mean(dim=0)
    torch.testing.assert_close(answer[:, 0].exp(), first, rtol=1e-4, atol=1e-5)


def test_logits_are_averaged(models: list[PreTrainedModel], windows: Windows) -> None:
    ids = windows.batches[0][0]
    wanted = (models[0](input_ids=ids).logits + models[1](input_ids=ids).logits) / 2
    torch.testing.assert_close(LogitAverage(models[:2])(input_ids=ids, use_cache=False).logits, wanted)


@pytest.mark.parametrize("ensemble", [BranchTrainMerge, LogitAverage])
def test_later_tokens_change_nothing(
    ensemble: type[BranchTrainMerge | LogitAverage], models: list[PreTrainedModel], windows: Windows
) -> None:
    ids = windows.batches[0][0]
    whole, part = ensemble(models)(input_ids=ids).logits, ensemble(models)(input_ids=ids[:, :7]).logits
    torch.testing.assert_close(whole[:, :7], part, rtol=1e-4, atol=1e-4)


def test_one_model_answers_for_itself(models: list[PreTrainedModel], windows: Windows) -> None:
    alone = document_nats(models[0], windows)
    for ensemble in (BranchTrainMerge, LogitAverage):
        torch.testing.assert_close(document_nats(ensemble(models[:1]), windows), alone, rtol=1e-5, atol=1e-4)
