"""The anchor that is loaded is the anchor that was asked for."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from motet.moe.anchor import Anchor
from motet.protocols.errors import AnchorError, AnchorMismatch, StatisticsError


def test_loads_model_tokenizer_and_feed_forward_tensors(anchor_directory):
    anchor = Anchor.load(anchor_directory)
    model = anchor.model()

    assert model.dtype == torch.bfloat16
    assert not model.training
    assert list(anchor.ffn()) == [spec.name for spec in anchor.manifest.ffn()]
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in anchor.ffn().items())
    assert anchor.tokenizer().decode(anchor.tokenizer()("Grüße").input_ids) == "Grüße"


def test_computes_in_the_dtype_asked_for(anchor_directory):
    model = Anchor.load(anchor_directory).model(dtype=torch.float32)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_accepts_the_expected_digest_and_refuses_others(anchor_directory):
    digest = Anchor.load(anchor_directory).digest
    assert Anchor.load(anchor_directory, expect=digest).digest == digest

    other = "sha256:" + "0" * 64
    with pytest.raises(AnchorMismatch, match=f"saw anchor {digest}.*wanted {other}.*fetch") as caught:
        Anchor.load(anchor_directory, expect=other)
    assert (caught.value.expected, caught.value.actual) == (other, digest)


def test_reads_a_sharded_checkpoint(anchor_directory, tmp_path):
    sharded = shutil.copytree(anchor_directory, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(anchor_directory).save_pretrained(sharded, max_shard_size="20KB")

    whole, parts = Anchor.load(anchor_directory), Anchor.load(sharded)
    assert len(set(parts.files.values())) > 1
    assert parts.digest == whole.digest
    assert all(torch.equal(tensor, parts.ffn()[name]) for name, tensor in whole.ffn().items())


def test_names_the_supported_architectures(anchor_directory, tmp_path):
    directory = shutil.copytree(anchor_directory, tmp_path / "other")
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "gpt2"}
    (directory / "config.json").write_text(json.dumps(config))

    with pytest.raises(AnchorError, match=r"'gpt2'.*olmo2"):
        Anchor.load(directory)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "saw quantization_config, wanted plain weights"),
        ({"hidden_size": "wide"}, "cannot read the configuration .*hidden_size"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "saw rope_type 'spiral', wanted one of"),
        ({"num_attention_heads": 0}, "cannot read the configuration"),
    ],
)
def test_says_what_in_the_configuration_cannot_be(anchor_directory, tmp_path, change, reason):
    directory = shutil.copytree(anchor_directory, tmp_path / "other")
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "llama"} | change
    (directory / "config.json").write_text(json.dumps(config))

    with pytest.raises(AnchorError, match=reason):
        Anchor.load(directory)


def test_feed_forward_tensors_are_floats_that_experts_can_be(anchor_directory, tmp_path):
    directory = shutil.copytree(anchor_directory, tmp_path / "other")
    tensors = {name: each.double() for name, each in load_file(directory / "model.safetensors").items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    with pytest.raises(AnchorError, match=r"gate_proj\.weight in F64, wanted one of BF16, F16, F32; save"):
        Anchor.load(directory)


def test_says_which_file_is_missing(tmp_path):
    with pytest.raises(AnchorError, match=r"config\.json.*fetch the anchor again"):
        Anchor.load(tmp_path)


def test_names_an_unknown_tensor(anchor_directory):
    with pytest.raises(AnchorError, match="saw no tensor lm_tail"):
        Anchor.load(anchor_directory).tensor("lm_tail")


def test_wants_its_statistics_beside_it(anchor_directory):
    with pytest.raises(StatisticsError, match=r"statistics\.safetensors"):
        Anchor.load(anchor_directory).statistics()
