"""The update defines the expert, and both sides compute the same bits from it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from motet.moe.anchor import Anchor
from motet.moe.experts import (
    Expert,
    difference,
    materialise,
    materialise_file,
    read_expert,
    read_update,
    soup,
    swap_ffn,
    update_specs,
    write_update,
)
from motet.moe.routing import RoutingRows
from motet.protocols.errors import ExpertError, TensorFileError
from motet.protocols.tensor_files import TensorReader, TensorWriter

NAMED = {"name": "medicine", "contribution": "sha256:" + "1" * 64}


@pytest.fixture(scope="module")
def anchor(anchor_directory):
    return Anchor.load(anchor_directory)


@pytest.fixture
def trained(anchor):
    generator = torch.Generator().manual_seed(7)
    return {n: t.float() + 0.01 * torch.randn(t.shape, generator=generator) for n, t in anchor.ffn().items()}


@pytest.fixture
def rows(anchor):
    generator = torch.Generator().manual_seed(8)
    return RoutingRows(weight=torch.randn(2, 32, generator=generator), bias=torch.tensor([0.5, -2.0]))


@pytest.fixture
def update(anchor, trained, rows, tmp_path):
    write_update(tmp_path / "update", anchor, trained, rows)
    return tmp_path / "update"


def rewritten(update: Path, *, without=(), dtype=None, **replaced) -> Path:
    """The update again with some tensors left out, in another dtype, or replaced."""
    with TensorReader(update) as reader:
        tensors = {s.name: reader.tensor(s.name) for s in reader.specs if s.name not in without} | replaced
        specs = [s for s in reader.specs if s.name in tensors]
    if dtype == "F32":
        specs = [type(s)(name=s.name, dtype="F32", shape=s.shape) for s in specs]
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    path = update.with_name("rewritten")
    with TensorWriter(path, specs) as writer:
        for name, tensor in tensors.items():
            writer.write_tensor(name, tensor)
    return path


def test_an_update_holds_exactly_what_the_anchor_asks(anchor, update):
    with TensorReader(update) as reader:
        specs = {spec.name: (spec.dtype, spec.shape) for spec in reader.specs}

    assert specs == {spec.name: (spec.dtype, spec.shape) for spec in update_specs(anchor.manifest)}
    assert specs["model.layers.1.mlp.down_proj.weight"] == ("BF16", (32, 48))
    assert specs["model.layers.1.mlp.router.weight"] == ("F32", (32,))
    assert specs["model.layers.1.mlp.router.bias"] == ("F32", (1,))
    assert len(specs) == 6 + 4


def test_owner_and_coordinator_get_the_same_expert(anchor, update, tmp_path):
    materialise_file(update, anchor, tmp_path / "expert")
    at_home, in_store = read_update(update, anchor, **NAMED), read_expert(tmp_path / "expert", anchor, **NAMED)

    assert at_home.ffn.keys() == in_store.ffn.keys() == anchor.ffn().keys()
    assert all(torch.equal(tensor, in_store.ffn[name]) for name, tensor in at_home.ffn.items())
    assert torch.equal(at_home.rows.weight, in_store.rows.weight)
    assert torch.equal(at_home.rows.bias, in_store.rows.bias)


def test_the_expert_is_what_was_trained_up_to_rounding(anchor, trained, rows, update):
    expert = read_update(update, anchor, **NAMED)

    assert {tensor.dtype for tensor in expert.ffn.values()} == {torch.bfloat16}
    for name, tensor in expert.ffn.items():
        torch.testing.assert_close(tensor.float(), trained[name], rtol=2**-7, atol=1e-4)
    assert torch.equal(expert.rows.weight, rows.weight)


def test_the_sum_is_in_float32_and_rounded_once():
    anchor, update = torch.tensor([1.0, 256.0]).bfloat16(), torch.tensor([2**-7, 1.5]).bfloat16()

    assert materialise(anchor, update).tolist() == [1 + 2**-7, 258.0]
    assert difference({"a": anchor}, {"a": anchor.float() + 2**-16})["a"].tolist() == [2**-16, 0.0]


def test_materialising_does_not_depend_on_chunks(anchor, update, tmp_path, monkeypatch):
    materialise_file(update, anchor, tmp_path / "whole")
    monkeypatch.setattr("motet.moe.experts.CHUNK_VALUES", 7)
    materialise_file(update, anchor, tmp_path / "chunked")

    assert (tmp_path / "whole").read_bytes() == (tmp_path / "chunked").read_bytes()


def test_no_change_gives_the_anchor_back(anchor, rows, tmp_path):
    write_update(tmp_path / "update", anchor, anchor.ffn(), rows)
    expert = read_update(tmp_path / "update", anchor, **NAMED)

    assert all(torch.equal(tensor, expert.ffn[name]) for name, tensor in anchor.ffn().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_names_the_tensor_that_is_not_finite_and_leaves_no_file(anchor, update, tmp_path, value):
    name = "model.layers.1.mlp.up_proj.weight"
    bad = torch.zeros(48, 32, dtype=torch.bfloat16)
    bad[-1, -1] = value
    with pytest.raises(ExpertError, match=f"{name}: saw NaN or infinity"):
        materialise_file(rewritten(update, **{name: bad}), anchor, tmp_path / "expert")
    assert not list(tmp_path.glob("*expert*"))


def test_refuses_rows_that_are_not_finite(anchor, update, tmp_path):
    name = "model.layers.0.mlp.router.bias"
    with pytest.raises(ExpertError, match=name):
        materialise_file(rewritten(update, **{name: torch.tensor([torch.inf])}), anchor, tmp_path / "expert")


def test_refuses_updates_that_do_not_fit(anchor, make_anchor, update, tmp_path):
    missing = "model.layers.0.mlp.gate_proj.weight"
    with pytest.raises(ExpertError, match=f"{missing}: saw no such tensor, wanted BF16"):
        read_update(rewritten(update, without=[missing]), anchor, **NAMED)
    with pytest.raises(ExpertError, match=r"saw F32 .* wanted BF16"):
        read_update(rewritten(update, dtype="F32"), anchor, **NAMED)

    wider = Anchor.load(make_anchor(tmp_path / "wider", intermediate_size=64))
    with pytest.raises(ExpertError, match=r"saw BF16 \(32, 48\), wanted BF16 \(32, 64\)"):
        materialise_file(update, wider, tmp_path / "expert")


def test_refuses_a_truncated_update(anchor, update, tmp_path):
    update.write_bytes(update.read_bytes()[:-1])
    with pytest.raises(TensorFileError, match="cut or padded"):
        materialise_file(update, anchor, tmp_path / "expert")


def test_refuses_to_pack_what_does_not_fit(anchor, trained, rows, tmp_path):
    one_layer = RoutingRows(weight=rows.weight[:1], bias=rows.bias[:1])
    with pytest.raises(ExpertError, match="1 layers 32 wide, wanted 2 layers"):
        write_update(tmp_path / "update", anchor, trained, one_layer)
    missing = trained.popitem()[0]
    with pytest.raises(ExpertError, match=f"saw {missing} with shape None"):
        write_update(tmp_path / "update", anchor, trained, rows)


def test_refuses_to_pack_a_diverged_expert(anchor, trained, rows, tmp_path):
    trained["model.layers.0.mlp.down_proj.weight"][3, 3] = torch.nan
    with pytest.raises(ExpertError, match=r"layers\.0\.mlp\.down_proj\.weight: saw NaN"):
        write_update(tmp_path / "update", anchor, trained, rows)
    assert list(tmp_path.iterdir()) == []


def test_soup_is_the_float32_mean_rounded_once(anchor, rows):
    experts = [
        Expert(**NAMED, rows=rows, ffn={name: torch.full_like(tensor, value) for name, tensor in anchor.ffn().items()})
        for value in (1.0, 1.0078125, 2.0)
    ]
    averaged = soup([expert.ffn for expert in experts])

    expected = torch.tensor((1.0 + 1.0078125 + 2.0) / 3).bfloat16()
    assert all((tensor == expected).all() for tensor in averaged.values())
    assert averaged.keys() == anchor.ffn().keys()
    with pytest.raises(ExpertError, match="at least one"):
        soup([])


def test_swapping_places_an_expert_and_gives_the_anchor_back(anchor, update):
    expert, model = read_update(update, anchor, **NAMED), anchor.model(dtype=torch.float32)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids).logits
        with swap_ffn(model, expert.ffn):
            inside = model(ids).logits
        after = model(ids).logits

    assert not torch.equal(inside, before)
    assert torch.equal(after, before)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from motet.moe.anchor import Anchor
from motet.moe.experts import materialise_file
torch.set_num_threads(1)
anchor = Anchor.load(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
materialise_file(Path(sys.argv[2]), anchor, Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_materialising_takes_little_memory(make_anchor, tmp_path):
    anchor = Anchor.load(make_anchor(tmp_path / "big", hidden_size=1024, intermediate_size=16384))
    rows = RoutingRows(weight=torch.zeros(2, 1024), bias=torch.zeros(2))
    write_update(tmp_path / "update", anchor, anchor.ffn(), rows)
    assert (tmp_path / "update").stat().st_size > 200e6

    command = [sys.executable, "-c", MEASURE, tmp_path / "big", tmp_path / "update", tmp_path / "expert"]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(grown) < 32 * 1024  # KiB
