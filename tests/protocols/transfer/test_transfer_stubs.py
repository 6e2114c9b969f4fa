"""The committed stubs are those of the committed .proto, and the package shows what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

from motet.protocols import transfer

ROOT = Path(transfer.__file__).parents[3]
FOLDER = "motet/protocols/transfer"


@pytest.mark.slow
def test_the_stubs_are_up_to_date(tmp_path):
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}", *outputs]
    subprocess.run([*command, f"{ROOT}/{FOLDER}/expert_transfer.proto"], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / FOLDER).iterdir()}
    assert len(made) == 3
    assert made == {name: (ROOT / FOLDER / name).read_text() for name in made}


def test_the_hand_written_types_cover_every_call():
    calls = transfer.server.ExpertTransferService
    types = (ROOT / FOLDER / "expert_transfer_pb2_grpc.pyi").read_text()
    names = [name for name in vars(calls) if name[0].isupper()]
    assert sorted(names) == ["Begin", "Commit", "Fetch", "Nonce", "Push", "Withdraw"]
    assert all(f"    {name}: " in types for name in names)


def test_every_exported_name_exists():
    assert sorted(transfer.__all__) == transfer.__all__
    assert all(hasattr(transfer, name) for name in transfer.__all__)
