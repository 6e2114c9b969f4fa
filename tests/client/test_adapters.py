"""PEFT adapters: taken up exactly, refused with the reason, written so that PEFT computes what the composite does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from motet.client.adapter_config import AdapterConfig
from motet.client.adapters import CONFIG_NAME, TENSORS_NAME, read_adapter, write_adapter
from motet.moe.anchor import Anchor
from motet.moe.experts import swap_ffn
from motet.moe.lowrank import Factors
from motet.protocols.errors import ConfigurationError, ExpertError, MotetError, TensorFileError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
MLP = ["gate_proj", "up_proj", "down_proj"]
IDS = torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def anchor(make_anchor, tmp_path_factory: pytest.TempPathFactory) -> Anchor:
    return Anchor.load(make_anchor(tmp_path_factory.mktemp("adapted")))


def saved(anchor: Anchor, directory: Path, **settings) -> Path:
    """A real adapter with something in both factors."""
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 8, "target_modules": MLP, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    model = get_peft_model(anchor.model(torch.float32), LoraConfig(**config | settings))
    model.save_pretrained(directory)
    return directory


def logits_with_peft(anchor: Anchor, directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(anchor.model(torch.float32), directory)(input_ids=IDS).logits


def logits_with_factors(anchor: Anchor, factors: dict[str, Factors]) -> torch.Tensor:
    model = anchor.model(torch.float32)
    wide = {name: tensor.float() for name, tensor in anchor.ffn().items()}
    with torch.no_grad(), swap_ffn(model, {name: factors[name].expanded(own) for name, own in wide.items()}):
        return model(input_ids=IDS).logits


def edit(directory: Path, **changes: object) -> Path:
    path = directory / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def retensor(directory: Path, change) -> Path:
    tensors = load_file(directory / TENSORS_NAME)
    change(tensors)
    save_file(tensors, directory / TENSORS_NAME, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["down_proj"], "layers_to_transform": [1]},
        {"rank_pattern": {"up_proj": 2, r"layers\.1\.mlp\.gate_proj": 6}, "alpha_pattern": {"down_proj": 3}},
    ],
    ids=["plain", "rank-stabilised", "one projection", "patterns"],
)
def test_an_adapter_computes_here_what_it_computes_in_peft(anchor: Anchor, tmp_path: Path, settings) -> None:
    directory = saved(anchor, tmp_path / "adapter", **settings)
    adapter = read_adapter(directory, anchor, max_rank=6)
    assert adapter.rank == max([4, *settings.get("rank_pattern", {}).values()])
    assert {each.rank for each in adapter.factors.values()} == {adapter.rank}
    assert set(adapter.factors) == set(anchor.ffn())
    with torch.no_grad():
        alone = anchor.model(torch.float32)(input_ids=IDS).logits
    expected = logits_with_peft(anchor, directory)
    assert (alone - expected).abs().max() > 1e-2
    assert torch.allclose(logits_with_factors(anchor, adapter.factors), expected, atol=1e-5)


def test_what_is_written_peft_loads_and_is_read_again(anchor: Anchor, tmp_path: Path) -> None:
    adapter = read_adapter(saved(anchor, tmp_path / "adapter"), anchor, max_rank=64)
    write_adapter(tmp_path / "out", adapter.factors, base=str(anchor.directory))
    stored = {name: each.folded() for name, each in adapter.factors.items()}
    expected = logits_with_factors(anchor, stored)
    assert torch.allclose(logits_with_peft(anchor, tmp_path / "out"), expected, atol=1e-5)
    again = read_adapter(tmp_path / "out", anchor, max_rank=64)
    assert all(torch.equal(again.factors[name].b, each.b.float()) for name, each in stored.items())
    assert {each.scale for each in again.factors.values()} == {1.0}
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(ConfigurationError, match="wanted a new folder"):
        write_adapter(tmp_path / "out", adapter.factors, base=None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"use_dora": True}, "use_dora.*DoRA scales"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.*whole modules"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights.*part of its base"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"shiny_new_variant": {"on": 1}}, "shiny_new_variant.*does not know"),
        ({"peft_type": "IA3"}, "'IA3'.*wanted LORA"),
        ({"task_type": "SEQ_CLS"}, "'SEQ_CLS'"),
        ({"r": 0}, r"adapter_config\.json: r"),
        ({"lora_alpha": "much"}, r"adapter_config\.json: lora_alpha"),
        ({"r": 8}, r"saw shape \(4, 32\), wanted \(8, 32\)"),
        ({"r": 65}, "rank 65, wanted at most 64"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
    ],
)
def test_what_its_configuration_rules_out_is_named(anchor: Anchor, tmp_path: Path, changes, why: str) -> None:
    directory = edit(saved(anchor, tmp_path / "adapter"), **changes)
    with pytest.raises(ExpertError, match=why):
        read_adapter(directory, anchor, max_rank=64)


NAME = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors: tensors[NAME].mul_(float("nan")), "up_proj.lora_A.weight: saw NaN"),
        (lambda tensors: tensors.pop(NAME), "lora_A and lora_B for each"),
        (lambda tensors: tensors.update({NAME: tensors[NAME].double()}), "dtype F64"),
        (lambda tensors: tensors.update({NAME: torch.ones(4, 33)}), r"saw shape \(4, 33\).*another base"),
        (lambda tensors: tensors.update({NAME: torch.ones(())}), r"saw shape \(\)"),
        (
            lambda tensors: tensors.update({NAME.replace("layers.0", "layers.7"): torch.ones(4, 32)}),
            "matrix that the anchor does not have",
        ),
        (
            lambda tensors: tensors.update({NAME.replace("mlp.up_proj", "self_attn.q_proj"): torch.ones(4, 32)}),
            "factors of another module",
        ),
        (
            lambda tensors: tensors.update({NAME.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(48)}),
            "DoRA",
        ),
        (lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}), "saved whole"),
        (lambda tensors: tensors.update({"base_model.model.lm_head.bias": torch.ones(2)}), "saw a bias"),
    ],
)
def test_what_its_tensors_rule_out_is_named(anchor: Anchor, tmp_path: Path, change, why: str) -> None:
    directory = retensor(saved(anchor, tmp_path / "adapter"), change)
    with pytest.raises(ExpertError, match=why):
        read_adapter(directory, anchor, max_rank=64)


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "optimizer.pt"])
def test_pickled_files_are_never_loaded(anchor: Anchor, tmp_path: Path, name: str) -> None:
    directory = saved(anchor, tmp_path / "adapter")
    (directory / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ExpertError, match=f"pickled.*{name}"):
        read_adapter(directory, anchor, max_rank=64)


def test_missing_and_damaged_files_are_named(anchor: Anchor, tmp_path: Path) -> None:
    whole = saved(anchor, tmp_path / "adapter")
    for name, content, error, why in [
        (CONFIG_NAME, None, ConfigurationError, "no adapter_config.json"),
        (TENSORS_NAME, None, ConfigurationError, "no adapter_model.safetensors"),
        (CONFIG_NAME, b"{", ExpertError, "cannot read"),
        (CONFIG_NAME, b"[1]", ExpertError, "saw list"),
        (TENSORS_NAME, b"\x00" * 64, TensorFileError, "header"),
    ]:
        broken = Path(shutil.copytree(whole, tmp_path / "broken"))
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_bytes(content)
        with pytest.raises(error, match=why):
            read_adapter(broken, anchor, max_rank=64)
        shutil.rmtree(broken)


def test_a_base_of_other_shapes_is_refused_whatever_its_owner_says(anchor: Anchor, make_anchor, tmp_path: Path) -> None:
    directory = saved(anchor, tmp_path / "adapter")
    for number, shape in enumerate(({"hidden_size": 64}, {"num_hidden_layers": 3})):
        other = make_anchor(tmp_path / str(number), **shape)
        for base_confirmed in (False, True):
            with pytest.raises(ExpertError, match=r"another base.*: its .* is .*, the anchor's "):
                read_adapter(
                    edit(directory, base_model_name_or_path=str(other)),
                    anchor,
                    max_rank=64,
                    base_confirmed=base_confirmed,
                )


def copied(anchor: Anchor, directory: Path, *, dtype: torch.dtype | None = None, head: bool = False) -> Path:
    """The anchor saved anew: in another dtype, or with the head that is its embedding beside that."""
    shutil.copytree(anchor.directory, directory)
    tensors = load_file(directory / "model.safetensors")
    if head:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].clone())
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_base_of_the_same_shapes_and_other_bytes_is_its_owners_to_vouch_for(
    anchor: Anchor, make_anchor, tmp_path: Path
) -> None:
    directory = saved(anchor, tmp_path / "adapter")
    for base, why in (
        (make_anchor(tmp_path / "sibling", seed=5), r"tensors of the anchor's shapes with other bytes, \d+ of"),
        (copied(anchor, tmp_path / "wider", dtype=torch.float32), "shapes, saved as F32 with other bytes"),
    ):
        edit(directory, base_model_name_or_path=str(base))
        with pytest.raises(ConfigurationError, match=why + ".*--base-confirmed"):
            read_adapter(directory, anchor, max_rank=64)
        found = read_adapter(directory, anchor, max_rank=64, base_confirmed=True)
        assert found.rank == 4
        assert str(base) in found.doubt


def test_a_head_saved_beside_the_embedding_that_it_is_makes_no_other_base(make_anchor, tmp_path: Path) -> None:
    tied = Anchor.load(make_anchor(tmp_path / "tied", tie_word_embeddings=True))
    assert "lm_head.weight" not in {tensor.name for tensor in tied.manifest.tensors}
    directory = saved(tied, tmp_path / "adapter")
    edit(directory, base_model_name_or_path=str(copied(tied, tmp_path / "twice", head=True)))
    with pytest.raises(ConfigurationError, match=r"tensors of .* are the anchor's, but it was saved otherwise"):
        read_adapter(directory, tied, max_rank=64)
    assert read_adapter(directory, tied, max_rank=64, base_confirmed=True).rank == 4


def test_a_name_that_is_not_the_anchors_is_pointed_out(anchor: Anchor, tmp_path: Path) -> None:
    path = Path(shutil.copytree(anchor.directory, tmp_path / "named"))
    config = json.loads((path / "config.json").read_text()) | {"_name_or_path": "someone/Small-1B"}
    (path / "config.json").write_text(json.dumps(config))
    named = Anchor.load(path)
    assert named.digest == anchor.digest  # a name is nothing that a model computes with
    directory = saved(anchor, tmp_path / "adapter")
    for base, doubt in (
        ("someone/Small-1B-Instruct", "names someone/Small-1B-Instruct as its base, and the anchor calls itself someo"),
        ("mirror/small-1b", None),
    ):
        edit(directory, base_model_name_or_path=base)
        with pytest.raises(ConfigurationError, match=doubt or "no checkpoint that can be compared"):
            read_adapter(directory, named, max_rank=64)
        found = read_adapter(directory, named, max_rank=64, base_confirmed=True).doubt
        assert found == doubt if doubt is None else doubt in found
        assert read_adapter(directory, anchor, max_rank=64, base_confirmed=True).doubt is None


def test_a_base_that_is_not_known_needs_its_owners_word(anchor: Anchor, tmp_path: Path) -> None:
    directory = saved(anchor, tmp_path / "adapter")
    renamed = Path(shutil.copytree(anchor.directory, tmp_path / "renamed"))
    (renamed / "tokenizer_config.json").write_text("{}")
    for named in (None, "someone/some-model", str(renamed)):
        edit(directory, base_model_name_or_path=named)
        with pytest.raises(ConfigurationError, match="--base-confirmed"):
            read_adapter(directory, anchor, max_rank=64)
        assert read_adapter(directory, anchor, max_rank=64, base_confirmed=True).rank == 4


def test_an_empty_name_is_no_base_wherever_one_stands(anchor: Anchor, tmp_path: Path, monkeypatch) -> None:
    directory = edit(saved(anchor, tmp_path / "adapter"), base_model_name_or_path="")
    monkeypatch.chdir(anchor.directory)
    with pytest.raises(ConfigurationError, match=r"saw no base in .*--base-confirmed"):
        read_adapter(directory, anchor, max_rank=64)


def test_any_configuration_is_parsed_or_refused() -> None:
    for value in (
        None,
        3,
        {},
        {"peft_type": "LORA", "r": True},
        {"peft_type": ["LORA"]},
        {"peft_type": "LORA", "r": -1},
    ):
        with pytest.raises(MotetError):
            AdapterConfig.parse(value)
