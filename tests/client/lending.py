"""What homes of one session have made, lent to the next with the same text under the same charter.

The product itself looks for finished work before it begins, and knows it by digests of all that determines it; that
the same text and settings give the same bits again is tested where training is (`test_training`, `test_foreground`).

    lend_rows(home)                    # of the text that most homes have
    lend_training(home); make_contribution(home); keep_training(home)
"""

from pathlib import Path

from motet.client.owner import OwnerHome
from motet.protocols.canonical import digest_of, file_digest

Files = dict[Path, bytes]
"""By their paths in a home's folder `work`."""

_rows: Files = {}
_trainings: dict[str, Files] = {}


def lend_rows(home: OwnerHome) -> None:
    """Put the routing rows that others have made of the same text where the home would keep its own."""
    _write(home, _rows)


def keep_rows(home: OwnerHome) -> None:
    """Remember the routing rows that this home has made."""
    _rows.update(_files(home, "rows"))


def lend_training(home: OwnerHome) -> None:
    """Put a finished training, with the rows it was made with, where the home would train."""
    found = _trainings.get(_key(home))
    if found is not None and home.config.training.start == "anchor":
        for path in (home.work / "training").rglob("checkpoint-*"):
            path.unlink()
        _write(home, found)


def keep_training(home: OwnerHome) -> None:
    """Remember a training that has just been packed."""
    if home.config.training.start == "anchor":
        _trainings[_key(home)] = _files(home, "rows", "statistics", "training")


def _key(home: OwnerHome) -> str:
    texts = [file_digest(home.path / name) for name in home.config.data.files]
    settings = [home.config.data.model_dump(mode="json"), home.config.training.model_dump(mode="json")]
    return digest_of({"charter": home.charter.digest, "texts": texts, "settings": settings})


def _files(home: OwnerHome, *folders: str) -> Files:
    paths = [path for folder in folders for path in (home.work / folder).rglob("*") if path.is_file()]
    return {path.relative_to(home.work): path.read_bytes() for path in paths}


def _write(home: OwnerHome, files: Files) -> None:
    for path, content in files.items():
        (home.work / path).parent.mkdir(parents=True, exist_ok=True)
        (home.work / path).write_bytes(content)
