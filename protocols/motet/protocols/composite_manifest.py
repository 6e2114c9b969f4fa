"""What a composite is: its anchor, its members in the order of their ids, and every file with its digest.

`composite.json` in a composite's folder holds this document, and its digest names the composite. Nothing in it
depends on who assembled it, when, or where.

    manifest = verify_composite(Path("composite"))    # every byte read; AssemblyError names the file that is wrong
    manifest.digest, [member.name for member in manifest.members]
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from motet.protocols.canonical import Digest, file_digest
from motet.protocols.charter import RoutingRules
from motet.protocols.documents import Document, Name, Strict
from motet.protocols.errors import AssemblyError, DocumentError

MANIFEST_FILE = "composite.json"


class RoutingPolicy(Strict):
    """How a composite weighs its experts; see `RoutingRules` for the meaning of each."""

    kind: Literal["filter", "token", "embedding"] = "token"
    stay: float = Field(0.99, ge=0, lt=1)
    temperature: float = Field(4.0, gt=0)
    top_k: int | None = Field(None, ge=1)
    normalise_top_k: bool = True
    log_prior_anchor: float = 0.0
    log_prior_expert: float = 0.0

    @classmethod
    def of(cls, rules: RoutingRules) -> Self:
        """The policy that a charter's rules ask for."""
        return cls(**rules.model_dump(include=set(cls.model_fields)))

    @property
    def evidence(self) -> dict[str, float] | None:
        """The filter's settings as a composite's configuration holds them; None when it routes token by token."""
        return {"stay": self.stay, "temperature": self.temperature} if self.kind == "filter" else None


class CompositeMember(Strict):
    """One expert: its owner's name for it, its contribution, and the digest of its store file."""

    name: Name
    contribution: Digest
    expert: Digest


class CompositeFile(Strict):
    """One file of the composite's folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=255)
    size: int = Field(ge=0)
    """Bytes."""
    sha256: Digest


class CompositeManifest(Document):
    """The content of a composite. Expert 0 is the anchor's own; member i has id i + 1."""

    schema_: Literal["motet.composite/1"] = Field("motet.composite/1", alias="schema")
    anchor: Digest
    members: tuple[CompositeMember, ...]
    """In the order of their contributions' digests."""
    routing: RoutingPolicy
    files: tuple[CompositeFile, ...]
    """Every file but composite.json, sorted by name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        contributions = [member.contribution for member in self.members]
        if contributions != sorted(set(contributions)):
            raise ValueError("members: saw contributions repeated or out of order, wanted each once and sorted")
        if len({"anchor", *(member.name for member in self.members)}) != len(self.members) + 1:
            raise ValueError("members: saw a name twice or 'anchor', wanted different names; expert 0 is the anchor")
        names = [file.name for file in self.files]
        if names != sorted(set(names)) or MANIFEST_FILE in names:
            raise ValueError(f"files: saw names repeated, out of order or {MANIFEST_FILE}, wanted each other file once")
        return self


def read_composite_manifest(directory: Path) -> CompositeManifest:
    """The manifest of the composite in `directory`, its files unread; raises AssemblyError when there is none."""
    path = directory / MANIFEST_FILE
    try:
        return CompositeManifest.parse(path.read_bytes())
    except (OSError, DocumentError) as error:
        raise AssemblyError(f"cannot read {path}: {error}; fetch or assemble the composite again") from error


def verify_composite(directory: Path) -> CompositeManifest:
    """Check that a composite's folder holds exactly what its manifest says, and return the manifest.

    Raises:
        AssemblyError: the manifest is missing or malformed, or a file is missing, altered, or not listed.
    """
    manifest = read_composite_manifest(directory)
    saw = {path.name for path in directory.iterdir()} - {MANIFEST_FILE}
    if wrong := saw ^ {file.name for file in manifest.files}:
        raise AssemblyError(
            f"{directory}: {min(wrong)} is missing or not listed; fetch or assemble the composite again"
        )
    for file in manifest.files:
        path = directory / file.name
        size = path.stat().st_size
        if size != file.size or file_digest(path) != file.sha256:
            raise AssemblyError(
                f"{path}: saw other content ({size} bytes) than its manifest's {file.sha256} ({file.size} bytes); "
                "fetch or assemble the composite again"
            )
    return manifest
