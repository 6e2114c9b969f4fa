"""What the pinned transformers makes of one file per expert, also when expert ids have gaps (toggling on disk)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import FlexOlmoForCausalLM

from motet.moe import MotetForCausalLM
from motet.moe.export import export_stock

MakeComposite = Callable[..., MotetForCausalLM]


def leave_out(directory: Path, expert: int) -> None:
    """Toggles one expert of a stock export off on disk: its rows, its index entries and its count, not its file."""
    router = directory / "router.safetensors"
    rows = load_file(router)
    kept = {name: torch.cat([row[:expert], row[expert + 1 :]]) for name, row in rows.items()}
    save_file(kept, router, {"format": "pt"})
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f".mlp.experts.{expert}." not in n}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((directory / "config.json").read_text())
    config["num_experts"] = config["num_experts_per_tok"] = config["num_experts"] - 1
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gone", [1, 2, 3])
def test_gapped_expert_ids_load_as_flex_olmo(make_composite: MakeComposite, prompts, tmp_path, gone, dtype) -> None:
    names = ["math", "news", "law"]
    make_composite(names, dtype).save_pretrained(tmp_path / "all")
    export_stock(tmp_path / "all", tmp_path / "gapped")
    leave_out(tmp_path / "gapped", gone)
    del names[gone - 1]
    make_composite(names, dtype).save_pretrained(tmp_path / "fewer")
    export_stock(tmp_path / "fewer", tmp_path / "contiguous")

    gapped, report = FlexOlmoForCausalLM.from_pretrained(tmp_path / "gapped", output_loading_info=True)
    assert not any(report.values())
    contiguous = FlexOlmoForCausalLM.from_pretrained(tmp_path / "contiguous")
    for name, tensor in contiguous.state_dict().items():
        assert torch.equal(gapped.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(gapped(prompts).logits, contiguous(prompts).logits)
