"""A loaded composite's members as experts again, and a composite with one more of them."""

import pytest
import torch
from torch import Tensor

from motet.moe import ANCHOR, MotetForCausalLM, compose
from motet.moe.evidence import Evidence
from motet.moe.lowrank import LowRankExpert
from motet.moe.members import members_of, rows_of_member, with_member
from motet.protocols.errors import AssemblyError

from .conftest import tiny_anchor
from .mixed_kinds import expert_of, mixed

IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(0))


def logits(model: MotetForCausalLM, **how: object) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, **how).logits


@pytest.mark.parametrize("added", ["verse", "law"], ids=["low-rank", "full"])
def test_a_composite_with_one_more_is_the_composite_that_had_it(added: str) -> None:
    others = [name for name in ("art", "law", "math", "verse") if name != added]
    whole = mixed(sorted([*others, added]))
    larger = with_member(mixed(others), expert_of(tiny_anchor(), added), log_prior=0.0)
    assert larger.config.names == whole.config.names
    assert larger.config.ranks == whole.config.ranks
    assert larger.config.priors == whole.config.priors
    assert torch.allclose(logits(larger), logits(whole), atol=1e-5)
    assert not torch.allclose(logits(larger), logits(mixed(others)), atol=1e-3)


def test_the_members_make_the_same_composite_and_share_its_tensors() -> None:
    model = mixed(("art", "law"))
    members = members_of(model)
    assert [(each.name, isinstance(each, LowRankExpert)) for each in members] == [("art", True), ("law", False)]
    again = compose(tiny_anchor(), members, log_priors={ANCHOR: 0.5})
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    name = "model.layers.0.mlp.experts.2.up_proj.weight"
    assert again.get_parameter(name).data_ptr() == model.get_parameter(name).data_ptr()
    expected = expert_of(tiny_anchor(), "law").rows
    assert torch.allclose(rows_of_member(model, 2).bias, expected.bias, atol=1e-6)
    assert torch.equal(rows_of_member(model, 2).weight, expected.weight)


def test_an_expert_takes_the_place_of_the_one_of_its_name() -> None:
    from dataclasses import replace

    anchor = tiny_anchor()
    newer = replace(expert_of(anchor, "art"), name="law", contribution=f"sha256:{'f' * 64}")
    replaced = with_member(mixed(("art", "law", "math")), newer, log_prior=-1.0)
    assert replaced.config.names == (ANCHOR, "art", "math", "law")
    assert replaced.config.priors == (0.5, 0.0, 0.0, -1.0)


def test_a_filter_stays_a_filter_and_gets_the_evidence() -> None:
    from dataclasses import replace

    anchor, evidence = tiny_anchor(), Evidence(stay=0.9, temperature=2.0)
    draw = torch.Generator().manual_seed(4)

    def heard(name: str):
        expert = expert_of(anchor, name)
        return replace(expert, rows=replace(expert.rows, tokens=torch.randn(96, generator=draw)))

    art, math = heard("art"), heard("math")
    priors = {ANCHOR: 1.0}
    whole = compose(anchor, [art, math], evidence=evidence, log_priors=priors, top_k=2)
    larger = with_member(compose(anchor, [art], evidence=evidence, log_priors=priors, top_k=2), math, log_prior=0.0)
    assert larger.config.prefix == evidence
    assert larger.config.experts_per_token == 2
    assert torch.equal(logits(larger), logits(whole))


def test_an_expert_in_another_dtype_is_brought_along() -> None:
    expert = expert_of(tiny_anchor().bfloat16(), "law")
    larger = with_member(mixed(("art",)), expert, log_prior=0.0)
    assert larger.expert_ffn("law")["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32


def test_an_expert_of_another_anchor_is_refused() -> None:
    with pytest.raises(AssemblyError, match="make the expert from this anchor"):
        with_member(mixed(("art",)), expert_of(tiny_anchor(intermediate_size=40), "law"), log_prior=0.0)
