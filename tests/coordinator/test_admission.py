"""Every way a contribution can be wrong, decided without a server: manifest by manifest, tensor by tensor."""

import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.coordinator.admission import Findings, FoundTensor, examine_manifest, examine_update, wanted_tensors
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.inspection import inspect, read_findings, run_child
from motet.moe.experts import update_specs
from motet.protocols.canonical import file_digest
from motet.protocols.contribution import Contribution, Terms
from motet.protocols.errors import AdmissionRefused, FederationError
from motet.protocols.ledger import Standing
from motet.protocols.signing import Signed
from motet.protocols.tensor_files import TensorSpec, TensorWriter

ZEROS = "sha256:" + "0" * 64


@pytest.fixture
def update(write_update: Callable[..., Path], tmp_path: Path) -> Path:
    return write_update(tmp_path / "update.motetup")


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(AdmissionRefused) as caught:
        call()
    assert str(caught.value).startswith(f"refused ({caught.value.reason}): ")
    return caught.value.reason


def test_a_good_one_passes(home: CoordinatorHome, medicine: object, update: Path) -> None:
    signed = medicine.manifest(home, update)
    contribution = examine_manifest(signed, home.ledger.standing(), home.charter)
    examine_update(contribution, read_findings(update), wanted_tensors(home.anchor_manifest))
    assert contribution.name == "medicine"


def test_what_is_wanted_is_what_owners_write(home: CoordinatorHome) -> None:
    specs = {spec.name: (spec.dtype, spec.shape) for spec in update_specs(home.anchor_manifest)}
    assert wanted_tensors(home.anchor_manifest) == specs


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"charter": ZEROS}, "wrong-charter"),
        ({"anchor": ZEROS}, "wrong-anchor"),
        ({"name": "surgery"}, "wrong-name"),
        ({"terms": Terms(licence="Proprietary")}, "wrong-licence"),
        ({"update_bytes": (1 << 20) + 1}, "too-large"),
        ({"owner": "ed25519:" + "0" * 64}, "bad-signature"),
    ],
)
def test_a_manifest_that_breaks_a_rule(
    home: CoordinatorHome, medicine: object, update: Path, changes: dict[str, object], reason: str
) -> None:
    signed = medicine.manifest(home, update, **changes)
    assert reason_of(lambda: examine_manifest(signed, home.ledger.standing(), home.charter)) == reason


def test_a_stranger_and_a_forger(home: CoordinatorHome, medicine: object, make_owner: object, update: Path) -> None:
    standing, good = home.ledger.standing(), medicine.manifest(home, update)
    stranger = make_owner("medicine").manifest(home, update)
    assert reason_of(lambda: examine_manifest(stranger, standing, home.charter)) == "unknown-owner"
    forged = good.model_copy(update={"payload": good.payload.replace("CC0-1.0", "CC0-2.0")})
    assert reason_of(lambda: examine_manifest(forged, standing, home.charter)) == "bad-signature"
    lent = stranger.model_copy(update={"key": medicine.key.public})
    assert reason_of(lambda: examine_manifest(lent, standing, home.charter)) == "bad-signature"
    withdrawal = medicine.withdrawal(home, ZEROS)
    assert reason_of(lambda: examine_manifest(withdrawal, standing, home.charter)) == "bad-signature"


def test_replays_and_returns(home: CoordinatorHome, medicine: object, update: Path) -> None:
    def of(version: int, seed: int = 0) -> tuple[Signed, Contribution]:
        signed = medicine.manifest(home, update, version=version, update_bytes=1 + seed)
        return signed, signed.open(Contribution)

    second, contribution = of(2)
    owners = home.ledger.standing().owners
    standing = Standing(owners=owners, admitted={contribution.digest: contribution})
    assert examine_manifest(second, standing, home.charter) == contribution  # the same again is no replay
    for version, seed in ((1, 0), (2, 1)):
        replay, _ = of(version, seed)
        assert reason_of(lambda: examine_manifest(replay, standing, home.charter)) == "replayed"  # noqa: B023
    assert examine_manifest(of(3)[0], standing, home.charter).version == 3
    standing.withdrawn.add(contribution.digest)
    assert reason_of(lambda: examine_manifest(second, standing, home.charter)) == "withdrawn"
    assert reason_of(lambda: examine_manifest(of(1)[0], standing, home.charter)) == "replayed"
    assert examine_manifest(of(3)[0], standing, home.charter).version == 3


def changed(specs: list[TensorSpec], index: int, **values: object) -> list[TensorSpec]:
    kept = {"name": specs[index].name, "dtype": specs[index].dtype, "shape": specs[index].shape}
    specs[index] = TensorSpec(**(kept | values))
    return specs


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda specs: specs[1:], "missing-tensor"),
        (lambda specs: [*specs, TensorSpec(name="lm_head.weight", dtype="BF16", shape=(4, 4))], "extra-tensor"),
        (lambda specs: changed(specs, 0, name="model.layers.7.mlp.gate_proj.weight"), "missing-tensor"),
        (lambda specs: changed(specs, 0, shape=specs[0].shape[::-1]), "wrong-shape"),
        (lambda specs: changed(specs, 0, shape=(*specs[0].shape, 1)), "wrong-shape"),
        (lambda specs: changed(specs, 0, shape=(0, 3)), "wrong-shape"),
        (lambda specs: changed(specs, 0, dtype="F16"), "wrong-dtype"),
        (lambda specs: changed(specs, 0, dtype="F32"), "wrong-dtype"),
        (lambda specs: changed(specs, -1, dtype="BF16"), "wrong-dtype"),
    ],
)
def test_tensors_that_are_not_the_anchors(
    change: Callable[..., list[TensorSpec]],
    reason: str,
    home: CoordinatorHome,
    medicine: object,
    write_update: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = write_update(tmp_path / "u", specs=change(update_specs(home.anchor_manifest)))
    contribution = medicine.manifest(home, path).open(Contribution)
    wanted = wanted_tensors(home.anchor_manifest)
    assert reason_of(lambda: examine_update(contribution, read_findings(path), wanted)) == reason


@pytest.mark.parametrize(
    ("poison", "reason"),
    [(math.nan, "not-finite"), (math.inf, "not-finite"), (-math.inf, "not-finite"), (-1e9, "out-of-range")],
)
@pytest.mark.parametrize("kind", ["BF16", "F32"])
def test_values_that_would_poison_a_composite(
    home: CoordinatorHome,
    medicine: object,
    write_update: Callable[..., Path],
    tmp_path: Path,
    poison: float,
    reason: str,
    kind: str,
) -> None:
    specs = sorted(update_specs(home.anchor_manifest), key=lambda spec: spec.dtype == kind)
    path = write_update(tmp_path / "u", specs=specs, poison=poison)
    contribution = medicine.manifest(home, path).open(Contribution)
    wanted = wanted_tensors(home.anchor_manifest)
    assert reason_of(lambda: examine_update(contribution, read_findings(path), wanted)) == reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:-1], "wrong-size"),
        (lambda data: data + b"x", "wrong-size"),
        (lambda data: data[:-9] + b"tampered!", "wrong-digest"),
    ],
)
def test_bytes_that_are_not_the_manifests(
    home: CoordinatorHome, medicine: object, update: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    contribution = medicine.manifest(home, update).open(Contribution)
    update.write_bytes(spoil(update.read_bytes()))
    wanted = wanted_tensors(home.anchor_manifest)
    assert reason_of(lambda: examine_update(contribution, read_findings(update), wanted)) == reason


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 100,
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"left over",
        struct.pack("<Q", 40) + b'{"../../etc":{"dtype":"F32","shape":[0],',
    ],
)
def test_files_that_are_no_tensor_files(home: CoordinatorHome, medicine: object, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "u"
    path.write_bytes(data)
    contribution = medicine.manifest(home, path).open(Contribution)
    wanted = wanted_tensors(home.anchor_manifest)
    assert reason_of(lambda: examine_update(contribution, read_findings(path), wanted)) == "malformed"


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.sampled_from(["BF16", "F32"]))
def test_the_largest_magnitude_is_torchs(tmp_path_factory: pytest.TempPathFactory, bits: list[int], dtype: str) -> None:
    """Any bit patterns at all: subnormals, signed zeros, infinities, every kind of NaN."""
    path = tmp_path_factory.mktemp("bits") / "u"
    words = [word >> 16 for word in bits] if dtype == "BF16" else bits
    raw = b"".join(struct.pack("<H" if dtype == "BF16" else "<I", word) for word in words)
    with TensorWriter(path, [TensorSpec(name="a", dtype=dtype, shape=(len(words),))]) as writer:
        writer.write("a", raw)
    tensor = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16 if dtype == "BF16" else torch.float32).float()
    found = read_findings(path).tensors[0].largest
    assert found == (float(tensor.abs().max()) if tensor.isfinite().all() else None)


@given(
    st.lists(
        st.builds(
            FoundTensor,
            name=st.sampled_from(["a", "b", "c"]),
            dtype=st.sampled_from(["BF16", "F32"]),
            shape=st.tuples(st.integers(0, 3)),
            largest=st.none() | st.floats(0, 1e9),
        ),
        max_size=4,
    )
)
def test_only_the_exact_tensors_pass(tensors: list[FoundTensor]) -> None:
    findings = Findings(size=5, digest=ZEROS, tensors=tuple(tensors))
    contribution = Contribution.model_construct(update=ZEROS, update_bytes=5)
    wanted = {"a": ("BF16", (2,)), "b": ("F32", (1,))}
    good = {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors} == wanted
    last = {tensor.name: tensor for tensor in tensors}
    if good and all(each.largest is not None and each.largest <= 1e4 for each in last.values()):
        examine_update(contribution, findings, wanted)
    else:
        with pytest.raises(AdmissionRefused):
            examine_update(contribution, findings, wanted)


@pytest.mark.slow
def test_the_child_finds_the_same(update: Path) -> None:
    assert inspect(update) == read_findings(update)
    assert inspect(update).digest == file_digest(update)


@pytest.mark.slow
def test_a_child_that_meets_its_caps_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the way inspections are: out of memory, out of time, and garbage instead of an answer."""
    script = tmp_path / "greedy_module.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from motet.coordinator.inspection import limit_resources, ready\n"
        "limit_resources(memory_bytes=256 << 20, seconds=1)\n"
        "ready()\n"
        "exec(sys.argv[1])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert reason_of(lambda: run_child("greedy_module", ["bytearray(1 << 30)"], cpu_seconds=60)) == "uninspectable"
    assert reason_of(lambda: run_child("greedy_module", ["while True: pass"], cpu_seconds=60)) == "uninspectable"
    with pytest.raises(FederationError, match="stopped by signal 15"):
        run_child("greedy_module", ["os.kill(os.getpid(), signal.SIGTERM)"], cpu_seconds=60)
    with pytest.raises(FederationError, match="too busy"):
        run_child("greedy_module", ["time.sleep(60)"], cpu_seconds=0.5)
    script.write_text("import no_such_module")
    with pytest.raises(FederationError, match="before it read anything: ModuleNotFoundError"):
        run_child("greedy_module", [], cpu_seconds=60)


@pytest.mark.slow
def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time, sys\\n'\n"
        "  'from motet.coordinator.inspection import limit_resources\\n'\n"
        "  'limit_resources(memory_bytes=1 << 30, seconds=60)\\n'\n"
        "  'print(1, flush=True); time.sleep(60)'], stdout=subprocess.PIPE)\n"
        "child.stdout.read(1); print(child.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    stat = Path("/proc") / ran.stdout.strip() / "stat"
    for _ in range(200):
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("the child outlived its parent")
