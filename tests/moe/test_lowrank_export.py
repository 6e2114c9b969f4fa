"""The stock export of composites with low-rank experts: dense, and nothing else than the composite computes."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.moe import MotetForCausalLM, RoutingRows, compose
from motet.moe.config import MotetConfig
from motet.moe.expanded_tensors import Described, with_expansions
from motet.moe.export import export_stock, stock_bytes
from motet.protocols.errors import ExportError
from motet.protocols.tensor_files import TensorReader, TensorSpec, read_header

from .conftest import tiny_anchor
from .mixed_kinds import MIXED, expert_of, ffn_of, mixed

PRE_NORM = ["llama", "mistral", "qwen3"]


def logits(model: torch.nn.Module, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def exported(model: MotetForCausalLM, folder: Path, **how: Any) -> PreTrainedModel:
    model.save_pretrained(folder / "native", **how)
    export_stock(folder / "native", folder / "stock")
    stock, report = AutoModelForCausalLM.from_pretrained(
        folder / "stock", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return stock


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_the_composite_computes(prompts, tmp_path: Path, dtype: torch.dtype, top_k) -> None:
    model = mixed(dtype=dtype, top_k=top_k)
    stock = exported(model, tmp_path)
    native = MotetForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.float32)
    assert (logits(stock, prompts) - logits(native, prompts)).abs().max() < 1e-4
    assert (logits(stock, prompts) - logits(native, prompts, expert_sets=["anchor"])).abs().max() > 0.1


@pytest.mark.parametrize("model_type", PRE_NORM)
def test_so_do_the_exports_of_other_families(prompts, tmp_path: Path, model_type: str) -> None:
    anchor = tiny_anchor(model_type)
    experts = [
        replace(each, rows=RoutingRows(weight=each.rows.weight, bias=torch.zeros_like(each.rows.bias)))
        for each in (expert_of(anchor, name) for name in ("art", "law", "math"))
    ]
    model = compose(anchor, experts)
    stock = exported(model, tmp_path)
    assert (logits(stock, prompts) - logits(model, prompts)).abs().max() < 1e-4
    with torch.no_grad():
        wanted = model.generate(prompts, max_new_tokens=5, do_sample=False)
        assert torch.equal(stock.generate(prompts, max_new_tokens=5, do_sample=False), wanted)


def test_factors_in_other_files_than_their_matrix_give_the_same_bytes(prompts, tmp_path: Path) -> None:
    model = mixed(("art", "law"))
    exported(model, tmp_path / "one")
    exported(model, tmp_path / "many", max_shard_size="6KB")
    assert len(list((tmp_path / "many" / "native").glob("*.safetensors"))) > 5
    one, many = (
        {path.name: path.read_bytes() for path in (tmp_path / folder / "stock").iterdir()} for folder in ("one", "many")
    )
    assert one == many


def test_the_tensors_are_the_sums_whatever_pieces_are_asked_for(tmp_path: Path) -> None:
    model = mixed(("art",), torch.bfloat16)
    model.save_pretrained(tmp_path)
    name = "model.layers.1.mlp.experts.1.down_proj.weight"
    stored = load_file(tmp_path / "model.safetensors")
    a, b = (stored[name.replace(".weight", f".lora_{each}.weight")].double() for each in "AB")
    wanted = (stored[name.replace("experts.1", "experts.0")].double() + b @ a).float()
    with TensorReader(tmp_path / "model.safetensors") as reader:
        sources = with_expansions(dict.fromkeys(reader.header, reader), model.config)
        assert not any("lora" in each for each in sources)
        tensors = sources[name]
        assert (tensors.header[name].spec.dtype, tensors.header[name].spec.shape) == ("F32", (32, 48))
        assert torch.equal(tensors.tensor(name), wanted)
        whole = wanted.numpy().tobytes()
        assert b"".join(tensors.chunks(name, 37)) == b"".join(tensors.chunks(name)) == whole
        assert tensors.slice(name, 190, 200) == whole[190:390]
        assert tensors.slice(name, len(whole) - 3, 3) == whole[-3:]


def specs_in(folder: Path) -> list[TensorSpec]:
    return [each.spec for path in folder.glob("*.safetensors") for each in read_header(path).values()]


@pytest.mark.parametrize("drop_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["olmo2", *PRE_NORM])
def test_its_size_is_known_from_names_and_shapes_alone(
    tmp_path: Path, model_type: str, dtype: torch.dtype, drop_bias: bool
) -> None:
    anchor = tiny_anchor(model_type).to(dtype)
    model = compose(anchor, [expert_of(anchor, name) for name in ("art", "law")])
    if model_type in PRE_NORM:
        for layer in model.model.layers:
            layer.mlp.router.bias.data.zero_()
    model.save_pretrained(tmp_path / "native")
    config = MotetConfig.from_pretrained(tmp_path / "native")
    foretold = stock_bytes(specs_in(tmp_path / "native"), config, drop_bias=drop_bias)
    export_stock(tmp_path / "native", tmp_path / "stock", drop_bias=drop_bias)
    assert foretold == sum(spec.nbytes for spec in specs_in(tmp_path / "stock"))
    (art,) = {spec.dtype for spec in specs_in(tmp_path / "stock") if re.search(r"experts\.1\.", spec.name)}
    assert art == "F32"


def test_nothing_is_read_of_tensors_that_are_only_described() -> None:
    described = Described([TensorSpec(name="a", dtype="F32", shape=(2,))])
    for read in (lambda: described.slice("a", 0, 4), lambda: described.tensor("a"), lambda: described.chunks("a")):
        with pytest.raises(ValueError, match="only its shape is known"):
            read()


def test_a_composite_without_its_factors_is_refused(tmp_path: Path) -> None:
    model = mixed(("art",))
    model.save_pretrained(tmp_path / "native")
    config = (tmp_path / "native" / "config.json").read_text()
    (tmp_path / "native" / "config.json").write_text(config.replace("    3\n", "    4\n"))
    assert config != (tmp_path / "native" / "config.json").read_text()
    with pytest.raises(ExportError, match=r"lora_A.weight: saw F32 \(3, 48\), wanted \(4, 48\)"):
        export_stock(tmp_path / "native", tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


def test_full_experts_are_exported_as_they_are(tmp_path: Path) -> None:
    anchor = tiny_anchor().to(torch.bfloat16)
    model = compose(anchor, [expert_of(anchor, name) for name in MIXED])
    exported(model, tmp_path)
    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    law = load_file(tmp_path / "stock" / "expert-00002.safetensors")[name.format(2)]
    assert law.dtype == torch.bfloat16
    art = load_file(tmp_path / "stock" / "expert-00001.safetensors")[name.format(1)]
    own = ffn_of(anchor)["model.layers.0.mlp.up_proj.weight"]
    assert art.dtype == torch.float32
    assert not torch.equal(art[:, :32], own.float())
