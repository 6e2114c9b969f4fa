"""The experiments behind docs/results/routing.md: other gates, other depths, other federations.

    python examples/benchmarks/evidence.py --corpora build/benchmarks --cache motet-quality --out routing.json
    python examples/benchmarks/evidence.py ... --only gates depth --seeds 1

Stages and cache are those of `motet bench quality`: what full.toml has trained is not trained again, and what was
interrupted goes on. Settings are chosen on validation documents, within each cell's few choices.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence_cells import FACTORIAL, MAIN, PAIR, Cells, of_set
from evidence_texts import federations, switching, write

from motet.bench.quality.config import Files, QualityConfig
from motet.bench.quality.corpora import read_split
from motet.bench.quality.effort import Effort
from motet.bench.quality.engine import run
from motet.bench.quality.plan import Seed, corpus_stages
from motet.bench.quality.results import merged, read_scores
from motet.bench.quality.stages import File, Stage
from motet.protocols.evaluation import difference, gap_closed, matrix
from motet.protocols.evaluation.gaps import summary

MOST_BYTES = {"validation": 8_000, "test": 24_000}
"""Of each domain, so that some hundred cells can be scored."""
SHORT = 80
"""Expert steps of the experiments that train many experts."""
OWNERS = (
    *("medicine", "mathematics", "code", "german", "law", "french", "spanish", "unix"),
    *("database", "computing", "security", "javascript", "c", "politics", "bible", "sayings"),
)
EXPERIMENTS = ("gates", "shares", "depth", "federations", "owners", "public")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One experiment of one seed: experts, the cells they are looked at in, and the specialists beside them."""

    name: str
    seed: Seed
    cells: Cells
    kind: str = "filter"
    scored: Mapping[str, Stage] = field(default_factory=dict)
    """The corpora that are scored, when they are not those that were trained on; the public one among them."""
    texts: Mapping[str, File] = field(default_factory=dict)
    """Further texts to score."""

    def stages(self) -> list[Stage]:
        """All cells; and anchor and specialists, unless other corpora are scored than were trained on."""
        scored = dict(self.scored or self.seed.corpora)
        inputs: dict[str, Stage | File] = {"anchor": self.seed.anchor(), "public": scored.pop("public")}
        inputs |= {f"domain:{name}": stage for name, stage in scored.items()}
        inputs |= {f"text:{name}": file for name, file in self.texts.items()}
        experts = {f"expert:{name}": self.seed.expert(self.kind, name) for name in self.seed.owners}
        found = [self._stage({"part": "probe", "cells": list(self.cells)}, inputs | experts)]
        if not self.scored:
            alone = {f"specialist:{name}": self.seed.specialist(name) for name in self.seed.owners}
            dense = {name: stage for name, stage in inputs.items() if not name.startswith("text:")}
            found.append(self._stage({"part": "networks", "systems": ["specialist"]}, dense | alone))
        return found

    def _stage(self, spec: dict[str, Any], inputs: Mapping[str, Stage | File]) -> Stage:
        length = self.seed.config.experts.sequence_length
        told = {"split": "test", "sequence_length": length, "most_bytes": MOST_BYTES, "seed": self.seed.seed}
        label = f"{self.name}: {spec['part']}, seed {self.seed.seed}"
        return Stage("score", told | spec, inputs, label, weight=60)


@dataclass(frozen=True, kw_only=True)
class PublicStudy(Study):
    """The anchor's own networks, trained on as much more public text as all owners together read beside theirs."""

    def stages(self) -> list[Stage]:
        """The anchor before and after."""
        config, seed = self.seed.config, self.seed
        steps = round(len(seed.owners) * config.experts.steps * config.experts.public_share)
        spec = config.experts.model_dump(mode="json", include={"batch_size", "sequence_length", "learning_rates"})
        inputs: dict[str, Stage | File] = {"anchor": seed.anchor(), "public": seed.corpora["public"]}
        trained = Stage(
            "specialist",
            spec | {"steps": steps, "public_share": 0.0, "seed": seed.seed},
            inputs | {"domain": seed.corpora["public"]},
            f"anchor on {steps} more steps, seed {seed.seed}",
            weight=60,
        )
        dense = inputs | {f"domain:{name}": stage for name, stage in seed.corpora.items() if name != "public"}
        return [self._stage({"part": "networks", "systems": []}, dense | {"dense:anchor, more public text": trained})]


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """What all experiments are made from."""

    config: QualityConfig
    corpora: Path
    cache: Path
    workers: int

    def run(self, stages: list[Stage]) -> dict[str, Path]:
        """Do what is missing; the folders by the stages' digests."""
        return run(stages, self.cache, workers=self.workers, tell=lambda line: print(line, flush=True))

    def seed(self, number: int, config: QualityConfig, files: Files | None = None) -> Seed:
        """One seed of a configuration."""
        effort = Effort(config)
        corpora = dict(corpus_stages(config, files or Files.of(config, self.corpora), effort))
        return Seed(config=config, corpora=corpora, seed=number, effort=effort)

    def varied(
        self,
        *,
        share: float = 0.1,
        steps: int | None = None,
        domains: tuple[str, ...] = (),
        anchor: Mapping[str, int] | None = None,
    ) -> QualityConfig:
        """The configuration with other experts, domains or another anchor; with other steps, one learning rate."""
        experts: dict[str, Any] = {"public_share": share}
        if steps is not None:
            experts |= {"steps": steps, "learning_rates": (max(self.config.experts.learning_rates),)}
        update: dict[str, Any] = {
            "experts": self.config.experts.model_copy(update=experts),
            "routing": self.config.routing.model_copy(update={"rows": "logistic"}),
        }
        if domains:
            update["domains"] = {name: Path(f"{name}.jsonl") for name in domains}
        return self.config.model_copy(
            update=update | {"anchor": self.config.anchor.model_copy(update=dict(anchor or {}))}
        )

    def texts(self, split: Any) -> dict[str, list[str]]:  # noqa: ANN401 - one of three names
        """Domain -> documents of a split of the configuration's own corpora."""
        stages = {name: stage for name, stage in self.seed(0, self.config).corpora.items() if name != "public"}
        folders = self.run(list(stages.values()))
        return {name: read_split(folders[stage.digest], split) for name, stage in stages.items()}

    def studies(self, experiment: str, seed: int) -> Iterator[Study]:
        """The studies of one experiment."""
        match experiment:
            case "gates":
                yield from self._gates(seed)
            case "shares":
                yield from self._shares(seed)
            case "depth":
                yield from self._depth(seed)
            case "owners":
                trained = self.seed(seed, self.varied(steps=SHORT, domains=OWNERS))
                cells = [each for count in (2, 4, 8, 16) for each in of_set(OWNERS[:count])]
                yield Study(name="16 owners", seed=trained, cells=cells)
            case "federations":
                yield from self._federations(seed)
            case "public":
                yield PublicStudy(name="extra public tokens", seed=self.seed(seed, self.varied()), cells=[])

    def _gates(self, seed: int) -> Iterator[Study]:
        """Rows x evidence, for experts that were trained under the filter, and token by token."""
        path = write(self.cache / "texts" / "switching.jsonl", switching(self.texts("test"), count=40))
        texts = {"switching": File.of(path)}
        for kind in ("filter", "token"):
            trained = self.seed(seed, self.varied())
            yield Study(name=f"{kind}-trained", seed=trained, cells=FACTORIAL, kind=kind, texts=texts)

    def _shares(self, seed: int) -> Iterator[Study]:
        """Public text in the batches of experts that are trained under the filter."""
        for share in (0.0, 0.1, 0.2, 0.4):
            trained = self.seed(seed, self.varied(share=share, steps=SHORT))
            yield Study(name=f"public {share:.0%}", seed=trained, cells=PAIR)

    def _depth(self, seed: int) -> Iterator[Study]:
        for layers in (2, 4, 8):
            anchor = {"layers": layers, "steps": 300, "batch_size": 4}
            config = self.varied(steps=SHORT, domains=("medicine", "code", "law"), anchor=anchor)
            for kind in ("filter", "token"):
                yield Study(
                    name=f"{layers} layers, {kind}-trained", seed=self.seed(seed, config), cells=MAIN, kind=kind
                )

    def _federations(self, seed: int) -> Iterator[Study]:
        """Unusual owners; what is scored are the usual owners' documents."""
        usual, held_out = self.seed(seed, self.config).corpora, [self.texts("validation"), self.texts("test")]
        for name, owners in federations(self.texts("train")):
            folder = self.cache / "texts" / name.replace(" ", "-").replace("%", "percent")
            written = {}
            for owner, texts in owners.items():  # documents are held out by their content: these are again
                texts = [*texts, *(text for each in held_out for text in each[owner.rstrip("2")])]
                written[owner] = File.of(write(folder / f"{owner}.jsonl", texts))
            files = Files(public=File.of(self.corpora / self.config.public), domains=written)
            trained = self.seed(seed, self.varied(steps=SHORT, domains=tuple(written)), files)
            scored = {each: stage for each, stage in usual.items() if each == "public" or each in written}
            yield Study(name=name, seed=trained, cells=MAIN, scored=scored)


def table(runs: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What all seeds of one study give: bits per byte, gap closed, and paired differences to routing token by token.

    Averages and differences are over the domains; further texts, which anchor and specialists were not scored on, stand
    beside them.
    """
    domains = set(runs[0].get("anchor", next(iter(runs[0].values()))))
    plain = [
        {system: {name: row[name] for name in row if name in domains} for system, row in run.items()} for run in runs
    ]
    found, beside = matrix(plain), matrix(runs)
    gaps = gap_closed(found) if "specialist" in found else {}
    systems: dict[str, Any] = {}
    for system, row in found.items():
        gap = summary(gaps[system]) if system in gaps else None
        systems[system] = {
            "bits_per_byte": beside[system] | row,
            "gap": None if gap is None else {"mean": gap.mean, "worst": gap.worst},
        }
        if "own token" in found and system not in ("own token", "specialist", "anchor"):
            against = difference(plain, system, "own token")["average"]
            systems[system]["against own token"] = [against.mean, against.low, against.high]
    return systems


def main() -> None:
    """Run the experiments named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "full.toml")
    parser.add_argument("--corpora", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--cache", type=Path, default=Path("motet-quality"))
    parser.add_argument("--out", type=Path, required=True, help="JSON file that takes the figures")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    laboratory = Laboratory(
        config=QualityConfig.from_toml(chosen.config),
        corpora=chosen.corpora,
        cache=chosen.cache,
        workers=chosen.workers,
    )
    found: dict[str, Any] = {}
    for experiment in chosen.only:
        studies = [study for seed in range(chosen.seeds) for study in laboratory.studies(experiment, seed)]
        folders = laboratory.run([stage for study in studies for stage in study.stages()])
        runs: dict[str, list[Any]] = {}
        for study in studies:
            scores = [read_scores(folders[stage.digest]) for stage in study.stages()]
            runs.setdefault(study.name, []).append(merged(scores).measured)
        found[experiment] = {name: table(each) for name, each in runs.items()} | {"seeds": chosen.seeds}
        chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
