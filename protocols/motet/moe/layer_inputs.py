"""What every layer's feed-forward network reads while the frozen anchor reads a text: all routing is made from that.

Padding and the first positions (BOS at least) are left out: every text looks alike there. Computed in float32 on the
stored weights.

    for counted in walk(anchor, texts, lambda layer, inputs, document: ...):
        if counted >= 50_000: break
    inputs = layer_inputs(anchor, texts, layers=(0,), max_tokens=30_000)
    inputs.values[0], inputs.document                  # (tokens, hidden), (tokens,)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from motet.protocols.errors import StatisticsError

if TYPE_CHECKING:
    from motet.moe.anchor import Anchor

SEQUENCE_LENGTH = 128

Observe = Callable[[int, Tensor, Tensor], None]
"""Told a layer, its counted inputs (tokens, hidden) on the CPU, and the text that each is of (tokens,)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerInputs:
    """Counted inputs by layer, each (tokens, hidden) float32, and the number of the text each is of: (tokens,)."""

    values: dict[int, Tensor]
    document: Tensor


def walk(
    anchor: Anchor,
    texts: Iterable[str],
    observe: Observe,
    *,
    layers: Sequence[int] | None = None,
    sequence_length: int = SEQUENCE_LENGTH,
    batch_size: int = 16,
    skip_first: int = 1,
    device: str | torch.device = "cpu",
) -> Iterator[int]:
    """Run the anchor over `texts`; yields, after every batch, how many positions were counted so far.

    Each text is cut into sequences of at most `sequence_length` tokens; padding and the first `skip_first` positions of
    a sequence (BOS counts as one) are left out. `layers` are those observed, None for all; the last of them is the last
    that is run.
    """
    model = anchor.model(dtype=torch.float32)
    wanted = range(anchor.manifest.layers) if layers is None else layers
    del model.model.layers[max(wanted) + 1 :]  # what comes after is not needed
    model.to(torch.device(device))  # type: ignore[arg-type]
    counted = 0
    with _observed(model, wanted, observe) as batch, torch.inference_mode():
        for ids, attention, document in _batches(anchor.tokenizer(), texts, sequence_length, batch_size):
            batch.mask = attention.bool()
            batch.mask[:, :skip_first] = False
            batch.document = document[:, None].expand_as(ids)[batch.mask]
            model.model(input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False)
            counted += len(batch.document)
            yield counted


def layer_inputs(
    anchor: Anchor,
    texts: Iterable[str],
    *,
    layers: Sequence[int],
    max_tokens: int,
    device: str | torch.device = "cpu",
) -> LayerInputs:
    """The inputs of `layers`, up to the batch in which `max_tokens` positions are reached; kept in memory.

    Raises StatisticsError when no position is counted.
    """
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    documents: list[Tensor] = []

    def observe(layer: int, inputs: Tensor, document: Tensor) -> None:
        parts[layer].append(inputs)
        if layer == layers[0]:
            documents.append(document)

    for counted in walk(anchor, texts, observe, layers=layers, device=device):
        if counted >= max_tokens:
            break
    if not documents:
        raise StatisticsError("counted no position in the texts, wanted at least one; give more text")
    return LayerInputs(values={layer: torch.cat(part) for layer, part in parts.items()}, document=torch.cat(documents))


class _Batch:
    """Which positions (batch, sequence) of the batch under way are counted, and of which text each of these is."""

    mask: Tensor
    document: Tensor


@contextmanager
def _observed(model: Any, layers: Sequence[int], observe: Observe) -> Iterator[_Batch]:  # noqa: ANN401 - untyped
    """While open, every forward pass tells the counted MLP inputs of `layers`."""
    batch = _Batch()

    def hook_of(layer: int) -> Any:  # noqa: ANN401
        return lambda module, arguments: observe(layer, arguments[0].cpu()[batch.mask], batch.document)

    hooks = [model.model.layers[layer].mlp.register_forward_pre_hook(hook_of(layer)) for layer in layers]
    try:
        yield batch
    finally:
        for hook in hooks:
            hook.remove()


def _batches(
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped
    texts: Iterable[str],
    sequence_length: int,
    batch_size: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Right-padded token ids and attention (batch, sequence) of consecutive sequences, and their texts (batch,)."""
    batch: list[tuple[int, list[int]]] = []
    for number, text in enumerate(texts):
        for sequence in _sequences(tokenizer, text, sequence_length):
            batch.append((number, sequence))
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


def _pad(batch: list[tuple[int, list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(sequence) for _, sequence in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention = torch.zeros(len(batch), width, dtype=torch.long)
    for row, (_, sequence) in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        attention[row, : len(sequence)] = 1
    return ids, attention, torch.tensor([number for number, _ in batch])
