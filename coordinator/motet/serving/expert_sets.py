"""Which experts a request may have, and what that set is called: by the digest of its content.

Guarantees: the anchor is in every set; an unknown name is an error that lists the known ones; the digest depends on the
anchor and on the members' contributions, never on what they are called or in what order they were named.

    roster = Roster(names=config.names, contributions=config.contributions, anchor=manifest.anchor)
    roster.every()                                           # all experts
    roster.choose(exclude=["news"])                          # or include=["math"], or both
    roster.choose(allowed=frozenset({"math"}))               # as far as somebody may use them
    name, include, exclude = asked_by_name("demo:-law,-news")    # for clients that can only name a model
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from motet.protocols.canonical import digest_of
from motet.protocols.errors import ExpertSetError

ANCHOR = "anchor"
SCHEMA = "motet.expert-set/1"


def expert_set_digest(anchor: str, contributions: Collection[str]) -> str:
    """Names an expert set: the digest over the anchor's digest and its members' contributions' digests, sorted."""
    return digest_of({"schema": SCHEMA, "anchor": anchor, "contributions": sorted(contributions)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSet:
    """The experts of one request.

    names: the anchor's first, then in the order of expert ids.
    mask: by expert id, whether it takes part.
    digest: of what the members are.
    """

    names: tuple[str, ...]
    mask: tuple[bool, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The experts of a composite: names by expert id, contributions of experts 1, 2, ..., the anchor's digest."""

    names: tuple[str, ...]
    contributions: tuple[str, ...]
    anchor: str

    def every(self) -> ExpertSet:
        """All experts."""
        return self.choose()

    def choose(
        self,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        allowed: Collection[str] | None = None,
    ) -> ExpertSet:
        """A set: `include` (None: everybody) without `exclude`, as far as `allowed` (None: everybody).

        Experts that are not `allowed` are left out in silence where nobody named them; one that `include` names and
        that is not allowed is an error. Raises ExpertSetError too for an unknown name, an empty `include`, a name that
        is both included and excluded, and the anchor excluded.
        """
        self._require(include, exclude, allowed)
        chosen = self.names if include is None else include
        permitted = self.names if allowed is None else allowed
        mask = tuple(
            name == ANCHOR or (name in chosen and name not in exclude and name in permitted) for name in self.names
        )
        own = [one for one, on in zip(self.contributions, mask[1:], strict=True) if on]
        names = tuple(name for name, on in zip(self.names, mask, strict=True) if on)
        return ExpertSet(names=names, mask=mask, digest=expert_set_digest(self.anchor, own))

    def _require(self, include: Sequence[str] | None, exclude: Sequence[str], allowed: Collection[str] | None) -> None:
        if unknown := sorted({*(include or ()), *exclude} - set(self.names)):
            raise ExpertSetError(f"saw unknown experts {', '.join(unknown)}; this model has {', '.join(self.names)}")
        if include is not None and not include:
            raise ExpertSetError(
                "saw an empty list to include, wanted at least one name; the anchor alone is ['anchor']"
            )
        if ANCHOR in exclude:
            raise ExpertSetError("saw 'anchor' excluded, wanted names of closed experts; the anchor always takes part")
        if both := sorted(set(include or ()) & set(exclude)):
            raise ExpertSetError(f"saw {', '.join(both)} both included and excluded, wanted one; drop the other")
        if allowed is not None and (denied := sorted(set(include or ()) - set(allowed) - {ANCHOR})):
            usable = ", ".join(name for name in self.names if name == ANCHOR or name in allowed)
            raise ExpertSetError(f"saw {', '.join(denied)}, wanted experts that may be used here and now: {usable}")


def asked_by_name(model: str) -> tuple[str, tuple[str, ...] | None, tuple[str, ...]]:
    """Of "NAME", "NAME:-law,-news" or "NAME:+math": the name, whom to include (None: everybody), whom to exclude.

    Raises ExpertSetError for anything else behind the colon.
    """
    name, colon, asked = model.partition(":")
    parts = [part.strip() for part in asked.split(",")] if colon else []
    if any(len(part) < 2 or part[0] not in "+-" for part in parts):
        raise ExpertSetError(
            f"saw the model {model!r}, wanted NAME, or NAME:-law,-news without experts, or NAME:+math with these alone"
        )
    include = tuple(part[1:] for part in parts if part[0] == "+")
    return name, include or None, tuple(part[1:] for part in parts if part[0] == "-")
