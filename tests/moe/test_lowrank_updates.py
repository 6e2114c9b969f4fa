"""Low-rank experts as updates: written, read, checked, unpacked, packed again."""

from pathlib import Path

import pytest
import torch

from motet.moe import Factors, RoutingRows
from motet.moe.anchor import Anchor
from motet.moe.experts import write_update
from motet.moe.lowrank import read_lowrank_update, read_stored, write_lowrank_update
from motet.protocols.codec import CodecSettings
from motet.protocols.errors import CodecError, ExpertError
from motet.protocols.expert_files import StoredTensors, materialise_file
from motet.protocols.update_files import Differences, check, pack, rank_in, write_difference


@pytest.fixture(scope="module")
def anchor(anchor_directory: Path) -> Anchor:
    return Anchor.load(anchor_directory)


def rows_of(anchor: Anchor) -> RoutingRows:
    layers, hidden = anchor.manifest.layers, anchor.manifest.hidden_size
    return RoutingRows(weight=torch.ones(layers, hidden), bias=torch.full((layers,), 0.5))


def factors_of(anchor: Anchor, rank: int = 3, scale: float = 2.0) -> dict[str, Factors]:
    draw = torch.Generator().manual_seed(rank)
    return {
        spec.name: Factors(
            a=torch.randn(rank, spec.shape[1], generator=draw),
            b=torch.randn(spec.shape[0], rank, generator=draw),
            scale=scale,
        )
        for spec in anchor.manifest.ffn()
    }


@pytest.mark.parametrize(("method", "apart"), [("lossless", 0.0), ("raw", 0.0), ("int8", 0.01), ("int4", 0.15)])
def test_what_is_written_is_what_is_read_in_memory_and_in_the_store(
    anchor: Anchor, tmp_path: Path, method: str, apart: float
) -> None:
    factors, path = factors_of(anchor), tmp_path / "u"
    write_lowrank_update(path, anchor, factors, rows_of(anchor), CodecSettings(method=method))
    assert rank_in(path) == 3
    expert = read_lowrank_update(path, anchor, name="math", contribution="c")
    for name, each in factors.items():
        wanted = each.folded()
        assert expert.factors[name].scale == 1.0
        for found, sent in ((expert.factors[name].a, wanted.a), (expert.factors[name].b, wanted.b)):
            assert found.dtype == torch.bfloat16
            assert (found.float() - sent.float()).abs().max() <= apart * sent.float().abs().max()
    with StoredTensors.of_anchor(anchor.directory) as stored:
        check(path, anchor.manifest, stored)
        materialise_file(path, anchor.manifest, stored, tmp_path / "store", rank=3)
    kept = read_stored(tmp_path / "store", anchor, name="math", contribution="c")
    assert all(torch.equal(kept.factors[name].b, each.b) for name, each in expert.factors.items())
    assert torch.equal(kept.rows.bias, rows_of(anchor).bias)


def test_unpacked_and_packed_again_it_is_the_same(anchor: Anchor, tmp_path: Path) -> None:
    write_lowrank_update(tmp_path / "u", anchor, factors_of(anchor), rows_of(anchor))
    write_difference(tmp_path / "u", tmp_path / "plain.safetensors")
    with Differences(tmp_path / "plain.safetensors", anchor.manifest) as source:
        assert source.rank == 3
        pack(source, anchor.manifest, tmp_path / "again", CodecSettings())
        with pytest.raises(CodecError, match="saw the method ternary for a low-rank expert"):
            pack(source, anchor.manifest, tmp_path / "other", CodecSettings(method="ternary"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "u").read_bytes()


def test_what_is_no_low_rank_expert_is_refused(anchor: Anchor, tmp_path: Path) -> None:
    rows, factors = rows_of(anchor), factors_of(anchor)
    with pytest.raises(CodecError, match="saw the method levels"):
        write_lowrank_update(tmp_path / "u", anchor, factors, rows, CodecSettings(method="levels"))
    name = next(iter(factors))
    with pytest.raises(ExpertError, match=r"saw factors of ranks \[2, 3\]"):
        write_lowrank_update(tmp_path / "u", anchor, factors | {name: factors_of(anchor, 2)[name]}, rows)
    with pytest.raises(ExpertError, match=f"{name}: saw factors of a matrix None"):
        write_lowrank_update(tmp_path / "u", anchor, {k: v for k, v in factors.items() if k != name}, rows)
    poisoned = factors | {name: Factors(a=factors[name].a * torch.nan, b=factors[name].b)}
    with pytest.raises(CodecError, match="NaN"):
        write_lowrank_update(tmp_path / "u", anchor, poisoned, rows)
    write_update(tmp_path / "full", anchor, anchor.ffn(), rows)
    assert rank_in(tmp_path / "full") is None
    with pytest.raises(CodecError, match="saw no factors"):
        read_lowrank_update(tmp_path / "full", anchor, name="math", contribution="c")
