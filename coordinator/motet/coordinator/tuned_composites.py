"""Composites with a tuned router: what they would be tuned on, the tuning, and what it changed.

The untuned composite is assembled first and stays; the tuned one beside it has another digest, and names in its
manifest whom its router was tuned with. A member who leaves takes the tuned one out of circulation: the next is untuned
unless tuning is asked for again, and then it is tuned anew without that member.

    plan_tuning(federation, without=("news",), steps=200).documents      # member -> how many documents
    composite, tuned = tuned_composite(federation, ("news",), steps=200)
    tuned.bits_per_byte["public"].before, tuned.bits_per_byte["public"].after
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from motet.coordinator.federation import Federation
from motet.protocols.composite_manifest import Tuning, membership_of
from motet.protocols.errors import AssemblyError
from motet.protocols.evaluation.losses import PUBLIC

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from motet.coordinator.assembly import Composite
    from motet.moe.composite import MotetForCausalLM
    from motet.moe.scoring import Windows

Progress = Callable[[int, int], None]
Texts = Mapping[str, Sequence[str]]
"""By name, documents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningPlan:
    """What a router would be tuned with, and on."""

    tag: Tuning
    public_documents: int
    """Public documents to train on that take their turn beside the proxies."""

    def as_json(self) -> dict[str, object]:
        """The plan as a JSON object."""
        return self.tag.model_dump(mode="json") | {"public_documents": self.public_documents}

    def lines(self) -> list[str]:
        """The plan for people."""
        named = ", ".join(f"{count} for {name}" for name, count in self.tag.documents.items())
        return [f"{self.tag.steps} steps of tuning on {self.public_documents} public documents, and as proxies {named}"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Bits per byte before and after tuning."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What tuning did: `bits_per_byte` of the held-out public text, and of each member's proxies, which it saw."""

    tag: Tuning
    bits_per_byte: Mapping[str, Change]

    def as_json(self) -> dict[str, object]:
        """The tuning as a JSON object; the proxies' figures are by member."""
        figures = {name: {"before": each.before, "after": each.after} for name, each in self.bits_per_byte.items()}
        public = figures.pop(PUBLIC)
        return self.tag.model_dump(mode="json") | {"bits_per_byte": {PUBLIC: public, "proxies": figures}}

    def lines(self) -> list[str]:
        """The tuning for people."""
        return [
            f"tuned      {self.tag.steps} steps, with the members above and for them alone",
            *(
                f"           {each.before:.4f} to {each.after:.4f} bits per byte of "
                + ("held-out public text" if name == PUBLIC else f"{name}'s proxies, which it was tuned on")
                for name, each in self.bits_per_byte.items()
            ),
        ]


def plan_tuning(federation: Federation, without: Sequence[str] = (), *, steps: int) -> TuningPlan:
    """What the members now active would be tuned with.

    Raises:
        ExpertSetError: a name in `without` is nobody's.
        ConfigurationError: the charter's composites add up evidence over the prefix.
        AssemblyError: no member named a proxy.
    """
    from motet.coordinator.tuning import require_tunable

    chosen, rules = federation.chosen(without), federation.charter.routing
    documents = {contribution.name: len(contribution.proxies) for contribution in chosen.values()}
    require_tunable(rules.counted, documents)
    tag = Tuning(membership=membership_of(chosen), steps=steps, seed=rules.projection_seed, documents=documents)
    return TuningPlan(tag=tag, public_documents=len(federation.public_text.train()))


def tuned_composite(
    federation: Federation,
    without: Sequence[str] = (),
    *,
    steps: int,
    progress: Progress | None = None,
    on_step: Progress = lambda done, total: None,
) -> tuple["Composite", Tuned]:
    """Assemble, tune in memory, and assemble with the tuned router; a composite that was tuned so is used again.

    Args:
        federation: an open one.
        without: names of experts to leave out.
        steps: of tuning.
        progress: called with the bytes copied so far and in total.
        on_step: called with the steps done and in total.

    Raises:
        ExpertSetError, ConfigurationError: as `plan_tuning`.
        AssemblyError: as `plan_tuning`; or a member left or came while the router was being tuned.
        TrainingError: the loss is no longer finite.
        StorageError: the disk is full or not writable.
    """
    from motet.coordinator.assembly import TunedRouter

    tag = plan_tuning(federation, without, steps=steps).tag
    chosen, untuned = federation.chosen(without), federation.assemble(without, progress=progress)
    if problem := tag.problem(untuned.members):
        raise AssemblyError(f"{problem}: a member left or came meanwhile; run the same command again")
    proxies = {each.name: _documents(federation, each.proxies) for each in chosen.values()}
    measure = _Measure(federation, untuned.path, proxies)
    before, made = measure.of(measure.model), federation.tuned(chosen, tag)
    if made is None:
        tuned = TunedRouter(tensors=_tune(federation, measure, proxies, tag, on_step), tag=tag)
        made = federation.assemble(without, tuned=tuned, progress=progress)
    after = measure.of(measure.load(made.path))
    changes = {name: Change(before=figure, after=after[name]) for name, figure in before.items()}
    return made, Tuned(tag=tag, bits_per_byte=changes)


def _documents(federation: Federation, ids: Sequence[str]) -> list[str]:
    return list(federation.public_text.named(ids).values()) if ids else []


def _tune(
    federation: Federation, measure: "_Measure", proxies: Texts, tag: Tuning, on_step: Progress
) -> "dict[str, Tensor]":
    """The router's tensors, tuned as `tag` says."""
    from motet.coordinator.tuning import SEQUENCE_LENGTH, tune

    return tune(
        measure.model,
        measure.tokenizer,
        proxies,
        federation.public_text.train(),
        steps=tag.steps,
        sequence_length=min(SEQUENCE_LENGTH, measure.model.config.max_position_embeddings),
        seed=tag.seed,
        progress=on_step,
    )


class _Measure:
    """A composite in memory, in float32 or wider, and the texts that it is scored on before and after."""

    def __init__(self, federation: Federation, composite: "Path", proxies: Texts) -> None:
        from transformers import AutoTokenizer

        from motet.moe.scoring import windows_of

        self.tokenizer = AutoTokenizer.from_pretrained(composite, local_files_only=True)
        self.model = self.load(composite)
        texts = {PUBLIC: federation.public_held_out()} | {name: each for name, each in proxies.items() if each}
        length = federation.sequence_length
        self._windows: dict[str, Windows] = {
            name: windows_of(self.tokenizer, each, sequence_length=length) for name, each in texts.items()
        }

    def load(self, composite: "Path") -> "MotetForCausalLM":
        """Another composite, to be scored on the same texts."""
        import torch

        from motet.moe.composite import MotetForCausalLM

        model: MotetForCausalLM = MotetForCausalLM.from_pretrained(
            composite, dtype=torch.float32, local_files_only=True
        )
        model.train(False)
        return model

    def of(self, model: "MotetForCausalLM") -> dict[str, float]:
        """Bits per byte by text."""
        from motet.moe.scoring import bits_per_byte, score_windows

        return {name: round(bits_per_byte(score_windows(model, each)), 6) for name, each in self._windows.items()}
