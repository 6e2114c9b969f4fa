"""Expert sets by mask, by name and by block; and caches that remember them."""

import asyncio
import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache, StaticCache

from motet.moe import MotetForCausalLM, only, without
from motet.moe.expert_cache import claim, set_keys
from motet.moe.expert_sets import expert_mask_of
from motet.protocols.errors import CacheExpertSetError, ExpertSetError

MakeComposite = Callable[..., MotetForCausalLM]
KNOWN = ("anchor", "math", "news", "law")


def chosen(**explicit: object) -> list[list[str]] | None:
    """The names that a call for two rows would allow, here and now."""
    mask = expert_mask_of(KNOWN, 2, **explicit)
    return (
        None if mask is None else [[name for name, on in zip(KNOWN, row, strict=True) if on] for row in mask.tolist()]
    )


def test_no_wish_means_all_experts() -> None:
    assert chosen() is None


@pytest.mark.parametrize(
    ("sets", "rows"),
    [
        (["math"], [["anchor", "math"]] * 2),
        (("anchor",), [["anchor"]] * 2),
        ([["law", "math"], ["anchor"]], [["anchor", "math", "law"], ["anchor"]]),
    ],
)
def test_names_become_masks_with_the_anchor_in(sets: list, rows: list[list[str]]) -> None:
    assert chosen(expert_sets=sets) == rows


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], r"\['anchor'\] the anchor alone"),
        ([[], ["math"]], "row 0"),
        ("math", "wanted a list of names"),
        (["math", ["law"]], "names only or lists only"),
        (["poetry"], "unknown experts poetry; this composite has anchor, math, news, law"),
        ([["math"], ["poetry", "prose"]], "poetry, prose"),
        ([["math"]], "1 expert sets for 2 rows"),
        ([["math"]] * 3, "3 expert sets for 2 rows"),
    ],
)
def test_bad_sets_are_refused(sets: object, message: str) -> None:
    with pytest.raises(ExpertSetError, match=message):
        chosen(expert_sets=sets)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 4), "torch.float32"),
        (torch.ones(2, 3, dtype=torch.bool), r"\(2, 3\)"),
        (torch.ones(4, dtype=torch.bool), r"\(4,\)"),
        (torch.ones(1, 4, dtype=torch.bool), r"\(1, 4\)"),
        (torch.zeros(2, 4, dtype=torch.bool), "rules out the anchor"),
        (torch.tensor([[True] * 4, [False, True, True, True]]), "rules out the anchor"),
    ],
)
def test_bad_masks_are_refused(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ExpertSetError, match=message):
        chosen(expert_mask=mask)


def test_a_mask_and_sets_together_are_refused() -> None:
    with pytest.raises(ExpertSetError, match="saw both"):
        chosen(expert_mask=torch.ones(2, 4, dtype=torch.bool), expert_sets=["math"])


def test_blocks_choose_and_end() -> None:
    with only("math"):
        assert chosen() == [["anchor", "math"]] * 2
    with without("math", "news"):
        assert chosen() == [["anchor", "law"]] * 2
    with pytest.raises(KeyError), only("anchor"):
        raise KeyError
    assert chosen() is None


def test_nested_blocks_narrow() -> None:
    with only("math", "news"):
        with without("news"):
            assert chosen() == [["anchor", "math"]] * 2
        with only("law"):
            assert chosen() == [["anchor"]] * 2
        assert chosen() == [["anchor", "math", "news"]] * 2
    with without("math"), without("law"), only("math", "news"):
        assert chosen() == [["anchor", "news"]] * 2


def test_explicit_arguments_win_over_blocks() -> None:
    with only("math"):
        assert chosen(expert_sets=["law"]) == [["anchor", "law"]] * 2
        everyone = torch.ones(2, 4, dtype=torch.bool)
        assert chosen(expert_mask=everyone) == [list(KNOWN)] * 2


def test_empty_and_impossible_blocks_are_refused() -> None:
    with pytest.raises(ExpertSetError, match="wanted at least one"), only():
        pass
    with pytest.raises(ExpertSetError, match="always takes part"), without("anchor"):
        pass
    for block in (only("poetry"), without("poetry")):
        with block, pytest.raises(ExpertSetError, match="unknown experts poetry"):
            chosen()


def test_tasks_do_not_see_each_others_blocks() -> None:
    async def task(name: str, turn: asyncio.Barrier) -> list[list[str]] | None:
        with only(name):
            await turn.wait()
            return chosen()

    async def both() -> list[list[list[str]] | None]:
        turn = asyncio.Barrier(2)
        return await asyncio.gather(task("math", turn), task("law", turn))

    assert asyncio.run(both()) == [[["anchor", "math"]] * 2, [["anchor", "law"]] * 2]


def test_the_model_takes_all_three(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    mask = torch.tensor([[True, False, False, True]]).repeat(4, 1)
    with torch.no_grad():
        by_mask = model(prompts, expert_mask=mask).logits
        assert torch.equal(model(prompts, expert_sets=["law"]).logits, by_mask)
        with without("math", "news"):
            assert torch.equal(model(prompts).logits, by_mask)
            assert not torch.allclose(model(prompts, expert_sets=["math"]).logits, by_mask, atol=0.1)
    for call in (model, model.generate):
        with pytest.raises(ExpertSetError, match="poetry"):
            call(prompts, expert_sets=["poetry"])


def fill(model: MotetForCausalLM, ids: torch.Tensor, cache: object = None, **kwargs: object) -> DynamicCache:
    with torch.no_grad():
        return model(ids, past_key_values=cache, use_cache=True, **kwargs).past_key_values


def test_a_cache_is_continued_only_under_its_sets(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    sets = [["math"], ["anchor"], ["law"], ["math", "law"]]
    cache = fill(model, prompts, expert_sets=sets)
    with torch.no_grad():
        step = model(prompts[:, :1], past_key_values=cache, expert_sets=sets).logits
        whole = model(torch.cat([prompts, prompts[:, :1]], dim=1), expert_sets=sets).logits[:, -1:]
    assert torch.allclose(step, whole, atol=1e-5)
    for other in (None, ["math"], [["math"], ["anchor"], ["law"], ["math", "news"]], sets[::-1]):
        with pytest.raises(CacheExpertSetError, match="start with a new cache"):
            fill(model, prompts[:, :1], cache, expert_sets=other)
    with pytest.raises(CacheExpertSetError, match="4 rows"):
        fill(model, prompts[:2, :1], cache, expert_sets=sets[:2])


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_caches_from_outside_are_marked_when_empty(make_composite: MakeComposite, prompts, kind: type) -> None:
    model = make_composite()
    given = kind(config=model.config) if kind is DynamicCache else kind(config=model.config, max_cache_len=20)
    cache = fill(model, prompts, given, expert_sets=["math"])
    assert cache is given
    assert isinstance(cache, kind)
    with pytest.raises(CacheExpertSetError):
        fill(model, prompts[:, :1], cache, expert_sets=["law"])
    cache.reset()
    if kind is StaticCache:
        fill(model, prompts, cache, expert_sets=["law"])


def test_a_filled_cache_of_unknown_origin_is_refused(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    with torch.no_grad():
        foreign = model.model(prompts, use_cache=True).past_key_values
    with pytest.raises(CacheExpertSetError, match="no Motet composite marked"):
        fill(model, prompts[:, :1], foreign)


def test_the_content_of_a_set_counts_not_its_names(make_composite: MakeComposite, prompts) -> None:
    model, renamed, fewer = make_composite(), make_composite(), make_composite(("math", "law"))
    renamed.config.expert_names = ["anchor", "a", "b", "c"]
    cache = fill(model, prompts, expert_sets=["math", "law"])
    fill(renamed, prompts[:, :1], cache, expert_sets=["c", "a"])
    fill(fewer, prompts[:, :1], cache)
    renamed.config.contributions = ["sha256:x", "sha256:y", "sha256:z"]
    with pytest.raises(CacheExpertSetError):
        fill(renamed, prompts[:, :1], cache, expert_sets=["c", "a"])


def test_marks_follow_the_rows(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    sets = [["math"], ["anchor"], ["law"], ["news"]]
    cache = fill(model, prompts, expert_sets=sets)
    cache.reorder_cache(torch.tensor([2, 0, 0, 3]))
    fill(model, prompts[:, :1], cache, expert_sets=[["law"], ["math"], ["math"], ["news"]])
    cache.batch_select_indices(torch.tensor([1, 3]))
    cache.batch_repeat_interleave(2)
    fill(model, prompts[:, :1], cache, expert_sets=[["math"], ["math"], ["news"], ["news"]])
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        fill(model, prompts[:, :1], twin, expert_sets=[["math"], ["math"], ["news"], ["news"]])
        with pytest.raises(CacheExpertSetError):
            fill(model, prompts[:, :1], twin, expert_sets=["math"])


def test_generate_continues_a_prefix_only_under_its_set(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    prefix = fill(model, prompts[:1, :5], expert_sets=["math"])
    how = {"max_new_tokens": 4, "do_sample": False}
    continued = model.generate(prompts[:1], past_key_values=copy.deepcopy(prefix), expert_sets=["math"], **how)
    assert torch.equal(continued, model.generate(prompts[:1], expert_sets=["math"], **how))
    with pytest.raises(CacheExpertSetError):
        model.generate(prompts[:1], past_key_values=prefix, **how)


def test_keys_are_sorted_digests_per_row() -> None:
    digests = ["sha256:b", "sha256:a"]
    assert set_keys(digests, None, 2) == (("sha256:a", "sha256:b"),) * 2
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert set_keys(digests, mask, 2) == (("sha256:b",), ())
    cache = DynamicCache()
    claim(cache, ((),))
    claim(cache, (("sha256:a",),))  # still empty: claimed anew
    assert type(cache).__name__ == "MarkedDynamicCache"
