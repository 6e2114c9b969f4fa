"""Which stages a measurement needs, and what each is made of.

Guarantees: equal work is one stage, whoever asks for it; corpora do not depend on the seed, so that all seeds are
scored on the same documents; what nobody asked for is not done.

    planned = plan(config, config.seeds, Files.of(config, folder))
    planned.scores[0]                           # the stages that leave scores for seed 0

Names of inputs: `anchor`, `public` (its corpus), `domain` (one owner's corpus) or `domain:NAME` (all of them),
`specialist` or `specialist:NAME`, `expert:NAME`, `gate:NAME`, `network:VARIANT/NAME`, `merge:SYSTEM`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from motet.bench.quality.config import MERGING, Files, Kind, QualityConfig
from motet.bench.quality.effort import Effort
from motet.bench.quality.stages import File, Plan, Stage

Inputs = dict[str, Stage | File]
Rows = Literal["average", "logistic", "lda"]
Variant = Literal["specialists", "specialists+public", "experts"]
Way = Literal["lowrank", "squeezed"]
"""How a low-rank expert is made: trained, or squeezed out of a full one."""

OVER_ALL = ("best-single", "soup", "greedy-soup", "task-arithmetic")
"""Merging methods that are cheap enough to be tried over every variant; the others over that of the best soup."""
ROUND_STEPS = 25
"""Local steps between two averages of `fedavg`, about."""
GATE_STEPS = 50
"""Steps that train a gate of `phatgoose`."""


def plan(config: QualityConfig, seeds: int, files: Files) -> Plan:
    """All stages for `seeds` seeds of a configuration."""
    effort = Effort(config)
    corpora = dict(corpus_stages(config, files, effort))
    scores = [list(Seed(config=config, corpora=corpora, seed=seed, effort=effort).scores()) for seed in range(seeds)]
    return Plan(stages=[stage for each in scores for stage in each], scores=scores)


def variants(config: QualityConfig) -> tuple[Variant, ...]:
    """The networks that merging methods are tried over."""
    return (
        ("specialists", "specialists+public", "experts") if config.experts.public_share else ("specialists", "experts")
    )


def merged_kind(config: QualityConfig) -> Kind:
    """The routing kind whose mixture experts are merged: the default kind if it is measured."""
    return "filter" if "filter" in config.routing.kinds else config.routing.kinds[0]


def stock_kind(config: QualityConfig) -> Kind:
    """The routing kind whose stock export is measured."""
    return "token" if "token" in config.routing.kinds else config.routing.kinds[0]


def corpus_stages(config: QualityConfig, files: Files, effort: Effort) -> Iterator[tuple[str, Stage]]:
    """The public corpus, then the owners'; what is held out of the public one, no owner trains on."""
    spec = config.evaluation.model_dump(mode="json", exclude={"merging_bytes"})
    yield "public", Stage("corpus", spec, {"text": files.public}, "corpus:public", weight=effort.corpus())
    for name, file in files.domains.items():
        inputs = {"text": file, "public": files.public}
        yield name, Stage("corpus", spec, inputs, f"corpus:{name}", weight=effort.corpus())


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """The stages of one seed; asking twice for a stage gives equal ones."""

    config: QualityConfig
    corpora: Mapping[str, Stage]
    """The public one, then the owners'."""
    seed: int
    effort: Effort

    @property
    def owners(self) -> list[str]:
        """The closed domains."""
        return list(self.config.domains)

    def anchor(self) -> Stage:
        """The public model."""
        spec = self.config.anchor.model_dump(mode="json")
        return self._stage("anchor", spec, {"public": self.corpora["public"]}, "anchor", self.effort.anchor())

    def specialist(self, name: str, public_share: float = 0.0) -> Stage:
        """One owner's plain fine-tune; with public text, at the learning rate that was best without."""
        rates = list(self.config.experts.learning_rates)
        spec, inputs = self._training() | {"public_share": public_share}, self._texts(name)
        if not public_share:
            label = f"specialist:{name}"
            return self._stage(
                "specialist", spec | {"learning_rates": rates}, inputs, label, self.effort.dense(len(rates))
            )
        inputs["specialist"] = self.specialist(name)
        return self._stage("specialist", spec, inputs, f"specialist+public:{name}", self.effort.dense())

    def expert(self, kind: Kind, name: str, rows: Rows | None = None) -> Stage:
        """One owner's expert, trained beside the anchor; under `token` with these rows, or the configuration's."""
        routing = self.config.routing
        rows = (rows or routing.rows) if kind == "token" else "logistic"
        label = (
            f"expert:{kind}:{name}" if kind != "token" or rows == routing.rows else f"expert:{kind}:{name} by {rows}"
        )
        spec = self._training() | {"public_share": self.config.experts.public_share, "kind": kind, "rows": rows}
        if kind == "filter":
            spec |= {"stay": _middle(routing.stay), "temperature": _middle(routing.temperature)}
        if rows == "average":
            spec |= {"gain": _middle(routing.gain)}
        inputs = self._texts(name) | {"specialist": self.specialist(name)}
        return self._stage("expert", spec, inputs, label, self.effort.mixture(2))

    def low_rank(self, way: Way, name: str, rank: int) -> Stage:
        """One owner's low-rank expert under `filter`, trained as the full one is, or squeezed out of that."""
        full = self.expert("filter", name)
        if way == "squeezed":
            inputs: Inputs = {"anchor": self.anchor(), "expert": full}
            return self._stage("squeeze", {"rank": rank}, inputs, f"squeezed:{rank}:{name}", self.effort.squeeze())
        rates = list(self.config.experts.lowrank_learning_rates)
        spec = {key: value for key, value in full.spec.items() if key != "seed"}
        spec |= {"rank": rank, "learning_rates": rates}
        effort = self.effort.mixture(2, runs=len(rates))
        return self._stage("expert", spec, self._texts(name), f"lowrank:{rank}:{name}", effort)

    def merge(self, method: str, *over: Variant) -> Stage:
        """A merging baseline: over one variant, or over that of several whose soup is judged best."""
        inputs = self._all_texts()
        for variant in over:
            inputs |= {f"network:{variant}/{name}": self._network(variant, name) for name in self.owners}
            if len(over) > 1:
                inputs[f"merge:soup@{variant}"] = self.merge("soup", variant)
        label = f"{method}@{over[0]}" if len(over) == 1 else method
        spec = {
            "method": method,
            "sequence_length": self.config.experts.sequence_length,
            "most_bytes": {"validation": self.config.evaluation.merging_bytes},
        }
        return self._stage("merge", spec, inputs, label, self.effort.merge(method))

    def merges(self) -> dict[str, Stage]:
        """Every merging baseline of the configuration by its system's name."""
        over = variants(self.config)
        found: dict[str, Stage] = {}
        for method in (method for method in self.config.baselines if method in MERGING):
            if method in OVER_ALL:
                found |= {f"merge:{method}@{variant}": self.merge(method, variant) for variant in over}
            else:
                found[f"merge:{method}"] = self.merge(method, *over)
        return found

    def fedavg(self) -> Stage:
        """One feed-forward network for all, averaged round by round."""
        steps = self.config.experts.steps
        spec = self._training() | {
            "rounds": max(1, steps // ROUND_STEPS),
            "public_share": self.config.experts.public_share,
            "learning_rate": self._pooled_rate(),
        }
        return self._stage("fedavg", spec, self._all_texts(), "fedavg", self.effort.dense(len(self.owners)))

    def joint(self, budget: str) -> Stage:
        """A mixture trained on pooled text: by `steps`, N times an owner's, or by the `compute` of all owners."""
        spec = self._training() | {
            "budget": budget,
            "public_share": self.config.experts.public_share,
            "learning_rate": self._pooled_rate(),
            "routing": "token",
        }
        kind = stock_kind(self.config)
        # Of the experts it takes the rows alone, and begins with them: rows over hidden states, whatever `token` has.
        inputs = self._all_texts() | {f"expert:{name}": self.expert(kind, name, "logistic") for name in self.owners}
        return self._stage("joint", spec, inputs, f"joint by {budget}", self.effort.joint(budget))

    def gate(self, name: str) -> Stage:
        """The gate of one specialist; that of "anchor" is trained on public text."""
        steps = min(GATE_STEPS, self.config.experts.steps)
        spec = self._training() | {"steps": steps}
        inputs: Inputs = {"anchor": self.anchor()}
        if name == "anchor":
            inputs["domain"] = self.corpora["public"]
        else:
            inputs |= {"domain": self.corpora[name], "specialist": self.specialist(name)}
        return self._stage("phatgoose", spec, inputs, f"phatgoose:{name}", self.effort.gate(steps))

    def scores(self) -> Iterator[Stage]:
        """What is reported of this seed."""
        wanted = self.config.baselines
        specialists: Inputs = {f"specialist:{name}": self.specialist(name) for name in self.owners}
        named = {"systems": [name for name in ("specialist", "oracle") if name in wanted]}
        yield self._score("networks", self._networks(specialists), named, systems=2 + len(self.merges()))
        for kind in self.config.routing.kinds:
            yield self._composite_score(kind)
        for rank in self.config.experts.ranks:
            for way in get_args(Way):
                yield self._rank_score(way, rank)
        if ensembles := [name for name in ("btm", "logit-average") if name in wanted]:
            size = len(ensembles) * (1 + len(self.owners))
            yield self._score("ensembles", specialists, {"systems": ensembles}, systems=size)
        if "phatgoose" in wanted:
            gates: Inputs = {f"gate:{name}": self.gate(name) for name in ("anchor", *self.owners)}
            yield self._score("phatgoose", specialists | gates, {}, systems=2)
        joint: dict[str, Callable[[], Stage]] = {
            "joint": lambda: self.joint("steps"),
            "joint-equal": lambda: self.joint("compute"),
        }
        for system in (name for name in joint if name in wanted):
            yield self._score("joint", {"joint": joint[system]()}, {"systems": [system]}, systems=3, label=system)

    def _networks(self, specialists: Inputs) -> Inputs:
        wanted, found = self.config.baselines, Inputs(self.merges())
        share = self.config.experts.public_share
        if "specialist" in wanted:
            found |= specialists
            if share:
                found |= {f"specialist+public:{name}": self.specialist(name, share) for name in self.owners}
        return found | ({"fedavg": self.fedavg()} if "fedavg" in wanted else {})

    def _composite_score(self, kind: Kind) -> Stage:
        stock: bool | str = kind == stock_kind(self.config)
        if stock and kind == "filter":
            stock = "average"  # what its export routes by: caches of releases that exported its rows are not taken
        spec = {"kind": kind, "grid": self._grid(kind), "stock": stock}
        experts: Inputs = {f"expert:{name}": self.expert(kind, name) for name in self.owners}
        return self._score("composite", experts, spec, systems=3 * (3 + len(self.owners)), label=f"composite:{kind}")

    def _rank_score(self, way: Way, rank: int) -> Stage:
        spec = {"kind": "filter", "grid": self._grid("filter"), "systems": [f"{way}:{rank}"]}
        experts: Inputs = {f"expert:{name}": self.low_rank(way, name, rank) for name in self.owners}
        return self._score("low-rank", experts, spec, systems=3 * 3, label=f"{way}:{rank}")

    def _grid(self, kind: Kind) -> dict[str, Any]:
        """What validation documents choose among for a composite."""
        routing = self.config.routing
        grid: dict[str, Any] = {"log_prior_anchor": list(routing.log_prior_anchor)}
        if kind == "filter":
            grid |= {"stay": list(routing.stay), "temperature": list(routing.temperature)}
        elif kind == "token" and routing.rows == "average":
            grid |= {"gain": list(routing.gain)}
        return grid

    def _score(
        self, part: str, inputs: Inputs, spec: dict[str, Any], *, systems: float, label: str | None = None
    ) -> Stage:
        told = {"part": part, "split": "test", "sequence_length": self.config.experts.sequence_length} | spec
        return self._stage(
            "score", told, self._all_texts() | inputs, f"score {label or part}", self.effort.scores(systems)
        )

    def _network(self, variant: Variant, name: str) -> Stage:
        match variant:
            case "specialists":
                return self.specialist(name)
            case "specialists+public":
                return self.specialist(name, self.config.experts.public_share)
            case "experts":
                return self.expert(merged_kind(self.config), name)

    def _texts(self, name: str) -> Inputs:
        return {"anchor": self.anchor(), "public": self.corpora["public"], "domain": self.corpora[name]}

    def _all_texts(self) -> Inputs:
        owned: Inputs = {f"domain:{name}": self.corpora[name] for name in self.owners}
        return {"anchor": self.anchor(), "public": self.corpora["public"]} | owned

    def _training(self) -> dict[str, Any]:
        return self.config.experts.model_dump(mode="json", include={"steps", "batch_size", "sequence_length"})

    def _pooled_rate(self) -> float:
        return max(self.config.experts.learning_rates)

    def _stage(self, kind: str, spec: dict[str, Any], inputs: Inputs, label: str, weight: float) -> Stage:
        return Stage(kind, spec | {"seed": self.seed}, inputs, f"{label}, seed {self.seed}", weight=weight)


def _middle(values: tuple[float, ...]) -> float:
    """What experts are trained with, of the values that the composite may choose among."""
    return sorted(values)[len(values) // 2]
