"""The stage `merge`: one merging method over experts, its settings chosen by validation documents.

Guarantees: test documents are not read. Given several variants of the networks, the method runs over the one whose
soup was judged best, and the record says which.

    merge_stage({"method": "ties", "sequence_length": 256, "seed": 0}, inputs, out, tell)
    out / "ffn.safetensors", out / "record.json"         # {"method", "over", "settings", "judged"}
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from motet.coordinator.merging import TextJudge, merge
from motet.coordinator.quality.material import Material, read_ffn, read_record, write_ffn, write_record


def merge_stage(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Callable[[str], None]) -> None:
    """Merge `network:VARIANT/NAME` of one variant; with several, `merge:soup@VARIANT` tell which."""
    material = Material.of(inputs, sequence_length=spec["sequence_length"], most_bytes=spec.get("most_bytes"))
    chosen = variant_of(material)
    networks = {
        name: read_ffn(path, material.anchor) for name, path in sorted(material.each(f"network:{chosen}/").items())
    }
    judge = TextJudge(material.dense(), material.windows("validation"))
    merged = merge(spec["method"], material.anchor.ffn(), networks, judge, seed=spec["seed"])
    tell(f"{spec['method']} over {chosen}: {merged.judged:.4f} bits per byte of validation text")
    write_ffn(out, merged.ffn)
    record = {"method": merged.method, "over": chosen, "settings": merged.settings, "judged": merged.judged}
    write_record(out, record)


def variant_of(material: Material) -> str:
    """The variant to merge: the only one, or that whose soup was judged best, the first of equals."""
    variants = list(dict.fromkeys(name.partition("/")[0] for name in material.each("network:")))
    if len(variants) == 1:
        return variants[0]
    judged = {name: read_record(path)["judged"] for name, path in material.each("merge:soup@").items()}
    return min(variants, key=lambda variant: judged[variant])
