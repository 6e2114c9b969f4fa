"""An anchor's digest changes with its content and with nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from motet.protocols.anchor_manifest import AnchorManifest, checkpoint_files
from motet.protocols.canonical import digest_of
from motet.protocols.errors import AnchorError
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter


@pytest.fixture
def copied(anchor_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(anchor_directory, tmp_path / "copy")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=7))


def rewrite(directory: Path, parts: dict[str, list[str]], **replaced: bytes) -> None:
    """The checkpoint again as the given files, with an index; some tensors' bytes replaced."""
    with TensorReader(directory / "model.safetensors") as reader:
        specs = {spec.name: spec for spec in reader.specs}
        content = {name: b"".join(reader.chunks(name)) for name in specs} | replaced
    (directory / "model.safetensors").unlink()
    for file, names in parts.items():
        with TensorWriter(directory / file, [specs[name] for name in names]) as writer:
            for name in names:
                writer.write(name, content[name])
    weight_map = {name: file for file, names in parts.items() for name in names}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_names_the_shape_of_the_feed_forward_layers(anchor_directory):
    manifest = AnchorManifest.of(anchor_directory)

    assert (manifest.layers, manifest.hidden_size, manifest.intermediate_size) == (2, 32, 48)
    assert manifest.ffn()[:3] == [
        TensorSpec(name="model.layers.0.mlp.gate_proj.weight", dtype="BF16", shape=(48, 32)),
        TensorSpec(name="model.layers.0.mlp.up_proj.weight", dtype="BF16", shape=(48, 32)),
        TensorSpec(name="model.layers.0.mlp.down_proj.weight", dtype="BF16", shape=(32, 48)),
    ]
    assert len(manifest.ffn()) == 6


def test_layers_come_in_numeric_order(make_anchor, tmp_path):
    manifest = AnchorManifest.of(make_anchor(tmp_path, num_hidden_layers=11, hidden_size=16, intermediate_size=16))

    assert [spec.name.split(".")[2] for spec in manifest.ffn()[::3]] == [str(layer) for layer in range(11)]


def test_survives_a_round_trip_and_digests_its_canonical_form(anchor_directory):
    manifest = AnchorManifest.of(anchor_directory)

    assert AnchorManifest.parse(manifest.canonical()) == manifest
    assert manifest.digest == digest_of(json.loads(manifest.canonical()))


def test_sharding_does_not_change_the_digest(anchor_directory, copied):
    names = [tensor.name for tensor in AnchorManifest.of(copied).tensors]
    rewrite(copied, {"part-2.safetensors": names[5:], "part-1.safetensors": names[:5]})

    assert len(checkpoint_files(copied)) == 2
    assert AnchorManifest.of(copied).digest == AnchorManifest.of(anchor_directory).digest


def test_who_saved_it_does_not_change_the_digest(anchor_directory, copied):
    edit_json(copied / "config.json", transformers_version="4.0", _name_or_path="/home/somebody")
    (copied / "README.md").write_text("a model card")

    assert AnchorManifest.of(copied).digest == AnchorManifest.of(anchor_directory).digest


@pytest.mark.parametrize("change", ["configuration", "tokenizer", "one bit"])
def test_content_changes_the_digest(anchor_directory, copied, change):
    if change == "configuration":
        edit_json(copied / "config.json", rms_norm_eps=2e-5)
    elif change == "tokenizer":
        edit_json(copied / "tokenizer_config.json", model_max_length=3)
    else:
        path = copied / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    assert AnchorManifest.of(copied).digest != AnchorManifest.of(anchor_directory).digest


def test_says_what_is_missing(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(AnchorError, match=r"model\.safetensors.*fetch it again"):
        AnchorManifest.of(copied)


def test_refuses_a_truncated_checkpoint(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AnchorError, match="cut or padded"):
        AnchorManifest.of(copied)


def test_refuses_an_index_that_leaves_the_directory(copied):
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AnchorError, match="outside the directory"):
        AnchorManifest.of(copied)


def test_refuses_a_layer_without_its_projection(copied):
    names = [tensor.name for tensor in AnchorManifest.of(copied).tensors]
    rewrite(copied, {"part.safetensors": [name for name in names if "1.mlp.up_proj" not in name]})
    with pytest.raises(AnchorError, match="feed-forward"):
        AnchorManifest.of(copied)
