"""A publication: a folder of files listed, with sizes and digests, in a manifest whose own digest names it all.

A composite's manifest is `composite.json`, an anchor bundle's `bundle.json`; both carry `files`, and whatever else
they hold is covered by the digest and none of this module's business.

    listing = Listing.of(data, digest)       # TransferError unless it is that manifest and every name is harmless
    listing.files["config.json"].size

A server makes the bundle of a folder with `write_bundle`.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from motet.protocols.canonical import Digest, digest_of, file_digest, write_atomically
from motet.protocols.contribution import MAX_BYTES
from motet.protocols.documents import Document, Strict, first_problem
from motet.protocols.errors import TransferRefused

BUNDLE_FILE = "bundle.json"
MAX_MANIFEST_BYTES = 16 << 20

_HARMLESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")


class PublishedFile(Strict):
    """One file of a publication."""

    name: str
    size: int = Field(ge=0, le=MAX_BYTES)
    """Bytes."""
    sha256: Digest


class Bundle(Document):
    """The manifest of a folder that has no manifest of its own, such as an anchor with its statistics."""

    schema_: Literal["motet.bundle/1"] = Field("motet.bundle/1", alias="schema")
    files: tuple[PublishedFile, ...] = Field(max_length=65536)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The files of a publication by name."""

    files: dict[str, PublishedFile]

    @classmethod
    def of(cls, data: bytes, digest: str) -> Self:
        """Read the manifest of the publication named `digest`.

        Raises:
            TransferRefused: reason "digest-mismatch" when it is another document, "bad-manifest" when it lists no
                files, a file twice, or a name that could land elsewhere.
        """
        try:
            value = json.loads(data)
            if digest_of(value) != digest:
                raise TransferRefused(
                    f"saw the manifest {digest_of(value)}, wanted {digest}; tell the coordinator",
                    reason="digest-mismatch",
                )
            files = _FILES.validate_python(value["files"])
        except ValidationError as error:
            raise _bad(first_problem(error)) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _bad(f"it is not JSON with a list of files ({type(error).__name__})") from error
        _check_names(file.name for file in files)
        return cls(files={file.name: file for file in files})

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files.values())


_FILES = TypeAdapter(tuple[PublishedFile, ...])


def write_bundle(directory: Path) -> Bundle:
    """List the files of a folder in its `bundle.json`; the bundle's digest then names the folder's content.

    Raises:
        TransferRefused: reason "bad-manifest", a file's name could not be fetched.
    """
    paths = sorted(path for path in directory.iterdir() if path.is_file() and path.name != BUNDLE_FILE)
    _check_names(path.name for path in paths)
    bundle = Bundle(
        files=tuple(PublishedFile(name=p.name, size=p.stat().st_size, sha256=file_digest(p)) for p in paths)
    )
    write_atomically(directory / BUNDLE_FILE, bundle.canonical())
    return bundle


def harmless(name: str) -> bool:
    """Whether a name stays inside the folder it is written to, visible and apart from our own partial files."""
    return bool(_HARMLESS.fullmatch(name))


def _check_names(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not harmless(name):
            raise _bad(f"it lists the file name {name!r}, wanted letters, digits and ._+- without a leading dot")
        if name.casefold() in seen:
            raise _bad(f"it lists {name!r} twice")
        seen.add(name.casefold())


def _bad(problem: str) -> TransferRefused:
    return TransferRefused(
        f"the publication's manifest cannot be used: {problem}; tell the coordinator", reason="bad-manifest"
    )
