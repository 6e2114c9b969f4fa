"""What a composite is: its anchor, its members in the order of their ids, and every file with its digest.

`composite.json` in a composite's folder holds this document, and its digest names the composite. Nothing in it
depends on who assembled it, when, or where.

    manifest = verify_composite(Path("composite"))    # every byte read; AssemblyError names the file that is wrong
    manifest.digest, [member.name for member in manifest.members]
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from motet.protocols.canonical import Digest, digest_of, file_digest
from motet.protocols.charter import MAX_GAIN, RoutingRules
from motet.protocols.documents import Document, Name, Strict
from motet.protocols.errors import AssemblyError, DocumentError

MANIFEST_FILE = "composite.json"


class RoutingPolicy(Strict):
    """How a composite weighs its experts; see `RoutingRules` for the meaning of each."""

    kind: Literal["filter", "token", "embedding"] = "token"
    stay: float = Field(0.99, ge=0, lt=1)
    temperature: float = Field(4.0, gt=0)
    gain: float | None = Field(None, gt=0, le=MAX_GAIN)
    """None where layers' rows decide, and in a filter."""
    top_k: int | None = Field(None, ge=1)
    normalise_top_k: bool = True
    log_prior_anchor: float = 0.0
    log_prior_expert: float = 0.0

    @classmethod
    def of(cls, rules: RoutingRules) -> Self:
        """The policy that a charter's rules ask for."""
        same = rules.model_dump(include=set(cls.model_fields) - {"gain"})
        return cls(**same, gain=rules.gain if rules.rows == "average" else None)

    @property
    def counted(self) -> bool:
        """Whether evidence by token id is added up over the prefix."""
        return self.kind == "filter" or self.gain is not None


class CompositeMember(Strict):
    """One expert: its owner's name for it, its contribution, and the digest of its store file."""

    name: Name
    contribution: Digest
    expert: Digest
    rank: int | None = Field(None, ge=1)
    """Of a low-rank expert's factors; None for a full expert."""


class Tuning(Strict):
    """How a router was fitted jointly, and with whom: it holds for these members and no others."""

    membership: Digest
    """`membership_of` the contributions that it was tuned with."""
    steps: int = Field(ge=1)
    seed: int = Field(ge=0)
    documents: dict[Name, NonNegativeInt]
    """By member, how many public documents stood for its text; 0 for one that named none."""

    def problem(self, members: Iterable[CompositeMember]) -> str | None:
        """Why this is no tuning of a composite of `members`; None if it is one."""
        named = {member.name: member.contribution for member in members}
        if self.membership != membership_of(named.values()):
            return f"saw a router tuned with the membership {self.membership}, wanted {membership_of(named.values())}"
        if self.documents.keys() != named.keys():
            return f"saw documents of {sorted(self.documents)}, wanted each member's, {sorted(named)}"
        if not any(self.documents.values()):
            return "saw no document that stands for a member's text, wanted some"
        return None


def membership_of(contributions: Iterable[str]) -> str:
    """Names a set of members: the digest over their contributions' digests, sorted."""
    return digest_of({"schema": "motet.membership/1", "contributions": sorted(contributions)})


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
    tuning: Tuning | None = None
    """How the router was tuned; None where it is what the members' own rows make."""

    def as_json(self) -> dict[str, Any]:
        """The document as a JSON object; without tuning, gain or a rank it has no such keys, as before them."""
        whole = super().as_json()
        if self.routing.gain is None:
            del whole["routing"]["gain"]
        whole["members"] = [
            {key: value for key, value in member.items() if (key, value) != ("rank", None)}
            for member in whole["members"]
        ]
        return whole if self.tuning is not None else {key: whole[key] for key in whole if key != "tuning"}

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
        if self.tuning is not None and (problem := self.tuning.problem(self.members)):
            raise ValueError(f"tuning: {problem}; tune again with these members")
        if self.tuning is not None and self.routing.counted:
            raise ValueError("tuning: saw tuned evidence over the prefix, wanted none: it is counted, not fitted")
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
