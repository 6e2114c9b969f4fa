"""The stage `expert`: an owner's expert, made by the code that owners run.

Guarantees what a coordinator would have in its store: rows by `motet.client.rows`, training by `motet.client.training`,
packed as an update without loss, and materialised from it. The learning rate is the specialist's, who had the grid; a
low-rank expert has a grid of its own, of which the owner's validation text chooses.

    expert(spec | {"kind": "filter", "rows": "logistic", "stay": 0.99, "temperature": 4.0},
           {"anchor": anchor, "public": public, "domain": medicine, "specialist": specialist}, out, tell)
    read_expert(out / EXPERT_FILE, anchor, name="medicine", contribution=digest)
    expert(spec | {"rank": 8, "learning_rates": [0.01, 0.03], ...}, {"anchor": anchor, ...}, out, tell)
    read_stored(out / EXPERT_FILE, anchor, name="medicine", contribution=digest)
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from motet.bench.quality.corpora import read_split
from motet.bench.quality.descent import Schedule
from motet.bench.quality.stages import Tell
from motet.client.data import Corpus
from motet.client.owner import TrainingConfig
from motet.client.preparation import MEASURED_TOKENS, Material
from motet.client.quality.material import EXPERT_FILE, Judge, enough, read_record, write_record
from motet.client.rows import make_rows
from motet.client.training import TrainedExpert, train
from motet.moe.anchor import Anchor
from motet.moe.experts import stored_tensors, write_update
from motet.moe.lowrank import Factors, common_rank, write_lowrank_update
from motet.moe.routing import RoutingRows
from motet.moe.statistics import measure
from motet.protocols.canonical import digest_of
from motet.protocols.charter import RoutingRules
from motet.protocols.errors import TrainingError
from motet.protocols.expert_files import materialise_file

_RULES = ("kind", "rows", "stay", "temperature", "gain")


def expert(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Make the rows, train beside the anchor, and keep the expert as a store does."""
    began = time.perf_counter()
    material = material_of(spec, inputs, tell)
    prepared = time.perf_counter() - began
    if "rank" in spec:
        rate, trained, judged = _best_of_grid(material, spec, tell)
    else:
        rate, judged = read_record(inputs["specialist"])["learning_rate"], {}
        trained = _trained(material, training_config(spec, rate), tell)
    _keep(material.anchor, trained, out)
    write_record(
        out,
        {
            "learning_rate": rate,
            **judged,
            "seconds": round(time.perf_counter() - began, 3),
            "seconds_before_training": round(prepared, 3),
            "tokens": trained.record.tokens,
        },
    )


def _best_of_grid(
    material: Material, spec: Mapping[str, Any], tell: Tell
) -> tuple[float, TrainedExpert, dict[str, dict[str, float]]]:
    """The low-rank expert whose learning rate serves the validation text best, and what each rate gave."""
    judge = Judge.of(material.anchor, material.corpus.held_out, spec["sequence_length"])
    found: dict[float, TrainedExpert] = {}
    for rate in spec["learning_rates"]:
        tell(f"training with a learning rate of {rate:g}")
        found[rate] = _trained(material, training_config(spec, rate), tell)
    judged = {rate: judge(trained.ffn) for rate, trained in found.items()}
    best = min(judged, key=lambda rate: judged[rate])
    return best, found[best], {"validation": {str(rate): bits for rate, bits in judged.items()}}


def material_of(spec: Mapping[str, Any], inputs: Mapping[str, Path], tell: Tell) -> Material:
    """What the owner would prepare: the rows are made of all public text, training is given what it reads of it."""
    anchor, rules = Anchor.load(inputs["anchor"]), rules_of(spec)
    own, public = _corpus(inputs["domain"]), _corpus(inputs["public"])
    tell("making the rows")
    return Material(
        name="expert",
        charter=digest_of({"bench": dict(spec)}),
        anchor=anchor,
        corpus=own,
        public=replace(public, train=tuple(enough(public.train, spec)) or public.train[:1]),
        rows=_rows(rules, anchor, own, public),
        public_share=spec["public_share"],
        routing=rules,
    )


def rules_of(spec: Mapping[str, Any]) -> RoutingRules:
    """The charter's rules that a spec stands for; the embedder is the one that is installed."""
    rules = {key: spec[key] for key in _RULES if key in spec}
    if spec["kind"] == "embedding":
        from motet.client.embedding import embedder_digest, packaged_model

        rules["embedder"] = embedder_digest(packaged_model())
    return RoutingRules.model_validate(rules)


def training_config(spec: Mapping[str, Any], rate: float) -> TrainingConfig:
    """The `[training]` table of an owner who trains as the spec says."""
    low_rank = {"kind": "lowrank", "rank": spec["rank"]} if "rank" in spec else {}
    return TrainingConfig(
        **low_rank,
        steps=spec["steps"],
        batch_size=spec["batch_size"],
        sequence_length=spec["sequence_length"],
        learning_rate=rate,
        warmup=Schedule(steps=spec["steps"], peak=rate).warmup,
        seed=spec["seed"],
        checkpoint_every=spec["steps"],
        device="cpu",
        dtype="float32",
    )


def _corpus(folder: Path) -> Corpus:
    train, held_out = read_split(folder, "train"), read_split(folder, "validation")
    return Corpus(train=tuple(train), held_out=tuple(held_out), read=len(train) + len(held_out))


def _rows(rules: RoutingRules, anchor: Anchor, own: Corpus, public: Corpus) -> RoutingRows:
    if rules.rows == "lda" and rules.kind != "embedding":
        statistics = measure(anchor, own.train, max_tokens=MEASURED_TOKENS), anchor.statistics()
        return make_rows(rules, anchor, own, public, statistics=statistics)
    return make_rows(rules, anchor, own, public)


def _trained(material: Material, config: TrainingConfig, tell: Tell) -> TrainedExpert:
    with TemporaryDirectory() as folder:
        trained = train(
            material,
            config,
            Path(folder),
            on_progress=lambda at: tell(f"step {at.step} of {at.steps}, {at.loss:.3f} nats a token"),
        )
    if trained is None:
        raise TrainingError("saw training stop before its last step, wanted all of them; run the command again")
    return trained


def _keep(anchor: Anchor, trained: TrainedExpert, out: Path) -> None:
    """Write the store file through an update, which defines it."""
    if trained.factors is not None:
        keep_low_rank(anchor, trained.factors, trained.rows, out)
        return
    with TemporaryDirectory() as folder, stored_tensors(anchor) as stored:
        update = Path(folder) / "update.motetup"
        write_update(update, anchor, trained.ffn, trained.rows)
        materialise_file(update, anchor.manifest, stored, out / EXPERT_FILE)


def keep_low_rank(anchor: Anchor, factors: Mapping[str, Factors], rows: RoutingRows, out: Path) -> None:
    """Write the store file of a low-rank expert, through an update as well."""
    with TemporaryDirectory() as folder, stored_tensors(anchor) as stored:
        update = Path(folder) / "update.motetup"
        write_lowrank_update(update, anchor, factors, rows)
        materialise_file(update, anchor.manifest, stored, out / EXPERT_FILE, rank=common_rank(factors))
