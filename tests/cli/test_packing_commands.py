"""The commands that write update files and read them back: `motet pack` and `motet unpack`."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from motet.protocols.codec import CodecSettings, UpdateReader
from motet.protocols.codec.changes import narrow, widen
from motet.protocols.expert_files import ROUTER_TOKENS, StoredTensors, expert_specs, materialise_file, update_specs
from motet.protocols.tensor_files import TensorReader, TensorSpec
from motet.protocols.update_files import Differences, pack

from .conftest import GATE, Motet, dtypes, set_word, spec_values, values, write_tensors


@pytest.mark.parametrize("method", ["lossless", "raw"])
def test_unpack_and_pack_lose_nothing(motet: Motet, difference, anchor_directory, tmp_path: Path, method) -> None:
    motet("pack", difference, "--anchor", anchor_directory, "--out", tmp_path / "u", "--method", method)
    motet("unpack", tmp_path / "u", "--out", tmp_path / "again")
    assert dtypes(tmp_path / "again") == dtypes(difference)
    for name, found in values(tmp_path / "again").items():
        assert np.array_equal(found, values(difference)[name])
    motet("pack", tmp_path / "again", "--anchor", anchor_directory, "--out", tmp_path / "v", "--method", method)
    assert (tmp_path / "v").read_bytes() == (tmp_path / "u").read_bytes()


@pytest.mark.parametrize("method", ["ternary", "levels", "int8", "int4"])
def test_unpack_writes_lossy_differences_wide(motet: Motet, difference, anchor_directory, tmp_path, method) -> None:
    motet("pack", difference, "--anchor", anchor_directory, "--out", tmp_path / "u", "--method", method)
    motet("unpack", tmp_path / "u", "--out", tmp_path / "again")
    written = dtypes(tmp_path / "again")
    assert written.pop(ROUTER_TOKENS) == "BF16"  # travels without loss
    assert set(written.values()) == {"F32"}
    with UpdateReader(tmp_path / "u") as reader:
        for name, found in values(tmp_path / "again").items():
            assert np.array_equal(found, reader.tensor(name).reshape(-1))
    motet("pack", tmp_path / "again", "--anchor", anchor_directory, "--out", tmp_path / "v")  # F32 is rounded to bf16


def test_pack_reports_what_it_wrote(motet: Motet, difference, anchor_directory, tmp_path: Path) -> None:
    options = ("--method", "ternary", "--density", "0.05", "--row-scales", "--json")
    out = tmp_path / "folder" / "u.motetup"
    found = json.loads(motet("pack", difference, "--anchor", anchor_directory, "--out", out, *options))
    assert found["file"] == str(out)
    assert found["file_bytes"] == out.stat().st_size
    assert found["density"] == pytest.approx(0.05, abs=0.01)
    assert found["bound"] > 0
    with UpdateReader(out) as reader:
        assert reader.header.tensors[0].row_scales is True


def test_pack_takes_the_difference_of_weights(motet: Motet, manifest, anchor_directory, tmp_path: Path) -> None:
    trained = write_tensors(tmp_path / "trained", expert_specs(manifest), seed=3)
    motet("pack", trained, "--weights", "--anchor", anchor_directory, "--out", tmp_path / "u")
    motet("unpack", tmp_path / "u", "--out", tmp_path / "d")
    found, wanted = values(tmp_path / "d"), values(trained)
    with StoredTensors.of_anchor(anchor_directory) as stored:
        for spec in manifest.ffn():
            before = widen(np.frombuffer(stored(spec, 0, spec_values(spec)), "<u2"), "BF16")
            wanted[spec.name] = widen(narrow(wanted[spec.name] - before, "BF16"), "BF16")
    assert found.keys() == wanted.keys()
    for name, each in found.items():
        assert np.array_equal(each, wanted[name])


def test_pack_multiplies_the_scales(motet: Motet, difference, manifest, anchor_directory, tmp_path: Path) -> None:
    options = ("--anchor", anchor_directory, "--method", "ternary", "--json")
    for name, factor in (("one", ("--scale-factor", "1")), ("three", ("--scale-factor", "3")), ("own", ())):
        found = json.loads(motet("pack", difference, "--out", tmp_path / name, *options, *factor))
        assert found["scale_factor"] > 1.2 if name == "own" else found["scale_factor"] == float(factor[-1])
    with UpdateReader(tmp_path / "one") as one, UpdateReader(tmp_path / "three") as three:
        assert np.array_equal(three.tensor(GATE) != 0, one.tensor(GATE) != 0)
        assert three.tensor(GATE) == pytest.approx(3 * one.tensor(GATE), rel=1e-6)
        kept = one.tensor(GATE).reshape(-1) != 0
        magnitude = np.abs(values(difference)[GATE])[kept].mean()  # the least squared error
        assert np.abs(one.tensor(GATE)).max() == pytest.approx(magnitude, rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["difference.safetensors", "one", "own", "three"]


@pytest.mark.parametrize("change", ["less", "more", "shape", "dtype"])
def test_pack_refuses_other_tensors_by_name(motet: Motet, manifest, anchor_directory, tmp_path, change) -> None:
    specs = {spec.name: spec for spec in update_specs(manifest)}
    if change == "less":
        del specs[GATE]
    elif change == "more":
        specs["lm_head.weight"] = TensorSpec(name="lm_head.weight", dtype="BF16", shape=(2, 2))
    else:
        shape, dtype = ((2, 2), "BF16") if change == "shape" else (specs[GATE].shape, "F16")
        specs[GATE] = TensorSpec(name=GATE, dtype=dtype, shape=shape)
    source = write_tensors(tmp_path / "source", list(specs.values()))
    said = motet("pack", source, "--anchor", anchor_directory, "--out", tmp_path / "u", code=4)
    assert ("lm_head.weight" if change == "more" else GATE) in said
    assert "--weights" in said
    assert not (tmp_path / "u").exists()


def test_pack_refuses_what_is_not_finite(motet: Motet, manifest, anchor_directory, tmp_path: Path) -> None:
    trained = write_tensors(tmp_path / "trained", expert_specs(manifest))
    with TensorReader(trained) as reader:
        set_word(trained, reader.header[GATE].offset, 0x7FFF)  # a NaN
    said = motet("pack", trained, "--weights", "--anchor", anchor_directory, "--out", tmp_path / "u", code=17)
    assert GATE in said
    assert not (tmp_path / "u").exists()


def test_a_dry_run_leaves_nothing(motet: Motet, difference, anchor_directory, tmp_path: Path) -> None:
    out = tmp_path / "u.motetup"
    found = json.loads(motet("pack", difference, "--anchor", anchor_directory, "--out", out, "--dry-run", "--json"))
    assert found["file"] is None
    assert found["file_bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["difference.safetensors"]


@pytest.mark.parametrize("method", ["ternary", "levels", "lossless"])
def test_pack_writes_one_file(manifest, difference, tmp_path: Path, method) -> None:
    """Nothing but the update lies there at any moment, so nothing else is there after a sudden end."""
    made: set[str] = set()
    tell = lambda done, total: made.update(path.name for path in (tmp_path / "out").iterdir())  # noqa: E731
    (tmp_path / "out").mkdir()
    with Differences(difference, manifest) as source:
        chosen = CodecSettings(method=method)
        pack(source, manifest, tmp_path / "out" / "u", chosen, scale_factor=None, on_progress=tell)
    assert len(made) == 1
    assert made.pop().startswith(".u.")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["u"]


def test_where_nothing_can_be_written_it_is_said(motet: Motet, difference, update, anchor_directory, tmp_path) -> None:
    for out in ("/proc/x", difference / "x", difference / "x" / "y"):
        assert f"cannot write {out}" in motet("unpack", update, "--out", out, code=16)
        assert f"cannot write {out}" in motet("unpack", update, "--anchor", anchor_directory, "--out", out, code=16)
        assert f"cannot write {out}" in motet("pack", difference, "--anchor", anchor_directory, "--out", out, code=16)


def test_a_pipe_is_not_waited_for(motet: Motet, anchor_directory, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for command in (("inspect",), ("verify",), ("unpack", "--out", tmp_path / "x")):
        assert "not a regular file" in motet(*command, tmp_path / "pipe", code=17)
    pack = ("pack", tmp_path / "pipe", "--anchor", anchor_directory, "--out", tmp_path / "x")
    assert "not a regular file" in motet(*pack, code=4)


def test_nothing_is_overwritten_unasked(motet: Motet, difference, update, anchor_directory, tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.write_bytes(b"precious")
    pack = ("pack", difference, "--anchor", anchor_directory, "--out", out)
    assert "--force" in motet(*pack, code=3)
    assert "--force" in motet("unpack", update, "--out", out, code=3)
    assert out.read_bytes() == b"precious"
    motet(*pack, "--force")
    motet("verify", out)
    motet("unpack", update, "--out", out, "--force")
    assert "name a file in it" in motet("unpack", update, "--out", tmp_path, "--force", code=3)


@pytest.mark.parametrize(
    "options",
    [
        ("--density", "0"),
        ("--method", "zip"),
        ("--block", "3"),
        ("--scale-factor", "2"),
        ("--step", "nan"),
        ("--balance", "2"),
    ],
)
def test_a_wrong_option_is_a_wrong_call(motet: Motet, difference, anchor_directory, tmp_path: Path, options) -> None:
    said = motet("pack", difference, "--anchor", anchor_directory, "--out", tmp_path / "u", *options, code=2)
    assert "Traceback" not in said


def test_unpack_makes_the_expert_that_the_store_keeps(
    motet: Motet, update, manifest, anchor_directory, tmp_path
) -> None:
    motet("unpack", update, "--anchor", anchor_directory, "--out", tmp_path / "expert")
    with StoredTensors.of_anchor(anchor_directory) as stored:
        materialise_file(update, manifest, stored, tmp_path / "wanted")
    assert (tmp_path / "expert").read_bytes() == (tmp_path / "wanted").read_bytes()
