"""Which expert sets are worth assembling, predicted from averages of the experts' parameters (arXiv 2410.15661).

The average of a set's feed-forward networks is one dense model, which costs a fraction of the composite to score. It
thins out every expert as the set grows, which a composite does not: compare sets of one size, and let `check` assemble
some, all experts together among them, to see how well they were ranked. Guarantees that nothing is written.

    with Federation.open(home) as federation:
        plan(federation, {"law": Path("law.jsonl")}, check=3).lines()
        found = ablate(federation, {"law": Path("law.jsonl")}, check=3)
    found.trials[0].experts, found.agreement
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from motet.coordinator.ablation_result import Ablation, Scores, Trial, average, sets_of, to_check
from motet.coordinator.federation import Federation
from motet.coordinator.store import ExpertStore
from motet.protocols.errors import AssemblyError, DataError, ExpertError, TensorFileError
from motet.protocols.evaluation.losses import AVERAGE, PUBLIC

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from motet.coordinator.merging import TextJudge
    from motet.moe.lowrank import AnyExpert
    from motet.moe.scoring import Windows

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the models scored so far and in all."""
_Scored = TypeVar("_Scored")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an ablation would score."""

    experts: tuple[str, ...]
    documents: Mapping[str, int]
    """Text -> how many documents it has."""
    averages: int
    """Averages of experts' parameters."""
    composites: int
    """Composites, to check the prediction."""

    @property
    def models(self) -> int:
        """How many models would be scored, the anchor among them."""
        return 1 + self.averages + self.composites

    def as_json(self) -> dict[str, object]:
        """The plan as a JSON object."""
        counts = {"averages": self.averages, "composites": self.composites, "models": self.models}
        return {"experts": list(self.experts), "documents": dict(self.documents), **counts}

    def lines(self) -> list[str]:
        """The plan for people."""
        texts = ", ".join(f"{name} ({count} documents)" for name, count in self.documents.items())
        return [
            f"experts    {', '.join(self.experts)}",
            f"texts      {texts}",
            f"{self.models} models: the anchor, {self.averages} averages and {self.composites} composites; "
            "nothing was scored",
        ]


def plan(federation: Federation, texts: Mapping[str, Path], *, check: int = 0) -> Plan:
    """What `ablate` would score; raises as it does when there is no expert, or a text cannot be read."""
    names, documents = tuple(sorted(_admitted(federation))), _documents(federation, texts)
    sets = sets_of(names)
    return Plan(
        experts=names,
        documents={name: len(each) for name, each in documents.items()},
        averages=len(sets),
        composites=len(to_check(sets, check)),
    )


def ablate(
    federation: Federation, texts: Mapping[str, Path], *, check: int = 0, progress: Progress | None = None
) -> Ablation:
    """Score the average of every set of admitted experts, and rank the sets.

    All experts are held in memory, as they were admitted when it began. With more than eight only the whole, all but
    one and the pairs are scored.

    Args:
        federation: an open one.
        texts: name -> a JSON lines file with a `text` each, scored whole beside the held-out public text.
        check: assemble this many of the best sets, as many spread over the others, and all experts together.
        progress: told how far it is.

    Raises:
        AssemblyError: no expert is admitted.
        DataError: a text cannot be read, is empty, or is called "public" or "average".
    """
    from motet.coordinator.merging import TextJudge

    documents = _documents(federation, texts)
    experts = _experts(federation)
    model, windows = _loaded(federation, documents)
    judge, sets = TextJudge(model, windows), sets_of(tuple(sorted(experts)))
    step = _Steps(1 + len(sets) + len(to_check(sets, check)), progress)
    own = federation.home.anchor.ffn()
    scores = step(judge.by_domain(own))
    ranked = sorted(map(step, _predictions(judge, own, experts, sets)), key=lambda trial: average(trial.predicted))
    trials = {frozenset(trial.experts): trial for trial in ranked}
    for chosen in to_check(list(trials), check):
        assembled = _assembled(federation, model, [experts[name] for name in sorted(chosen)], windows)
        trials[chosen] = step(replace(trials[chosen], assembled=assembled))
    return Ablation(
        documents={name: len(each) for name, each in documents.items()},
        anchor=scores,
        trials=tuple(trials.values()),
    )


class _Steps:
    """Passes on what it is given, and counts it."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, scored: _Scored) -> _Scored:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        return scored


def _admitted(federation: Federation) -> dict[str, str]:
    """Name -> contribution digest of now."""
    found = {contribution.name: digest for digest, contribution in federation.admitted().items()}
    if not found:
        raise AssemblyError("saw no admitted expert, wanted at least one to choose from; `motet admit` takes one in")
    return found


def _documents(federation: Federation, texts: Mapping[str, Path]) -> dict[str, list[str]]:
    if reserved := sorted({PUBLIC, AVERAGE} & texts.keys()):
        raise DataError(f"saw a text called {reserved[0]}, which the results have a meaning for; choose another name")
    return {PUBLIC: federation.public_held_out()} | {name: _read(path) for name, path in texts.items()}


def _read(path: Path) -> list[str]:
    """The documents of a JSON lines file, those of white space alone left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        found = [json.loads(line)["text"] for line in lines if line.strip()]
        documents = [text for text in found if text.strip()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"cannot read {path} ({type(error).__name__}: {error}), wanted a JSON object with a `text` on each line"
        ) from error
    if not documents:
        raise DataError(f"saw no document in {path}, wanted a JSON object with a `text` on each line")
    return documents


def _loaded(federation: Federation, documents: Mapping[str, list[str]]) -> "tuple[PreTrainedModel, dict[str, Windows]]":
    """The anchor in float32, and the windows of each text."""
    import torch

    from motet.moe.scoring import windows_of

    anchor, length = federation.home.anchor, federation.sequence_length
    tokenizer = anchor.tokenizer()
    windows = {name: windows_of(tokenizer, each, sequence_length=length) for name, each in documents.items()}
    return anchor.model(torch.float32), windows


def _experts(federation: Federation) -> "dict[str, AnyExpert]":
    from motet.moe.lowrank import read_stored

    anchor, store = federation.home.anchor, ExpertStore(federation.home.experts_directory)
    with store.admitting():
        while True:
            admitted = _admitted(federation)
            try:
                return {
                    name: read_stored(store.file_of(digest), anchor, name=name, contribution=digest)
                    for name, digest in admitted.items()
                }
            except (ExpertError, TensorFileError, FileNotFoundError):
                if admitted.items() <= _admitted(federation).items():
                    raise
                _log.warning("a member left while the experts were being read; beginning again without it")


def _predictions(
    judge: "TextJudge",
    own: "Mapping[str, Tensor]",
    experts: "Mapping[str, AnyExpert]",
    sets: Iterable[frozenset[str]],
) -> Iterator[Trial]:
    """What the average of each set scores; `own` is the anchor's feed-forward network."""
    from motet.moe.experts import soup
    from motet.moe.lowrank import dense_ffn

    wide = {name: tensor.float() for name, tensor in own.items()}  # a low-rank expert is not rounded as it runs
    dense = {name: dense_ffn(expert, wide) for name, expert in experts.items()}
    stored = next(iter(own.values())).dtype
    for chosen in sets:
        names = tuple(sorted(chosen))
        ffn = dense[names[0]] if len(names) == 1 else soup([dense[name] for name in names], stored)
        yield Trial(experts=names, predicted=judge.by_domain(ffn))


def _assembled(
    federation: Federation, model: "PreTrainedModel", experts: "list[AnyExpert]", windows: "Mapping[str, Windows]"
) -> Scores:
    """The composite under the charter's routing, as `motet report` would score it."""
    from motet.moe import ANCHOR, Expert, compose
    from motet.moe.prefix import evidence_of
    from motet.moe.scoring import bits_per_byte, score_windows

    routing = federation.charter.routing
    wide = [
        replace(each, ffn={name: own.to(model.dtype) for name, own in each.ffn.items()})
        if isinstance(each, Expert)
        else each
        for each in experts
    ]
    composite = compose(
        model,
        wide,
        top_k=routing.top_k,
        normalise_top_k=routing.normalise_top_k,
        log_priors={ANCHOR: routing.log_prior_anchor} | {each.name: routing.log_prior_expert for each in experts},
        evidence=evidence_of(routing),
    )
    return {name: bits_per_byte(score_windows(composite, each)) for name, each in windows.items()}
