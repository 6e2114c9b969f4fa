"""The update defines the expert, and both sides compute the same bits from it."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from motet.moe.anchor import Anchor
from motet.moe.experts import (
    Base,
    Difference,
    Expert,
    materialise,
    read_expert,
    read_update,
    soup,
    stored_tensors,
    swap_ffn,
    values_of,
    write_update,
)
from motet.moe.routing import RoutingRows
from motet.protocols.codec import CodecSettings, UpdateReader, encode
from motet.protocols.errors import CodecError, ExpertError
from motet.protocols.expert_files import materialise_file, update_specs
from motet.protocols.tensor_files import TensorSpec, TensorWriter

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


class Tensors:
    """Tensors in memory as a codec source."""

    def __init__(self, tensors):
        self.tensors = tensors

    def read(self, spec, start, count):
        part = self.tensors[spec.name].reshape(-1)[start : start + count]
        return part.view(torch.int16).numpy().view("uint16") if spec.dtype == "BF16" else part.numpy()


def rewritten(update: Path, anchor, *, without=(), dtype=None, **replaced) -> Path:
    """The update again, raw, with some tensors left out, in another dtype, or replaced."""
    with UpdateReader(update) as reader:
        tensors = {spec.name: torch.from_numpy(reader.tensor(spec.name)) for spec in reader.specs}
        specs = [spec for spec in reader.specs if spec.name not in without]
    if dtype is not None:
        specs = [TensorSpec(name=spec.name, dtype=dtype, shape=spec.shape) for spec in specs]
    halves = {spec.name: tensors[spec.name].bfloat16() for spec in specs if spec.dtype == "BF16"}
    path = update.with_name("rewritten")
    encode(path, Tensors(tensors | halves | replaced), specs, CodecSettings(method="raw"), anchor=anchor.digest)
    return path


def made(update: Path, anchor, out: Path, **options) -> Path:
    with stored_tensors(anchor) as stored:
        materialise_file(update, anchor.manifest, stored, out, **options)
    return out


def test_an_update_holds_exactly_what_the_anchor_asks(anchor, update):
    with UpdateReader(update) as reader:
        specs = {spec.name: (spec.dtype, spec.shape) for spec in reader.specs}

    assert specs == {spec.name: (spec.dtype, spec.shape) for spec in update_specs(anchor.manifest)}
    assert specs["model.layers.1.mlp.down_proj.weight"] == ("BF16", (32, 48))
    assert specs["model.layers.1.mlp.router.weight"] == ("F32", (32,))
    assert specs["model.layers.1.mlp.router.bias"] == ("F32", (1,))
    assert specs["model.router.tokens"] == ("BF16", (259,))
    assert len(specs) == 6 + 4 + 1


@pytest.mark.parametrize("method", ["lossless", "ternary", "levels", "int4"])
def test_owner_and_coordinator_get_the_same_expert(method, anchor, trained, rows, tmp_path):
    write_update(tmp_path / "update", anchor, trained, rows, CodecSettings(method=method))
    made(tmp_path / "update", anchor, tmp_path / "expert")
    at_home = read_update(tmp_path / "update", anchor, **NAMED)
    in_store = read_expert(tmp_path / "expert", anchor, **NAMED)

    assert at_home.ffn.keys() == in_store.ffn.keys() == anchor.ffn().keys()
    assert all(torch.equal(tensor, in_store.ffn[name]) for name, tensor in at_home.ffn.items())
    assert torch.equal(at_home.rows.weight, in_store.rows.weight)
    assert torch.equal(at_home.rows.bias, in_store.rows.bias)
    assert torch.equal(at_home.rows.weight, rows.weight)


def test_a_later_update_changes_the_earlier_expert(anchor, trained, rows, tmp_path):
    write_update(tmp_path / "first", anchor, trained, rows, CodecSettings(method="ternary"))
    base = Base(contribution="sha256:" + "2" * 64, file=made(tmp_path / "first", anchor, tmp_path / "expert"))
    write_update(tmp_path / "second", anchor, trained, rows, base=base)
    found = read_update(tmp_path / "second", anchor, **NAMED, base=base)

    for name, tensor in found.ffn.items():
        torch.testing.assert_close(tensor.float(), trained[name], rtol=2**-7, atol=1e-4)
    with pytest.raises(CodecError, match=r"base: saw sha256:2+, wanted None"):
        read_update(tmp_path / "second", anchor, **NAMED)


def test_the_expert_is_what_was_trained_up_to_rounding(anchor, trained, rows, update):
    expert = read_update(update, anchor, **NAMED)

    assert {tensor.dtype for tensor in expert.ffn.values()} == {torch.bfloat16}
    for name, tensor in expert.ffn.items():
        torch.testing.assert_close(tensor.float(), trained[name], rtol=2**-7, atol=1e-4)
    assert torch.equal(expert.rows.weight, rows.weight)


def test_the_sum_is_in_float32_and_rounded_once(anchor, rows):
    stored, update = torch.tensor([1.0, 256.0]).bfloat16(), torch.tensor([2**-7, 1.5]).bfloat16()

    assert materialise(stored, update).tolist() == [1 + 2**-7, 258.0]
    trained = {name: tensor.float() + 2**-16 for name, tensor in anchor.ffn().items()}
    spec = anchor.manifest.ffn()[0]
    with stored_tensors(anchor) as before:
        read = Difference(trained, rows, values_of(before), anchor.manifest).read(spec, 7, 5)
    wanted = (trained[spec.name] - anchor.tensor(spec.name).float()).reshape(-1)[7:12].bfloat16()
    assert torch.equal(torch.from_numpy(read.view("int16")).view(torch.bfloat16), wanted)


def test_no_change_gives_the_anchor_back(anchor, rows, tmp_path):
    write_update(tmp_path / "update", anchor, anchor.ffn(), rows)
    expert = read_update(tmp_path / "update", anchor, **NAMED)

    assert all(torch.equal(tensor, expert.ffn[name]) for name, tensor in anchor.ffn().items())


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
def test_names_the_tensor_that_is_not_finite_and_leaves_no_file(anchor, trained, rows, tmp_path, bits):
    """No encoder writes such a value, so one is put into a raw file, its checksums made anew."""
    name = "model.layers.1.mlp.up_proj.weight"
    marked = {n: t.clone() for n, t in trained.items()}
    marked[name] = anchor.tensor(name).float() + 1.5
    write_update(tmp_path / "update", anchor, marked, rows, CodecSettings(method="raw"))
    spoil(tmp_path / "update", "<H", 0x3FC0, bits)
    with pytest.raises(CodecError, match=f"{name}, chunk 0: saw NaN or infinity"):
        made(tmp_path / "update", anchor, tmp_path / "expert")
    assert [path.name for path in tmp_path.iterdir()] == ["update"]


def test_refuses_rows_that_are_not_finite(anchor, trained, rows, tmp_path):
    write_update(tmp_path / "update", anchor, trained, rows)
    spoil(tmp_path / "update", "<f", -2.0, float("inf"))
    with pytest.raises(CodecError, match=r"model\.layers\.1\.mlp\.router\.bias, chunk 0: saw NaN or infinity"):
        made(tmp_path / "update", anchor, tmp_path / "expert")


def spoil(update: Path, form: str, before: float, after: float) -> None:
    """Replace values in the raw frames of a file, and mend its checksums."""
    from motet.protocols.codec.frames import FrameReader, FrameWriter

    old, new = struct.pack(form, before), struct.pack(form, after)
    with FrameReader(update) as reader:
        methods = [tensor.method for tensor in reader.header.tensors]
        frames = list(reader.copy_frames())
        header = reader.header
    assert any(old in payload for tensor, _, payload in frames if methods[tensor] == "raw")
    with FrameWriter(update, header) as writer:
        for tensor, number, payload in frames:
            writer.write(tensor, number, payload.replace(old, new) if methods[tensor] == "raw" else payload)


def test_refuses_updates_that_do_not_fit(anchor, make_anchor, update, tmp_path):
    missing = "model.layers.0.mlp.gate_proj.weight"
    with pytest.raises(CodecError, match=f"{missing}: saw no such tensor, wanted BF16"):
        read_update(rewritten(update, anchor, without=[missing]), anchor, **NAMED)
    with pytest.raises(CodecError, match=r"saw F32 .* wanted BF16"):
        read_update(rewritten(update, anchor, dtype="F32"), anchor, **NAMED)

    wider = Anchor.load(make_anchor(tmp_path / "wider", intermediate_size=64))
    with pytest.raises(CodecError, match=r"saw BF16 \(32, 48\), wanted BF16 \(32, 64\)"):
        made(update, wider, tmp_path / "expert")
    other = Anchor.load(make_anchor(tmp_path / "other", seed=1))
    with pytest.raises(CodecError, match=f"anchor: saw {anchor.digest}, wanted {other.digest}"):
        made(update, other, tmp_path / "expert")


def test_refuses_a_truncated_update(anchor, update, tmp_path):
    update.write_bytes(update.read_bytes()[:-1])
    with pytest.raises(CodecError, match="cut or"):
        made(update, anchor, tmp_path / "expert")


def test_a_store_file_that_does_not_fit_is_refused(anchor, update, rows, tmp_path):
    made(update, anchor, tmp_path / "expert")
    spec = TensorSpec(name="a", dtype="F32", shape=(1,))
    with TensorWriter(tmp_path / "other", [spec]) as writer:
        writer.write("a", bytes(4))
    with pytest.raises(ExpertError, match="saw F32"):
        read_expert(tmp_path / "other", anchor, **NAMED)


def test_refuses_to_pack_what_does_not_fit(anchor, trained, rows, tmp_path):
    one_layer = RoutingRows(weight=rows.weight[:1], bias=rows.bias[:1])
    with pytest.raises(ExpertError, match="1 layers 32 wide, wanted 2 layers"):
        write_update(tmp_path / "update", anchor, trained, one_layer)
    missing = trained.popitem()[0]
    with pytest.raises(ExpertError, match=f"saw {missing} with shape None"):
        write_update(tmp_path / "update", anchor, trained, rows)


def test_refuses_to_pack_a_diverged_expert(anchor, trained, rows, tmp_path):
    trained["model.layers.0.mlp.down_proj.weight"][3, 3] = torch.nan
    with pytest.raises(CodecError, match=r"layers\.0\.mlp\.down_proj\.weight: saw NaN"):
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


@pytest.fixture(scope="module")
def small_and_big(make_anchor, tmp_path_factory) -> Path:
    """A folder with two anchors of the same shape but for their networks: "small", and "big", with 100 MB of these."""
    folder = tmp_path_factory.mktemp("sizes")
    for name, size in (("small", 32), ("big", 8192)):
        make_anchor(folder / name, hidden_size=1024, intermediate_size=size)
    return folder


MEASURE = """
import sys
from pathlib import Path
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.codec.kernels import best
from motet.protocols.expert_files import StoredTensors, materialise_file
best()  # numba takes 130 MB of its own, at any size
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
small, big, update, out = map(Path, sys.argv[1:])
def make(anchor, update, out):
    with StoredTensors.of_anchor(anchor) as stored:
        materialise_file(update, AnchorManifest.of(anchor), stored, out)
make(small, update / "small", out)
before = peak()
make(big, update / "big", out)
assert "torch" not in sys.modules
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lossless", "ternary"])
def test_materialising_takes_little_memory_and_no_torch(small_and_big, tmp_path, method):
    for name in ("small", "big"):
        anchor = Anchor.load(small_and_big / name)
        rows = RoutingRows(weight=torch.zeros(2, 1024), bias=torch.zeros(2))
        changed = {n: t.float() * 1.01 for n, t in anchor.ffn().items()}
        write_update(tmp_path / name, anchor, changed, rows, CodecSettings(method=method))

    folders = [small_and_big / "small", small_and_big / "big", tmp_path, tmp_path / "expert"]
    grown = subprocess.run([sys.executable, "-c", MEASURE, *folders], check=True, capture_output=True, text=True).stdout
    assert (
        int(grown) < 128 * 1024
    )  # KiB; beside what an encoder takes at any size there is no room for one copy of 100 MB


PACK = """
import sys
from pathlib import Path
import torch
from motet.moe.anchor import Anchor
from motet.moe.experts import write_update
from motet.moe.routing import RoutingRows
from motet.protocols.codec import CodecSettings
from motet.protocols.codec.kernels import best
torch.set_num_threads(1)
best()  # numba takes 130 MB of its own, at any size
def status(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])
def make(name):
    anchor = Anchor.load(Path(sys.argv[1]) / name)
    trained = {name: tensor.float() * 1.01 for name, tensor in anchor.ffn().items()}
    rows = RoutingRows(weight=torch.zeros(2, 1024), bias=torch.zeros(2))
    began = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    write_update(Path(sys.argv[2]) / name, anchor, trained, rows, settings)
    return status("VmHWM") - began
settings = CodecSettings.model_validate_json(sys.argv[3])
make("small")
print(make("big"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [CodecSettings(method="lossless"), CodecSettings(method="ternary", balance=0.9)], ids=lambda s: s.method
)
def test_packing_a_trained_expert_takes_little_memory(settings, small_and_big, tmp_path):
    """Beside the trained weights themselves, 200 MB here, which training holds anyway."""
    command = [sys.executable, "-c", PACK, small_and_big, tmp_path, settings.model_dump_json()]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(grown) < 128 * 1024, grown  # KiB


def test_taking_a_difference_leaves_the_trained_weights_alone(anchor, trained, rows, tmp_path):
    kept = {name: tensor.clone() for name, tensor in trained.items()}
    write_update(tmp_path / "update", anchor, trained, rows, CodecSettings(method="ternary"))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in trained.items())
