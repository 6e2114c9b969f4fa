"""The composites of one routing kind: settings chosen, experts left out one by one, and the stock export.

Guarantees: `stock` is what a coordinator would publish: assembled from the experts' store files, exported, and loaded
by transformers alone, in float32.

    grid = {"log_prior_anchor": [0, 1], "stay": [0.98, 0.99], "temperature": [4]}
    for system in composites(bench, kind="filter", grid=grid, stock=True):
        system.name                                  # composite:filter, composite:filter-without:medicine, ..., stock
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.coordinator.assembly import Member, RoutingPolicy, assemble
from motet.coordinator.quality.choosing import LIMITS, Trial, choose, settings_of
from motet.coordinator.quality.material import EXPERT_FILE, Material
from motet.coordinator.quality.measuring import Bench, System
from motet.moe.average import GAIN, Average
from motet.moe.composite import MotetForCausalLM, compose
from motet.moe.config import ANCHOR
from motet.moe.evidence import Evidence
from motet.moe.export import export_stock
from motet.protocols.canonical import file_digest
from motet.protocols.evaluation.losses import PUBLIC

PRIOR, GAIN_KEY = "log_prior_anchor", "gain"


def composites(bench: Bench, *, kind: str, grid: Mapping[str, Sequence[float]], stock: bool | str) -> Iterator[System]:
    """`composite:KIND` at the settings that validation documents choose, its opt-outs, and `stock` if that is asked.

    Args:
        bench: its material holds `expert:NAME`.
        kind: the routing kind, by which public text may be harmed more or less.
        grid: setting -> values to choose among.
        stock: whether to measure the stock export too; a word for it is as good as True.
    """
    name, anchor_model, experts = f"composite:{kind}", bench.material.dense(), bench.material.experts()

    def at(settings: Mapping[str, float]) -> MotetForCausalLM:
        return compose(anchor_model, experts, log_priors={ANCHOR: settings[PRIOR]}, evidence=_evidence(settings))

    chosen = _chosen(bench, at, grid, kind)
    model = at(chosen.settings)
    yield System(name=name, nats=bench.measure(model), settings=_told(chosen))
    for expert in experts:
        rest = [ANCHOR, *(each.name for each in experts if each is not expert)]
        yield System(name=f"{name}-without:{expert.name}", nats=bench.measure(model, expert_sets=rest))
    if stock:
        alike = chosen if kind != "filter" else _chosen(bench, at, {PRIOR: grid[PRIOR], GAIN_KEY: [GAIN]}, "token")
        yield _stock(bench, alike)


def low_rank(bench: Bench, *, name: str, kind: str, grid: Mapping[str, Sequence[float]]) -> System:
    """A composite of low-rank experts at the settings that validation documents choose, and what they are made of.

    Its settings tell the `parameters` of one expert, and their `share` of a full one's.
    """
    anchor_model, experts = bench.material.dense(), bench.material.experts()

    def at(settings: Mapping[str, float]) -> MotetForCausalLM:
        return compose(anchor_model, experts, log_priors={ANCHOR: settings[PRIOR]}, evidence=_evidence(settings))

    chosen = _chosen(bench, at, grid, kind)
    model = at(chosen.settings)
    full, *sizes = (expert.parameters for expert in model.experts)
    told = {"parameters": max(sizes), "share": max(sizes) / full}
    return System(name=name, nats=bench.measure(model), settings=_told(chosen) | told)


def _chosen(
    bench: Bench, at: Callable[[Mapping[str, float]], MotetForCausalLM], grid: Mapping[str, Sequence[float]], kind: str
) -> Trial:
    """The settings of a grid that validation documents choose."""
    trials = []
    for settings in settings_of(grid):
        trials.append(Trial(settings=settings, bits=bench.judge(at(settings))))
        bench.tell(f"composite:{kind} at {settings}: {trials[-1].average:.4f} bits per byte of validation text")
    return choose(trials, anchor_public=bench.judge(bench.material.dense())[PUBLIC], limit=LIMITS[kind])


def _told(chosen: Trial) -> dict[str, float]:
    return dict(chosen.settings) | {"judged": chosen.average}


def _evidence(settings: Mapping[str, float]) -> Evidence | Average | None:
    if "stay" in settings:
        return Evidence(stay=settings["stay"], temperature=settings["temperature"])
    return Average(gain=settings[GAIN_KEY]) if GAIN_KEY in settings else None


def _stock(bench: Bench, chosen: Trial) -> System:
    """What plain transformers makes of the assembled and exported composite."""
    with TemporaryDirectory() as folder:
        policy = RoutingPolicy(log_prior_anchor=chosen.settings[PRIOR], gain=chosen.settings.get(GAIN_KEY))
        model = stock_model(bench.material, Path(folder), policy)
        return System(name="stock", nats=bench.measure(model), settings=_told(chosen))


def stock_model(material: Material, folder: Path, policy: RoutingPolicy) -> PreTrainedModel:
    """Assemble, export, and load without Motet; `folder` keeps the files while the model is used."""
    members = [
        Member(name=name, contribution=file_digest(path / EXPERT_FILE), expert_file=path / EXPERT_FILE)
        for name, path in material.each("expert:").items()
    ]
    native = assemble(material.anchor, members, policy, folder / "native")
    export = export_stock(native.path, folder / "stock")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        export.directory, dtype=torch.float32, local_files_only=True
    )
    model.train(False)
    return model
