"""Files that nobody vouches for, read the way the coordinator reads them: nonsense, bombs, and children that die."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from motet.coordinator.admission import Findings, examine_update
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.inspection import cpu_seconds, inspect, read_findings, run_child
from motet.coordinator.public_tokens import read_public_tokens
from motet.coordinator.store import ExpertStore
from motet.protocols.codec import CodecSettings, Header, TensorHeader
from motet.protocols.codec.deflate import deflate
from motet.protocols.codec.frames import MAGIC
from motet.protocols.contribution import Contribution
from motet.protocols.errors import AdmissionRefused, FederationError
from motet.protocols.expert_files import update_specs

ANCHOR = "sha256:" + "a" * 64

WriteUpdate = Callable[..., Path]


@pytest.fixture
def update(write_update: WriteUpdate, tmp_path: Path) -> Path:
    return write_update(tmp_path / "update.motetup", settings=CodecSettings(method="ternary"))


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(AdmissionRefused) as caught:
        call()
    assert str(caught.value).startswith(f"refused ({caught.value.reason}): ")
    return caught.value.reason


def file_of(header: bytes, frames: bytes = b"", *, inflated: int | None = None) -> bytes:
    """An update file with a good checksum and footer around whatever header and frames."""
    packed = deflate(header)
    size = len(header) if inflated is None else inflated
    body = MAGIC + struct.pack("<III", size, len(packed), zlib.crc32(packed)) + packed + frames
    return body + hashlib.sha256(body).digest()


def frame_of(tensor: int, number: int, payload: bytes) -> bytes:
    checksum = zlib.crc32(payload, zlib.crc32(struct.pack("<II", tensor, number)))
    return struct.pack("<II", len(payload), checksum) + payload


def huge(shape: tuple[int, ...]) -> bytes:
    """A file of a few kilobytes whose header promises gigabytes, in as many empty chunks as that takes."""
    tensor = TensorHeader(name="model.layers.0.mlp.gate_proj.weight", dtype="BF16", shape=shape, method="raw")
    header = Header(anchor=ANCHOR, tensors=(tensor,))
    return file_of(header.canonical(), b"".join(frame_of(0, span.number, b"") for _, _, span in header.spans()))


def wanted_header(home: CoordinatorHome, method: str = "ternary") -> Header:
    """The header of an update that this home wants."""
    specs = update_specs(home.anchor_manifest)
    matrices = {"method": method, "scale": 1.0} if method == "ternary" else {"method": method}
    tensors = [
        TensorHeader(
            name=s.name, dtype=s.dtype, shape=s.shape, **(matrices if len(s.shape) == 2 else {"method": "raw"})
        )
        for s in specs
    ]
    return Header(anchor=home.charter.anchor.digest, tensors=tuple(tensors))


def with_chunk(home: CoordinatorHome, payload: bytes, method: str = "ternary") -> bytes:
    """An update that this home wants, but for its first chunk; the others are empty payloads."""
    header, frames = wanted_header(home, method), b""
    for index, _, span in header.spans():
        frames += frame_of(index, span.number, payload if not frames else b"")
    return file_of(header.canonical(), frames)


def bomb(size: int) -> bytes:
    """Deflated zeros, a thousand times smaller."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(coder.compress(bytes(1 << 20)) for _ in range(size >> 20)) + coder.flush()


def bombed_header(size: int) -> bytes:
    packed = bomb(size)
    body = MAGIC + struct.pack("<III", 1 << 20, len(packed), zlib.crc32(packed)) + packed
    return body + hashlib.sha256(body).digest()


MANY = [{"name": f"t{n}", "dtype": "F32", "shape": [1], "method": "raw"} for n in range(9000)]

NONSENSE = {
    "no update at all": lambda home: b"x" * 100,
    "one byte": lambda home: b"M",
    "a header of a megabyte of noise": lambda home: file_of(bytes(os.urandom(1 << 20))),
    "a header of a megabyte of brackets": lambda home: file_of(b"[" * (1 << 20)),
    "more tensors than any": lambda home: file_of(json.dumps({"anchor": ANCHOR, "tensors": MANY}).encode()),
    "a header larger than allowed": lambda home: file_of(b" " * (1 << 20) + b"{}"),
    "a header that says four gigabytes": lambda home: file_of(b"{}", inflated=(1 << 32) - 1),
    "a header that inflates without end": lambda home: bombed_header(1 << 27),
    "a hundred gigabytes and no last chunk": lambda home: huge((1 << 16, 1 << 20))[:-100],
    "more values than any tensor": lambda home: file_of(
        b'{"anchor":"' + ANCHOR.encode() + b'","chunk_values":1024,"schema":"motet.update/1","tensors":[{"dtype":'
        b'"BF16","method":"raw","name":"a","shape":[9999999999999,9999999999]}]}'
    ),
    "more chunks than any": lambda home: file_of(
        b'{"anchor":"' + ANCHOR.encode() + b'","chunk_values":1024,"schema":"motet.update/1","tensors":[{"dtype":'
        b'"BF16","method":"raw","name":"a","shape":[1000000,1024]}]}',
        bytes(8 * 1_000_000),
    ),
    "a frame of four gigabytes": lambda home: file_of(wanted_header(home).canonical(), b"\xff" * 8),
    "four billion kept values": lambda home: with_chunk(home, struct.pack("<BBI", 0, 0, (1 << 32) - 1)),
    "four billion gap bytes": lambda home: with_chunk(home, struct.pack("<BBII", 0, 0, 1, (1 << 32) - 1)),
    "four gigabytes of positions": lambda home: with_chunk(home, struct.pack("<BBIII", 0, 0, 1, 1, (1 << 32) - 1)),
    "a chunk that inflates without end": lambda home: with_chunk(
        home, struct.pack("<BBIII", 0, 0, 16, 16, 90) + bomb(1 << 20)[:90]
    ),
    "a class map that inflates without end": lambda home: with_chunk(
        home, struct.pack("<BI", 2, 90) + bomb(1 << 20)[:90]
    ),
    "exponents that inflate without end": lambda home: with_chunk(
        home, struct.pack("<I", 1000) + bomb(1 << 20)[:1000] + bytes(1536), "lossless"
    ),
}


def judged(home: CoordinatorHome, owner: object, path: Path, findings: Findings) -> str:
    contribution = owner.manifest(home, path).open(Contribution)
    return reason_of(lambda: examine_update(contribution, findings, update_specs(home.anchor_manifest), home.charter))


@pytest.mark.parametrize("name", NONSENSE)
def test_files_that_are_no_updates(home: CoordinatorHome, medicine: object, tmp_path: Path, name: str) -> None:
    path = tmp_path / "u"
    path.write_bytes(NONSENSE[name](home))
    findings = read_findings(path, update_specs(home.anchor_manifest))
    assert findings.problem is not None
    assert str(tmp_path) not in findings.problem
    assert judged(home, medicine, path, findings) == "malformed"


def test_ten_gigabytes_that_nobody_wants_are_not_decoded(
    home: CoordinatorHome, medicine: object, tmp_path: Path
) -> None:
    path = tmp_path / "u"
    path.write_bytes(huge((1 << 20, 5 << 10)))
    assert path.stat().st_size < 20_000
    findings = read_findings(path, update_specs(home.anchor_manifest))
    assert (findings.problem, findings.tensors[0].largest) == (None, None)
    header = wanted_header(home, "raw")
    tensors = (header.tensors[0].model_copy(update={"shape": (1 << 20, 5 << 10)}), *header.tensors[1:])
    swollen = header.model_copy(update={"tensors": tensors})
    frames = b"".join(frame_of(index, span.number, b"") for index, _, span in swollen.spans())
    path.write_bytes(file_of(swollen.canonical(), frames))
    findings = read_findings(path, update_specs(home.anchor_manifest))
    assert judged(home, medicine, path, findings) == "wrong-shape"


def test_only_values_that_are_not_finite_count_as_such(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path
) -> None:
    """By what was found, not by how it is said: a tensor's name is the owner's to choose."""
    wanted = update_specs(home.anchor_manifest)
    bad = read_findings(write_update(tmp_path / "bad", poison=float("nan")), wanted)
    assert not bad.finite
    name = "saw NaN or infinity"
    tensor = {"dtype": "F32", "method": "raw", "name": name, "shape": [1]}
    header = {"anchor": ANCHOR, "chunk_values": 1024, "schema": "motet.update/1", "tensors": [tensor]}
    text = json.dumps(header, separators=(",", ":")).encode()
    (tmp_path / "named").write_bytes(file_of(text, b"\xff" * 8))
    named = read_findings(tmp_path / "named", wanted)
    assert name in (named.problem or "")
    assert named.finite


def test_a_footer_of_another_file(home: CoordinatorHome, medicine: object, update: Path) -> None:
    update.write_bytes(update.read_bytes()[:-32] + bytes(32))
    findings = read_findings(update, update_specs(home.anchor_manifest))
    assert "footer" in (findings.problem or "")
    assert judged(home, medicine, update, findings) == "malformed"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_no_byte_changes_unnoticed(home: CoordinatorHome, update: Path, data: st.DataObject) -> None:
    """Whatever is flipped or cut, it is a finding, never an error."""
    whole, path = update.read_bytes(), update.with_name("changed")
    at = data.draw(st.integers(0, 60) | st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    path.write_bytes(
        whole[:at] if cut else whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    )
    assert read_findings(path, update_specs(home.anchor_manifest)).problem is not None


def test_the_children_need_neither_torch_nor_numba() -> None:
    script = (
        "import sys, motet.coordinator.store\n"
        "print(sorted({'torch', 'transformers', 'numba', 'grpc', 'flwr'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_time_grows_with_what_an_update_decodes_to(home: CoordinatorHome, update: Path) -> None:
    decoded = sum(spec.nbytes for spec in update_specs(home.anchor_manifest))
    seconds = cpu_seconds(update, home.anchor_manifest, base=3, bytes_per_second=1)
    assert seconds == 3 + decoded + update.stat().st_size
    assert decoded > 5 * update.stat().st_size


@pytest.mark.slow
def test_the_child_finds_the_same(home: CoordinatorHome, update: Path) -> None:
    public_tokens = read_public_tokens(home.public_tokens_file)
    assert inspect(update, home) == read_findings(update, update_specs(home.anchor_manifest), public_tokens)


@pytest.mark.slow
def test_bombs_do_no_harm_in_the_child(home: CoordinatorHome, medicine: object, tmp_path: Path) -> None:
    """Each is understood within the caps: refused for what it is, not for breaking the child."""
    path = tmp_path / "u"
    for name in ("a header of a megabyte of noise", "a header that inflates without end", "four billion kept values"):
        path.write_bytes(NONSENSE[name](home))
        assert judged(home, medicine, path, inspect(path, home)) == "malformed", name
    path.write_bytes(huge((1 << 20, 5 << 10)))
    assert judged(home, medicine, path, inspect(path, home)) == "wrong-anchor"


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


FAILING_DISK = """
import errno, os
pread = os.pread
def failing(descriptor, size, offset):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith("failing.motetup"):
        raise OSError(errno.EIO, "Input/output error")
    return pread(descriptor, size, offset)
os.pread = failing
"""


@pytest.mark.slow
def test_a_disk_that_fails_is_no_refusal(
    home: CoordinatorHome, medicine: object, write_update: WriteUpdate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the child that inspects, nor of the one that makes the expert."""
    update = write_update(tmp_path / "failing.motetup")
    (tmp_path / "sitecustomize.py").write_text(FAILING_DISK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(FederationError, match=r"a fault of this machine: \[Errno 5\] Input/output error"):
        inspect(update, home)
    contribution = medicine.manifest(home, update).open(Contribution)
    with pytest.raises(FederationError, match="a fault of this machine"):
        ExpertStore(home.experts_directory).materialise(contribution, update, home)


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
