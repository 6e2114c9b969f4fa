"""A federation on a Llama anchor: from its founding to a Mixtral that computes what the composite computes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from motet.protocols.flower_home import free_port

from .conftest import QUICKSTART, SHORT, Stage, found, inside, join, public_text

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return public_text(tmp_path_factory.mktemp("public"))


@pytest.fixture(scope="module")
def llama(make_anchor: Callable[..., Path], public: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny anchor with grouped queries and tied embeddings, its statistics beside it."""
    from motet.client.data import load_public
    from motet.moe.anchor import STATISTICS_FILE, Anchor
    from motet.moe.statistics import measure

    anchor = make_anchor(tmp_path_factory.mktemp("llama"), model_type="llama", tie_word_embeddings=True)
    measure(Anchor.load(anchor), load_public(public).train[:6]).save(anchor / STATISTICS_FILE)
    return anchor


@pytest.fixture(scope="module")
def by_token(llama: Path, public: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A charter of kind token, one owner's expert trained, packed and admitted."""
    root, address = tmp_path_factory.mktemp("token") / "stage", f"127.0.0.1:{free_port()}"
    stage = found(root, llama, public, "--routing", "token", data_plane=address)
    checkpointing = ("--set", "training.gradient_checkpointing=true", "--set", "training.learning_rate=0.01")
    home = join(stage, "medicine", QUICKSTART / "text" / "medicine.jsonl", *SHORT, *checkpointing)
    inside("train", "--dir", home)
    inside("contribute", "--dir", home, "--to", stage.file("medicine"), "--yes")
    inside("admit", stage.file("medicine"), "--dir", stage.coordinator)
    return stage


def test_the_export_of_a_token_charter_computes_the_same(by_token: Stage, on_stage) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from motet.moe import MotetForCausalLM

    stage = on_stage(by_token)
    made = stage.here("assemble", "--dir", stage.coordinator, "--json").json
    native = MotetForCausalLM.from_pretrained(made["path"], dtype=torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(made["stock_path"], dtype=torch.float32)
    assert type(stock).__name__ == "MixtralForCausalLM"
    rows = [layer.mlp.router for layer in native.model.layers]
    assert not any(row.bias.any() for row in rows)
    assert all(row.weight[1].any() for row in rows)
    tokenizer = AutoTokenizer.from_pretrained(made["stock_path"])
    ids = tokenizer("The kidney of the patient was well.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert (stock(ids).logits - native(ids).logits).abs().max() <= 1e-4
        assert (stock(ids).logits - native(ids, expert_sets=["anchor"]).logits).abs().max() > 1e-3


def test_the_owner_measures_the_composite_on_its_own_text(by_token: Stage, on_stage) -> None:
    from motet.client.owner import OwnerHome

    stage = on_stage(by_token)
    made = stage.here("assemble", "--dir", stage.coordinator, "--no-stock", "--json").json
    home = OwnerHome.load(stage.owner("medicine"))
    shutil.copytree(made["path"], home.composite(made["digest"]))  # as fetched
    scored = stage.here("eval", made["digest"], "--dir", home.path, "--json").json
    assert {"anchor", "expert:medicine", "composite"} <= set(scored["bits_per_byte"])
    assert len(set(scored["bits_per_byte"].values())) > 1


def test_a_filter_is_given_up_only_on_demand_and_the_cost_is_told(
    llama: Path, public: Path, tmp_path: Path, capsys
) -> None:
    stage = found(tmp_path / "stage", llama, public, data_plane="127.0.0.1:9443")
    assert "MixtralForCausalLM have no place for a filter" in capsys.readouterr().out
    stage = Stage(root=stage.root, data_plane=stage.data_plane, capture=capsys)
    planned = stage.here("assemble", "--dir", stage.coordinator, "--dry-run", "--json").json
    assert planned["stock_bytes"] is None
    assert "--drop-bias" in planned["not_exported"]
    refused = stage.here("assemble", "--dir", stage.coordinator, "--json", code=13)
    assert Path(refused.json["path"]).is_dir()
    assert refused.json["stock_path"] is None
    assert refused.json["not_exported"] in refused.message
    assert "no stock export; --no-stock asks for none" in refused.err
    assert "saw evidence over the prefix in a llama composite" in refused.message
    assert "--drop-bias" in refused.message
    told = stage.here("assemble", "--dir", stage.coordinator, "--drop-bias").out
    assert "no filter" in told
    assert "dropping bias and filter costs" in told


def test_what_cannot_be_exported_is_refused_at_the_founding(llama: Path, public: Path, tmp_path: Path, capsys) -> None:
    anchor = shutil.copytree(llama, tmp_path / "biased")
    config = json.loads((anchor / "config.json").read_text())
    stage = Stage(root=tmp_path, data_plane="", capture=capsys)
    options = ("--name", "x", "--anchor", anchor, "--public-text", public, "--data-plane", "a:1", "--flower", "a:2")
    for change, saw in (
        ({"attention_bias": True}, "llama anchor: saw attention_bias"),
        ({"model_type": "gpt2"}, "wanted one of llama, mistral, olmo2, qwen3"),
    ):
        (anchor / "config.json").write_text(json.dumps(config | change))
        assert saw in stage.here("init", tmp_path / "home", *options, code=5).message
        assert not (tmp_path / "home").exists()
