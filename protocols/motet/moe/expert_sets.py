"""Which experts may speak: by mask, by name, or for a stretch of code.

Guarantees: the anchor always stays; an unknown name is an error, never ignored; threads and asyncio tasks do not see
each other's choice. Nested choices narrow: what an outer block rules out, no inner block brings back. Explicit
arguments (`expert_mask`, `expert_sets`) win over blocks.

    with only("math"):            # the anchor and math
        model.generate(**inputs)
    with without("news"):         # all but news
        model(**inputs)
    model.generate(**inputs, expert_sets=[["math"], ["anchor"]])  # one set per row
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.moe.config import ANCHOR
from motet.protocols.errors import ExpertSetError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """Names that one block allows (or rules out), inside those of the blocks around it."""

    names: frozenset[str]
    excluding: bool
    outer: "_Choice | None"

    def allows(self, name: str) -> bool:
        inside = self.outer is None or self.outer.allows(name)
        return inside and (name == ANCHOR or (name in self.names) != self.excluding)

    def all_names(self) -> frozenset[str]:
        return self.names | (self.outer.all_names() if self.outer else frozenset())


_CHOICE: ContextVar[_Choice | None] = ContextVar("motet_expert_choice", default=None)
_PROMPTS: ContextVar[Tensor | None] = ContextVar("motet_prompts_allow", default=None)


@contextmanager
def only(*names: str) -> Iterator[None]:
    """Allow only these experts, and the anchor, inside the block. Raises ExpertSetError when no name is given."""
    if not names:
        raise ExpertSetError('saw only() without a name, wanted at least one; the anchor alone is only("anchor")')
    with _chosen(names, excluding=False):
        yield


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Rule these experts out inside the block. Raises ExpertSetError for the anchor, which always stays."""
    if ANCHOR in names:
        raise ExpertSetError("saw without('anchor'), wanted names of closed experts; the anchor always takes part")
    with _chosen(names, excluding=True):
        yield


@contextmanager
def prompts_allow(expert_mask: Tensor | None) -> Iterator[None]:
    """While `generate` runs, the mask (prompts, experts) of calls that it makes without one.

    Some of its parts (classifier-free guidance) call the model themselves and drop arguments that they do not know; an
    expert that a prompt switched off must not come back through them.
    """
    token = _PROMPTS.set(expert_mask)
    try:
        yield
    finally:
        _PROMPTS.reset(token)


@contextmanager
def _chosen(names: Sequence[str], *, excluding: bool) -> Iterator[None]:
    token = _CHOICE.set(_Choice(names=frozenset(names), excluding=excluding, outer=_CHOICE.get()))
    try:
        yield
    finally:
        _CHOICE.reset(token)


def expert_mask_of(
    known: Sequence[str],
    rows: int,
    *,
    expert_mask: Tensor | None = None,
    expert_sets: Sequence[str] | Sequence[Sequence[str]] | None = None,
) -> Tensor | None:
    """The mask (rows, experts) that a call asks for, or None for all experts.

    `known` are the composite's expert names by id. Explicit arguments come first, then the blocks around the call.
    Raises ExpertSetError for a mask of the wrong shape or dtype or without the anchor, and for sets that are empty, of
    the wrong number, or name an unknown expert.
    """
    if expert_mask is not None and expert_sets is not None:
        raise ExpertSetError("saw both expert_mask and expert_sets, wanted one of them; drop the other")
    if expert_mask is not None:
        return _checked(expert_mask, rows, len(known))
    if expert_sets is not None:
        return mask_of_sets(known, rows, expert_sets)
    if (prompts := _PROMPTS.get()) is not None:
        return _checked(prompts.repeat_interleave(max(1, rows // len(prompts)), dim=0), rows, len(known))
    choice = _CHOICE.get()
    if choice is None:
        return None
    _require_known(known, choice.all_names())
    return torch.tensor([[choice.allows(name) for name in known]]).repeat(rows, 1)


def mask_of_sets(known: Sequence[str], rows: int, expert_sets: Sequence[str] | Sequence[Sequence[str]]) -> Tensor:
    """The mask (rows, experts) of one list of names for all rows, or one list per row. Errors as `expert_mask_of`."""
    sets = _per_row(expert_sets, rows)
    if len(sets) != rows:
        raise ExpertSetError(
            f"saw {len(sets)} expert sets for {rows} rows, wanted one for each row or one list for all"
        )
    for row, names in enumerate(sets):
        if isinstance(names, str) or not names:
            raise ExpertSetError(
                f"saw the expert set {names!r} for row {row}, wanted a list of names; the anchor alone is ['anchor']"
            )
        _require_known(known, names)
    return torch.tensor([[name == ANCHOR or name in names for name in known] for names in sets])


def _per_row(expert_sets: Sequence[str] | Sequence[Sequence[str]], rows: int) -> list[Sequence[str]]:
    if isinstance(expert_sets, str) or not expert_sets:
        raise ExpertSetError(
            f"saw expert_sets={expert_sets!r}, wanted a list of names, or one such list per row; "
            "None allows all experts, ['anchor'] the anchor alone"
        )
    if not any(isinstance(one, str) for one in expert_sets):
        return list(expert_sets)
    names = [one for one in expert_sets if isinstance(one, str)]
    if len(names) < len(expert_sets):
        raise ExpertSetError(f"saw names {names} among lists in expert_sets, wanted names only or lists only")
    return [names] * rows


def _require_known(known: Sequence[str], names: Sequence[str] | frozenset[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ExpertSetError(f"saw unknown experts {', '.join(unknown)}; this composite has {', '.join(known)}")


def _checked(mask: Tensor, rows: int, experts: int) -> Tensor:
    if mask.dtype != torch.bool or tuple(mask.shape) != (rows, experts):
        raise ExpertSetError(
            f"saw an expert_mask of shape {tuple(mask.shape)} and {mask.dtype}, wanted ({rows}, {experts}) "
            "and torch.bool: one row per prompt, one column per expert"
        )
    if not bool(mask[:, 0].all()):
        raise ExpertSetError(
            "saw an expert_mask that rules out the anchor (column 0) in some row; it always takes part: set it True"
        )
    return mask
