"""Every family of anchors: its composite is the anchor when no expert takes part, and its export computes the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.moe import Factors, LowRankExpert, MotetForCausalLM, RoutingRows, compose
from motet.moe.evidence import Evidence
from motet.moe.experts import Expert
from motet.moe.export import export_stock
from motet.moe.families import FAMILIES, family_of
from motet.protocols.errors import AnchorError, ExportError

PRE_NORM = ["llama", "mistral", "qwen3"]
STOCK = {"llama": "MixtralForCausalLM", "mistral": "MixtralForCausalLM", "qwen3": "Qwen3MoeForCausalLM"}
ROPES = {
    "linear": {"factor": 2.0},
    "proportional": {},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 16, "long_factor": [2.0] * 6}
    | {"short_factor": [1.0] * 6},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
}

MakeAnchor = Callable[..., PreTrainedModel]
MakeExpert = Callable[..., Expert]


def flat(expert: Expert) -> Expert:
    """The same expert, its rows without intercept."""
    rows = RoutingRows(weight=expert.rows.weight, bias=torch.zeros_like(expert.rows.bias))
    return Expert(name=expert.name, contribution=expert.contribution, ffn=expert.ffn, rows=rows)


@pytest.fixture
def build(tiny: tuple[MakeAnchor, MakeExpert]) -> Callable[..., MotetForCausalLM]:
    """`build("llama", top_k=2, anchor changes)`: two experts without intercepts and without priors."""
    make_anchor, make_expert = tiny

    def make(model_type: str, *, dtype: torch.dtype = torch.float32, top_k: int | None = None, **changes: Any):
        anchor = make_anchor(model_type, **changes).to(dtype)
        return compose(anchor, [flat(make_expert(anchor, name)) for name in ("math", "law")], top_k=top_k)

    return make


def logits(model: nn.Module, ids: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def exported(model: MotetForCausalLM, folder: Path, **kwargs: Any) -> PreTrainedModel:
    model.save_pretrained(folder / "native")
    export_stock(folder / "native", folder / "stock", **kwargs)
    stock, report = AutoModelForCausalLM.from_pretrained(
        folder / "stock", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return stock


def test_every_family_is_tested_and_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "anchors.md").read_text(encoding="utf-8")
    assert sorted(FAMILIES) == sorted([*PRE_NORM, "olmo2"])
    for name, family in FAMILIES.items():
        assert f"`{name}`" in page
        assert family.stock.architecture in page


@pytest.mark.parametrize("model_type", PRE_NORM)
def test_without_experts_it_computes_what_the_anchor_computes(build, tiny, prompts, model_type: str) -> None:
    anchor, model = tiny[0](model_type), build(model_type)
    mask = torch.tensor([[True, False, False]]).expand(len(prompts), -1)
    assert torch.equal(logits(model, prompts, expert_mask=mask), logits(anchor, prompts))
    assert (logits(model, prompts) - logits(anchor, prompts)).abs().max() > 0.1
    settings = {"max_new_tokens": 6, "do_sample": False}
    found = model.generate(prompts, expert_sets=["anchor"], **settings)
    assert torch.equal(found, anchor.generate(prompts, **settings))


@pytest.mark.parametrize("model_type", PRE_NORM)
def test_the_mixture_reads_the_normalised_state(build, prompts, model_type: str) -> None:
    model, seen = build(model_type), {}
    layer = model.model.layers[1]
    layer.post_attention_layernorm.register_forward_hook(lambda module, given, out: seen.update(norm=out))
    layer.mlp.register_forward_pre_hook(lambda module, given: seen.update(read=given[0]))
    logits(model, prompts)
    assert torch.equal(seen["norm"], seen["read"])


@pytest.mark.parametrize("model_type", PRE_NORM)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 2, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4},
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
        {"dtype": torch.bfloat16, "rms_norm_eps": 1e-4, "initializer_range": 0.02},
    ],
    ids=["grouped", "top2", "tied", "bf16"],
)
def test_the_export_computes_the_same(build, prompts, tmp_path: Path, model_type: str, changes: dict) -> None:
    model = build(model_type, **changes)
    stock = exported(model, tmp_path)
    native = MotetForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.float32)
    assert type(stock).__name__ == STOCK[model_type]
    assert (logits(stock, prompts) - logits(native, prompts)).abs().max() <= 1e-4
    padded = prompts.clone()
    padded[1, :4] = padded[2, :7] = 0
    given = {"input_ids": padded, "attention_mask": (padded != 0).long(), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(stock.generate(**given), native.generate(**given))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"sliding_window": 4}),
        ("mistral", {"sliding_window": None}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
        ("qwen3", {"attention_bias": True}),
    ],
)
def test_windows_and_biases_come_along(build, prompts, tmp_path: Path, model_type: str, changes: dict) -> None:
    model = build(model_type, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias"):
            nn.init.normal_(parameter)
    stock = exported(model, tmp_path)
    assert (logits(stock, prompts) - logits(model, prompts)).abs().max() <= 1e-4
    assert torch.equal(
        stock.generate(prompts, max_new_tokens=8, do_sample=False),
        model.generate(prompts, max_new_tokens=8, do_sample=False),
    )


@pytest.mark.parametrize("model_type", PRE_NORM)
def test_low_rank_experts_beside_full_ones_compute_what_they_expand_to(tiny, prompts, model_type: str) -> None:
    anchor = tiny[0](model_type)
    dense = {name: tensor.detach() for name, tensor in anchor.named_parameters() if ".mlp." in name}
    draw = torch.Generator().manual_seed(5)
    factors = {
        name: Factors(
            a=torch.randn(3, own.shape[1], generator=draw), b=torch.randn(own.shape[0], 3, generator=draw) / 2
        )
        for name, own in dense.items()
    }
    full, like = flat(tiny[1](anchor, "math")), flat(tiny[1](anchor, "law"))
    low = LowRankExpert(name="law", contribution=like.contribution, factors=factors, rows=like.rows)
    expanded = Expert(name="law", contribution=like.contribution, ffn=low.ffn(dense), rows=like.rows)
    mixed = compose(anchor, [full, low])
    assert (logits(mixed, prompts) - logits(compose(anchor, [full, expanded]), prompts)).abs().max() <= 1e-4
    mask = torch.tensor([[True, False, False]]).expand(len(prompts), -1)
    assert torch.equal(logits(mixed, prompts, expert_mask=mask), logits(anchor, prompts))


@pytest.mark.parametrize(
    ("model_type", "changes"), [("llama", {}), ("mistral", {"sliding_window": 4}), ("qwen3", {}), ("mistral", {})]
)
def test_a_filter_generates_step_by_step_what_it_computes_at_once(
    tiny, prompts, model_type: str, changes: dict
) -> None:
    anchor, draw = tiny[0](model_type, **changes), torch.Generator().manual_seed(2)
    expert = flat(tiny[1](anchor, "math"))
    rows = replace(expert.rows, tokens=torch.randn(anchor.config.vocab_size, generator=draw))
    model = compose(anchor, [replace(expert, rows=rows)], evidence=Evidence(stay=0.9, temperature=0.5))
    made = model.generate(prompts, max_new_tokens=8, do_sample=False)
    assert torch.equal(made[:, 9:], logits(model, made)[:, 8:-1].argmax(dim=-1))


@pytest.mark.parametrize("rope_type", sorted(ROPES))
def test_rotary_embeddings_come_along(build, tiny, tmp_path: Path, rope_type: str) -> None:
    changes = {"rope_parameters": {"rope_type": rope_type, "rope_theta": 1000.0} | ROPES[rope_type]}
    ids = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(1))
    model, anchor = build("llama", **changes), tiny[0]("llama", **changes)
    mask = torch.tensor([[True, False, False]]).expand(2, -1)
    assert torch.equal(logits(model, ids, expert_mask=mask), logits(anchor, ids))
    assert (logits(exported(model, tmp_path), ids) - logits(model, ids)).abs().max() <= 1e-4


def test_mixtral_files_have_the_names_of_its_first_release(build, tmp_path: Path) -> None:
    model = build("mistral")
    exported(model, tmp_path)
    stored = load_file(tmp_path / "stock" / "expert-00001.safetensors")
    prefix, wanted = "model.layers.2.block_sparse_moe", model.expert_ffn(model.config.names[1])
    for theirs, ours in {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.items():
        assert torch.equal(stored[f"{prefix}.experts.1.{theirs}.weight"], wanted[f"model.layers.2.mlp.{ours}.weight"])
    assert f"{prefix}.gate.weight" in load_file(tmp_path / "stock" / "router.safetensors")
    assert not any(".mlp." in name for name in stored)


def test_qwen3_moe_says_how_many_experts_under_both_names(build, tmp_path: Path) -> None:
    exported(build("qwen3"), tmp_path)
    config = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert (config["num_experts"], config["num_local_experts"], config["head_dim"]) == (3, 3, 12)
    assert (config["decoder_sparse_step"], config["mlp_only_layers"], config["norm_topk_prob"]) == (1, [], True)


@pytest.mark.parametrize("model_type", PRE_NORM)
def test_a_bias_is_exported_only_when_it_is_given_up(build, prompts, tmp_path: Path, model_type: str) -> None:
    model = build(model_type)
    model.model.layers[1].mlp.router.bias[2] = 0.5
    model.save_pretrained(tmp_path / "biased")
    with pytest.raises(ExportError, match=r"router bias.*--drop-bias"):
        export_stock(tmp_path / "biased", tmp_path / "out")
    assert export_stock(tmp_path / "biased", tmp_path / "out", drop_bias=True).bias == "dropped"
    model.model.layers[1].mlp.router.bias.zero_()
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert (logits(stock, prompts) - logits(model, prompts)).abs().max() <= 1e-4


def test_a_filter_is_exported_only_when_it_is_given_up(tiny, prompts, tmp_path: Path) -> None:
    anchor = tiny[0]("llama")
    experts = [flat(tiny[1](anchor, "math"))]
    compose(anchor, experts, evidence=Evidence(stay=0.9, temperature=2.0)).save_pretrained(tmp_path / "filter")
    with pytest.raises(ExportError, match=r"evidence over the prefix.*--drop-bias"):
        export_stock(tmp_path / "filter", tmp_path / "out")
    export_stock(tmp_path / "filter", tmp_path / "out", drop_bias=True)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert (logits(stock, prompts) - logits(compose(anchor, experts), prompts)).abs().max() <= 1e-4


def test_mixtral_cannot_leave_weights_as_they_are(tiny, tmp_path: Path) -> None:
    for model_type, refused in {"llama": True, "mistral": True, "qwen3": False}.items():
        anchor = tiny[0](model_type)
        model = compose(anchor, [flat(tiny[1](anchor, "math"))], top_k=1, normalise_top_k=False)
        model.save_pretrained(tmp_path / model_type)
        if refused:
            with pytest.raises(ExportError, match=r"normalise_top_k = false.*MixtralForCausalLM"):
                export_stock(tmp_path / model_type, tmp_path / "out")
        else:
            export_stock(tmp_path / model_type, tmp_path / "out")
            assert json.loads((tmp_path / "out" / "config.json").read_text())["norm_topk_prob"] is False


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("llama", {"attention_bias": True}, "saw attention_bias"),
        ("llama", {"mlp_bias": True}, "saw mlp_bias"),
        ("mistral", {"hidden_act": "gelu"}, "saw hidden_act 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "saw rope_type 'spiral'.*llama3"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "with and without a sliding",
        ),
        ("qwen3", {"hidden_act": "relu"}, "saw hidden_act 'relu'"),
    ],
)
def test_what_the_stock_architecture_lacks_is_refused(model_type: str, changes: dict, reason: str) -> None:
    family = family_of(model_type)
    config = family.base.config_class(num_hidden_layers=3, **changes)
    with pytest.raises(AnchorError, match=rf"{reason}.*{family.stock.architecture}.*take another anchor"):
        family.require(config)
    family.require(family.base.config_class(num_hidden_layers=3))


@pytest.mark.parametrize("model_type", PRE_NORM)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.*[Gg]radient checkpointing.*")
def test_gradient_checkpointing_gives_the_same_gradients(build, prompts, model_type: str, reentrant: bool) -> None:
    mask = torch.tensor([[True, True, False], [True, False, True], [True, True, True], [True, False, False]])

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = build(model_type).train()
        model.requires_grad_(True)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(prompts, labels=prompts, expert_mask=mask, use_cache=False).loss.backward()
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)
