"""`motet inspect`, `verify`, `pack` and `unpack`: files in, files out, and what is said of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from motet.cli import run
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.canonical import bytes_digest, file_digest
from motet.protocols.codec import METHODS, CodecSettings, FileSource, UpdateReader, encode
from motet.protocols.codec.changes import narrow, widen
from motet.protocols.codec_commands import Method
from motet.protocols.container import write_container
from motet.protocols.contribution import CodecRecord, Contribution, Terms, TrainingRecord
from motet.protocols.expert_files import ROUTER_TOKENS, StoredTensors, expert_specs, materialise_file, update_specs
from motet.protocols.signing import SigningKey, seal
from motet.protocols.tensor_files import TensorReader, TensorSpec, TensorWriter
from motet.protocols.update_files import Differences, pack

KEY = SigningKey.generate()
Motet = Callable[..., str]
LARGEST = 0x7F7F
"""The bits of the largest bf16."""
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def motet(capsys: pytest.CaptureFixture[str]) -> Motet:
    """`motet("inspect", path, code=0)` returns what was said: on stdout if the code is 0, else on stderr."""

    def call(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        if code:
            assert said.out == ""
        return said.err if code else said.out

    return call


@pytest.fixture(scope="module")
def manifest(anchor_directory: Path) -> AnchorManifest:
    return AnchorManifest.of(anchor_directory)


def write_tensors(path: Path, specs: list[TensorSpec], *, seed: int = 0, spread: float = 1e-2) -> Path:
    rng = np.random.default_rng(seed)
    with TensorWriter(path, specs) as writer:
        for spec in specs:
            values = (rng.standard_t(4, spec.shape) * spread).astype(np.float32)
            writer.write(spec.name, narrow(values.reshape(-1), spec.dtype).tobytes())
    return path


@pytest.fixture
def difference(manifest: AnchorManifest, tmp_path: Path) -> Path:
    return write_tensors(tmp_path / "difference.safetensors", update_specs(manifest))


def values(path: Path) -> dict[str, np.ndarray]:
    with FileSource(path) as source:
        return {spec.name: widen(source.read(spec, 0, spec_values(spec)), spec.dtype) for spec in source.specs}


def spec_values(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape))


def dtypes(path: Path) -> dict[str, str]:
    with TensorReader(path) as reader:
        return {spec.name: spec.dtype for spec in reader.specs}


@pytest.fixture
def update(manifest: AnchorManifest, difference: Path, tmp_path: Path) -> Path:
    path = tmp_path / "medicine.motetup"
    with FileSource(difference) as source:
        settings = CodecSettings(method="ternary", density=0.1)
        encode(path, source, update_specs(manifest), settings, anchor=manifest.digest)
    return path


def contained(update: Path, path: Path, *, anchor: str, named: str | None = None) -> Contribution:
    contribution = Contribution(
        charter=bytes_digest(b"charter"),
        anchor=anchor,
        name="medicine",
        owner=KEY.public,
        update=named or file_digest(update),
        update_bytes=update.stat().st_size,
        terms=Terms(licence="CC0-1.0", attribution="A Hospital"),
        training=TrainingRecord(steps=1, tokens=1, documents=1, held_out_documents=1, seed=0, public_share=0.25),
        codec=CodecRecord(method="ternary", scale_factor=1.0),
        bits_per_byte={"anchor": 2.0, "expert": 1.0, "trained": 1.0},
    )
    write_container(path, seal(contribution, KEY), update)
    return contribution


def damaged(path: Path, out: Path, *, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    out.write_bytes(data)
    return out


def set_word(path: Path, offset: int, word: int) -> None:
    """Two bytes of a file, in place."""
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = word.to_bytes(2, "little")
    path.write_bytes(data)


def test_the_methods_offered_are_the_codecs() -> None:
    assert get_args(Method) == METHODS


def test_inspect_says_what_is_in_a_file(motet: Motet, update: Path, manifest: AnchorManifest) -> None:
    found = json.loads(motet("inspect", update, "--json"))
    size, specs = update.stat().st_size, update_specs(manifest)
    parameters = sum(spec_values(spec) for spec in specs)
    assert found["file_bytes"] == size
    assert found["parameters"] == parameters
    assert found["bits_per_parameter"] == pytest.approx(8 * size / parameters)
    assert found["ratio"] == pytest.approx(sum(spec.nbytes for spec in specs) / size)
    assert found["density"] == pytest.approx(0.1, abs=0.01)
    k = found["density"]
    assert found["bound"] == pytest.approx(-k * np.log2(k) - (1 - k) * np.log2(1 - k) + k)
    assert found["methods"] == ["lossless", "raw", "ternary"]  # evidence by token, rows, matrices
    assert (found["anchor"], found["base"], found["contribution"]) == (manifest.digest, None, None)
    assert {tensor["name"] for tensor in found["tensors"]} == {spec.name for spec in specs}
    assert 0 < size - sum(tensor["bytes"] for tensor in found["tensors"]) < 2000  # header and footer


def test_inspect_has_a_line_for_each_tensor(motet: Motet, update: Path, manifest: AnchorManifest) -> None:
    lines = motet("inspect", update).splitlines()
    for spec in update_specs(manifest):
        (line,) = [line for line in lines if line.startswith(spec.name + " ")]
        assert spec.dtype in line.split()
    assert any(line.startswith("density") and "10." in line for line in lines)
    assert any(line.startswith("anchor") and manifest.digest in line for line in lines)
    assert any(line.startswith("base") and "the anchor itself" in line for line in lines)


def test_inspect_looks_into_a_contribution(motet: Motet, update: Path, manifest, tmp_path: Path) -> None:
    contribution = contained(update, tmp_path / "medicine.motet", anchor=manifest.digest)
    found = json.loads(motet("inspect", tmp_path / "medicine.motet", "--json"))
    alone = json.loads(motet("inspect", update, "--json"))
    assert found["contribution"]["digest"] == contribution.digest
    assert found["contribution"]["owner"] == KEY.public
    assert found["contribution"]["terms"]["licence"] == "CC0-1.0"
    assert found | {"contribution": None} == alone
    said = motet("inspect", tmp_path / "medicine.motet")
    assert contribution.digest in said
    assert KEY.public in said
    assert "CC0-1.0; attribution: A Hospital" in said


def test_a_contribution_with_another_update_is_refused(motet: Motet, update, manifest, tmp_path: Path) -> None:
    contained(update, tmp_path / "c", anchor=manifest.digest, named=bytes_digest(b"another"))
    assert "digest of the update" in motet("verify", tmp_path / "c", code=17)
    contained(update, tmp_path / "d", anchor=bytes_digest(b"another"))
    assert "anchor" in motet("inspect", tmp_path / "d", code=17)


def test_verify_says_what_it_checked(motet: Motet, update: Path, manifest, anchor_directory, tmp_path: Path) -> None:
    alone = json.loads(motet("verify", update, "--json"))
    assert alone["sound"] is True
    assert "--anchor" in alone["unchecked"][0]
    contained(update, tmp_path / "medicine.motet", anchor=manifest.digest)
    whole = json.loads(motet("verify", tmp_path / "medicine.motet", "--anchor", anchor_directory, "--json"))
    assert whole["unchecked"] == []
    said = " ".join(whole["checked"])
    for each in ("footer", KEY.public, manifest.digest, "every value of the expert is finite"):
        assert each in said
    assert motet("verify", update).splitlines()[0] == "sound"


def test_verify_finds_damage_at_every_place(motet: Motet, update: Path, tmp_path: Path) -> None:
    size = update.stat().st_size
    for at in (0, 10, 30, size // 2, size - 40, size - 1):
        assert motet("verify", damaged(update, tmp_path / "damaged", at=at), code=17).count("\n") == 1
    (tmp_path / "cut").write_bytes(update.read_bytes()[:-1])
    assert "cut" in motet("verify", tmp_path / "cut", code=17)
    assert "cannot be read" in motet("verify", tmp_path / "none", code=17)


def test_verify_finds_a_damaged_container(motet: Motet, update: Path, manifest, tmp_path: Path) -> None:
    contained(update, tmp_path / "c", anchor=manifest.digest)
    text = (tmp_path / "c").read_bytes()
    motet("verify", damaged(tmp_path / "c", tmp_path / "d", at=text.index(b"A Hospital")), code=4)
    motet("verify", damaged(tmp_path / "c", tmp_path / "d", at=text.index(b"MOTETUP1") + 500), code=17)


def test_verify_wants_the_anchor_that_is_named(motet: Motet, update, make_anchor, tmp_path: Path) -> None:
    other = make_anchor(tmp_path / "other", seed=7)
    assert "anchor" in motet("verify", update, "--anchor", other, code=17)
    smaller = make_anchor(tmp_path / "smaller", intermediate_size=32)
    assert "down_proj" in motet("verify", update, "--anchor", smaller, code=17)


def test_verify_applies(motet: Motet, make_anchor, tmp_path: Path) -> None:
    """The change is finite alone, and too large once it is added to the anchor."""
    anchor = make_anchor(tmp_path / "anchor")
    with TensorReader(anchor / "model.safetensors") as reader:
        offset = reader.header[GATE].offset
    set_word(anchor / "model.safetensors", offset, LARGEST)
    manifest = AnchorManifest.of(anchor)
    source = write_tensors(tmp_path / "source", update_specs(manifest))
    with TensorReader(source) as reader:
        set_word(source, reader.header[GATE].offset, LARGEST)
    motet("pack", source, "--anchor", anchor, "--out", tmp_path / "u")
    motet("verify", tmp_path / "u")
    assert GATE in motet("verify", tmp_path / "u", "--anchor", anchor, code=17)
    assert GATE in motet("unpack", tmp_path / "u", "--anchor", anchor, "--out", tmp_path / "expert", code=17)
    assert not (tmp_path / "expert").exists()


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


def test_a_later_version_needs_the_one_before(motet: Motet, update, manifest, anchor_directory, tmp_path) -> None:
    base = bytes_digest(b"version 1")
    motet("unpack", update, "--anchor", anchor_directory, "--out", tmp_path / "first")
    small = write_tensors(tmp_path / "small", update_specs(manifest), seed=5, spread=1e-3)
    with FileSource(small) as source:
        encode(tmp_path / "v2", source, update_specs(manifest), CodecSettings(), anchor=manifest.digest, base=base)
    expert = ("unpack", tmp_path / "v2", "--anchor", anchor_directory, "--out", tmp_path / "second")
    said = motet(*expert, code=3)
    assert base in said
    assert "--base" in said
    motet(*expert, "--base", tmp_path / "first")
    first, second, change = values(tmp_path / "first"), values(tmp_path / "second"), values(small)
    assert np.array_equal(second[GATE], widen(narrow(first[GATE] + change[GATE], "BF16"), "BF16"))
    halfway = json.loads(motet("verify", tmp_path / "v2", "--anchor", anchor_directory, "--json"))
    assert base in halfway["unchecked"][0]
    whole = ("verify", tmp_path / "v2", "--anchor", anchor_directory, "--base", tmp_path / "first", "--json")
    assert json.loads(motet(*whole))["unchecked"] == []
    motet("unpack", update, "--anchor", anchor_directory, "--base", tmp_path / "first", "--out", tmp_path / "x", code=3)
    motet("unpack", tmp_path / "v2", "--base", tmp_path / "first", "--out", tmp_path / "x", code=2)


def test_none_of_them_needs_torch(difference: Path, update: Path, anchor_directory: Path, tmp_path: Path) -> None:
    anchor = ["--anchor", str(anchor_directory)]
    calls = [
        ["inspect", str(update)],
        ["verify", str(update), *anchor],
        ["pack", str(difference), *anchor, "--out", str(tmp_path / "a"), "--method", "ternary"],
        ["unpack", str(update), "--out", str(tmp_path / "b")],
        ["unpack", str(update), *anchor, "--out", str(tmp_path / "c")],
    ]
    code = (
        f"import sys\nfrom motet.cli import run\nfor call in {calls!r}: assert run(call) == 0, call\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
