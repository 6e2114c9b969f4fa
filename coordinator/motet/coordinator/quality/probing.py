"""The part `probe` of the stage `score`: one set of experts under many gates, and over parts of the set.

Settings are chosen among a cell's choices on validation documents; beside the corpora, the inputs `text:NAME` are
scored (JSON lines, all of them), such as documents that change their domain half way.

    cells = [{"name": "leak", "choices": [{"evidence": "leak", "gain": 0.3}, {"evidence": "leak", "gain": 0.5}]}]
    for system in probe(bench, cells=cells): ...
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import Field

from motet.bench.quality.corpora import read_split
from motet.coordinator.quality.choosing import Trial
from motet.coordinator.quality.gates import Probe, probed, table_of
from motet.coordinator.quality.measuring import Bench, System
from motet.moe.composite import MotetForCausalLM, compose, token_router_tensor
from motet.moe.lowrank import AnyExpert
from motet.moe.routing import lda_rows
from motet.moe.scoring import document_nats
from motet.moe.statistics import measure
from motet.protocols.documents import Name, Strict

LDA_TOKENS = 1 << 15


class Cell(Strict):
    """One system of an experiment."""

    name: str
    choices: tuple[Probe, ...] = Field(min_length=1)
    """Validation documents choose among these."""
    members: tuple[Name, ...] | None = None
    """The experts that take part; None for all."""


def probe(bench: Bench, *, cells: Sequence[Mapping[str, Any]]) -> Iterator[System]:
    """Measure every cell."""
    laboratory = _Laboratory(bench)
    for cell in cells:
        yield laboratory.system(Cell.model_validate(cell))


class _Laboratory:
    """The experts, loaded once, and composites of them as cells ask for them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._experts = bench.material.experts()
        self._models: dict[tuple[bool, tuple[str, ...]], MotetForCausalLM] = {}
        self._lda: list[AnyExpert] = []

    def system(self, cell: Cell) -> System:
        """One cell at the best of its choices."""
        members = cell.members or tuple(expert.name for expert in self._experts)
        trials = [self._trial(choice, members) for choice in cell.choices] if len(cell.choices) > 1 else []
        best = min(range(len(trials)), key=lambda number: trials[number].average) if trials else 0
        chosen = cell.choices[best]
        with self._probing(chosen, members) as model:
            nats = dict(self._bench.measure(model))
            nats |= {name: document_nats(model, windows) for name, windows in self._bench.texts.items()}
        return System(name=cell.name, nats=nats, settings=chosen.model_dump(mode="json"))

    def _trial(self, choice: Probe, members: tuple[str, ...]) -> Trial:
        with self._probing(choice, members) as model:
            return Trial(settings={}, bits=self._bench.judge(model))

    @contextmanager
    def _probing(self, choice: Probe, members: tuple[str, ...]) -> Iterator[MotetForCausalLM]:
        """The composite of these members under a probe."""
        model = self._model(choice.rows == "lda", members)
        rows = [expert.rows for expert in _sorted(self._of(members, lda=False))]
        evidence = token_router_tensor(rows, model.config.vocab_size)
        with probed(model, choice, table_of(choice.rows, evidence)):
            yield model

    def _model(self, lda: bool, members: tuple[str, ...]) -> MotetForCausalLM:
        key = (lda, members)
        if key not in self._models:
            self._models[key] = compose(self._bench.material.dense(), self._of(members, lda=lda))
        return self._models[key]

    def _of(self, members: tuple[str, ...], *, lda: bool) -> list[AnyExpert]:
        if lda and not self._lda:
            self._lda = [self._in_closed_form(expert) for expert in self._experts]
        return [expert for expert in (self._lda if lda else self._experts) if expert.name in members]

    def _in_closed_form(self, expert: AnyExpert) -> AnyExpert:
        material = self._bench.material
        texts = read_split(material.each("domain:")[expert.name], "train")
        own = measure(material.anchor, texts, max_tokens=LDA_TOKENS)
        rows = lda_rows(own, material.anchor.statistics())
        return replace(expert, rows=replace(rows, tokens=expert.rows.tokens))


def _sorted(experts: Sequence[AnyExpert]) -> list[AnyExpert]:
    """In the order of ids that `compose` gives them."""
    return sorted(experts, key=lambda expert: expert.contribution)
