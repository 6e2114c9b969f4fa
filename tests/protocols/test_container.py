"""The file form of a contribution: what is written is read, and nothing else is believed."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from motet.protocols.canonical import bytes_digest
from motet.protocols.container import read_container, read_manifest, write_container
from motet.protocols.contribution import CodecRecord, Contribution, Terms, TrainingRecord
from motet.protocols.errors import DocumentError, MotetError, SignatureError
from motet.protocols.signing import Signed, SigningKey, seal

UPDATE = bytes(range(256)) * 9 + b"tail"
KEY = SigningKey.generate()


def signed_for(update: bytes = UPDATE) -> Signed:
    manifest = Contribution(
        charter=bytes_digest(b"charter"),
        anchor=bytes_digest(b"anchor"),
        name="medicine",
        owner=KEY.public,
        update=bytes_digest(update),
        update_bytes=len(update),
        terms=Terms(licence="CC0-1.0"),
        training=TrainingRecord(steps=1, tokens=1, documents=1, held_out_documents=1, seed=0, public_share=0.25),
        codec=CodecRecord(method="lossless"),
        bits_per_byte={"anchor": 2.0, "expert": 1.0},
    )
    return seal(manifest, KEY)


@pytest.fixture
def container(tmp_path: Path) -> Path:
    update = tmp_path / "u.safetensors"
    update.write_bytes(UPDATE)
    path = tmp_path / "medicine.motet"
    write_container(path, signed_for(), update)
    return path


def test_round_trip_and_same_bytes(container: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    signed, update = read_container(container, out)
    assert signed == read_manifest(container) == signed_for()
    assert update.read_bytes() == UPDATE
    again = tmp_path / "again.motet"
    write_container(again, signed, update)
    assert again.read_bytes() == container.read_bytes()


def test_tar_reads_it(container: Path) -> None:
    with tarfile.open(container) as tar:
        assert tar.getnames() == ["contribution.json", "update.motetup"]
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    listed = subprocess.run(["tar", "-tf", container], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["contribution.json", "update.motetup"]
    assert listed.stderr == ""


def test_a_wrong_sized_update_is_not_packed(tmp_path: Path) -> None:
    update = tmp_path / "u"
    update.write_bytes(UPDATE[:-1])
    with pytest.raises(DocumentError, match="pack it again"):
        write_container(tmp_path / "c", signed_for(), update)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["u"]


def hostile(first: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        manifest = tarfile.TarInfo("contribution.json")
        manifest.size = len(signed_for().canonical())
        tar.addfile(manifest, io.BytesIO(signed_for().canonical()))
        tar.addfile(first, io.BytesIO(data))
    return buffer.getvalue()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, size, link, mode
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("../../etc/passwd", size=len(UPDATE)),
        member("/update.motetup", size=len(UPDATE)),
        member("update.motetup", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("update.motetup", kind=tarfile.LNKTYPE, link="contribution.json"),
        member("update.motetup", kind=tarfile.CHRTYPE),
        member("update.motetup", kind=tarfile.DIRTYPE),
        member("update.motetup", size=len(UPDATE), mode=0o4755),
        member("update.motetup", size=len(UPDATE) - 1),
        member("x" * 200, size=len(UPDATE)),
    ],
    ids=["parent", "absolute", "symlink", "hard-link", "device", "directory", "setuid", "short", "long-name"],
)
def test_hostile_members_are_refused_and_leave_nothing(evil: tarfile.TarInfo, tmp_path: Path) -> None:
    path, out = tmp_path / "evil", tmp_path / "out"
    out.mkdir()
    path.write_bytes(hostile(evil, UPDATE[: evil.size]))
    with pytest.raises(DocumentError):
        read_container(path, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("size", [0, 100, 512, 1500, 3000, -1, -1024])
def test_a_cut_container_is_refused(container: Path, tmp_path: Path, size: int) -> None:
    container.write_bytes(container.read_bytes()[:size])
    with pytest.raises(DocumentError):
        read_container(container, tmp_path)
    assert not (tmp_path / "update.motetup").exists()


def test_more_after_the_end_is_refused(container: Path, tmp_path: Path) -> None:
    container.write_bytes(container.read_bytes() + b"more")
    with pytest.raises(DocumentError, match="after the update"):
        read_container(container, tmp_path)


def test_a_changed_manifest_is_refused(container: Path) -> None:
    container.write_bytes(container.read_bytes().replace(b"medicine", b"medicinf"))
    with pytest.raises(SignatureError):
        read_manifest(container)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_no_flipped_byte_before_the_update_passes(container: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(container.read_bytes())
    position = data.draw(st.integers(0, content.index(UPDATE) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    changed = tmp_path / "changed"
    changed.write_bytes(content)
    (tmp_path / "update.motetup").unlink(missing_ok=True)
    with pytest.raises(MotetError):
        read_container(changed, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.binary(max_size=3000))
def test_random_bytes_are_no_container(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "random"
    path.write_bytes(data)
    with pytest.raises(DocumentError):
        read_manifest(path)


def test_a_full_disk_is_said_and_leaves_nothing(container: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from motet.protocols.container import read_container\n"
        "from motet.protocols.errors import StorageError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: read_container(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except StorageError as error: sys.exit(f'said: {error}')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, container, out], capture_output=True, text=True, check=False)
    assert "said: cannot write" in ran.stderr
    assert "free space" in ran.stderr
    assert list(out.iterdir()) == []
