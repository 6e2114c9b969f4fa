"""A whole measurement: do the stages, put their scores together, say on what machine.

found = measure(config, plan, files, cache=Path("motet-quality"), workers=2, tell=note)
found.as_json()["systems"]["composite:filter"]["average"]
found.write(Path("results"))                       # results.json, results.md, results.html
"""

import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from motet.bench.quality.cache import Cache, Record
from motet.bench.quality.config import Files, QualityConfig
from motet.bench.quality.engine import missing, run
from motet.bench.quality.pace import Pace
from motet.bench.quality.results import Results, merged, read_scores
from motet.bench.quality.stages import Plan, Stage, Tell, in_order
from motet.protocols.canonical import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured, and how."""

    config: QualityConfig
    results: Results
    seeds: int
    seconds: float
    """From the first stage that was missing to the result."""
    stages: tuple[Record, ...]
    """What every stage took, also those from the cache."""
    corpora: dict[str, str]
    """Corpus -> digest."""

    def as_json(self) -> dict[str, Any]:
        """Everything as a JSON object; the result first."""
        return {
            **self.results.as_json(),
            "seeds": self.seeds,
            "seconds": self.seconds,
            "name": self.config.name,
            "stages": len(self.stages),
            "stage_seconds": sum(stage.seconds for stage in self.stages),
            "peak_rss_mb": max((stage.peak_rss_mb for stage in self.stages), default=0.0),
            "versions": _versions(self.stages),
            "machine": machine(),
            "corpora": self.corpora,
            "config": self.config.model_dump(mode="json"),
        }

    def notes(self) -> Iterator[str]:
        """What a reader of the figures must know."""
        here = machine()
        yield f"{here['cpu']}, {here['cores']} cores, {here['memory_gb']:.0f} GB; {here['system']}."
        yield f"{', '.join(f'{name} {version}' for name, version in _versions(self.stages).items())}."
        spent = sum(stage.seconds for stage in self.stages)
        yield f"{len(self.stages)} stages, one thread each, {spent:,.0f} s in all."
        yield "Settings were chosen on validation documents; the documents reported on chose nothing."

    def write(self, folder: Path) -> list[Path]:
        """Write results.json, results.md and results.html; returns where they are.

        Raises:
            StorageError: the folder cannot be written.
        """
        title = f"Quality of the composite: {self.config.name}"
        page = self.results.page(title=title, notes=self.notes(), seeds=self.seeds, seconds=self.seconds)
        texts = {
            "results.json": json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n",
            "results.md": page.markdown(),
            "results.html": page.html(),
        }
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())
        return [folder / name for name in texts]


def measure(
    config: QualityConfig, plan: Plan, files: Files, *, cache: Path, workers: int, tell: Tell = lambda line: None
) -> Found:
    """Do what the cache lacks and put the scores together.

    Raises:
        FederationError: stages failed; what is done is kept.
        DataError: the scores do not fit together.
        MotetError: as `motet.bench.quality.engine.run`.
    """
    begun = time.perf_counter()
    folders = run([stage for seed in plan.scores for stage in seed], cache, workers=workers, tell=tell)
    seeds = [merged(read_scores(folders[stage.digest]) for stage in seed) for seed in plan.scores]
    return Found(
        config=config,
        results=Results.of(seeds),
        seeds=len(seeds),
        seconds=time.perf_counter() - begun,
        stages=tuple(_records(Cache(cache), plan)),
        corpora={"public": files.public.digest} | {name: file.digest for name, file in files.domains.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a run would do."""

    stages: tuple[tuple[Stage, bool], ...]
    """Each with whether the cache has it."""
    missing: int
    """How many would be done: not those that only finished ones were made of."""
    seconds: float
    """About how long that would take."""

    def as_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        stages = [
            {"label": stage.label, "kind": stage.kind, "digest": stage.digest, "cached": cached}
            for stage, cached in self.stages
        ]
        return {"stages": stages, "missing": self.missing, "seconds": self.seconds}


def outlook(plan: Plan, *, cache: Path, workers: int) -> Outlook:
    """What a run would do, and how long it would take; does none of it."""
    store, scores = Cache(cache), [stage for seed in plan.scores for stage in seed]
    todo = missing(scores, store)
    return Outlook(
        stages=tuple((stage, store.holds(stage)) for stage in in_order([*plan.stages, *scores])),
        missing=len(todo),
        seconds=Pace(store.records()).left(todo, workers=workers),
    )


def machine() -> dict[str, Any]:
    """The machine at hand."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "system": platform.platform(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _records(cache: Cache, plan: Plan) -> Iterator[Record]:
    scores = [stage for seed in plan.scores for stage in seed]
    for stage in in_order(scores):
        if cache.holds(stage):
            yield cache.record(stage)


def _versions(stages: Sequence[Record]) -> dict[str, str]:
    """Package -> version; all of them, where stages of several lie in the cache."""
    names = dict.fromkeys(name for stage in stages for name in stage.versions)
    return {name: " and ".join(_distinct(stage.versions.get(name, "none") for stage in stages)) for name in names}


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
