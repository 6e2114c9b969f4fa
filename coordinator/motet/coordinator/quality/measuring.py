"""Systems, one after the other, on the same windows.

bench = Bench(material=material, split="test", tell=tell)
bench.judge(model)["medicine"]                   # bits per byte of validation documents
soup = System(name="soup", nats=bench.measure(model), settings={"weight:medicine": 0.5})
bench.write(out, [soup])                         # scores.json
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from motet.bench.quality.corpora import Split, read_documents
from motet.bench.quality.results import SCORES, Losses, Scores
from motet.coordinator.quality.material import Material
from motet.moe.scoring import Answering, Windows, document_nats, windows_of
from motet.protocols.canonical import canonical_json, write_atomically

Nats = Mapping[str, Tensor]
"""Domain -> nats of each of its documents (documents,)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class System:
    """One row of the result."""

    name: str
    nats: Nats
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What validation documents chose for it."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The texts that systems are measured on."""

    material: Material
    split: Split
    """What is reported."""
    tell: Callable[[str], None]

    @cached_property
    def reported(self) -> dict[str, Windows]:
        """Domain -> the documents that are reported."""
        return self.material.windows(self.split)

    @cached_property
    def validation(self) -> dict[str, Windows]:
        """Domain -> the documents that choose settings."""
        return self.material.windows("validation")

    @cached_property
    def texts(self) -> dict[str, Windows]:
        """Name -> documents that are reported beside the domains', from files of an experiment's own."""
        tokenizer = self.material.anchor.tokenizer()
        return {
            name: windows_of(tokenizer, list(read_documents(path)), sequence_length=self.material.sequence_length)
            for name, path in self.material.each("text:").items()
        }

    def measure(self, model: Answering, domains: Iterable[str] | None = None, **forward: Any) -> Nats:  # noqa: ANN401
        """What a model makes of the documents that are reported, or of those of some domains."""
        wanted = self.reported if domains is None else {name: self.reported[name] for name in domains}
        return {name: document_nats(model, windows, **forward) for name, windows in wanted.items()}

    def judge(self, model: Answering) -> dict[str, float]:
        """Domain -> bits per byte of the documents that choose settings."""
        return {
            name: float(document_nats(model, windows).sum()) / math.log(2) / sum(windows.sizes)
            for name, windows in self.validation.items()
        }

    def write(self, out: Path, systems: Iterable[System]) -> None:
        """Measure the systems, and leave their scores."""
        rows: dict[str, dict[str, Losses]] = {}
        settings: dict[str, dict[str, Any]] = {}
        for system in systems:
            self.tell(f"scored {system.name}")
            rows[system.name] = {name: self._losses(name, nats) for name, nats in system.nats.items()}
            if system.settings:
                settings[system.name] = dict(system.settings)
        scores = Scores(split=self.split, systems=rows, settings=settings)
        write_atomically(out / SCORES, canonical_json(scores.model_dump(mode="json")))

    def _losses(self, domain: str, nats: Tensor) -> Losses:
        windows = self.reported[domain] if domain in self.reported else self.texts[domain]
        return Losses(nats=tuple(nats.tolist()), bytes=windows.sizes)
