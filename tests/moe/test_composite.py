"""The composite as a transformers model: the anchor inside it, loading and saving, training, generation."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, Olmo2ForCausalLM

import motet.moe
from motet.moe import Expert, MotetConfig, MotetForCausalLM, RoutingRows, compose, only
from motet.moe.composite import router_tensors
from motet.protocols.errors import AnchorError, AssemblyError, ExpertSetError

MakeComposite = Callable[..., MotetForCausalLM]


def logits(model: torch.nn.Module, ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def anchor_inside(model: MotetForCausalLM) -> Olmo2ForCausalLM:
    anchor = Olmo2ForCausalLM(copy.deepcopy(model.config.anchor)).to(model.dtype).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if ".mlp." not in name}
    anchor.load_state_dict(state | model.expert_ffn("anchor"))
    return anchor


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_with_every_closed_expert_off_it_is_the_anchor(make_composite, prompts, dtype, attention) -> None:
    model = make_composite(dtype=dtype)
    model.set_attn_implementation(attention)
    anchor = anchor_inside(model)
    anchor.set_attn_implementation(attention)
    assert torch.equal(logits(model, prompts, expert_sets=["anchor"]), logits(anchor, prompts))
    assert not torch.allclose(logits(model, prompts), logits(anchor, prompts), atol=0.1)


def test_save_and_load_through_the_auto_classes(make_composite: MakeComposite, prompts, tmp_path: Path) -> None:
    model = make_composite(top_k=2)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert isinstance(loaded, MotetForCausalLM)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MotetConfig)
    assert (loaded.config.expert_names, loaded.config.experts_per_token) == (["anchor", "math", "news", "law"], 2)
    assert loaded.generation_config.top_k == model.generation_config.top_k != 2  # sampling's top_k is another thing
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(logits(loaded, prompts), logits(model, prompts))
    assert torch.equal(
        loaded.generate(prompts, max_new_tokens=5, do_sample=False), model.generate(prompts, max_new_tokens=5)
    )


def test_an_answer_ends_where_the_anchors_does_though_an_assembled_folder_has_no_generation_settings(
    make_composite: MakeComposite, prompts, tmp_path: Path
) -> None:
    model = make_composite()
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    loaded = MotetForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == loaded.config.anchor.eos_token_id == 2
    loaded.lm_head.weight.data[2] = loaded.lm_head.weight.data.abs().sum(dim=0)  # likely enough to end soon
    ended = loaded.generate(prompts, max_new_tokens=20, do_sample=False)
    new = ended[:, prompts.shape[1] :]
    assert all(set(row[row.tolist().index(2) :].tolist()) <= {0, 2} for row in new if 2 in row)
    assert 2 in new
    given = GenerationConfig(max_new_tokens=3, eos_token_id=7)
    assert MotetForCausalLM.from_pretrained(tmp_path, generation_config=given).generation_config.eos_token_id == 7


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_the_router_keeps_its_digits(make_composite: MakeComposite, tmp_path: Path, dtype, wide) -> None:
    model = make_composite()
    rows = model.model.layers[1].mlp.router.weight.detach().clone()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = MotetForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for router in (loaded.model.layers[1].mlp.router, copy.deepcopy(model).to(dtype).model.layers[1].mlp.router):
        assert router.weight.dtype == router.bias.dtype == wide
        assert torch.equal(router.weight.float(), rows)
    assert loaded.dtype == dtype
    assert MotetForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_tied_embeddings_stay_tied(make_composite: MakeComposite, prompts, tmp_path: Path) -> None:
    model = make_composite(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = MotetForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded, prompts), logits(model, prompts))


def test_a_model_from_a_configuration_alone_runs(prompts) -> None:
    config = MotetConfig(
        anchor_config={"model_type": "olmo2", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0},
        expert_names=["anchor", "math"],
        contributions=["sha256:0"],
    )
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (32, 2, 96)
    assert AutoModelForCausalLM.from_config(config).eval()(prompts).logits.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert_names": ["math"]}, "first is 'anchor'"),
        ({"expert_names": ["anchor", "a", "a"], "contributions": ["x", "y"]}, "unique"),
        ({"expert_names": ["anchor", "a"], "contributions": []}, "0 contributions for 2"),
        ({"experts_per_token": 0}, "experts_per_token=0"),
        ({"top_k": 2}, "wanted experts_per_token"),
    ],
)
def test_a_contradictory_configuration_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(AssemblyError, match=message):
        MotetConfig(**settings)


def test_an_architecture_without_a_family_is_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(AnchorError, match="saw an anchor of model_type 'gemma'"):
        MotetForCausalLM(MotetConfig(anchor_config={"model_type": "gemma", "vocab_size": 9, **sizes}))


def test_compose_shares_parameters_and_orders_by_digest(make_composite: MakeComposite) -> None:
    anchor = anchor_inside(make_composite())
    ffn = {name: torch.nn.Parameter(p.detach().clone()) for name, p in anchor.named_parameters() if ".mlp." in name}
    rows = RoutingRows(weight=torch.zeros(3, 32), bias=torch.zeros(3))
    model = compose(
        anchor,
        [Expert(name=n, contribution=d, ffn=ffn, rows=rows) for n, d in [("late", "sha256:f"), ("early", "sha256:0")]],
        log_priors={"late": -1.5},
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert model.config.names == ("anchor", "early", "late")
    assert model.get_input_embeddings().weight is anchor.get_input_embeddings().weight
    assert model.expert_ffn("anchor")[name] is anchor.get_parameter(name)
    assert model.expert_ffn("late")[name] is ffn[name]
    assert model.model.layers[2].mlp.router.bias.tolist() == [0.0, 0.0, -1.5]
    assert not any(parameter.requires_grad for key, parameter in model.named_parameters() if "router" in key)
    with pytest.raises(ExpertSetError, match="unknown expert 'nobody'"):
        model.expert_ffn("nobody")


def test_compose_leaves_the_anchor_as_it_was(make_composite: MakeComposite, prompts) -> None:
    anchor = anchor_inside(make_composite())
    before = logits(anchor, prompts)
    implementation = anchor.config._attn_implementation
    model = compose(anchor, [])
    model.set_attn_implementation("eager")
    assert torch.equal(logits(anchor, prompts), before)
    assert anchor.config._attn_implementation == implementation
    assert torch.allclose(logits(model, prompts), before, atol=1e-5)


@pytest.mark.parametrize("fault", ["missing", "shape", "dtype"])
def test_compose_refuses_an_expert_of_another_anchor(make_composite: MakeComposite, fault: str) -> None:
    anchor = anchor_inside(make_composite())
    ffn = {name: p.detach() for name, p in anchor.named_parameters() if ".mlp." in name}
    name = "model.layers.1.mlp.down_proj.weight"
    ffn |= {"missing": {}, "shape": {name: ffn[name].T}, "dtype": {name: ffn[name].half()}}[fault]
    if fault == "missing":
        del ffn[name]
    rows = RoutingRows(weight=torch.zeros(3, 32), bias=torch.zeros(3))
    with pytest.raises(AssemblyError, match=f"as {name}"):
        compose(anchor, [Expert(name="math", contribution="sha256:0", ffn=ffn, rows=rows)])
    with pytest.raises(AssemblyError, match="log priors for law"):
        compose(anchor, [], log_priors={"law": 1.0})


def test_the_loss_is_the_anchors_when_alone(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    expected = anchor_inside(model)(prompts, labels=prompts).loss
    assert torch.equal(model(prompts, labels=prompts, expert_sets=["anchor"]).loss, expected)


def test_logits_to_keep_hidden_states_and_attentions(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    full = model(prompts, output_hidden_states=True)
    assert [state.shape for state in full.hidden_states] == [(4, 9, 32)] * 4
    assert torch.allclose(logits(model, prompts, logits_to_keep=2), full.logits[:, -2:], atol=1e-6)
    assert torch.allclose(
        logits(model, prompts, logits_to_keep=torch.tensor([3, 5])), full.logits[:, [3, 5]], atol=1e-6
    )
    model.set_attn_implementation("eager")
    assert len(model(prompts, output_attentions=True).attentions) == 3


def test_left_padding_changes_nothing(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    padded = torch.cat([torch.zeros(4, 5, dtype=torch.long), prompts], dim=1)
    attention = (padded != 0).long()
    sets = [["math"], ["anchor"], ["news", "law"], ["law"]]
    alone = logits(model, prompts, expert_sets=sets)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    beside = logits(model, padded, attention_mask=attention, position_ids=positions, expert_sets=sets)
    assert torch.allclose(beside[:, 5:], alone, atol=1e-5)
    short = model.generate(prompts, expert_sets=sets, max_new_tokens=6)
    long = model.generate(padded, attention_mask=attention, expert_sets=sets, max_new_tokens=6)
    assert torch.equal(long[:, 5:], short)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 3}])
def test_beams_keep_each_prompts_set(make_composite: MakeComposite, prompts, how: dict[str, int]) -> None:
    model = make_composite()
    sets = [["math"], ["anchor"], ["news", "law"], ["law"]]
    together = model.generate(prompts, expert_sets=sets, max_new_tokens=6, do_sample=False, **how)
    apart = [
        model.generate(row[None], expert_sets=names, max_new_tokens=6, do_sample=False, **how)
        for row, names in zip(prompts, sets, strict=True)
    ]
    assert torch.equal(together, torch.cat(apart))
    assert not torch.equal(together, model.generate(prompts, max_new_tokens=6, do_sample=False, **how))


def test_several_sampled_sequences_per_prompt(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    how = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    got = model.generate(prompts, expert_mask=torch.eye(4, dtype=torch.bool) | (torch.arange(4) == 0), **how)
    torch.manual_seed(0)
    assert torch.equal(got, model.generate(prompts, expert_sets=[["anchor"], ["math"], ["news"], ["law"]], **how))
    assert got.shape == (12, 14)


def test_generating_with_a_cache_equals_generating_without(make_composite: MakeComposite, prompts) -> None:
    model = make_composite(top_k=2)
    with only("math", "law"):
        cached = model.generate(prompts, max_new_tokens=6)
        assert torch.equal(cached, model.generate(prompts, max_new_tokens=6, use_cache=False))
    static = model.generate(prompts, expert_sets=["math", "law"], max_new_tokens=6, cache_implementation="static")
    assert torch.equal(cached, static)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*[Gg]radient checkpointing.*")
def test_gradient_checkpointing_sees_the_masks_of_its_own_forward(make_composite, prompts, reentrant: bool) -> None:
    sets = [["math"], ["anchor"], ["news", "law"], ["law"]]

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = make_composite().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        with only("math"):  # explicit sets win over the block
            loss = model(prompts, labels=prompts, expert_sets=sets, use_cache=False).loss
        with only("anchor"):  # the layers run again here
            loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert any(".experts.3." in name for name in plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


def test_one_expert_trains_beside_the_frozen_anchor(make_composite: MakeComposite, prompts) -> None:
    anchor = anchor_inside(make_composite()).requires_grad_(False)
    ffn = {name: torch.nn.Parameter(p.detach().clone()) for name, p in anchor.named_parameters() if ".mlp." in name}
    rows = RoutingRows(weight=torch.zeros(3, 32), bias=torch.zeros(3))
    model = compose(anchor, [Expert(name="mine", contribution="", ffn=ffn, rows=rows)]).train()
    frozen = logits(anchor, prompts)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(prompts, labels=prompts).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    assert sum(p.requires_grad for p in model.parameters()) == len(ffn)
    assert torch.equal(logits(anchor, prompts), frozen)


def test_bf16_autocast_leaves_the_router_alone(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    seen: list[torch.Tensor] = []
    model.model.layers[0].mlp.router.register_forward_hook(lambda _module, _args, output: seen.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(prompts)
    hidden_independent = router_tensors([], 0, [0.5], 32)
    assert seen[0].dtype == torch.float32
    assert hidden_independent[1].tolist() == [0.5]


def test_two_threads_with_different_sets(make_composite: MakeComposite, prompts) -> None:
    model = make_composite()
    wanted = {name: logits(model, prompts, expert_sets=[name]) for name in ("math", "law")}
    start, failures = threading.Barrier(2), []

    def run(name: str) -> None:
        with motet.moe.only(name):
            start.wait()
            for _ in range(20):
                if not torch.equal(logits(model, prompts), wanted[name]):
                    failures.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not torch.allclose(wanted["math"], wanted["law"], atol=0.1)


def test_the_anchor_or_a_composite_may_assist(make_composite: MakeComposite, prompts) -> None:
    model, how = make_composite(), {"max_new_tokens": 8, "do_sample": False, "expert_sets": ["math"]}
    alone = model.generate(prompts[:1], **how)
    assert not torch.equal(alone, model.generate(prompts[:1], **how | {"expert_sets": ["law"]}))
    for assistant in (anchor_inside(model), make_composite()):
        assert torch.equal(alone, model.generate(prompts[:1], assistant_model=assistant, **how))


def test_a_composite_in_many_files_is_the_same(make_composite: MakeComposite, prompts, tmp_path: Path) -> None:
    model = make_composite()
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(model, prompts), logits(again, prompts))
