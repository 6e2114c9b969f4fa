"""A composite that averages evidence over the prefix: removal is exact, and a stock checkpoint computes the same."""

import dataclasses
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from motet.moe import MotetForCausalLM
from motet.moe.average import Average, Heard, attention_unit
from motet.moe.export import export_stock
from motet.protocols.errors import AssemblyError

from .conftest import NAMES, tiny_anchor
from .test_export import VARIANTS
from .test_filter_composite import GREEDY, SETS, filtering, logits

AVERAGE = Average(gain=4.0)


def averaging(*arguments: object, **changes: object) -> MotetForCausalLM:
    return filtering(*arguments, evidence=AVERAGE, **changes)


@pytest.fixture(scope="module")
def model() -> MotetForCausalLM:
    return averaging()


@torch.no_grad()
def weights_of(model: MotetForCausalLM, ids: Tensor, **kwargs: object) -> list[Tensor]:
    """The gate weights of every layer."""
    seen: list[Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _module, _args, output: seen.append(output))
        for layer in model.model.layers
    ]
    model(ids, use_cache=False, **kwargs)
    for hook in hooks:
        hook.remove()
    return seen


def test_every_layer_weighs_by_the_mean_over_the_first_attention(model: MotetForCausalLM, prompts: Tensor) -> None:
    outputs: list[Tensor] = []
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda _m, _a, output: outputs.append(output[0]))
    seen = weights_of(model, prompts)
    hook.remove()
    scores = model.token_router.weight[:, prompts].movedim(0, -1)  # (batch, seq, experts)
    mean = scores.cumsum(dim=1) / torch.arange(1, 10)[:, None]
    squares = outputs[0].square().mean(dim=-1, keepdim=True)
    loudness = model.config.prefix.unit / (squares + model.config.rms_norm_eps).sqrt()
    expected = (4.0 * loudness * mean + torch.tensor(model.config.priors)).softmax(dim=-1)
    assert len(seen) == 3
    for weights in seen:
        assert torch.allclose(weights, expected.flatten(0, 1), atol=1e-5)
    assert expected.argmax(dim=-1).unique().numel() > 2  # several experts speak


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_cache_gives_the_logits_of_computing_anew(prompts: Tensor, top_k: int | None) -> None:
    model = averaging(top_k=top_k)
    made = model.generate(prompts, output_logits=True, return_dict_in_generate=True, expert_sets=SETS, **GREEDY)
    whole = logits(model, made.sequences, expert_sets=SETS)
    for step, found in enumerate(made.logits):
        assert torch.allclose(found, whole[:, prompts.shape[1] - 1 + step], atol=1e-4), step
    beams = GREEDY | {"num_beams": 3, "expert_sets": SETS}
    assert torch.equal(model.generate(prompts, **beams), model.generate(prompts, use_cache=False, **beams))


def test_a_cropped_cache_was_never_longer(model: MotetForCausalLM, prompts: Tensor) -> None:
    with torch.no_grad():
        cache = model(prompts, use_cache=True).past_key_values
        cache.crop(-4)
        again = model(prompts[:, 2:4], past_key_values=cache).logits
    other = torch.cat([prompts[:, :5], prompts[:, 2:4]], dim=1)
    assert torch.allclose(again, logits(model, other)[:, 5:], atol=1e-4)


def test_padding_changes_nothing(model: MotetForCausalLM, prompts: Tensor) -> None:
    ids = torch.cat([torch.full((4, 3), 5), prompts], dim=1)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    alone = logits(model, prompts)
    assert (logits(model, ids, attention_mask=mask)[:, 3:] - alone).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_removing_an_expert_leaves_the_weights_of_the_others_exact(prompts: Tensor, dtype: torch.dtype) -> None:
    model = averaging(dtype=dtype)
    for names in [*combinations(NAMES, 2), *combinations(NAMES, 1)]:
        smaller = averaging(names, dtype)
        kept = [0, *(model.config.names.index(name) for name in smaller.config.names[1:])]
        masked = weights_of(model, prompts, expert_sets=["anchor", *names])
        for weights, alone in zip(masked, weights_of(smaller, prompts), strict=True):
            assert torch.equal(weights[:, kept], alone)
            assert int(weights.count_nonzero()) <= len(kept) * prompts.numel()


def test_with_every_closed_expert_off_it_is_the_anchor(model: MotetForCausalLM, prompts: Tensor) -> None:
    assert torch.equal(logits(model, prompts, expert_sets=["anchor"]), logits(tiny_anchor(), prompts))


@pytest.mark.filterwarnings("ignore:.*[Gg]radient checkpointing.*")
def test_gradient_checkpointing_gives_the_same_gradients(prompts: Tensor) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = averaging().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(prompts, labels=prompts, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


HALF: dict[str, object] = {"dtype": torch.float16, "initializer_range": 0.02}
"""An anchor of few digits whose first attention puts out so little that evidence in its units would be no number."""


@pytest.mark.parametrize("name", [*VARIANTS, "half"])
def test_the_stock_export_computes_the_same(name: str, prompts: Tensor, tmp_path: Path) -> None:
    averaging(**(VARIANTS | {"half": HALF})[name]).save_pretrained(tmp_path / "native")
    native = MotetForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.float32)
    assert native.config.prefix == Average(gain=4.0, unit=native.config.prefix.unit)
    export_stock(tmp_path / "native", tmp_path / "stock")
    stock, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "stock", dtype=torch.float32, output_loading_info=True
    )
    assert type(stock).__name__ == "FlexOlmoForCausalLM"
    assert not any(report.values())
    assert (logits(stock, prompts) - logits(native, prompts)).abs().max() <= 1e-4
    padded, mask = prompts.clone(), torch.ones_like(prompts)
    padded[1, :4] = mask[1, :4] = 0
    found = logits(stock, padded, attention_mask=mask)[mask.bool()]
    assert (found - logits(native, padded, attention_mask=mask)[mask.bool()]).abs().max() <= 1e-4
    how = GREEDY | {"attention_mask": mask, "pad_token_id": 0}
    assert torch.equal(stock.generate(padded, **how), native.generate(padded, **how))


@pytest.mark.parametrize("names", [(), ("math",)])
def test_few_experts_are_exported_as_well(names: tuple[str, ...], prompts: Tensor, tmp_path: Path) -> None:
    native = averaging(names, top_k=2)
    native.save_pretrained(tmp_path / "native")
    export_stock(tmp_path / "native", tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert (logits(stock, prompts) - logits(native, prompts)).abs().max() <= 1e-4


def test_more_experts_than_a_head_has_channels(prompts: Tensor, tmp_path: Path) -> None:
    averaging(num_attention_heads=16, num_key_value_heads=8, hidden_size=32).save_pretrained(tmp_path / "native")
    native = MotetForCausalLM.from_pretrained(tmp_path / "native")
    export_stock(tmp_path / "native", tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert stock.config.num_key_value_heads == 10  # three experts, two channels a head
    assert (logits(stock, prompts) - logits(native, prompts)).abs().max() <= 1e-4


def test_equal_composites_export_to_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        averaging().save_pretrained(tmp_path / f"native-{name}")
        export_stock(tmp_path / f"native-{name}", tmp_path / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}


def test_the_unit_is_near_what_the_first_attention_puts_out() -> None:
    anchor = tiny_anchor()
    with torch.no_grad():
        embedded = anchor.model.embed_tokens.weight
        values = anchor.model.layers[0].self_attn.o_proj(anchor.model.layers[0].self_attn.v_proj(embedded))
    unit = attention_unit(anchor.get_parameter, heads=4, key_heads=4)
    assert 0.7 < float(values.square().mean().sqrt()) / unit < 1.42
    assert unit == 2.0 ** round(torch.tensor(unit).log2().item())


@pytest.mark.parametrize("settings", [{"gain": 0.0}, {"gain": float("nan")}, {"unit": -1.0}, {"unit": float("inf")}])
def test_settings_that_are_no_factors_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(AssemblyError, match="wanted both over 0"):
        Average(**settings)


def test_a_layer_that_heard_nothing_says_so() -> None:
    with pytest.raises(AssemblyError, match="before the first layer's attention was heard"):
        Heard(torch.zeros(1, 2, 3)).scores(torch.zeros(3))


def test_sums_go_on_where_they_stood() -> None:
    scores = (torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)) * 16).round() / 8
    whole = AVERAGE.accumulate(scores)
    first = AVERAGE.accumulate(scores[:, :3])
    assert torch.equal(torch.cat([first, AVERAGE.accumulate(scores[:, 3:], before=first[:, -1])], dim=1), whole)
    assert torch.allclose(AVERAGE.mean(whole), 4 * scores.cumsum(1) / torch.arange(1, 8)[:, None])
    nothing = AVERAGE.accumulate(scores, real=torch.zeros(2, 7, dtype=torch.bool))
    assert not AVERAGE.mean(nothing).any()
    assert dataclasses.replace(AVERAGE, unit=0.5).mean(whole).equal(AVERAGE.mean(whole) / 2)
