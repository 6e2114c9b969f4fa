"""The stage `joint`: the composite that could be trained if all text lay in one place, the upper reference.

Guarantees that it has the architecture of a composite and what owners start from: the anchor's networks, copied once
an owner, and the owners' rows. Every copy is trained on every owner's text and the same share of public text, with all
experts active; so are the rows, unless a filter weighs the experts, whose evidence stays the owners'.

    joint(spec | {"budget": "steps", "learning_rate": 2e-3, "routing": "token"},
          {"anchor": anchor, "public": public, "domain:medicine": corpus, "expert:medicine": expert}, out, tell)
    model = joint_model(out, anchor)

`budget` says how long: "steps" is an owner's steps times the number of owners, which reads what all of them read;
"compute" as many steps as cost what all owners' trainings cost, see `equal_steps`. A filter needs `stay` and
`temperature` in the spec, as experts do.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from motet.bench.quality.descent import Batch, Schedule, descend
from motet.bench.quality.stages import Tell
from motet.client.batches import Batches
from motet.client.quality.material import EXPERT, frozen, owners_batches, read_rows, write_record
from motet.moe.anchor import Anchor
from motet.moe.composite import MotetForCausalLM, compose, router_tensor_names
from motet.moe.config import ANCHOR
from motet.moe.evidence import Evidence
from motet.moe.experts import Expert
from motet.protocols.errors import AssemblyError


def joint(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Train the mixture, and keep all of it as transformers does."""
    began = time.perf_counter()
    anchor = Anchor.load(inputs["anchor"])
    owners = owners_batches(spec, anchor, inputs)
    model = mixture(spec, anchor, inputs)
    steps = spec["steps"] * len(owners)
    if spec["budget"] == "compute":
        steps = equal_steps(anchor.model().config, spec["steps"], len(owners), spec["sequence_length"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = pooled(list(owners.values()), seed=spec["seed"])
    descend(model, trained, batch, Schedule(steps=steps, peak=spec["learning_rate"]), tell=tell)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(out)
    tokens = steps * spec["batch_size"] * spec["sequence_length"]
    write_record(out, {"seconds": round(time.perf_counter() - began, 3), "steps": steps, "tokens": tokens})


def joint_model(folder: Path, anchor: Anchor) -> MotetForCausalLM:
    """The mixture that a stage `joint` left in `folder`, to run in float32.

    Raises:
        AssemblyError: it was made from another anchor.
    """
    model: MotetForCausalLM = MotetForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    kept, wanted = model.expert_ffn(ANCHOR), anchor.ffn()
    if not all(name in kept and torch.equal(kept[name], tensor.float()) for name, tensor in wanted.items()):
        raise AssemblyError(f"saw a mixture in {folder} of another anchor, wanted {anchor.digest}'s; train it again")
    model.train(False)
    return model


def mixture(spec: Mapping[str, Any], anchor: Anchor, inputs: Mapping[str, Path]) -> MotetForCausalLM:
    """What training starts with: a copy of the anchor's networks for every expert, and the rows that it has."""
    experts = [
        Expert(
            name=name.removeprefix(EXPERT),
            contribution=name,
            ffn={key: nn.Parameter(tensor.float()) for key, tensor in anchor.ffn().items()},
            rows=read_rows(path, anchor),
        )
        for name, path in inputs.items()
        if name.startswith(EXPERT)
    ]
    evidence = Evidence(stay=spec["stay"], temperature=spec["temperature"]) if spec["routing"] == "filter" else None
    model = compose(frozen(anchor), experts, evidence=evidence)
    if evidence is None:
        for layer in range(anchor.manifest.layers):
            for name in router_tensor_names(layer):
                model.get_parameter(name).requires_grad_(True)
    return model


def pooled(owners: Sequence[Batches], *, seed: int) -> Batch:
    """Batches of all owners' text, in which every owner's n-th batch is read before any owner's next one.

    The rows of the owners' n-th batches, shuffled and dealt out again: as many batches of the same size.
    """

    def batch(step: int) -> Tensor:
        turn, part = divmod(step, len(owners))
        rows = torch.cat([next(each.at(turn)) for each in owners])  # (owners * batch, seq + 1)
        draw = torch.Generator().manual_seed(seed * 1_000_003 + turn)
        return rows[torch.randperm(len(rows), generator=draw)[part :: len(owners)]]

    return batch


def equal_steps(anchor: PreTrainedConfig, steps: int, owners: int, sequence_length: int) -> int:
    """The steps of a mixture of all experts that cost what `owners` trainings of two experts and `steps` steps cost.

    Let R be the multiplications per token outside the feed-forward networks (attention, its scores, the head) and F
    those of one expert's networks. A forward pass through n experts costs R + nF; the gradients of activations cost as
    much again; those of weights F for every expert that is trained. So a step costs in proportion to

        2R + 2nF + (experts trained) F:     2R + 5F for an owner (n = 2, one trained),
                                            2R + (3N + 2)F for the mixture (n = N + 1, N trained),

    and N * steps * (2R + 5F) / (2R + (3N + 2)F) steps are equal, rounded down. Embeddings are looked up, and norms,
    softmax and the rows are left out: they are some thousandths.
    """
    width, layers = int(anchor.hidden_size), int(anchor.num_hidden_layers)
    rest = layers * (4 * width**2 + 2 * sequence_length * width) + int(anchor.vocab_size) * width
    networks = layers * 3 * width * int(anchor.intermediate_size)
    own, mixed = 2 * rest + 5 * networks, 2 * rest + (3 * owners + 2) * networks
    return max(1, owners * steps * own // mixed)
