"""The stage `score`: what one part of the systems makes of the test documents.

Guarantees: whatever is chosen, validation documents choose it; every system is scored on the same windows of the same
documents, each window opening anew.

    score_stage({"part": "networks", "split": "test", "systems": ["specialist"], ...}, inputs, out, tell)
    out / "scores.json"                                  # as motet.bench.quality.results reads it

Parts: `networks` (anchor, specialists, merged networks), `composite`, `low-rank` (a composite of low-rank experts),
`ensembles`, `phatgoose`, `joint`, and `probe` (gates for experiments).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from motet.coordinator.quality.composites import composites, low_rank
from motet.coordinator.quality.ensembles import ensembles
from motet.coordinator.quality.material import Material
from motet.coordinator.quality.measuring import Bench, System
from motet.coordinator.quality.networks import networks
from motet.coordinator.quality.probing import probe
from motet.coordinator.quality.trained import joint, phatgoose
from motet.protocols.errors import ConfigurationError


def score_stage(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Callable[[str], None]) -> None:
    """Score one part; what it needs of spec and inputs, its own function says."""
    material = Material.of(inputs, sequence_length=spec["sequence_length"], most_bytes=spec.get("most_bytes"))
    bench = Bench(material=material, split=spec["split"], tell=tell)
    bench.write(out, systems_of(bench, spec))


def systems_of(bench: Bench, spec: Mapping[str, Any]) -> Iterator[System]:
    """The systems of a part.

    Raises:
        ConfigurationError: there is no such part.
    """
    match spec["part"]:
        case "networks":
            yield from networks(bench, wanted=spec["systems"])
        case "composite":
            yield from composites(bench, kind=spec["kind"], grid=spec["grid"], stock=spec["stock"])
        case "low-rank":
            yield low_rank(bench, name=spec["systems"][0], kind=spec["kind"], grid=spec["grid"])
        case "ensembles":
            yield from ensembles(bench, wanted=spec["systems"])
        case "phatgoose":
            yield phatgoose(bench)
        case "probe":
            yield from probe(bench, cells=spec["cells"])
        case "joint":
            yield joint(bench, system=spec["systems"][0])
        case part:
            raise ConfigurationError(f"saw the part {part!r} to score, wanted one that this version knows; update it")
