"""An expert that is masked out is as good as not there: masked equals physically removed."""

import copy
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.moe import MotetForCausalLM, only
from motet.moe.gating import gate_weights

MakeComposite = Callable[..., MotetForCausalLM]
NAMES = ("math", "news", "law")
SUBSETS = [names for size in range(4) for names in combinations(NAMES, size)]
TOLERANCE = {torch.float64: 0.0, torch.bfloat16: 0.0, torch.float32: 5e-6}


def logits(model: torch.nn.Module, ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_masked_equals_removed(make_composite: MakeComposite, prompts, names, top_k, dtype) -> None:
    masked = logits(make_composite(dtype=dtype, top_k=top_k), prompts, expert_sets=["anchor", *names])
    removed = logits(make_composite(names, dtype, top_k=top_k), prompts)
    assert largest(masked - removed) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("top_k", [None, 2])
def test_several_sets_in_one_batch(make_composite: MakeComposite, prompts, top_k, dtype) -> None:
    sets = [["math"], ["anchor"], ["news", "law"], ["math", "news", "law"]]
    together = logits(make_composite(dtype=dtype, top_k=top_k), prompts, expert_sets=sets)
    for row, names in enumerate(sets):
        kept = [name for name in names if name != "anchor"]
        alone = logits(make_composite(kept, dtype, top_k=top_k), prompts)[row]
        assert largest(together[row] - alone) <= TOLERANCE[dtype]
    assert largest(together - logits(make_composite(dtype=dtype, top_k=top_k), prompts)) > 0.1


def test_a_masked_expert_is_never_executed(make_composite: MakeComposite, prompts) -> None:
    model = make_composite(top_k=3)
    for tensor in model.expert_ffn("news").values():
        tensor.data.fill_(torch.nan)
    assert logits(model, prompts, expert_sets=["math"]).isfinite().all()  # fewer are allowed than top_k
    rows = logits(model, prompts, expert_sets=[["math"], ["news"], ["anchor"], ["law", "math"]]).isfinite()
    assert rows.flatten(1).all(dim=1).tolist() == [True, False, True, True]


def test_tokens_that_do_not_choose_an_expert_do_not_run_it(make_composite: MakeComposite, prompts) -> None:
    model = make_composite(top_k=1)
    mixture = model.model.layers[0].mlp
    seen = [0] * 4

    def counter(number: int) -> Callable[..., None]:
        return lambda _module, args: seen.__setitem__(number, len(args[0]))

    for number, expert in enumerate(mixture.experts):
        expert.register_forward_pre_hook(counter(number))
    logits(model, prompts)
    assert sum(seen) == prompts.numel()
    assert sorted(seen)[-1] < prompts.numel()


def test_gradients_of_a_masked_expert_are_absent(make_composite: MakeComposite, prompts) -> None:
    model = make_composite().train()
    model(prompts, labels=prompts, expert_sets=["law"]).loss.backward()
    assert all(tensor.grad is None for tensor in model.expert_ffn("math").values())
    assert all(tensor.grad.abs().sum() > 0 for tensor in model.expert_ffn("law").values())


def test_changing_one_rows_set_leaves_the_others(make_composite: MakeComposite, prompts) -> None:
    model = make_composite(dtype=torch.float64)
    one = logits(model, prompts, expert_sets=[["math"], ["law"], ["law"], ["news"]])
    other = logits(model, prompts, expert_sets=[["news"], ["law"], ["law"], ["news"]])
    assert torch.equal(one[1:], other[1:])
    assert not torch.allclose(one[0], other[0], atol=0.1)


@pytest.mark.parametrize("how", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_guidance_does_not_bring_an_expert_back(make_composite: MakeComposite, prompts, how: dict[str, object]) -> None:
    model = make_composite()
    for tensor in model.expert_ffn("news").values():
        tensor.data.fill_(torch.nan)
    how = {"max_new_tokens": 3, "guidance_scale": 2.0, "output_scores": True, "return_dict_in_generate": True, **how}
    sets = [["math"], ["law"], ["anchor"], ["math", "law"]]
    assert not any(step.isnan().any() for step in model.generate(prompts, expert_sets=sets, **how).scores)
    with only("math"):
        assert not any(step.isnan().any() for step in model.generate(prompts, **how).scores)


def test_a_copied_model_keeps_its_experts(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    assert torch.equal(logits(copy.deepcopy(model), prompts), logits(model, prompts))


@st.composite
def gates(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    experts, tokens = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
    scores = torch.randn(
        tokens, experts, generator=numbers, dtype=draw(st.sampled_from([torch.float32, torch.float64]))
    )
    mask = torch.rand(experts, generator=numbers) < 0.6
    mask[0] = True
    return (scores * scale).round(decimals=draw(st.sampled_from([0, 6]))), mask


@given(gates(), st.one_of(st.none(), st.integers(1, 9)), st.booleans())
def test_masked_gates_equal_the_smaller_gate_bit_for_bit(gate, top_k: int | None, normalise: bool) -> None:
    scores, mask = gate
    masked = gate_weights(scores, mask.expand(len(scores), -1), top_k, normalise)
    smaller = gate_weights(scores[:, mask], None, top_k, normalise)
    assert torch.equal(masked[:, mask], smaller)
    assert (masked[:, ~mask] == 0).all()


@given(gates(), st.one_of(st.none(), st.integers(1, 9)))
def test_gates_sum_to_one_over_at_most_k_experts(gate, top_k: int | None) -> None:
    scores, mask = gate
    weights = gate_weights(scores, mask.expand(len(scores), -1), top_k, True)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(len(scores), dtype=scores.dtype), atol=1e-6)
    assert ((weights > 0).sum(dim=-1) <= min(top_k or 9, int(mask.sum()))).all()
    unscaled = gate_weights(scores, mask.expand(len(scores), -1), top_k, False)
    assert (unscaled <= weights + 1e-6).all()


def test_gates_are_the_softmax_and_its_largest_with_ties_to_the_lower_id() -> None:
    scores = torch.tensor([[0.0, 1.0, 1.0, -2.0]])
    assert torch.allclose(gate_weights(scores, None, None, True), scores.softmax(dim=-1))
    assert gate_weights(scores, None, 1, True).tolist() == [[0.0, 1.0, 0.0, 0.0]]
    expected = torch.tensor([[0.0, scores.softmax(dim=-1)[0, 1], 0.0, 0.0]])
    assert torch.allclose(gate_weights(scores, None, 1, False), expected)
