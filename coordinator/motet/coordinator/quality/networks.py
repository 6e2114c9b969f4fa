"""Dense systems: the anchor with one feed-forward network or another in place of its own.

Guarantees: of the variants of a merging method, the one that validation documents judged best stands under the method's
own name; all are reported.

    for system in networks(bench, wanted=("specialist", "oracle")): ...
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from motet.coordinator.quality.material import read_ffn, read_record
from motet.coordinator.quality.measuring import Bench, Nats, System
from motet.moe.experts import swap_ffn
from motet.protocols.evaluation.losses import PUBLIC

MERGE = "merge:"


def networks(bench: Bench, *, wanted: Sequence[str]) -> Iterator[System]:
    """The anchor, the specialists, every merged network, and that of `fedavg`, as far as there are any.

    Args:
        bench: its material holds `specialist:NAME`, `specialist+public:NAME`, `merge:METHOD[@VARIANT]`,
            `dense:NAME` for any other network, `fedavg`.
        wanted: which of "specialist" and "oracle" to name.
    """
    model = bench.material.dense()
    anchor = bench.measure(model)
    yield System(name="anchor", nats=anchor)
    for kind in ("specialist", "specialist+public"):
        if folders := bench.material.each(f"{kind}:"):
            yield from _specialists(bench, model, kind, folders, anchor, wanted)
    yield from _merged(bench, model)
    for name, folder in bench.material.each("dense:").items():
        yield System(name=name, nats=_with(bench, model, folder))
    if "fedavg" in bench.material.inputs:
        yield System(name="fedavg", nats=_with(bench, model, bench.material.inputs["fedavg"]))


def _specialists(
    bench: Bench,
    model: PreTrainedModel,
    kind: str,
    folders: Mapping[str, Path],
    anchor: Nats,
    wanted: Sequence[str],
) -> Iterator[System]:
    """Each on its own domain; public text stays with the anchor, as with somebody who knew every text's domain."""
    own: Nats = {name: _with(bench, model, folder, name)[name] for name, folder in folders.items()}
    nats = {PUBLIC: anchor[PUBLIC]} | dict(own)
    yield System(name=kind, nats=nats)
    if kind == "specialist" and "oracle" in wanted:
        yield System(name="oracle", nats=nats)


def _merged(bench: Bench, model: PreTrainedModel) -> Iterator[System]:
    folders = bench.material.each(MERGE)
    systems = {
        name: System(name=name, nats=_with(bench, model, path), settings=_settings(path))
        for name, path in folders.items()
    }
    for method in dict.fromkeys(name.partition("@")[0] for name in systems):
        variants = [system for name, system in systems.items() if name.startswith(f"{method}@")]
        if variants:
            best = min(variants, key=lambda system: system.settings["judged"])
            yield System(name=method, nats=best.nats, settings=best.settings)
            yield from variants
        else:
            yield systems[method]


def _settings(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    return {"over": record["over"], "judged": record["judged"], **record["settings"]}


def _with(bench: Bench, model: PreTrainedModel, folder: Path, *domains: str) -> Nats:
    with swap_ffn(model, read_ffn(folder, bench.material.anchor)):
        return bench.measure(model, domains or None)
