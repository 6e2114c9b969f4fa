"""The judge by text: the figures of `moe.scoring`, gradients for the networks alone, and a model left as it was."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from motet.coordinator.merging import Networks, TextJudge, merge
from motet.moe.anchor import Anchor
from motet.moe.experts import swap_ffn
from motet.moe.scoring import Windows, bits_per_byte, score_windows, windows_of
from motet.protocols.errors import DataError

TEXTS = {
    "public": ["It rained in the town, and nobody minded. " * 4, "short"],
    "law": ["§ 1 No party shall. § 2 No party may. " * 6, "Whereas", "Ö" * 40],
}


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


@pytest.fixture(scope="module")
def domains(anchor: Anchor) -> dict[str, Windows]:
    tokenizer = anchor.tokenizer()
    return {name: windows_of(tokenizer, texts, sequence_length=32, batch_size=3) for name, texts in TEXTS.items()}


@pytest.fixture(scope="module")
def judge(anchor: Anchor, domains: dict[str, Windows]) -> TextJudge:
    return TextJudge(anchor.model(torch.float32), domains)


def expert_of(anchor: Anchor, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + torch.randn(tensor.shape, generator=draw) * 0.1).to(tensor.dtype)
        for name, tensor in anchor.ffn().items()
    }


def test_scores_are_those_of_scoring(anchor: Anchor, domains: dict[str, Windows], judge: TextJudge) -> None:
    model, expert = anchor.model(torch.float32), expert_of(anchor, 1)
    with swap_ffn(model, expert):
        wanted = {name: bits_per_byte(score_windows(model, windows)) for name, windows in domains.items()}
    assert judge.by_domain(expert) == pytest.approx(wanted, rel=1e-6)
    assert judge(expert) == pytest.approx(sum(wanted.values()) / 2, rel=1e-6)
    assert judge(expert) != pytest.approx(judge(anchor.ffn()), rel=1e-4)


def test_the_model_stays_as_it_was(anchor: Anchor, domains: dict[str, Windows]) -> None:
    model = anchor.model(torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    judge = TextJudge(model, domains)
    judge(expert_of(anchor, 1))
    widened_leaves(anchor, judge, step=0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
        assert parameter.grad is None


def widened_leaves(anchor: Anchor, judge: TextJudge, step: int) -> Networks:
    """Networks whose gradients have been filled by one loss."""
    ffn = {name: tensor.float().requires_grad_() for name, tensor in expert_of(anchor, 2).items()}
    judge.loss(ffn, step).backward()
    return ffn


def test_the_gradient_is_the_slope_of_the_loss(anchor: Anchor, judge: TextJudge) -> None:
    ffn = widened_leaves(anchor, judge, step=4)
    assert all(float(tensor.grad.abs().max()) > 0 for tensor in ffn.values())
    length = 1e-3 / sum(float((tensor.grad**2).sum()) for tensor in ffn.values()) ** 0.5
    with torch.no_grad():
        ahead, behind = ({name: t + sign * length * t.grad for name, t in ffn.items()} for sign in (1, -1))
        slope = (judge.loss(ahead, 4) - judge.loss(behind, 4)) / (2 * length)
    assert float(slope) == pytest.approx(sum(float((t.grad**2).sum()) for t in ffn.values()), rel=0.02)


def test_a_step_draws_the_same_batches_and_steps_draw_others(anchor: Anchor, judge: TextJudge) -> None:
    losses = [float(judge.loss(anchor.ffn(), step)) for step in range(12)]
    assert losses == [float(judge.loss(anchor.ffn(), step)) for step in range(12)]
    assert len(set(losses)) > 3


def test_the_loss_of_one_batch_is_the_score(anchor: Anchor) -> None:
    windows = {"public": windows_of(anchor.tokenizer(), TEXTS["public"], sequence_length=64, batch_size=64)}
    judge = TextJudge(anchor.model(torch.float32), windows)
    assert float(judge.loss(anchor.ffn(), 0)) == pytest.approx(judge(anchor.ffn()), rel=1e-6)


def test_experts_are_merged_by_text(anchor: Anchor, judge: TextJudge) -> None:
    experts = {"medicine": expert_of(anchor, 1), "law": expert_of(anchor, 2)}
    scores = {name: judge(expert) for name, expert in experts.items()}
    single, mean = (merge(method, anchor.ffn(), experts, judge) for method in ("best-single", "soup"))
    assert single.judged == min(scores.values())
    learned = merge("atlas", anchor.ffn(), experts, judge)
    assert learned.judged < mean.judged
    assert learned.judged == judge(learned.ffn)


def test_nothing_to_judge_by_is_an_error(anchor: Anchor) -> None:
    with pytest.raises(DataError, match="saw no domain"):
        TextJudge(anchor.model(torch.float32), {})
