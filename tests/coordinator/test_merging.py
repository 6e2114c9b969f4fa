"""Merging: each method does what its paper says, chooses by the judge alone, and returns what was judged."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from motet.coordinator.merging import METHODS, Merged, Networks, merge
from motet.coordinator.merging.arithmetic import BREADCRUMBS_GAMMA
from motet.coordinator.merging.coefficients import EVALUATIONS
from motet.moe.experts import soup
from motet.protocols.errors import ConfigurationError, ExpertError

SHAPES = {"layers.0.up": (8, 12), "layers.0.down": (12, 8)}
NAMES = ("medicine", "law", "news")


class Distance:
    """Judges by the squared distance to a network that is known to be best."""

    def __init__(self, target: Networks) -> None:
        self.target = target
        self.asked = 0

    def __call__(self, ffn: Networks) -> float:
        self.asked += 1
        return float(self.loss(ffn, 0))

    def loss(self, ffn: Networks, step: int) -> Tensor:
        return sum(((ffn[name].float() - wanted.float()) ** 2).sum() for name, wanted in self.target.items())


def drawn(seed: int, size: float = 1.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) * size for name, shape in SHAPES.items()}


ANCHOR = drawn(0)
CHANGES = {name: drawn(seed, 0.1) for seed, name in enumerate(NAMES, start=1)}
EXPERTS = {name: {key: ANCHOR[key] + change[key] for key in SHAPES} for name, change in CHANGES.items()}


def changed(weights: Mapping[str, float | list[float]]) -> dict[str, Tensor]:
    """The anchor plus the weighed changes; a list has a weight for each tensor."""
    found = {name: tensor.clone() for name, tensor in ANCHOR.items()}
    for expert, weight in weights.items():
        for place, name in enumerate(SHAPES):
            found[name] += (weight[place] if isinstance(weight, list) else weight) * CHANGES[expert][name]
    return found


def merged_towards(target: Networks, method: str, **options: int) -> Merged:
    return merge(method, ANCHOR, EXPERTS, Distance(target), **options)


def weights_of(merged: Merged) -> dict[str, float | list[float]]:
    return {name: merged.settings[f"weight:{name}"] for name in NAMES}


def close(saw: Networks, wanted: Networks) -> bool:
    return saw.keys() == wanted.keys() and all(torch.allclose(saw[name], wanted[name], atol=1e-6) for name in wanted)


def same(saw: Networks, wanted: Networks) -> bool:
    return saw.keys() == wanted.keys() and all(torch.equal(saw[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_returned_is_what_was_judged_and_the_same_again(method: str) -> None:
    judge = Distance(changed({"medicine": 0.7, "law": 0.2}))
    first, again = merge(method, ANCHOR, EXPERTS, judge), merge(method, ANCHOR, EXPERTS, judge)
    assert first.method == method
    assert first.judged == judge(first.ffn)
    assert same(first.ffn, again.ffn)
    assert first.settings == again.settings
    assert list(first.ffn) == list(SHAPES)
    assert first.judged < judge(ANCHOR)


@pytest.mark.parametrize("method", METHODS)
def test_stored_halves_stay_halves_and_no_expert_is_touched(method: str) -> None:
    anchor, experts = halved(ANCHOR), {name: halved(expert) for name, expert in EXPERTS.items()}
    before = {name: {key: tensor.clone() for key, tensor in expert.items()} for name, expert in experts.items()}
    judge = Distance(experts["law"])
    merged = merge(method, anchor, experts, judge)
    assert {tensor.dtype for tensor in merged.ffn.values()} == {torch.bfloat16}
    assert merged.judged == judge(merged.ffn)
    assert all(same(experts[name], before[name]) for name in experts)


def halved(ffn: Networks) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in ffn.items()}


@pytest.mark.parametrize("method", METHODS)
def test_one_expert_can_be_merged(method: str) -> None:
    alone = {"law": EXPERTS["law"]}
    judge = Distance(EXPERTS["law"])
    assert merge(method, ANCHOR, alone, judge).judged < judge(ANCHOR)


@pytest.mark.parametrize("method", METHODS)
def test_the_judge_is_asked_no_more_than_promised(method: str) -> None:
    judge = Distance(changed({"medicine": 1.0}))
    merge(method, ANCHOR, EXPERTS, judge)
    assert 1 <= judge.asked <= {"cma-es": EVALUATIONS, "atlas": 4 + 60}.get(method, 12)


def test_best_single_is_the_nearest_expert() -> None:
    merged = merged_towards(changed({"law": 0.8, "news": 0.3}), "best-single")
    assert same(merged.ffn, EXPERTS["law"])
    assert weights_of(merged) == {"medicine": 0.0, "law": 1.0, "news": 0.0}


def test_soup_is_that_of_the_report() -> None:
    assert same(merged_towards(ANCHOR, "soup").ffn, soup(list(EXPERTS.values())))


def test_greedy_soup_leaves_out_who_makes_it_worse() -> None:
    merged = merged_towards(changed({"medicine": 0.55, "news": 0.45}), "greedy-soup")
    assert weights_of(merged) == {"medicine": 0.5, "law": 0.0, "news": 0.5}
    assert close(merged.ffn, changed({"medicine": 0.5, "news": 0.5}))
    everyone = merged_towards(changed(dict.fromkeys(NAMES, 1 / 3)), "greedy-soup")
    assert weights_of(everyone) == pytest.approx(dict.fromkeys(NAMES, 1 / 3))


@pytest.mark.parametrize("multiple", [0.5, 1.0, 2.5])
def test_task_arithmetic_finds_the_scale(multiple: float) -> None:
    target = changed(dict.fromkeys(NAMES, multiple / 3))
    merged = merged_towards(target, "task-arithmetic")
    assert merged.settings == {"scale": pytest.approx(multiple / 3)}
    assert close(merged.ffn, target)


def test_ties_trims_over_all_tensors_elects_and_averages_who_agrees() -> None:
    anchor = {"a": torch.zeros(5), "b": torch.zeros(5)}
    first = {"a": torch.tensor([9.0, 8.0, 7.0, 0.1, 0.2]), "b": torch.tensor([6.0, 5.0, 0.3, 0.4, 0.0])}
    other = {"a": torch.tensor([5.0, -9.0, 0.0, 0.0, 0.0]), "b": torch.tensor([-2.0, 3.0, 0.1, 8.0, 0.2])}
    # Half of all ten values stay: 9 8 7 6 5 and 5 -9 8 3 -2. Signs by mass; the mean over those of that sign.
    wanted = {"a": torch.tensor([7.0, -9.0, 7.0, 0.0, 0.0]), "b": torch.tensor([6.0, 4.0, 0.0, 8.0, 0.0])}
    merged = merge("ties", anchor, {"first": first, "other": other}, Distance(wanted))
    assert merged.settings == {"density": 0.5, "scale": 1.0}
    assert same(merged.ffn, wanted)


def test_dare_drops_at_random_and_makes_up_for_it() -> None:
    alone, target = {"law": EXPERTS["law"]}, EXPERTS["law"]
    state = torch.random.get_rng_state()
    merged = merge("dare", ANCHOR, alone, Distance(target), seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    density, scale = merged.settings["density"], merged.settings["scale"]
    factors = torch.cat([((merged.ffn[name] - ANCHOR[name]) / CHANGES["law"][name]).flatten() for name in SHAPES])
    kept = factors.abs() > 1e-3
    assert float(kept.float().mean()) == pytest.approx(density, abs=0.1)
    assert factors[kept].tolist() == pytest.approx([scale / density] * int(kept.sum()), rel=1e-2)
    assert not same(merged.ffn, merge("dare", ANCHOR, alone, Distance(target), seed=4).ffn)


def test_breadcrumbs_masks_the_smallest_and_the_largest_of_each_tensor() -> None:
    anchor = {"a": torch.zeros(200), "b": torch.zeros(10, 20)}
    sizes = torch.arange(1.0, 201.0)
    expert = {"a": sizes * torch.tensor([1.0, -1.0]).repeat(100), "b": (sizes.flip(0) * 7).view(10, 20)}
    kept = (sizes > 100) & (sizes <= 198)  # beta 0.5, gamma 0.99
    wanted = {"a": expert["a"] * kept, "b": expert["b"] * kept.flip(0).view(10, 20)}
    merged = merge("breadcrumbs", anchor, {"one": expert}, Distance(wanted))
    assert merged.settings == {"beta": 0.5, "gamma": BREADCRUMBS_GAMMA, "scale": 1.0}
    assert same(merged.ffn, wanted)


def test_breadcrumbs_keeps_its_share_when_sizes_are_equal() -> None:
    anchor, expert = {"a": torch.zeros(200)}, {"a": torch.ones(200)}
    merged = merge("breadcrumbs", anchor, {"one": expert}, Distance({"a": expert["a"] * 0.9}))
    assert (merged.settings["beta"], int((merged.ffn["a"] != 0).sum())) == (0.1, 178)


def test_atlas_learns_a_coefficient_for_every_tensor() -> None:
    wanted: dict[str, float | list[float]] = {"medicine": [0.7, 0.1], "law": [0.2, 0.6], "news": [0.3, 0.3]}
    merged = merged_towards(changed(wanted), "atlas")
    for name, coefficients in weights_of(merged).items():
        assert coefficients == pytest.approx(wanted[name], abs=0.1), name
    assert close(merged.ffn, changed(weights_of(merged)))


def test_cma_es_searches_a_coefficient_for_every_expert() -> None:
    wanted = {"medicine": 0.6, "law": 0.1, "news": 0.3}
    judge = Distance(changed(wanted))
    merged = merge("cma-es", ANCHOR, EXPERTS, judge)
    assert merged.judged < 0.2 * merge("soup", ANCHOR, EXPERTS, judge).judged
    assert close(merged.ffn, changed(weights_of(merged)))
    other = merge("cma-es", ANCHOR, EXPERTS, judge, seed=1)
    assert other.settings != merged.settings


@pytest.mark.parametrize("method", ["task-arithmetic", "atlas", "cma-es"])
def test_who_begins_at_the_soup_never_ends_above_it(method: str) -> None:
    judge = Distance(changed({"medicine": 4.0, "law": -3.0}))
    assert merge(method, ANCHOR, EXPERTS, judge).judged <= merge("soup", ANCHOR, EXPERTS, judge).judged * (1 + 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_never_win(method: str) -> None:
    broken = EXPERTS | {"law": {name: tensor * math.nan for name, tensor in EXPERTS["law"].items()}}
    judge = Distance(EXPERTS["medicine"])
    if method in ("best-single", "greedy-soup"):
        assert same(merge(method, ANCHOR, broken, judge).ffn, EXPERTS["medicine"])
    else:
        with pytest.raises(ExpertError, match="finite score"):
            merge(method, ANCHOR, broken, judge)


def test_what_cannot_be_merged_is_named() -> None:
    judge = Distance(ANCHOR)
    with pytest.raises(
        ConfigurationError, match=r"saw the merging method 'slerp', wanted one of best-single, .*cma-es"
    ):
        merge("slerp", ANCHOR, EXPERTS, judge)
    with pytest.raises(ExpertError, match="saw no expert"):
        merge("soup", ANCHOR, {}, judge)
    wide = EXPERTS | {"law": {name: torch.zeros(3, 3) for name in SHAPES}}
    with pytest.raises(ExpertError, match=r"expert law: saw layers.0.down with shape \(3, 3\), wanted \(12, 8\)"):
        merge("soup", ANCHOR, wide, judge)
    with pytest.raises(ExpertError, match=r"expert law: saw layers.0.up with shape None"):
        merge("soup", ANCHOR, EXPERTS | {"law": {"layers.0.down": ANCHOR["layers.0.down"]}}, judge)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, method in (("peft.utils", "ties"), ("cmaes", "cma-es")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(ConfigurationError, match=r"pip install motet\[merging\]"):
            merge(method, ANCHOR, EXPERTS, Distance(ANCHOR))
