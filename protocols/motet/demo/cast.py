"""Who plays in a demonstration: the anchor, the public text, the owners with theirs, and how they train.

cast = quickstart.cast()                          # what `motet demo` plays
play(Path("motet-demo"), view, cast)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnerText:
    """What one owner of the demonstration trains on."""

    name: str
    files: str
    """A path or a glob."""
    licence: str
    max_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast:
    """One federation to be played from the first key to the report."""

    name: str
    """What the federation is called."""
    anchor: Path
    """A checkpoint with its statistics beside it."""
    public_text: Path
    owners: tuple[OwnerText, ...]
    settings: tuple[str, ...]
    """Of every owner: "section.key=value" for owner.toml."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """By owner, what is continued with and without the expert; owners without one generate nothing."""
    exporting: tuple[str, ...] = ()
    """Options of the `motet assemble` that exports."""
    run_seconds: float = 600.0
    """After so long the run counts as stuck."""
