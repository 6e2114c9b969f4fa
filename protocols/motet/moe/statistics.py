"""Statistics of every layer's MLP input: what an owner's text and the public text are compared by.

Measured on the frozen anchor with streaming float64 sums, so memory does not grow with the text. Padding
and the first positions (BOS at least) are left out: every text looks alike there.

    public = measure(anchor, texts, max_tokens=50_000)
    public.save(directory / "statistics.safetensors")
    Statistics.load(directory / "statistics.safetensors", expect=anchor.digest)

The covariance is shrunk towards a multiple of the identity by the oracle approximating shrinkage of Chen,
Wiesel, Eldar and Hero (IEEE Transactions on Signal Processing 58 (10), 2010, equation 23), which needs no
second pass and no tuning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from motet.protocols.canonical import write_atomically
from motet.protocols.errors import StatisticsError

if TYPE_CHECKING:
    from motet.moe.anchor import Anchor

FORMAT = "motet.statistics/1"
MAX_HIDDEN_SIZE = 1024
"""Wider layers need a covariance of low rank plus diagonal, which is not written yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Mean (layers, hidden) and shrunk covariance (layers, hidden, hidden) of the MLP inputs, both float32.

    `anchor` is the digest of the anchor they were measured on and `tokens` the number of positions counted.
    """

    anchor: str
    tokens: int
    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        """Refuse what cannot be statistics; raises StatisticsError."""
        if self.mean.ndim != 2 or tuple(self.covariance.shape) != (*self.mean.shape, self.mean.shape[-1]):
            raise StatisticsError(
                f"saw a mean of shape {tuple(self.mean.shape)} with a covariance of shape "
                f"{tuple(self.covariance.shape)}, wanted (layers, hidden) with (layers, hidden, hidden)"
            )
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise StatisticsError("saw NaN or infinity in the statistics, wanted finite numbers; measure them again")

    def save(self, path: Path) -> None:
        """Write the statistics as safetensors, atomically; the same statistics give the same bytes."""
        content = json.dumps({"anchor": self.anchor, "schema": FORMAT, "tokens": self.tokens}, sort_keys=True)
        tensors = {"mean": self.mean.contiguous(), "covariance": self.covariance.contiguous()}
        # One metadata key: safetensors writes several in an order that changes from run to run.
        write_atomically(path, to_safetensors(tensors, metadata={"motet": content}))

    @classmethod
    def load(cls, path: Path, *, expect: str | None = None) -> Self:
        """Read statistics; raises StatisticsError when unreadable or measured on another anchor than `expect`."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("motet", "{}"))
                tensors = {name: file.get_tensor(name) for name in ("mean", "covariance")}
        except (OSError, ValueError, SafetensorError) as error:
            raise StatisticsError(f"cannot read statistics {path} ({error}); measure or fetch them again") from error
        if about.get("schema") != FORMAT:
            raise StatisticsError(f"saw schema {about.get('schema')!r} in {path}, wanted {FORMAT}; measure again")
        if expect is not None and about["anchor"] != expect:
            raise StatisticsError(
                f"{path} was measured on anchor {about['anchor']}, wanted {expect}; measure on the charter's anchor"
            )
        return cls(anchor=about["anchor"], tokens=about["tokens"], **tensors)


def measure(
    anchor: Anchor,
    texts: Iterable[str],
    *,
    sequence_length: int = 128,
    batch_size: int = 16,
    max_tokens: int | None = None,
    skip_first: int = 1,
) -> Statistics:
    """Measure every layer's MLP input on `texts`, computed in float32 on the stored weights.

    Each text is cut into sequences of at most `sequence_length` tokens; padding and the first `skip_first` positions
    of a sequence (BOS counts as one) are left out. Stops after the batch in which `max_tokens` positions were counted.
    Raises StatisticsError when fewer than two positions remain or the anchor is wider than `MAX_HIDDEN_SIZE`.
    """
    manifest = anchor.manifest
    if manifest.hidden_size > MAX_HIDDEN_SIZE:
        raise StatisticsError(
            f"saw an anchor {manifest.hidden_size} wide, wanted at most {MAX_HIDDEN_SIZE}: wider covariances (low rank "
            "plus diagonal) are not supported yet; choose a narrower anchor"
        )
    sums = [_Sums(manifest.hidden_size) for _ in range(manifest.layers)]
    model = anchor.model(dtype=torch.float32)
    with _collecting(model, sums) as counted, torch.inference_mode():
        for ids, attention in _batches(anchor.tokenizer(), texts, sequence_length, batch_size):
            counted.mask = attention.bool()
            counted.mask[:, :skip_first] = False
            model.model(input_ids=ids, attention_mask=attention, use_cache=False)
            if max_tokens is not None and sums[0].count >= max_tokens:
                break
    if sums[0].count < 2:
        raise StatisticsError(f"counted {sums[0].count} positions in the texts, wanted at least 2; give more text")
    covariance = torch.stack([shrink(each.covariance(), each.count) for each in sums])
    mean = torch.stack([each.mean() for each in sums])
    return Statistics(anchor=anchor.digest, tokens=sums[0].count, mean=mean.float(), covariance=covariance.float())


def shrink(covariance: Tensor, count: int) -> Tensor:
    """Oracle approximating shrinkage of a sample covariance (hidden, hidden) of `count` samples, in float64.

    Always between the sample covariance and its mean variance times the identity.
    """
    size = covariance.shape[0]
    trace, squared = covariance.trace(), covariance.square().sum()
    spread = (count + 1 - 2 / size) * (squared - trace.square() / size)
    share = 1.0 if not spread > 0 else min(1.0, float(((1 - 2 / size) * squared + trace.square()) / spread))
    identity = torch.eye(size, dtype=covariance.dtype)
    return (1 - share) * covariance + share * trace / size * identity


class _Sums:
    """Running first and second moments of one layer's MLP input, around the first batch's mean for precision."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._origin = torch.zeros(size, dtype=torch.float64)
        self._first = torch.zeros(size, dtype=torch.float64)
        self._second = torch.zeros(size, size, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Count rows of x (tokens, hidden)."""
        x = x.double()
        if self.count == 0 and len(x):
            self._origin = x.mean(dim=0)
        x = x - self._origin
        self.count += len(x)
        self._first += x.sum(dim=0)
        self._second += x.T @ x

    def mean(self) -> Tensor:
        return self._origin + self._first / self.count

    def covariance(self) -> Tensor:
        offset = self._first / self.count
        covariance = self._second / self.count - torch.outer(offset, offset)
        return (covariance + covariance.T) / 2


class _Counted:
    """Which positions (batch, sequence) of the current batch are counted."""

    mask: Tensor


@contextmanager
def _collecting(model: Any, sums: list[_Sums]) -> Iterator[_Counted]:  # noqa: ANN401 - transformers is untyped
    """While open, every forward pass adds its counted MLP inputs to `sums`, layer by layer."""
    counted = _Counted()

    def hook_of(layer_sums: _Sums) -> Any:  # noqa: ANN401
        return lambda module, arguments: layer_sums.add(arguments[0][counted.mask])

    hooks = [
        layer.mlp.register_forward_pre_hook(hook_of(layer_sums))
        for layer, layer_sums in zip(model.model.layers, sums, strict=True)
    ]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _batches(
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped
    texts: Iterable[str],
    sequence_length: int,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Right-padded token ids and attention (batch, sequence) of consecutive sequences."""
    batch: list[list[int]] = []
    for text in texts:
        for sequence in _sequences(tokenizer, text, sequence_length):
            batch.append(sequence)
            if len(batch) == batch_size:
                yield _pad(batch)
                batch = []
    if batch:
        yield _pad(batch)


def _sequences(tokenizer: Any, text: str, sequence_length: int) -> Iterator[list[int]]:  # noqa: ANN401
    """The text's tokens cut to `sequence_length`, each piece opened by BOS if the tokenizer has one."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    step = sequence_length - len(prefix)
    for start in range(0, len(tokens), step):
        yield prefix + tokens[start : start + step]


def _pad(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(len(sequence) for sequence in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention = torch.zeros(len(batch), width, dtype=torch.long)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        attention[row, : len(sequence)] = 1
    return ids, attention
