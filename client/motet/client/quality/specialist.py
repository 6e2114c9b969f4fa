"""The stage `specialist`: the anchor's feed-forward networks fine-tuned on one owner's text, with nothing beside them.

What an owner could do alone, and the bar that a composite is measured by. Guarantees that the learning rate is chosen
by the owner's validation text, or is that of another specialist, and that the budget counts public batches.

    specialist(spec, {"anchor": anchor, "public": public, "domain": medicine}, out, tell)
    read_record(out)["learning_rate"], load_file(out / NETWORKS)
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from motet.bench.quality.corpora import read_split
from motet.bench.quality.descent import Schedule
from motet.bench.quality.stages import Tell
from motet.client.quality.material import (
    Judge,
    batches_of,
    fine_tuned,
    frozen,
    read_record,
    rounded,
    save_networks,
    write_record,
)
from motet.moe.anchor import Anchor


def specialist(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Train with every learning rate, or with that of the input `specialist`, and keep the best networks."""
    began = time.perf_counter()
    anchor = Anchor.load(inputs["anchor"])
    batches = batches_of(spec, anchor, read_split(inputs["domain"], "train"), read_split(inputs["public"], "train"))
    judge = Judge.of(anchor, read_split(inputs["domain"], "validation"), spec["sequence_length"])
    model, found, judged = frozen(anchor), {}, {}
    for rate in learning_rates(spec, inputs):
        tell(f"training with a learning rate of {rate:g}")
        schedule = Schedule(steps=spec["steps"], peak=rate)
        found[rate] = rounded(anchor, fine_tuned(model, anchor.ffn(), batches, schedule, tell))
        judged[rate] = judge(found[rate])
    best = min(judged, key=lambda rate: judged[rate])
    save_networks(out, found[best])
    write_record(
        out,
        {
            "learning_rate": best,
            "validation": {str(rate): bits for rate, bits in judged.items()},
            "seconds": round(time.perf_counter() - began, 3),
            "tokens": spec["steps"] * batches.tokens_per_step,
        },
    )


def learning_rates(spec: Mapping[str, Any], inputs: Mapping[str, Path]) -> list[float]:
    """What to try: what a specialist that is given found best, else the spec's grid."""
    if "specialist" in inputs:
        return [read_record(inputs["specialist"])["learning_rate"]]
    return list(spec["learning_rates"])
