"""Training at the owner's own wish, in the foreground: the same steps as the worker's, and nothing leaves.

plan = plan_training(home)                # what would happen, before anything does
packed = train_now(home, announce=print)  # resumes where it was interrupted
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from motet.client.outbox import Packed
from motet.client.owner import OwnerHome, require_kind, require_licence
from motet.client.preparation import fetch_anchor, load_texts, open_anchor
from motet.client.proxy_list import require_ready
from motet.client.spool import Spool
from motet.client.worker import make_contribution, stopped_by_signals
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.codec import expected_bits
from motet.protocols.expert_files import factor_specs, row_specs
from motet.protocols.tensor_files import TensorSpec

_TELL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """What `motet train` would do."""

    documents: int
    held_out_documents: int
    steps: int
    tokens: int
    """Tokens in all batches, public text included."""
    trained_parameters: int
    update_bytes: int
    """About what `motet contribute` would send."""

    def as_json(self) -> dict[str, int]:
        """The plan as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}

    def lines(self) -> list[str]:
        """The plan for people."""
        return [
            f"text      {self.documents} documents to train on, {self.held_out_documents} held out",
            f"training  {self.steps} steps, {self.tokens:,} tokens, {self.trained_parameters:,} parameters",
            f"upload    about {self.update_bytes:,} bytes, when you contribute",
            "nothing was trained and nothing has left",
        ]


def plan_training(directory: Path) -> TrainingPlan:
    """Check the text and the anchor, and say what training would mean; raises what training would raise."""
    home = OwnerHome.load(directory.absolute())
    require_licence(home.config, home.charter)
    require_kind(home.charter, home.config.training.kind, home.config.training.rank)
    require_ready(home)
    fetch_anchor(home)
    (corpus, _), settings = load_texts(home), home.config.training
    anchor = open_anchor(home).manifest
    parameters = sum(math.prod(spec.shape) for spec in _matrices(home, anchor))
    per_step = settings.batch_size * settings.gradient_accumulation * settings.sequence_length
    return TrainingPlan(
        documents=len(corpus.train),
        held_out_documents=len(corpus.held_out),
        steps=settings.steps,
        tokens=settings.steps * per_step,
        trained_parameters=parameters,
        update_bytes=_update_bytes(home, anchor),
    )


def _update_bytes(home: OwnerHome, anchor: AnchorManifest) -> int:
    """About what the update will take: matrices as the codec encodes them, routing rows as they are."""
    bits = expected_bits(home.codec_settings())
    matrices = sum(math.prod(spec.shape) for spec in _matrices(home, anchor))
    return round(matrices * bits / 8) + sum(spec.nbytes for spec in row_specs(anchor))


def _matrices(home: OwnerHome, anchor: AnchorManifest) -> list[TensorSpec]:
    """What is trained: the anchor's feed-forward matrices, or two factors for each."""
    settings = home.config.training
    return anchor.ffn() if settings.kind == "full" else factor_specs(anchor, settings.rank)


def train_now(directory: Path, *, announce: Callable[[str], None]) -> Packed:
    """Measure, train and pack; SIGINT and SIGTERM keep a checkpoint, a second one ends the process at once.

    Raises:
        KeyboardInterrupt: it was interrupted; the same call goes on from the checkpoint.
        WorkerBusy: a worker is at it; ask the coordinator, or stop it first.
        TrainingError: the loss is no longer finite.
        AnchorError, StatisticsError, DataError, TransferError, StorageError: what stands in the way.
    """
    home, stopping = OwnerHome.load(directory.absolute()), threading.Event()
    spool, told = Spool(home.path), float("-inf")

    def report(share: float, line: str) -> None:
        nonlocal told
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            announce(f"{100 * share:3.0f} %  {line}")

    try:
        with stopped_by_signals(stopping):
            spool.hold()
            packed = make_contribution(home, report=report, should_stop=stopping.is_set)
    finally:
        spool.close()
    if packed is None:
        raise KeyboardInterrupt
    return packed
