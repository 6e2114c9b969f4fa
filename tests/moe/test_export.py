"""The stock export: plain transformers, without Motet, computes what the composite computes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FlexOlmoForCausalLM

from motet.moe import MotetForCausalLM
from motet.moe.export import export_stock
from motet.protocols.errors import ExportError, TensorFileError

MakeComposite = Callable[..., MotetForCausalLM]

WITHOUT_MOTET = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "motet":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
try:
    import motet.moe
    raise SystemExit("motet can be imported")
except ModuleNotFoundError:
    pass

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
inputs, outputs = load_file(sys.argv[1]), {}
for directory in sys.argv[3:]:
    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert type(model).__name__ == "FlexOlmoForCausalLM" and not any(report.values()), report
    name = directory.rpartition("/")[2]
    with torch.no_grad():
        outputs[f"{name}.plain"] = model(inputs["ids"]).logits
        padded = {"input_ids": inputs["padded"], "attention_mask": inputs["attention_mask"]}
        outputs[f"{name}.padded"] = model(**padded).logits
        outputs[f"{name}.generated"] = model.generate(**padded, max_new_tokens=6, do_sample=False)
save_file(outputs, sys.argv[2])
"""


def save_by_expert(model: MotetForCausalLM, directory: Path) -> Path:
    """Writes a composite as assembly does: one file per expert, the router and what is shared apart."""
    model.save_pretrained(directory)
    whole = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in whole.items():
        part = name.partition(".mlp.experts.")[2].partition(".")[0]
        file = f"expert-{int(part):05d}" if part else "router" if ".router." in name else "shared"
        files.setdefault(f"{file}.safetensors", {})[name] = tensor
    for file, tensors in files.items():
        save_file(tensors, directory / file, {"format": "pt"})
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def without_bias(model: MotetForCausalLM) -> MotetForCausalLM:
    for layer in model.model.layers:
        layer.mlp.router.bias.zero_()
    return model


def logits(model: torch.nn.Module, ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def directory_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


VARIANTS: dict[str, dict[str, object]] = {
    "folded": {},
    "bf16": {"dtype": torch.bfloat16},
    "top2": {"top_k": 2},
    "grouped": {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 36, "rms_norm_eps": 1e-6},
    "biased": {"attention_bias": True, "top_k": 3},
    "tied": {"tie_word_embeddings": True},
    "small": {"initializer_range": 0.02, "dtype": torch.bfloat16},  # activations so small that epsilon rules
}


@pytest.mark.slow
def test_without_motet_it_computes_the_same(make_composite: MakeComposite, prompts, tmp_path: Path) -> None:
    inputs = {"ids": prompts, "padded": prompts.clone()}
    inputs["padded"][1, :4] = inputs["padded"][2, :7] = 0
    inputs["attention_mask"] = (inputs["padded"] != 0).long()
    save_file(inputs, tmp_path / "inputs")
    natives = {}
    for name, changes in VARIANTS.items():
        save_by_expert(make_composite(**changes), tmp_path / f"native-{name}")
        natives[name] = MotetForCausalLM.from_pretrained(tmp_path / f"native-{name}", dtype=torch.float32)
        assert export_stock(tmp_path / f"native-{name}", tmp_path / name).bias == "folded"
    arguments = [str(tmp_path / name) for name in ("inputs", "outputs", *VARIANTS)]
    subprocess.run([sys.executable, "-I", "-c", WITHOUT_MOTET, *arguments], check=True, timeout=200)
    outputs = load_file(tmp_path / "outputs")
    padded = {"input_ids": inputs["padded"], "attention_mask": inputs["attention_mask"]}
    real = inputs["attention_mask"].bool()
    for name, native in natives.items():
        assert (outputs[f"{name}.plain"] - logits(native, prompts)).abs().max() <= 1e-4, name
        beside = logits(native, inputs["padded"], attention_mask=inputs["attention_mask"])
        difference = outputs[f"{name}.padded"] - beside
        assert difference[real].abs().max() <= 1e-4, name
        assert torch.equal(outputs[f"{name}.generated"], native.generate(**padded, max_new_tokens=6, do_sample=False))


def test_a_bias_changes_the_width_and_only_then(make_composite: MakeComposite, prompts, tmp_path: Path) -> None:
    model = make_composite()
    save_by_expert(model, tmp_path / "native")
    folded = export_stock(tmp_path / "native", tmp_path / "folded")
    assert (folded.bias, folded.hidden_size) == ("folded", 40)
    dropped = export_stock(tmp_path / "native", tmp_path / "dropped", drop_bias=True)
    assert (dropped.bias, dropped.hidden_size) == ("dropped", 32)
    save_by_expert(without_bias(model), tmp_path / "native-flat")
    flat = export_stock(tmp_path / "native-flat", tmp_path / "flat")
    assert (flat.bias, flat.hidden_size) == ("none", 32)
    assert directory_bytes(tmp_path / "flat") == directory_bytes(tmp_path / "dropped")
    stock = FlexOlmoForCausalLM.from_pretrained(tmp_path / "flat")
    assert torch.allclose(logits(stock, prompts), logits(model, prompts), atol=1e-5)


def test_every_expert_can_be_read_back_from_the_export(make_composite: MakeComposite, tmp_path: Path) -> None:
    model = make_composite(dtype=torch.bfloat16)
    export_stock(save_by_expert(without_bias(model), tmp_path / "native"), tmp_path / "stock")
    for number, name in enumerate(model.config.names):
        stored = load_file(tmp_path / "stock" / f"expert-{number:05d}.safetensors")
        wanted = model.expert_ffn(name)
        assert len(stored) == len(wanted)
        assert all(torch.equal(stored[key.replace(".mlp.", f".mlp.experts.{number}.")], t) for key, t in wanted.items())


def test_equal_composites_give_equal_bytes(make_composite: MakeComposite, tmp_path: Path) -> None:
    model = make_composite(dtype=torch.bfloat16)
    save_by_expert(model, tmp_path / "sharded")
    model.save_pretrained(tmp_path / "single")
    for name in ("sharded", "single"):
        export_stock(tmp_path / name, tmp_path / f"{name}-stock")
    first, second = directory_bytes(tmp_path / "sharded-stock"), directory_bytes(tmp_path / "single-stock")
    assert first == second
    assert sorted(first) == [
        *("README.md", "config.json"),
        *("expert-00000.safetensors", "expert-00001.safetensors", "expert-00002.safetensors"),
        *("expert-00003.safetensors", "generation_config.json", "model.safetensors.index.json"),
        *("router.safetensors", "shared.safetensors"),
    ]


def test_the_bias_survives_loading_in_bf16(make_composite: MakeComposite, tmp_path: Path) -> None:
    model = make_composite(dtype=torch.bfloat16)
    export_stock(save_by_expert(model, tmp_path / "native"), tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert stock.dtype == torch.bfloat16
    for ours, theirs in zip(model.model.layers, stock.model.layers, strict=True):
        constants = stock.model.embed_tokens.weight[5, 32:].double()
        assert torch.allclose(
            theirs.mlp.gate.weight[:, 32:].double() @ constants, ours.mlp.router.bias.double(), atol=1e-6
        )


def test_tokenizer_and_generation_settings_come_along(make_composite: MakeComposite, tmp_path: Path) -> None:
    native = save_by_expert(make_composite(), tmp_path / "native")
    (native / "tokenizer.json").write_text("{}")
    export_stock(native, tmp_path / "stock")
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "stock" / name).read_bytes() == (native / name).read_bytes()


def test_an_existing_directory_is_left_alone(make_composite: MakeComposite, tmp_path: Path) -> None:
    native = save_by_expert(make_composite(), tmp_path / "native")
    (tmp_path / "stock").mkdir()
    export_stock(native, tmp_path / "stock")
    before = directory_bytes(tmp_path / "stock")
    with pytest.raises(ExportError, match="new or empty directory"):
        export_stock(native, tmp_path / "stock", drop_bias=True)
    assert directory_bytes(tmp_path / "stock") == before


@pytest.mark.parametrize(
    "fault", ["no config", "other model", "missing", "extra", "shape", "not there", "escape", "cut", "no map"]
)
def test_damaged_composites_are_refused_and_leave_nothing(make_composite, tmp_path: Path, fault: str) -> None:
    native = save_by_expert(make_composite(), tmp_path / "native")
    index, router = native / "model.safetensors.index.json", native / "router.safetensors"
    name = "model.layers.1.mlp.router.weight"
    content, rows = json.loads(index.read_text()), load_file(router)
    if fault == "no config":
        (native / "config.json").unlink()
    elif fault == "other model":
        (native / "config.json").write_text('{"model_type": "olmo2"}')
    elif fault == "missing":
        del content["weight_map"][name]
    elif fault == "extra":
        content["weight_map"]["model.layers.9.mlp.router.weight"] = router.name
    elif fault == "shape":
        save_file(rows | {name: rows[name][:-1]}, router)
    elif fault == "not there":
        save_file({key: row for key, row in rows.items() if key != name}, router)
    elif fault == "escape":
        content["weight_map"][name] = "../native/router.safetensors"
    elif fault == "no map":
        content = {"weight_map": [name]}
    else:
        router.write_bytes(router.read_bytes()[:-1])
    index.write_text(json.dumps(content))
    with pytest.raises((ExportError, TensorFileError)):
        export_stock(native, tmp_path / "stock")
    assert [path.name for path in tmp_path.iterdir()] == ["native"]
