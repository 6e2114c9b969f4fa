"""The stage `squeeze`: a full expert that another stage kept, made low-rank.

Guarantees that it is what `motet squeeze` makes of a store file without loss in the codec; rows stay what they are.

    squeeze({"rank": 8, "seed": 0}, {"anchor": anchor, "expert": expert}, out, tell)
    read_stored(out / EXPERT_FILE, anchor, name="medicine", contribution=digest)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from motet.bench.quality.stages import Tell
from motet.client.quality.expert import keep_low_rank
from motet.client.quality.material import EXPERT_FILE, write_record
from motet.moe.anchor import Anchor
from motet.moe.experts import read_expert
from motet.moe.squeeze import changes, decompose


def squeeze(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Cut every difference to the rank, and keep the expert as a store does."""
    anchor, rank = Anchor.load(inputs["anchor"]), spec["rank"]
    full = read_expert(inputs["expert"] / EXPERT_FILE, anchor, name="expert", contribution="")
    tell(f"decomposing what the expert changes, rank {rank}")
    found = decompose(changes(anchor, full.ffn), rank=rank)
    keep_low_rank(anchor, found.factors(rank), full.rows, out)
    write_record(out, {"energy": found.energy(rank)})
