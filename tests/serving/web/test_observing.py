"""A coordinator's home, watched: what cannot be read is told, nothing is written, what ended is said to have."""

import shutil
from pathlib import Path

import pytest

from motet.coordinator.home import CoordinatorHome
from motet.protocols.canonical import hex_of
from motet.protocols.errors import ConfigurationError
from motet.serving.web.observing import Observer
from motet.serving.web.pages import rendered

from .watched import TERMS, Watched


def test_what_cannot_be_read_is_told_beside_the_rest(scene: Watched, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(scene.home.path, home)
    observer = Observer(home)
    (home / "run" / "state.json").write_bytes(b"{")
    for path in (home / "evaluations").glob("*/*.json"):
        path.write_bytes(b"[]")
    assert [owner.name for owner in observer.now().owners] == ["law", "medicine", "news"]
    assert "The run's state cannot be read" in observer.now().problems[0]
    (losses,) = (home / "run" / "owners").glob(f"{hex_of(scene.owners['law'].key.public)}/losses.jsonl")
    losses.unlink()
    losses.mkdir()
    assert "The losses of law cannot be read" in observer.now().problems[1]
    for path in (home / "store" / "experts").glob("*/expert.safetensors"):
        path.write_bytes(b"no tensors")
    assert [card.size for card in observer.measured().cards] == [None, None]
    assert "The size of law cannot be read" in observer.measured().problems[0]
    assert "The evaluation of law is left out" in observer.measured().facts[0]
    for path in home.glob("ledger.sqlite*"):
        path.unlink()
    (home / "ledger.sqlite").write_bytes(b"no database")
    assert "The ledger cannot be read" in observer.now().problems[0]
    assert [card.expert.name for card in observer.measured().cards] == ["law", "medicine"]
    with pytest.raises(ConfigurationError, match=r"wanted a coordinator's home"):
        Observer(tmp_path)


def test_watching_writes_nothing(scene: Watched, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(scene.home.path, home)

    def everything() -> dict[Path, tuple[int, int]]:
        found = {path: path.stat() for path in home.rglob("*") if not path.name.endswith(("-shm", "-wal"))}
        return {path: (each.st_mtime_ns, each.st_size) for path, each in found.items() if path.is_file()}

    before = everything()
    observer = Observer(home)
    assert observer.now().entries > 0
    measured = observer.measured()
    assert measured.sections
    assert [card.size for card in measured.cards] == [scene.size_of(name) for name in ("law", "medicine")]
    assert everything() == before


def test_an_expired_expert_is_said_to_be(scene: Watched) -> None:
    end = TERMS["medicine"].expires_at
    assert end is not None
    for now, wanted in ((end - 1, []), (end, ["medicine"])):
        measured = Observer(scene.home.path, clock=lambda now=now: now).measured()
        assert [card.expert.name for card in measured.cards if card.expired] == wanted
        assert rendered("measured.html", measured=measured).count("; expired") == len(wanted)


def test_a_withdrawn_expert_has_no_card_and_its_composite_is_no_longer_shown(scene: Watched, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(scene.home.path, home)
    observer = Observer(home)
    opened = CoordinatorHome(home)
    try:
        (digest,) = (digest for digest, each in opened.ledger.standing().active.items() if each.name == "law")
        Watched(opened, scene.owners, scene.record).withdraw("law", digest)
    finally:
        opened.close()
    assert [card.expert.name for card in observer.measured().cards] == ["medicine"]
    assert observer.measured().composite is None
    newest = observer.now().decisions[0]
    assert (newest.kind, newest.who) == ("withdrawn", "law")
