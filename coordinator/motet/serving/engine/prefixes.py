"""Beginnings of texts that were computed before, kept to be used again by sequences of the same expert set.

Guarantees: a state is found only under the digest of the set that it was computed with; what is handed out is a copy;
no more than `tokens` positions are kept, those least lately used are dropped first.

    prefixes = Prefixes(tokens=16384)
    prefixes.keep(tokens, state)                          # the state is the store's from now on
    state = prefixes.find(digest, prompt)                 # a copy of the longest common beginning, or None
    prefixes.drop(lambda digest: digest in gone)
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from motet.serving.engine.state import State

LEAST = 16
"""A common beginning of fewer tokens is computed again; it is not worth a copy."""


class Prefixes:
    """States by what filled them. Not for several threads at once."""

    def __init__(self, *, tokens: int) -> None:
        self.limit = tokens
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], State] = OrderedDict()

    @property
    def tokens(self) -> int:
        """Positions that there is memory for in all that is kept."""
        return sum(state.room for state in self._kept.values())

    @property
    def sets(self) -> set[str]:
        """Digests of the sets that something is kept of."""
        return {digest for digest, _ in self._kept}

    def keep(self, tokens: Sequence[int], state: State) -> None:
        """Takes a state over; `tokens` are those that filled it."""
        if not LEAST <= state.length <= self.limit:
            return
        key = state.expert_set, tuple(tokens[: state.length])
        for other in [each for each in self._kept if each[0] == key[0] and key[1][: len(each[1])] == each[1]]:
            del self._kept[other]  # the new one begins like it and goes on
        self._kept[key] = state
        while self.tokens > self.limit:
            self._kept.popitem(last=False)

    def find(self, expert_set: str, prompt: Sequence[int]) -> State | None:
        """A copy of the longest known beginning of `prompt`, but not of all of it: its last token is to be read."""
        best, length = None, LEAST - 1
        for key in self._kept:
            if key[0] == expert_set and (common := _common(key[1], prompt[:-1])) > length:
                best, length = key, common
        if best is None:
            return None
        self._kept.move_to_end(best)
        return self._kept[best].prefix(length)

    def drop(self, unwanted: Callable[[str], bool]) -> None:
        """Forgets what was computed under sets whose digest is `unwanted`."""
        for key in [each for each in self._kept if unwanted(each[0])]:
            del self._kept[key]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
