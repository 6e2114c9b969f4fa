"""Beginnings of texts that were computed before, kept to be used again by sequences of the same expert set.

Guarantees: a state is found only under the digest of the set that it was computed with, and under the same salt, so
that nobody learns from what is known already what others have asked; what is handed out is a copy; no more than
`tokens` positions are kept, those least lately used are dropped first.

    prefixes = Prefixes(tokens=16384)
    prefixes.keep(tokens, state, salt=tenant)             # the state is the store's from now on
    state = prefixes.find(digest, prompt, salt=tenant)    # a copy of the longest common beginning, or None
    prefixes.drop(lambda digest: digest in gone)
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from motet.serving.engine.state import State

LEAST = 16
"""A common beginning of fewer tokens is computed again; it is not worth a copy."""


class _Key(NamedTuple):
    salt: str | None
    expert_set: str
    tokens: tuple[int, ...]

    def begins(self, other: "_Key") -> bool:
        """Whether `other` begins with all of this one, and could be used in its place."""
        return self[:2] == other[:2] and other.tokens[: len(self.tokens)] == self.tokens


class Prefixes:
    """States by what filled them. Not for several threads at once, but for `tokens`, which any may ask for."""

    def __init__(self, *, tokens: int) -> None:
        self.limit = tokens
        self._kept: OrderedDict[_Key, State] = OrderedDict()

    @property
    def tokens(self) -> int:
        """Positions that there is memory for in all that is kept."""
        return sum(state.room for state in list(self._kept.values()))  # a copy: others ask while it changes

    @property
    def sets(self) -> set[str]:
        """Digests of the sets that something is kept of."""
        return {key.expert_set for key in self._kept}

    def keep(self, tokens: Sequence[int], state: State, *, salt: str | None = None) -> None:
        """Takes a state over; `tokens` are those that filled it."""
        if not LEAST <= state.length <= self.limit:
            return
        key = _Key(salt, state.expert_set, tuple(tokens[: state.length]))
        for other in [each for each in self._kept if each.begins(key)]:
            del self._kept[other]  # the new one begins like it and goes on
        self._kept[key] = state
        while self.tokens > self.limit:
            self._kept.popitem(last=False)

    def find(self, expert_set: str, prompt: Sequence[int], *, salt: str | None = None) -> State | None:
        """A copy of the longest known beginning of `prompt`, but not of all of it: its last token is to be read."""
        best, length = None, LEAST - 1
        for key in self._kept:
            if key[:2] == (salt, expert_set) and (common := _common(key.tokens, prompt[:-1])) > length:
                best, length = key, common
        if best is None:
            return None
        self._kept.move_to_end(best)
        return self._kept[best].prefix(length)

    def drop(self, unwanted: Callable[[str], bool]) -> None:
        """Forgets what was computed under sets whose digest is `unwanted`."""
        for key in [each for each in self._kept if unwanted(each.expert_set)]:
            del self._kept[key]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
