"""A composite that filters: its belief follows texts through caches, beams and padding, and experts leave no trace."""

import copy
import dataclasses
import pickle
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, StaticCache

from motet.moe import MotetForCausalLM, compose, only
from motet.moe.average import Average
from motet.moe.evidence import Evidence
from motet.moe.export import export_stock, stock_average
from motet.protocols.errors import AssemblyError, ExpertError, ExpertSetError

from .conftest import NAMES, tiny_anchor, tiny_expert

EVIDENCE = Evidence(stay=0.9, temperature=2.0)
SETS = [["math"], ["anchor"], ["news", "law"], ["math", "news", "law"]]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def filtering(
    names: Sequence[str] = NAMES,
    dtype: torch.dtype = torch.float32,
    *,
    top_k: int | None = None,
    evidence: Evidence | Average = EVIDENCE,
    **changes: object,
) -> MotetForCausalLM:
    """These experts on the anchor that is always the same, each with evidence of its own."""
    anchor = tiny_anchor(**changes).to(dtype)
    experts = []
    for name in names:
        expert, draw = tiny_expert(anchor, name), torch.Generator().manual_seed(NAMES.index(name))
        tokens = (torch.randn(96, generator=draw) * 2).bfloat16().float()
        experts.append(dataclasses.replace(expert, rows=dataclasses.replace(expert.rows, tokens=tokens)))
    return compose(anchor, experts, top_k=top_k, log_priors={"anchor": 0.5}, evidence=evidence)


@pytest.fixture(scope="module")
def model() -> MotetForCausalLM:
    return filtering()


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor, **kwargs: object) -> Tensor:
    return model(ids, **kwargs).logits


@torch.no_grad()
def belief(model: MotetForCausalLM, ids: Tensor, **kwargs: object) -> Tensor:
    """What the filter believes after every position: (batch, seq, experts)."""
    return model(ids, use_cache=True, **kwargs).past_key_values.told


def test_every_layer_is_weighed_by_the_filter(model: MotetForCausalLM, prompts) -> None:
    seen: list[Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _module, _args, output: seen.append(output))
        for layer in model.model.layers
    ]
    expected = EVIDENCE.filter(model.token_router.weight[:, prompts].movedim(0, -1), torch.tensor(model.config.priors))
    logits(model, prompts)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 3
    assert all(torch.equal(weights, expected.flatten(0, 1)) for weights in seen)
    assert (expected.argmax(dim=-1).unique()).numel() > 2  # several experts speak


def test_the_prior_is_of_the_domain_and_not_of_every_token(model: MotetForCausalLM, prompts) -> None:
    assert model.config.priors == (0.5, 0.0, 0.0, 0.0)
    prior = torch.tensor(model.config.priors).softmax(dim=0)
    assert torch.allclose(belief(model, prompts)[:, 0], prior.expand(4, -1))


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_cache_gives_the_logits_of_computing_anew(prompts, top_k: int | None) -> None:
    model = filtering(top_k=top_k)
    how = {"output_logits": True, "return_dict_in_generate": True, "expert_sets": SETS, **GREEDY}
    made = model.generate(prompts, **how)
    whole = logits(model, made.sequences, expert_sets=SETS)
    for step, found in enumerate(made.logits):
        assert torch.allclose(found, whole[:, prompts.shape[1] - 1 + step], atol=1e-4), step
    assert torch.equal(made.sequences, model.generate(prompts, use_cache=False, expert_sets=SETS, **GREEDY))


def test_pieces_of_any_size_give_one_belief(model: MotetForCausalLM, prompts) -> None:
    whole = belief(model, prompts)
    cache = None
    with torch.no_grad():
        for piece in prompts.split([2, 1, 4, 2], dim=1):
            cache = model(piece, past_key_values=cache, use_cache=True).past_key_values
    assert torch.equal(cache.told, whole)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_left_padding_changes_nothing(model: MotetForCausalLM, prompts, cache: str) -> None:
    padded, lengths = prompts.clone(), (9, 6, 4, 8)
    for row, length in enumerate(lengths):
        padded[row, : 9 - length] = 0
    attention = (padded != 0).long()
    how = GREEDY | {"cache_implementation": cache, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(padded, attention_mask=attention, expert_sets=SETS, **how)
    for row, length in enumerate(lengths):
        one = model.generate(prompts[row : row + 1, 9 - length :], expert_sets=SETS[row], **how)
        assert torch.equal(together.sequences[row, 9 - length :], one.sequences[0])
        for beside, alone in zip(together.logits, one.logits, strict=True):
            assert torch.allclose(beside[row], alone[0], atol=1e-4)


def test_padding_is_not_believed(model: MotetForCausalLM, prompts) -> None:
    alone = belief(model, prompts)
    for left, right in ((3, 0), (0, 3)):
        pads = torch.full((4, 3), 5)  # any token: the mask tells what is padding
        ids = torch.cat([pads[:, :left], prompts, pads[:, :right]], dim=1)
        mask = torch.zeros_like(ids)
        mask[:, left : left + 9] = 1
        assert torch.equal(belief(model, ids, attention_mask=mask)[:, left : left + 9], alone)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 3}])
def test_beams_carry_their_own_belief(model: MotetForCausalLM, prompts, how: dict[str, int]) -> None:
    how = GREEDY | how | {"expert_sets": SETS}
    cached = model.generate(prompts, **how)
    assert torch.equal(cached, model.generate(prompts, use_cache=False, **how))
    assert not torch.equal(cached, model.generate(prompts, **how | {"expert_sets": ["anchor"]}))


def test_a_cropped_cache_was_never_longer(model: MotetForCausalLM, prompts) -> None:
    with torch.no_grad():
        cache = model(prompts, use_cache=True).past_key_values
        cache.crop(-4)
        assert int(cache.get_seq_length()) == cache.told.shape[1] == 5
        again = model(prompts[:, 2:4], past_key_values=cache).logits
    other = torch.cat([prompts[:, :5], prompts[:, 2:4]], dim=1)
    assert torch.equal(cache.told, belief(model, other))
    assert torch.allclose(again, logits(model, other)[:, 5:], atol=1e-4)


def test_a_cache_cropped_to_nothing_begins_again(model: MotetForCausalLM, prompts) -> None:
    with torch.no_grad():
        cache = model(prompts, use_cache=True).past_key_values
        cache.crop(-9)
        again = model(prompts[:, :3], past_key_values=cache, expert_sets=["law"]).past_key_values
    assert torch.equal(again.told, belief(model, prompts[:, :3], expert_sets=["law"]))


def test_belief_follows_the_rows_of_a_cache(model: MotetForCausalLM, prompts) -> None:
    with torch.no_grad():
        cache = model(prompts, use_cache=True, expert_sets=SETS).past_key_values
    whole = cache.told
    cache.reorder_cache(torch.tensor([2, 0, 0, 3]))
    assert torch.equal(cache.told, whole[[2, 0, 0, 3]])
    cache.batch_select_indices(torch.tensor([1, 3]))
    cache.batch_repeat_interleave(2)
    rows = [0, 0, 3, 3]
    assert torch.equal(cache.told, whole[rows])
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)), cache):
        step = logits(model, prompts[:, :1], past_key_values=twin, expert_sets=[SETS[row] for row in rows])
        longer = torch.cat([prompts[rows], prompts[:, :1]], dim=1)
        expected = logits(model, longer, expert_sets=[SETS[row] for row in rows])[:, -1:]
        assert torch.allclose(step, expected, atol=1e-4)


def test_a_cache_used_again_has_forgotten(model: MotetForCausalLM, prompts) -> None:
    cache = StaticCache(config=model.config, max_cache_len=20)
    logits(model, prompts, past_key_values=cache, use_cache=True)
    cache.reset()
    logits(model, prompts[:, 3:6], past_key_values=cache, use_cache=True)
    assert torch.equal(cache.told, belief(model, prompts[:, 3:6]))


def test_an_assistant_changes_nothing(model: MotetForCausalLM, prompts) -> None:
    how = GREEDY | {"max_new_tokens": 8, "expert_sets": ["math"]}
    alone = model.generate(prompts[:1], **how)
    for assistant in (tiny_anchor(), filtering()):
        assert torch.equal(alone, model.generate(prompts[:1], assistant_model=assistant, **how))


@pytest.mark.parametrize("names", [names for size in range(3) for names in combinations(NAMES, size)], ids="+".join)
def test_masked_equals_removed(model: MotetForCausalLM, prompts, names: tuple[str, ...]) -> None:
    kept, smaller = [0, *(NAMES.index(name) + 1 for name in names)], filtering(names)
    masked = belief(model, prompts, expert_sets=["anchor", *names])
    assert torch.equal(masked[:, :, kept], belief(smaller, prompts))
    assert int(masked.count_nonzero()) <= len(kept) * prompts.numel()
    difference = logits(model, prompts, expert_sets=["anchor", *names]) - logits(smaller, prompts)
    assert difference.abs().max() <= 5e-6


@pytest.mark.parametrize("top_k", [None, 2])
def test_several_sets_in_one_batch(prompts, top_k: int | None) -> None:
    together = logits(filtering(top_k=top_k), prompts, expert_sets=SETS)
    for row, names in enumerate(SETS):
        smaller = filtering([name for name in names if name != "anchor"], top_k=top_k)
        assert (together[row] - logits(smaller, prompts)[row]).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_with_every_closed_expert_off_it_is_the_anchor(prompts, dtype: torch.dtype) -> None:
    alone = logits(tiny_anchor().to(dtype), prompts)
    model = filtering(dtype=dtype)
    assert torch.equal(logits(model, prompts, expert_sets=["anchor"]), alone)
    assert not torch.allclose(logits(model, prompts), alone, atol=0.1)


def test_saved_and_loaded_it_is_the_same(prompts, tmp_path: Path) -> None:
    model = filtering(top_k=3)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert (loaded.config.prefix, loaded.config.priors) == (EVIDENCE, (0.5, 0.0, 0.0, 0.0))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(loaded.token_router.weight, model.token_router.weight)
    assert torch.equal(belief(loaded, prompts), belief(model, prompts))
    assert torch.equal(logits(loaded, prompts), logits(model, prompts))


def test_beliefs_know_no_half_precision(model: MotetForCausalLM, prompts, tmp_path: Path) -> None:
    half = filtering(dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    for loaded in (half, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert (loaded.dtype, loaded.token_router.weight.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(belief(loaded, prompts), belief(model, prompts))
    assert MotetForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).token_router.weight.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*[Gg]radient checkpointing.*")
def test_gradient_checkpointing_gives_the_same_gradients(prompts, reentrant: bool) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = filtering().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        loss = model(prompts, labels=prompts, expert_sets=SETS, use_cache=False).loss
        with only("anchor"):  # the layers run again here
            loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert not any("router" in name for name in plain)
    assert any(".experts.3." in name for name in plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


def test_embeddings_without_tokens_are_refused(model: MotetForCausalLM, prompts) -> None:
    embeddings = model.get_input_embeddings()(prompts)
    with pytest.raises(ExpertSetError, match=r"saw embeddings and no token ids .* pass input_ids"):
        model(inputs_embeds=embeddings)
    with pytest.raises(ExpertSetError, match="pass input_ids"):
        model.generate(inputs_embeds=embeddings, max_new_tokens=2)


def test_the_stock_export_averages_what_the_filter_follows(prompts, tmp_path: Path) -> None:
    filtering().save_pretrained(tmp_path / "native")
    export_stock(tmp_path / "native", tmp_path / "stock")
    average = stock_average(filtering().config, filtering().get_parameter)
    averaging = MotetForCausalLM.from_pretrained(tmp_path / "native", evidence=dataclasses.asdict(average))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(stock).__name__ == "FlexOlmoForCausalLM"
    assert (logits(stock, prompts) - logits(averaging, prompts)).abs().max() <= 1e-4
    assert (logits(stock, prompts) - logits(filtering(), prompts)).abs().max() > 0.1


def test_evidence_for_another_vocabulary_is_refused() -> None:
    anchor = tiny_anchor()
    expert = tiny_expert(anchor, "math")
    rows = dataclasses.replace(expert.rows, tokens=torch.zeros(95))
    with pytest.raises(ExpertError, match="saw evidence for 95 tokens, wanted 96"):
        compose(anchor, [dataclasses.replace(expert, rows=rows)], evidence=EVIDENCE)


def test_priors_that_are_not_one_for_each_are_refused(model: MotetForCausalLM) -> None:
    settings = model.config.to_dict() | {"log_priors": [0.0]}
    with pytest.raises(AssemblyError, match="saw 1 log_priors for 4 expert_names, wanted one for each"):
        type(model.config).from_dict(settings)


@pytest.mark.parametrize("evidence", [{}, {"stay": 0.9}, {"gain": 8.0, "temperature": 2.0}, {"decay": 0.5}])
def test_evidence_of_another_kind_is_refused(model: MotetForCausalLM, evidence: dict[str, float]) -> None:
    settings = model.config.to_dict() | {"evidence": evidence}
    with pytest.raises(AssemblyError, match="wanted stay and temperature, or gain and unit"):
        MotetForCausalLM(type(model.config).from_dict(settings))
