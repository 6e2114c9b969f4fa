"""Key-value caches that remember which experts filled them, and what the tokens told at every position.

Keys and values of a layer depend on the experts of the layers below, so a cache continued under another expert set
gives wrong text without a sign of it. Guarantees: a filled cache is continued only under the sets that filled it, row
by row, recognised by what the experts are (contribution digests), not by what they are called; and a filter's
posterior, or an average's sums, follow the cache when rows are reordered, repeated or selected and when positions are
cropped.

    claim(cache, set_keys(config.contributions, mask, rows))  # CacheExpertSetError if it was filled otherwise
    note(cache, keys, told, new=False)
    last_told(cache)                                         # (batch, experts), or one more
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from motet.protocols.errors import CacheExpertSetError

SetKeys = tuple[tuple[str, ...], ...]
"""For each row of a batch, the sorted contribution digests of the closed experts that take part."""


def set_keys(contributions: Sequence[str], expert_mask: Tensor | None, rows: int) -> SetKeys:
    """What each row's expert set contains. `expert_mask` is (rows, experts), the anchor first; None allows all."""
    if expert_mask is None:
        return (tuple(sorted(contributions)),) * rows
    allowed = expert_mask[:, 1:].tolist()
    return tuple(tuple(sorted(one for one, on in zip(contributions, row, strict=True) if on)) for row in allowed)


def claim(cache: Cache, keys: SetKeys) -> None:
    """Marks an empty cache with these sets, or checks that a filled one has them.

    From then on the marks follow the cache's rows when beams are reordered or rows repeated.
    Raises CacheExpertSetError when the cache is filled and its sets are others, or unknown.
    """
    if int(cache.get_seq_length()) == 0:
        _mark(cache, keys)
        return
    found = getattr(cache, "expert_set_keys", None)
    if found is None:
        raise CacheExpertSetError(
            "saw a filled key-value cache that no Motet composite marked, wanted an empty one; start with a new cache"
        )
    if found != keys:
        raise CacheExpertSetError(
            f"saw a key-value cache filled under {_listed(found)}, wanted {_listed(keys)}; "
            "start with a new cache for other expert sets"
        )


def note(cache: Cache, keys: SetKeys, told: Tensor | None, *, new: bool) -> None:
    """Notes what a pass put into a cache: under which sets, if this pass made it, and what the tokens told.

    `told` (batch, seq, experts or one more) is of the positions that were added; None where rows decide. It takes a few
    bytes a position beside keys and values, so that a cropped cache goes on as if it had never been longer.
    """
    if new:
        _mark(cache, keys)
    if told is not None:
        before = getattr(cache, "told", None)
        cache.told = told if before is None else torch.cat([before, told], dim=1)  # type: ignore[attr-defined]


def _mark(cache: Cache, keys: SetKeys) -> None:
    if not isinstance(cache, _Marked):
        cache.__class__ = _marked(type(cache))
    cache.expert_set_keys = keys  # type: ignore[attr-defined]


def last_told(cache: Cache | None) -> Tensor | None:
    """What was told up to a cache's last position, a row for each of its rows; None when there is none."""
    kept: Tensor | None = getattr(cache, "told", None)
    return None if kept is None or not kept.shape[1] else kept[:, -1]


def _listed(keys: SetKeys) -> str:
    names = ["+".join(["anchor", *(digest[:14] for digest in key)]) for key in keys]
    return f"{len(keys)} rows of {', '.join(dict.fromkeys(names))}"


class _Marked:
    """What a marked cache's class adds to it: the marks move with the rows, what was told with the positions too."""

    expert_set_keys: SetKeys
    told: Tensor | None = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self.expert_set_keys = tuple(key for key in self.expert_set_keys for _ in range(repeats))
        if self.told is not None:
            self.told = self.told.repeat_interleave(repeats, dim=0)

    def crop(self, tokens_to_remove: int) -> None:
        kept = int(self.get_seq_length())  # type: ignore[attr-defined]
        super().crop(tokens_to_remove)  # type: ignore[misc]
        if self.told is not None:
            removed = kept - int(self.get_seq_length())  # type: ignore[attr-defined]
            self.told = self.told[:, : self.told.shape[1] - removed]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.told = None

    def _select(self, rows: Tensor) -> None:
        self.expert_set_keys = tuple(self.expert_set_keys[row] for row in rows.tolist())
        if self.told is not None:
            self.told = self.told[rows.to(self.told.device)]

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401 - the pickle protocol's own types
        """Copies and pickles by way of the class it had, since this one has no name to import."""
        return _restore, (type(self).__mro__[2], self.__dict__)


_MARKED: dict[str, type[Cache]] = {}


def _marked(kind: type[Cache]) -> type[Cache]:
    """The subclass of `kind` that carries marks. To change the class, not to wrap, keeps isinstance checks true."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    return _MARKED.setdefault(name, type(f"Marked{kind.__name__}", (_Marked, kind), {}))


def _restore(kind: type[Cache], state: dict[str, Any]) -> Cache:
    restored: Cache = object.__new__(_marked(kind))
    restored.__dict__.update(state)
    return restored
