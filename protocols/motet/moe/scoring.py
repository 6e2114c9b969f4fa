"""Bits per byte: what a model needs to write a text down, whatever its tokens.

Every token of a document is scored exactly once, in windows that each open with the tokenizer's BOS (or EOS) token
and see nothing before it; the loss is taken in float32 and summed in float64. A short document's padding is masked. Of
a conversation, the answers are scored and all else is only read.

    score = score(model, tokenizer, documents, sequence_length=256)
    bits_per_byte(score)
    rows = score_rows(Path("composite"), documents, sequence_length=256)   # "anchor", "expert:medicine", ...
    found = examine(Path("composite"), documents, own="medicine", sequence_length=256)   # the same, and diagnostics
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from motet.moe.composite import MotetForCausalLM
from motet.moe.config import ANCHOR
from motet.moe.diagnostics import Watch
from motet.moe.experts import soup
from motet.moe.spans import IGNORED, Spans, heard, muted_tokens, spanned_bytes
from motet.protocols.contribution import Score
from motet.protocols.errors import AssemblyError, DataError
from motet.protocols.evaluation.diagnosis import Diagnostics
from motet.protocols.evaluation.sums import LEAST_NATS, LEAST_TOKENS
from motet.protocols.report import set_row, set_rows

RESAMPLES = 1000
"""Bootstrap resamples of the documents that the variance is estimated from."""
RESAMPLED_TOGETHER = 1 << 16
"""How many documents are drawn at once, at most or one resample of all: 2 MB."""


class Answering(Protocol):
    """What can be scored: a causal language model of transformers, or whatever answers as one does."""

    @property
    def device(self) -> torch.device:
        """Where its input must lie."""

    def __call__(self, *, input_ids: Tensor, use_cache: bool, **forward: Any) -> Any:  # noqa: ANN401
        """input_ids (batch, seq) -> something with `logits` (batch, seq, vocabulary)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Windows:
    """Documents cut into windows, prepared once and scored under many models.

    `batches` holds (ids, labels, document) with ids and labels (batch, seq) and document (batch,), the index of the
    document that each window belongs to; labels are `IGNORED` where nothing is scored. `sizes` are the lengths of what
    is scored of the documents in UTF-8 bytes.
    """

    batches: tuple[tuple[Tensor, Tensor, Tensor], ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """What was measured of a composite on one text."""

    rows: dict[str, Score]
    """As `score_rows`."""
    diagnostics: Diagnostics | None
    """None of a text so short that even sums over all of it would say much of each token."""


def windows_of(
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped
    documents: Sequence[str],
    *,
    sequence_length: int,
    batch_size: int = 8,
    answers: Mapping[str, Spans] | None = None,
) -> Windows:
    """Tokenize and cut: windows of at most `sequence_length` tokens, the opening one included, of like length together.

    Of the documents in `answers`, only these spans are scored.

    Raises:
        DataError: there is no document, or one is empty.
    """
    answers = answers or {}
    whole = {text: ((0, len(text)),) for text in documents if text not in answers}
    sizes = tuple(spanned_bytes(text, answers.get(text) or whole[text]) for text in documents)
    if not sizes or not all(sizes):
        raise DataError(f"saw {len(sizes)} documents to score, {sizes.count(0)} of them empty; wanted text in each")
    opening = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    encoded = muted_tokens(tokenizer, documents, answers)
    step = sequence_length - 1
    windows = [
        (document, [opening, *tokens[start : start + step]])
        for document, tokens in enumerate(encoded)
        for start in range(0, len(tokens), step)
    ]
    windows.sort(key=lambda window: -len(window[1]))
    batches = tuple(
        _padded(windows[start : start + batch_size], opening) for start in range(0, len(windows), batch_size)
    )
    return Windows(batches=batches, sizes=sizes)


def score_windows(
    model: PreTrainedModel,
    windows: Windows,
    *,
    watch: Watch | None = None,
    **forward: Any,  # noqa: ANN401
) -> Score:
    """The summed loss of `windows` under `model`.

    `watch` is told every batch; `forward` goes to every forward pass, for example `expert_sets`.
    """
    nats = document_nats(model, windows, watch=watch, **forward)
    return _summed(nats, torch.tensor(windows.sizes, dtype=torch.float64))


def document_nats(
    model: Answering,
    windows: Windows,
    *,
    watch: Watch | None = None,
    **forward: Any,  # noqa: ANN401
) -> Tensor:
    """The summed loss of each document under `model`, (documents,) float64; the arguments of `score_windows`."""
    nats = torch.zeros(len(windows.sizes), dtype=torch.float64)
    with torch.inference_mode():
        for ids, labels, document in windows.batches:
            losses = _token_nats(model, ids, labels, forward)
            nats.index_add_(0, document, losses.sum(dim=1))
            if watch is not None:
                watch.note(losses, labels[:, 1:] != IGNORED)
    return nats


def score(
    model: PreTrainedModel,
    tokenizer: Any,  # noqa: ANN401
    documents: Sequence[str],
    *,
    sequence_length: int,
    batch_size: int = 8,
    **forward: Any,  # noqa: ANN401
) -> Score:
    """The summed loss of `documents` under `model`; raises DataError when there is nothing to score."""
    windows = windows_of(tokenizer, documents, sequence_length=sequence_length, batch_size=batch_size)
    return score_windows(model, windows, **forward)


def bits_per_byte(score: Score) -> float:
    """Bits per UTF-8 byte."""
    return score.bits_per_byte


def score_rows(
    composite: Path,
    documents: Sequence[str],
    *,
    sequence_length: int,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    on_row: Callable[[str], None] = lambda row: None,
) -> dict[str, Score]:
    """Every row of the report for one text; the composite is loaded once, and its tensors serve all rows.

    Rows: "anchor"; "expert:NAME", that expert's feed-forward networks in place of the anchor's; "soup", the mean of all
    experts'; "composite"; "composite-without:NAME". `on_row` is told each row before it is scored. The arithmetic is in
    `dtype`, or in that of the stored weights if it is wider: no figure is of weights rounded once more.

    Raises:
        AssemblyError: the folder holds no composite.
        DataError: there is nothing to score.
    """
    return examine(
        composite,
        documents,
        sequence_length=sequence_length,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        on_row=on_row,
    ).rows


def examine(
    composite: Path,
    documents: Sequence[str],
    *,
    sequence_length: int,
    own: str | None = None,
    sets: bool = False,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    on_row: Callable[[str], None] = lambda row: None,
    answers: Mapping[str, Spans] | None = None,
) -> Examination:
    """The rows of `score_rows`, and in the same passes what the gates do and where in the text the loss lies.

    Args:
        composite, documents, sequence_length, batch_size, device, dtype, on_row: as `score_rows`.
        own: the expert whose text this is, for its loss by position; None if it is nobody's.
        sets: whether to score the rows "set:A+B" as well, so that there is one for every expert set.
        answers: of the documents in it, the spans that are scored; what is told of gates and positions is of these too.

    Raises:
        AssemblyError, DataError: as `score_rows`; DataError too if all sets of more than eight experts are asked for.
    """
    model = load_composite(composite, dtype)
    model.to(torch.device(device))  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(composite, local_files_only=True)
    windows = windows_of(tokenizer, documents, sequence_length=sequence_length, batch_size=batch_size, answers=answers)
    watches = {"anchor": Watch(), "composite": Watch(model.config.names)}
    if own in model.config.names:
        watches[f"expert:{own}"] = Watch()
    rows = {}
    for row, scored in _rows(model, windows, _stored_dtype(composite), sets):
        on_row(row)
        rows[row] = scored(watches.get(row))
    return Examination(rows=rows, diagnostics=_told(watches))


def _told(watches: Mapping[str, Watch]) -> Diagnostics | None:
    whole = watches["composite"]
    if whole.tokens < LEAST_TOKENS:
        return None
    positions = {row: watch.positions() for row, watch in watches.items()}
    return Diagnostics(tokens=whole.tokens, layers=whole.layers(), positions=positions)


def dense_model(composite: MotetForCausalLM, ffn: Mapping[str, Tensor]) -> PreTrainedModel:
    """The anchor's architecture with `ffn` as its feed-forward networks and the composite's tensors for all else."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(composite.config.anchor)  # type: ignore[no-untyped-call]
    state = composite.state_dict()
    shared = {name: state[name] for name in model.state_dict() if name not in ffn}
    model.load_state_dict(shared | dict(ffn), assign=True)
    for name, buffer in composite.named_buffers():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    model.train(False)
    return model


def load_composite(directory: Path, dtype: torch.dtype) -> MotetForCausalLM:
    """A composite to score, in `dtype` or that of its stored weights if it is wider; raises AssemblyError."""
    try:
        wide = torch.promote_types(dtype, _stored_dtype(directory))
        model: MotetForCausalLM = MotetForCausalLM.from_pretrained(directory, dtype=wide, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AssemblyError(f"cannot load a composite from {directory}: {error}; fetch or assemble it again") from error
    model.train(False)
    return model


_Scorer = Callable[[Watch | None], Score]


def _rows(model: MotetForCausalLM, windows: Windows, stored: torch.dtype, sets: bool) -> Iterator[tuple[str, _Scorer]]:
    """Row names, and what scores them."""
    ffns = {name: model.expert_ffn(name) for name in model.config.names}
    closed = [name for name in model.config.names if name != ANCHOR]
    dense = {"anchor": ffns[ANCHOR], **{f"expert:{name}": ffns[name] for name in closed}}
    if closed:
        dense["soup"] = soup([ffns[name] for name in closed], stored)
    for row, ffn in dense.items():
        yield row, partial(_score_dense, model, ffn, windows)
    yield "composite", partial(_score_composite, model, windows)
    for name in closed:
        yield (
            f"composite-without:{name}",
            partial(_score_set, model, windows, [each for each in closed if each != name]),
        )
    for chosen in set_rows(closed) if sets else ():
        yield set_row(chosen), partial(_score_set, model, windows, sorted(chosen))


def _score_dense(model: MotetForCausalLM, ffn: Mapping[str, Tensor], windows: Windows, watch: Watch | None) -> Score:
    return score_windows(dense_model(model, ffn), windows, watch=watch)


def _score_composite(model: MotetForCausalLM, windows: Windows, watch: Watch | None) -> Score:
    if watch is None:
        return score_windows(model, windows)
    with watch.gates(model):
        return score_windows(model, windows, watch=watch)


def _score_set(model: MotetForCausalLM, windows: Windows, experts: Sequence[str], watch: Watch | None) -> Score:
    return score_windows(model, windows, watch=watch, expert_sets=[ANCHOR, *experts])


def _stored_dtype(composite: Path) -> torch.dtype:
    """The dtype that experts are stored in, whatever the model is loaded as."""
    stored = json.loads((composite / "config.json").read_text(encoding="utf-8")).get("dtype")
    return getattr(torch, stored or "float32")  # type: ignore[no-any-return]


def _padded(windows: Sequence[tuple[int, list[int]]], filler: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded: attention is causal, so that no scored token sees the padding."""
    width = max(len(tokens) for _, tokens in windows)
    ids = torch.full((len(windows), width), filler)
    labels = torch.full((len(windows), width), IGNORED)
    for row, (_, tokens) in enumerate(windows):
        read, scored = heard(torch.tensor(tokens))
        ids[row, : len(tokens)] = read
        labels[row, 1 : len(tokens)] = scored[1:]
    return ids, labels, torch.tensor([document for document, _ in windows])


def _token_nats(model: Answering, ids: Tensor, labels: Tensor, forward: Mapping[str, Any]) -> Tensor:
    """The loss of each token, float64 on the CPU, nought where nothing is scored: (batch, seq)."""
    logits = model(
        input_ids=ids[:, :-1].to(model.device), use_cache=False, **forward
    ).logits  # (batch, seq, vocabulary)
    targets = labels[:, 1:].to(model.device)
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets).cpu().double()


def _summed(nats: Tensor, sizes: Tensor) -> Score:
    """Sums over documents, and the variance of their ratio under resampling with a fixed seed."""
    draw, ratios = torch.Generator().manual_seed(0), []
    together = max(1, RESAMPLED_TOGETHER // len(nats))
    for start in range(0, RESAMPLES, together):  # the draws are those of one resample after the other
        chosen = torch.randint(len(nats), (min(together, RESAMPLES - start), len(nats)), generator=draw)
        ratios.append(nats[chosen].sum(dim=1) / sizes[chosen].sum(dim=1))
    resampled = torch.cat(ratios) / math.log(2)
    return Score(
        nats=max(LEAST_NATS, float(nats.sum())),
        bytes=int(sizes.sum()),
        documents=len(nats),
        bits_per_byte_variance=float(resampled.var(correction=0)),
    )
