"""The stage `fedavg`: one network for all owners, averaged after every round (arXiv 1602.05629, algorithm 1).

Guarantees that Flower's own strategy does the averaging, and that an owner has the steps and the schedule of any other
training; AdamW begins anew each round, since owners share weights and nothing else.

    fedavg(spec | {"rounds": 10, "learning_rate": 2e-3},
           {"anchor": anchor, "public": public, "domain:medicine": medicine, "domain:law": law}, out, tell)
    load_file(out / NETWORKS)

Owners count by the windows that they read in the round (`num-examples`). That is the same for all, as the budget is, so
that no domain is worth more for having more text.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import DEFAULT_TTL, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from motet.bench.quality.descent import Schedule
from motet.bench.quality.stages import Tell
from motet.client.quality.material import fine_tuned, frozen, owners_batches, rounded, save_networks, write_record
from motet.moe.anchor import Anchor
from motet.protocols.errors import FederationError


def fedavg(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Train round by round, and keep the last average."""
    began = time.perf_counter()
    anchor = Anchor.load(inputs["anchor"])
    owners = owners_batches(spec, anchor, inputs)
    schedule = Schedule(steps=spec["steps"], peak=spec["learning_rate"])
    model, shared = frozen(anchor), {name: tensor.float() for name, tensor in anchor.ffn().items()}
    for number, part in enumerate(rounds(spec["steps"], spec["rounds"]), start=1):
        tell(f"round {number} of {spec['rounds']}")
        replies = [
            (fine_tuned(model, shared, batches, schedule, tell, part=part), len(part) * batches.rows_per_step)
            for batches in owners.values()
        ]
        shared = average(replies, number)
    save_networks(out, rounded(anchor, shared))
    tokens = sum(spec["steps"] * batches.tokens_per_step for batches in owners.values())
    write_record(out, {"seconds": round(time.perf_counter() - began, 3), "tokens": tokens})


def rounds(steps: int, count: int) -> Iterator[range]:
    """`steps` in so many parts of like length, none of them empty."""
    count = min(count, steps)
    for number in range(count):
        yield range(steps * number // count, steps * (number + 1) // count)


def average(replies: Sequence[tuple[Mapping[str, Tensor], int]], number: int) -> dict[str, Tensor]:
    """What Flower's strategy makes of a round's networks, float32, each with the number of its examples.

    Raises:
        FederationError: there are none.
    """
    messages = [_reply(node, ffn, examples) for node, (ffn, examples) in enumerate(replies, start=1)]
    arrays, _ = FedAvg().aggregate_train(number, messages)
    if arrays is None:
        raise FederationError("saw no owner's network in a round, wanted at least one; give the configuration domains")
    return dict(arrays.to_torch_state_dict())


def _reply(node: int, ffn: Mapping[str, Tensor], examples: int) -> Message:
    """What an owner's node would answer; nothing is sent, so that only the content matters."""
    content = RecordDict(
        {"arrays": ArrayRecord(torch_state_dict=dict(ffn)), "metrics": MetricRecord({"num-examples": examples})}
    )
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=node,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=DEFAULT_TTL,
        message_type=MessageType.TRAIN,
    )
    return Message(content, metadata=metadata)  # type: ignore[call-overload,no-any-return]
