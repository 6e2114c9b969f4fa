"""What owners signed of the experts that are served: whose they are, and under which terms.

A composite names its members by their contributions' digests, so that a manifest from any source is either the very
one or none of them. Guarantees that every manifest that is used was signed by the owner it names.

    known = read_contributions(Path("contributions.jsonl"))             # or LedgerSource(home, roster).known
    members = members_of(roster, known)                                 # by name
    missing(roster, members)                                            # names whose terms nobody told
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from motet.protocols.canonical import write_atomically
from motet.protocols.contribution import Contribution, Terms
from motet.protocols.errors import ConfigurationError, DocumentError
from motet.protocols.ledger import LedgerEntry
from motet.protocols.signing import Signed
from motet.serving.expert_sets import Roster


def read_contributions(path: Path) -> dict[str, Contribution]:
    """Signed manifests, one a line, by digest.

    Raises:
        ConfigurationError: the file cannot be read, or a line is no manifest signed by its owner.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path} ({error.strerror}); write it with `motet terms` where the coordinator's home is"
        ) from error
    found = [_opened(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return {each.digest: each for each in found}


def write_contributions(path: Path, entries: Iterable[LedgerEntry]) -> int:
    """Writes the signed manifests of a ledger's admitted contributions, and returns how many. Raises StorageError."""
    signed = [Signed.model_validate(entry.body["signed"]) for entry in entries if entry.kind == "admitted"]
    write_atomically(path, b"".join(each.canonical() + b"\n" for each in signed))
    return len(signed)


def members_of(roster: Roster, known: Mapping[str, Contribution]) -> dict[str, Contribution]:
    """By the names of the served experts, what is known of them."""
    named = zip(roster.names[1:], roster.contributions, strict=True)
    return {name: known[digest] for name, digest in named if digest in known}


def missing(roster: Roster, members: Mapping[str, Contribution]) -> tuple[str, ...]:
    """The served experts of which nothing is known."""
    return tuple(name for name in roster.names[1:] if name not in members)


def terms_of(roster: Roster, members: Mapping[str, Contribution]) -> dict[str, Terms | None]:
    """By the name of every expert but the anchor, its terms; None where they are not known."""
    return {name: members[name].terms if name in members else None for name in roster.names[1:]}


def _opened(line: bytes, where: str) -> Contribution:
    try:
        signed = Signed.parse(line)
        return signed.open(Contribution, by=signed.open(Contribution).owner)
    except DocumentError as error:
        raise ConfigurationError(f"{where}: {error}; write the file again with `motet terms`") from error
