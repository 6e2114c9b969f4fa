"""The commands that look into update files and contributions: `motet inspect` and `motet verify`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.canonical import bytes_digest, file_digest
from motet.protocols.codec import METHODS, CodecSettings, FileSource, encode
from motet.protocols.codec.changes import narrow, widen
from motet.protocols.codec_commands import Method
from motet.protocols.container import write_container
from motet.protocols.contribution import CodecRecord, Contribution, Terms, TrainingRecord
from motet.protocols.expert_files import update_specs
from motet.protocols.signing import SigningKey, seal
from motet.protocols.tensor_files import TensorReader

from .conftest import GATE, Motet, set_word, spec_values, values, write_tensors

KEY = SigningKey.generate()
LARGEST = 0x7F7F
"""The bits of the largest bf16."""


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
