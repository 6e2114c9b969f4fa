"""What a composite brings on a text, alone and with an expert added: measured in memory, and told in a sentence.

Guarantees: pure: no file, no network, nothing kept; every system is scored on the same documents, and what is told of
two of them is paired by document, with an interval of the document bootstrap (`motet.protocols.evaluation`).

    losses = measure(model, windows_of(tokenizer, documents, sequence_length=256), expert=mine, log_prior=0.0)
    trial = CompositeTrial.of(losses)
    trial.differences["composite"]              # bits per byte against the anchor, and where most resamples lie
    print(trial.verdict)
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from motet.moe.composite import MotetForCausalLM
from motet.moe.config import ANCHOR
from motet.moe.lowrank import AnyExpert, dense_ffn
from motet.moe.members import with_member
from motet.moe.scoring import Answering, Windows, dense_model, document_nats
from motet.protocols.evaluation import DocumentLosses, Interval, bits_per_byte, difference

ALONE, WHOLE, ADDED, WITHOUT = "expert", "composite", "composite-with", "composite-without"
"""The systems beside the anchor: the own expert alone, the composite as it is, with the own expert, and without it."""
FEW_DOCUMENTS = 20
"""Of fewer, an interval says little: documents are drawn from those that are there."""

_DOMAIN = "own"
_LABELS = {
    ANCHOR: "the anchor",
    ALONE: "your expert alone",
    WHOLE: "the composite",
    ADDED: "the composite with your expert",
    WITHOUT: "the composite without your expert",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CompositeTrial:
    """What was measured.

    bits_per_byte: by system.
    differences: by system, against what it is held against (`against`), in bits per byte; negative is better.
    """

    documents: int
    bytes: int
    bits_per_byte: dict[str, float]
    differences: dict[str, Interval]
    verdict: str

    @classmethod
    def of(cls, losses: Mapping[str, DocumentLosses]) -> Self:
        """Compare. Raises DataError when the systems were not scored on the same documents."""
        measured = {system: {_DOMAIN: each} for system, each in losses.items()}
        differences = {
            system: difference(measured, system, against(system, losses), relative=False)[_DOMAIN]
            for system in losses
            if system != ANCHOR
        }
        sizes = losses[ANCHOR].bytes
        return cls(
            documents=len(sizes),
            bytes=int(sizes.sum()),
            bits_per_byte={system: round(bits_per_byte(each), 6) for system, each in losses.items()},
            differences=differences,
            verdict=verdict(differences, documents=len(sizes)),
        )

    def as_json(self) -> dict[str, Any]:
        """The trial as a JSON object."""
        told = {
            system: {"against": against(system, self.bits_per_byte), **asdict(each)}
            for system, each in self.differences.items()
        }
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "bits_per_byte": self.bits_per_byte,
            "differences": told,
            "verdict": self.verdict,
        }

    def lines(self) -> list[str]:
        """The trial for people."""
        width = max(len(_LABELS[system]) for system in self.bits_per_byte)
        lines = [f"{'':<{width}}  bits per byte of {self.documents} documents, {self.bytes:,} bytes"]
        for system, bits in self.bits_per_byte.items():
            told = "" if system == ANCHOR else _compared(system, self.differences[system], self.bits_per_byte)
            lines.append(f"{_LABELS[system]:<{width}}  {bits:.4f}{told}")
        return [*lines, "", self.verdict]


def systems(*, member: bool, added: bool) -> list[str]:
    """What `measure` scores, in its order.

    Args:
        member: whether the composite holds an expert of the own.
        added: whether there is one to add, or to take that one's place.
    """
    alone = [ALONE] if member or added else []
    return [ANCHOR, *alone, WHOLE, *([WITHOUT] if member else []), *([ADDED] if added else [])]


def measure(
    model: MotetForCausalLM,
    windows: Windows,
    *,
    expert: AnyExpert | None = None,
    member: str | None = None,
    log_prior: float = 0.0,
    on_system: Callable[[str], None] = lambda system: None,
) -> dict[str, DocumentLosses]:
    """The loss of every document under the anchor, the composite, and both with the own expert if there is one.

    Args:
        model: the composite.
        windows: the text.
        expert: the own one, in any dtype; added to the composite in memory, in the place of a member of its name.
        member: what the composite calls an expert of the own that it holds.
        log_prior: what the charter gives an expert, in nats.
        on_system: told each system before it is scored.

    Raises:
        AssemblyError: the expert does not fit the composite's anchor.
    """
    sizes = np.array(windows.sizes, dtype=np.int64)
    found = {}
    for system in systems(member=member is not None, added=expert is not None):
        on_system(system)
        scored, forward = _system(model, system, expert, member, log_prior)
        found[system] = DocumentLosses(document_nats(scored, windows, **forward).numpy(), sizes)
    return found


def _system(
    model: MotetForCausalLM, system: str, expert: AnyExpert | None, member: str | None, log_prior: float
) -> tuple[Answering, dict[str, Any]]:
    """What answers for a system, and what its forward passes are told."""
    own = model.expert_ffn(ANCHOR)
    if system == ANCHOR:
        return dense_model(model, own), {}
    if system == ALONE:
        ffn = model.expert_ffn(str(member)) if expert is None else dense_ffn(expert, own)
        return dense_model(model, {name: ffn[name].to(model.device, model.dtype) for name in own}), {}
    if system == ADDED and expert is not None:
        return with_member(model, expert, log_prior=log_prior), {}
    if system == WITHOUT:
        return model, {"expert_sets": [each for each in model.config.names if each != member]}
    return model, {}


def against(system: str, measured: Mapping[str, object]) -> str:
    """What a system is held against: the anchor, or for what the own expert brings the composite without it."""
    if system == ADDED:
        return WITHOUT if WITHOUT in measured else WHOLE
    return WITHOUT if system == WHOLE and WITHOUT in measured else ANCHOR


def verdict(differences: Mapping[str, Interval], *, documents: int) -> str:
    """What the owner should take from it, in two or three sentences."""
    member = WITHOUT in differences
    what, gain = ("composite without you", WITHOUT) if member else (WHOLE, WHOLE)
    sentences = [_brings(what, differences[gain])]
    own = ADDED if ADDED in differences else WHOLE if member else None
    if own is not None:
        sentences.append(_adds(differences[own]))
    if documents < FEW_DOCUMENTS:
        sentences.append(f"It was measured on {documents} documents only: use more before you rely on it.")
    return " ".join(sentences)


def _brings(what: str, gain: Interval) -> str:
    if gain.includes_zero:
        return f"On your text the {what} and the anchor cannot be told apart ({_span(gain)})."
    if gain.mean < 0:
        return f"On your text the {what} needs {-gain.mean:.4f} bits per byte less than the anchor ({_span(gain)})."
    return f"On your text the {what} needs {gain.mean:.4f} bits per byte more than the anchor ({_span(gain)})."


def _adds(gain: Interval) -> str:
    if gain.includes_zero:
        return f"What your expert adds cannot be told from nothing ({_span(gain)})."
    if gain.mean < 0:
        return f"Your expert takes off another {-gain.mean:.4f} ({_span(gain)})."
    return f"Your expert makes it worse by {gain.mean:.4f} ({_span(gain)})."


def _span(gain: Interval) -> str:
    return f"95 % interval {gain.low:+.4f} to {gain.high:+.4f}"


def _compared(system: str, gain: Interval, measured: Mapping[str, object]) -> str:
    return f"  {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}) against {_LABELS[against(system, measured)]}"
