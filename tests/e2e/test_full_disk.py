"""A disk that is full, simulated by the largest size a file may have: an error that says so, and the next call goes on.

The limit is below the sizes of raw update, expert, composite and checkpoint, and above those of documents and ledger.
"""

import shutil

import pytest

from motet.protocols.container import UPDATE_NAME

pytestmark = pytest.mark.slow

FULL = 300_000
"""Bytes: the store's expert has 788,480, a raw update as many, the checkpoint over three million."""


def train_raw(stage, name: str) -> None:
    """Let an owner's update be as large as the expert."""
    import tomllib

    import tomli_w

    home = stage.owner(name)
    settings = tomllib.loads((home / "owner.toml").read_text())
    settings.setdefault("codec", {})["method"] = "raw"
    (home / "owner.toml").write_text(tomli_w.dumps(settings))
    shutil.rmtree(home / "outbox")
    stage.here("train", "--dir", home)
    assert (stage.outbox(name) / UPDATE_NAME).stat().st_size > FULL


def test_training_keeps_what_was_complete(trained, on_stage) -> None:
    stage = on_stage(trained)
    owner, digest = stage.owner("medicine"), stage.outbox("medicine").name
    for folder in (owner / "outbox", owner / "work" / "training"):
        shutil.rmtree(folder)
    full = stage.motet("train", "--dir", owner, file_bytes=FULL, code=16)
    assert "free space" in full.message
    assert not list((owner / "outbox").glob("[0-9a-f]*")) if (owner / "outbox").exists() else True
    assert stage.here("train", "--dir", owner, "--json").json["contribution"] == f"sha256:{digest}"


def test_writing_a_contribution_to_a_file(trained, on_stage) -> None:
    stage = on_stage(trained)
    file, half = stage.root / "again.motet", (stage.outbox("medicine") / UPDATE_NAME).stat().st_size // 2
    full = stage.motet("contribute", "--dir", stage.owner("medicine"), "--to", file, "--yes", file_bytes=half, code=16)
    assert str(file) in full.message
    assert "free space" in full.message
    assert not list(stage.root.glob("*again.motet*"))
    stage.here("contribute", "--dir", stage.owner("medicine"), "--to", file, "--yes")
    assert file.read_bytes() == stage.file("medicine").read_bytes()


def test_the_coordinators_disk_while_an_owner_sends(trained, on_stage) -> None:
    stage = on_stage(trained)
    train_raw(stage, "medicine")
    server = stage.serve(file_bytes=FULL)
    owner = stage.owner("medicine")
    full = stage.here("contribute", "--dir", owner, "--yes", code=9)
    assert "free space" in full.message
    assert "admitted" not in [kind for kind, _ in stage.ledger()]
    server.terminate()
    server.wait(20)
    stage.serve()
    assert stage.here("contribute", "--dir", owner, "--yes", "--json").json["status"] == "admitted"


def test_admitting_and_assembling(trained, on_stage) -> None:
    stage = on_stage(trained)
    command = ("admit", stage.file("medicine"), "--dir", stage.coordinator)
    full = stage.motet(*command, file_bytes=FULL, code=16)
    assert "free space" in full.message
    kinds = [kind for kind, _ in stage.ledger()]
    assert "admitted" not in kinds
    assert "refused" not in kinds
    assert not [path for path in (stage.coordinator / "intake").rglob("*") if path.is_file()]
    stage.here(*command)

    command = ("assemble", "--dir", stage.coordinator, "--json")
    assert "free space" in stage.motet(*command, file_bytes=FULL, code=16).message
    composites = stage.coordinator / "composites"
    assert not composites.exists() or not list(composites.iterdir())
    made = stage.here(*command).json
    assert made["members"] == ["medicine"]

    shutil.rmtree(stage.coordinator / "composites-stock")
    assert "free space" in stage.motet(*command, file_bytes=FULL, code=16).message
    assert stage.here(*command).json == made
