"""What the ledger and the books share."""

from pathlib import Path

import pytest

from motet.coordinator import databases
from motet.coordinator.ledger_store import LedgerStore
from motet.protocols.errors import StorageError
from motet.serving.usage.store import UsageStore


@pytest.mark.parametrize("store", [LedgerStore, UsageStore])
def test_nothing_is_opened_on_a_full_disk(store, tmp_path: Path, monkeypatch) -> None:
    """SQLite would map what is not there into memory, which ends the process: the ledger did on small blocks."""
    path = tmp_path / "some.sqlite"
    store(path).close()
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
    monkeypatch.setattr(databases, "ROOM_BYTES", 1 << 62)
    with pytest.raises(StorageError, match=r"saw [\d,]+ bytes free at .*, wanted [\d,]+ for some.sqlite"):
        store(path)
    monkeypatch.undo()
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.is_file()} == before
    store(path).close()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        LedgerStore(tmp_path / "nowhere" / "ledger.sqlite")
