"""The folder where finished stages lie, each under its digest, whole or absent.

    cache = Cache(Path("motet-quality"))
    with cache.claimed(stage):                        # BlockingIOError while another run is at it
        if not cache.holds(stage):
            out = cache.begin(stage)                  # an empty folder
            ...                                       # the stage, and a record of it, are written there
            cache.finish(stage, out)                  # the folder takes its name
    cache.record(stage).seconds

Whoever is killed leaves its unfinished folder behind; the next who begins the same stage removes it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from motet.bench.quality.stages import Stage
from motet.protocols.canonical import storage_errors, sync_directory
from motet.protocols.documents import Document, first_problem
from motet.protocols.errors import DocumentError
from motet.protocols.locks import locked

RECORD = "stage.json"


class Record(Document):
    """What `stage.json` says of a finished stage."""

    schema_: Literal["motet.stage/1"] = Field("motet.stage/1", alias="schema")
    kind: str
    version: int
    label: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    """Name -> digest."""
    weight: float
    """How long it was thought to take."""
    seconds: float
    """How long it took."""
    peak_rss_mb: float
    """The most memory that the worker held meanwhile, in megabytes (10^6), its libraries included."""
    versions: dict[str, str]
    """Package -> version it was made with."""


class Cache:
    """Finished stages in `stages`, unfinished in `partial`, what they printed in `logs`."""

    def __init__(self, root: Path) -> None:
        """Open, or begin, the cache at `root`.

        Raises:
            StorageError: the folder cannot be made.
        """
        self.root = root.absolute()
        self.logs = self.root / "logs"
        with storage_errors(self.root, new=True):
            for folder in (self._finished, self._partial, self._locks, self.logs):
                folder.mkdir(parents=True, exist_ok=True)

    def folder(self, stage: Stage) -> Path:
        """Where the stage lies once it is finished."""
        return self._finished / stage.name

    def log(self, stage: Stage) -> Path:
        """Where what it prints goes."""
        return self.logs / f"{stage.name}.log"

    def holds(self, stage: Stage) -> bool:
        """Whether it is finished."""
        return (self.folder(stage) / RECORD).exists()

    def record(self, stage: Stage) -> Record:
        """What is known of a finished stage.

        Raises:
            DocumentError: the record is not as this version writes it.
        """
        return _read(self.folder(stage) / RECORD)

    def records(self) -> Iterator[Record]:
        """The record of everything finished, also by other configurations; unreadable ones are left out."""
        for path in sorted(self._finished.glob(f"*/{RECORD}")):
            try:
                yield _read(path)
            except (OSError, DocumentError):
                continue

    def claimed(self, stage: Stage) -> AbstractContextManager[None]:
        """Hold the stage against other runs; BlockingIOError when one holds it."""
        return locked(self._locks / stage.name, wait=False)

    def begin(self, stage: Stage) -> Path:
        """A new folder for the stage, which must be claimed; what killed runs left of it is removed."""
        for left in self._partial.glob(f"{stage.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        with storage_errors(self._partial):
            return Path(tempfile.mkdtemp(dir=self._partial, prefix=f"{stage.name}."))

    def finish(self, stage: Stage, out: Path) -> None:
        """Give the folder its name."""
        with storage_errors(self._finished):
            out.chmod(0o755)
            out.rename(self.folder(stage))
            sync_directory(self._finished)

    @property
    def _finished(self) -> Path:
        return self.root / "stages"

    @property
    def _partial(self) -> Path:
        return self.root / "partial"

    @property
    def _locks(self) -> Path:
        return self.root / "locks"


def _read(path: Path) -> Record:
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DocumentError(f"{path} is no record of a stage: {first_problem(error)}; remove its folder") from error
