"""Low-rank experts in a composite, beside full ones: what they compute, what they leave alone, what they take."""

import copy
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from motet.moe import Expert, Factors, MotetConfig, compose
from motet.protocols.errors import AssemblyError, ExpertError

from .conftest import tiny_anchor
from .mixed_kinds import MIXED, RANKS, expanded, expert_of, ffn_of, mixed

TOLERANCE = {torch.float64: 0.0, torch.bfloat16: 0.0, torch.float32: 5e-6}


def logits(model: torch.nn.Module, ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


@pytest.mark.parametrize("top_k", [None, 1, 3])
@pytest.mark.parametrize("names", [("math",), MIXED], ids="+".join)
def test_it_computes_what_the_dense_expansion_computes(prompts, names, top_k) -> None:
    one, other = mixed(names, torch.float64, top_k=top_k), expanded(names, torch.float64, top_k=top_k)
    assert largest(logits(one, prompts) - logits(other, prompts)) < 1e-10
    narrow = mixed(names, top_k=top_k)
    assert largest(logits(narrow, prompts) - logits(other, prompts)) < 1e-4
    assert largest(logits(one, prompts) - logits(one, prompts, expert_sets=["anchor"])) > 0.1


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize(
    "names", [(), *combinations(MIXED, 1), ("art", "math"), ("law", "math", "verse")], ids="+".join
)
def test_masked_equals_removed(prompts, names, top_k, dtype) -> None:
    masked = logits(mixed(dtype=dtype, top_k=top_k), prompts, expert_sets=["anchor", *names])
    removed = logits(mixed(names, dtype, top_k=top_k), prompts)
    assert largest(masked - removed) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("top_k", [None, 2])
def test_several_sets_in_one_batch(prompts, top_k, dtype) -> None:
    sets = [["law", "news"], ["anchor"], ["art", "law", "math"], ["verse"]]
    together = logits(mixed(dtype=dtype, top_k=top_k), prompts, expert_sets=sets)
    for row, names in enumerate(sets):
        kept = [name for name in names if name != "anchor"]
        alone = logits(mixed(kept, dtype, top_k=top_k), prompts)[row]
        assert largest(together[row] - alone) <= TOLERANCE[dtype]
    assert largest(together - logits(mixed(dtype=dtype, top_k=top_k), prompts)) > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_with_every_closed_expert_off_it_is_the_anchor(prompts, dtype) -> None:
    alone = logits(tiny_anchor().to(dtype), prompts)
    assert torch.equal(logits(mixed(dtype=dtype), prompts, expert_sets=["anchor"]), alone)


def test_a_masked_expert_is_never_executed(prompts) -> None:
    model = mixed(top_k=3)
    for name, parameter in model.named_parameters():
        if ".experts.1." in name:  # art
            parameter.data.fill_(torch.nan)
    assert logits(model, prompts, expert_sets=["math", "news"]).isfinite().all()
    rows = logits(model, prompts, expert_sets=[["math"], ["art"], ["anchor"], ["law", "math"]]).isfinite()
    assert rows.flatten(1).all(dim=1).tolist() == [True, False, True, True]


def test_a_low_rank_expert_runs_for_the_tokens_that_choose_it(prompts) -> None:
    model = mixed(top_k=1)
    experts = model.model.layers[0].mlp.experts
    seen = {}
    for number in (1, 3, 5):
        experts[number].register_forward_pre_hook(
            lambda _module, args, number=number: seen.update({number: len(args[0])})
        )
    chosen = []
    model.model.layers[0].mlp.gate.register_forward_hook(lambda _module, _args, weights: chosen.append(weights))
    model(prompts)  # with gradients, expert by expert; without, a test above puts NaN into what must not be read
    assert seen == {number: count for number in (1, 3, 5) if (count := int((chosen[0][:, number] > 0).sum()))}
    assert seen


def test_no_parameter_of_a_low_rank_expert_is_as_large_as_a_dense_one() -> None:
    anchor = tiny_anchor()
    parts = sum(p.numel() for p in anchor.parameters())
    experts = [expert_of(anchor, name) for name in ("art", "math", "verse")]
    parts += sum(each.a.numel() + each.b.numel() for expert in experts for each in expert.factors.values())
    model = compose(anchor, experts)
    dense = {tuple(tensor.shape) for tensor in ffn_of(anchor).values()}
    shapes = [
        tuple(p.shape) for name, p in model.named_parameters() if ".experts." in name and ".experts.0." not in name
    ]
    assert len(shapes) == 3 * 3 * 3 * 2
    assert not dense & set(shapes)
    router = sum(p.numel() for name, p in model.named_parameters() if "router" in name)
    assert sum(p.numel() for p in model.parameters()) == parts + router
    assert not list(model.model.layers[0].mlp.buffers())


def test_parameters_and_bytes_of_every_expert() -> None:
    model = mixed(("art", "law"), torch.bfloat16)
    anchor, art, law = model.experts
    assert (anchor.name, anchor.kind, anchor.rank, anchor.parameters) == ("anchor", "anchor", None, 3 * 3 * 32 * 48)
    assert (art.kind, art.rank, art.parameters, art.bytes) == ("lowrank", 3, 3 * 3 * 3 * (32 + 48), 2 * 2160)
    assert (law.kind, law.rank, law.parameters, law.bytes) == ("full", None, anchor.parameters, anchor.bytes)
    assert str(art) == "art  lowrank, rank 3  2,160 parameters  0.00 MB"


def test_factors_are_shared_and_give_the_expansion() -> None:
    anchor = tiny_anchor()
    name = "model.layers.1.mlp.down_proj.weight"
    expert = expert_of(anchor, "math")
    trained = {
        key: Factors(a=torch.nn.Parameter(each.a), b=torch.nn.Parameter(each.b), scale=0.5)
        for key, each in expert.factors.items()
    }
    model = compose(anchor, [replace(expert, factors=trained)])
    module = model.model.layers[1].mlp.experts[1].down_proj
    assert module.lora_A.weight is trained[name].a
    assert module.lora_B.weight is trained[name].b
    found = model.expert_ffn("math")[name]
    assert torch.equal(found, trained[name].expanded(anchor.get_parameter(name).detach()))
    assert torch.allclose(found, anchor.get_parameter(name) + 0.5 * trained[name].b @ trained[name].a, atol=1e-6)
    folded = compose(anchor, [replace(expert, factors={k: Factors(a=f.a, b=f.b * 0.5) for k, f in trained.items()})])
    ids = torch.arange(3, 12)[None]
    assert torch.allclose(logits(model, ids), logits(folded, ids), atol=1e-5)


def test_float32_factors_train_beside_a_bf16_anchor_under_autocast(prompts) -> None:
    anchor = tiny_anchor().to(torch.bfloat16).requires_grad_(False)
    expert = expert_of(anchor, "math")
    factors = {
        key: Factors(
            a=torch.nn.Parameter(each.a.float()), b=torch.nn.Parameter(torch.zeros_like(each.b).float()), scale=2
        )
        for key, each in expert.factors.items()
    }
    model = compose(anchor, [replace(expert, factors=factors)]).train()
    wanted = [p for p in model.parameters() if p.requires_grad]
    assert len(wanted) == 2 * len(factors)
    assert all(p.dtype == torch.float32 for p in wanted)
    optimiser, losses = torch.optim.AdamW(wanted, lr=1e-2), []
    for _ in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(prompts, labels=prompts).loss
        loss.backward()
        losses.append(loss.item())
        if len(losses) == 2:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in wanted)
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.5


def test_factors_of_another_dtype_and_scale_with_sets_per_row_under_autocast(prompts) -> None:
    anchor = tiny_anchor().to(torch.bfloat16)
    experts = []
    for name in ("art", "math"):
        expert = expert_of(anchor, name)
        factors = {
            key: Factors(a=each.a.float() / 4, b=each.b.float() / 4, scale=2) for key, each in expert.factors.items()
        }
        experts.append(replace(expert, factors=factors))
    model = compose(anchor, experts)
    sets = [["math"], ["art"], ["anchor"], ["art", "math"]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = logits(model, prompts, expert_sets=sets)
        alone = [logits(model, prompts[number : number + 1], expert_sets=each) for number, each in enumerate(sets)]
    spread = largest(together[0] - logits(model, prompts, expert_sets=["anchor"])[0])
    assert largest(together - torch.cat(alone)) < 0.1 * spread


def test_gradients_are_those_of_the_expansion(prompts) -> None:
    anchor = tiny_anchor().double()
    expert = expert_of(anchor, "math")
    factors = {
        key: Factors(a=torch.nn.Parameter(each.a), b=torch.nn.Parameter(each.b), scale=0.5)
        for key, each in expert.factors.items()
    }
    model = compose(anchor, [replace(expert, factors=factors), expert_of(anchor, "law")])
    model(prompts, labels=prompts).loss.backward()
    dense = {key: torch.nn.Parameter(each.expanded(ffn_of(anchor)[key])) for key, each in factors.items()}
    whole = Expert(name="math", contribution=expert.contribution, ffn=dense, rows=expert.rows)
    other = compose(anchor, [whole, expert_of(anchor, "law")])
    other(prompts, labels=prompts).loss.backward()
    for key, each in factors.items():
        assert torch.allclose(each.b.grad, 0.5 * dense[key].grad @ each.a.T, atol=1e-9), key
        assert torch.allclose(each.a.grad, 0.5 * each.b.T @ dense[key].grad, atol=1e-9), key


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*[Gg]radient checkpointing.*")
def test_gradient_checkpointing_changes_nothing(prompts, reentrant: bool) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = mixed(("art", "law")).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        sets = [["art"], ["anchor"], ["art", "law"], ["law"]]
        model(prompts, labels=prompts, expert_sets=sets, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert any("lora_B" in name for name in plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


def test_save_and_load(prompts, tmp_path: Path) -> None:
    model = mixed()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.config.ranks == (None, *RANKS.values())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert "model.layers.2.mlp.experts.3.gate_proj.lora_A.weight" in loaded.state_dict()
    assert torch.equal(logits(loaded, prompts), logits(model, prompts))
    assert torch.equal(logits(copy.deepcopy(loaded), prompts), logits(model, prompts))
    how = {"max_new_tokens": 5, "do_sample": False, "expert_sets": [["art"], ["anchor"], ["law", "math"], ["news"]]}
    assert torch.equal(loaded.generate(prompts, **how), loaded.generate(prompts, use_cache=False, **how))


def test_a_configuration_says_ranks_only_where_there_are_some() -> None:
    assert mixed(("law",)).config.expert_ranks is None
    assert mixed(("law",)).config.ranks == (None, None)
    assert mixed(("art",)).config.expert_ranks == [None, 3]


@pytest.mark.parametrize("ranks", [[None, 0], [3, None], [None, 2, 3], [None, "4"], [None, True]])
def test_contradictory_ranks_are_refused(ranks: list[object]) -> None:
    with pytest.raises(AssemblyError, match="saw expert_ranks"):
        MotetConfig(expert_names=["anchor", "a"], contributions=["x"], expert_ranks=ranks)


@pytest.mark.parametrize("fault", ["missing", "shape", "rank"])
def test_compose_refuses_factors_of_another_anchor(fault: str) -> None:
    anchor = tiny_anchor()
    expert, name = expert_of(anchor, "math"), "model.layers.1.mlp.down_proj.weight"
    factors = dict(expert.factors)
    own = factors.pop(name)
    if fault == "shape":
        factors[name] = Factors(a=own.a[:, 1:], b=own.b)
    if fault == "rank":
        factors[name] = Factors(a=own.a[:2], b=own.b[:, :2])
    kind, message = (ExpertError, "ranks \\[2, 4\\]") if fault == "rank" else (AssemblyError, f"as {name}")
    with pytest.raises(kind, match=message):
        compose(anchor, [replace(expert, factors=factors)])


def test_long_texts_are_computed_a_few_tokens_at_a_time() -> None:
    ids = torch.randint(3, 96, (5, 60), generator=torch.Generator().manual_seed(3))
    sets = [["art", "law"], ["anchor"], ["verse", "art"], ["news"], list(MIXED)]
    model = mixed(dtype=torch.float64)
    at_once = model(ids, expert_sets=sets).logits.detach()  # with gradients nothing is cut
    assert largest(logits(model, ids, expert_sets=sets) - at_once) < 1e-12
    assert torch.equal(
        logits(model, ids, expert_sets=["art", "law"]), logits(mixed(("art", "law"), torch.float64), ids)
    )
