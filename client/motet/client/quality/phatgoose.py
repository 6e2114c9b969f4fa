"""The stage `phatgoose`: specialists made apart, routed by gates made apart (PHATGOOSE, arXiv 2402.05859, section 3).

Guarantees that a gate is trained on its own domain's text with the networks frozen, and that nothing is trained once
the networks meet: at every layer each token goes to the two whose gates, standardised, are most like its input.

    phatgoose({"steps": 50, "batch_size": 8, "sequence_length": 256, "seed": 0},
              {"anchor": anchor, "domain": medicine, "specialist": specialist}, out, tell)    # without: the anchor
    gates = {name: read_gate(folder) for name, folder in folders.items()}        # (layers, hidden) each
    model = phatgoose_model(anchor, {"anchor": anchor.ffn(), "medicine": ffn}, gates)

The paper's gate scales what a module adds to the residual stream by sigmoid(v.u), u the module's input. Here modules
are whole feed-forward networks, and what they add comes out of the norm behind them: that is what is scaled.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.bench.quality.corpora import read_split
from motet.bench.quality.descent import Schedule, descend
from motet.bench.quality.stages import Tell
from motet.client.quality.material import NETWORKS, batches_of, frozen, passes
from motet.moe.anchor import Anchor
from motet.moe.composite import MotetForCausalLM, compose
from motet.moe.config import ANCHOR
from motet.moe.experts import Expert, swap_ffn
from motet.moe.routing import RoutingRows
from motet.protocols.errors import AssemblyError

GATE = "gate.safetensors"
LEARNING_RATE = 5e-3
"""The paper's, section 4.1."""
TOP_K = 2
"""The paper's, section 4.1."""


def phatgoose(spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell) -> None:
    """Train the gates of one specialist's layers, or of the anchor's, on one corpus."""
    anchor = Anchor.load(inputs["anchor"])
    ffn = load_file(inputs["specialist"] / NETWORKS) if "specialist" in inputs else anchor.ffn()
    batches = batches_of({**spec, "public_share": 0.0}, anchor, read_split(inputs["domain"], "train"), ())
    model, gates = frozen(anchor), nn.Parameter(torch.zeros(anchor.manifest.layers, anchor.manifest.hidden_size))
    with swap_ffn(model, ffn), gated(model, gates):
        descend(model, [gates], passes(batches), Schedule(steps=spec["steps"], peak=LEARNING_RATE), tell=tell)
    save_file({"gate": gates.detach()}, out / GATE)


def read_gate(folder: Path) -> Tensor:
    """The gates that a stage left: (layers, hidden) float32."""
    return load_file(folder / GATE)["gate"]


@contextmanager
def gated(model: PreTrainedModel, gates: Tensor) -> Iterator[None]:
    """While open, what a layer's feed-forward network adds is scaled by the sigmoid of its gate: (layers, hidden)."""
    inputs: dict[int, Tensor] = {}

    def note(layer: int) -> Any:  # noqa: ANN401 - torch's hooks
        return lambda module, arguments: inputs.__setitem__(layer, arguments[0])

    def scale(layer: int) -> Any:  # noqa: ANN401
        return lambda module, arguments, added: added * (inputs.pop(layer) @ gates[layer]).sigmoid().unsqueeze(-1)

    hooks = []
    for number, layer in enumerate(model.model.layers):
        hooks.append(layer.mlp.register_forward_pre_hook(note(number)))
        hooks.append(layer.post_feedforward_layernorm.register_forward_hook(scale(number)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Affinity(nn.Module):
    """How alike a layer's input and each network's gate are; stands where a composite has its router."""

    def __init__(self, gates: Tensor) -> None:
        """gates (experts, hidden)."""
        super().__init__()
        self.gates = nn.Parameter(standardised(gates), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (tokens, hidden) -> (tokens, experts), the paper's equation of section 3.2 before its softmax."""
        return standardised(hidden) @ self.gates.T / math.sqrt(hidden.shape[-1])


def standardised(values: Tensor) -> Tensor:
    """Each vector (..., hidden) with a mean of 0 and a variance of 1."""
    centred = values - values.mean(dim=-1, keepdim=True)
    return centred / (centred.std(dim=-1, correction=0, keepdim=True) + 1e-8)


def phatgoose_model(
    anchor: Anchor, networks: Mapping[str, Mapping[str, Tensor]], gates: Mapping[str, Tensor]
) -> MotetForCausalLM:
    """The networks routed token by token by their gates, in float32; the anchor is one of them.

    Args:
        anchor: what all networks start from.
        networks: by name, feed-forward tensors under the anchor's names; "anchor" may be left out.
        gates: by the same names, and that of "anchor": (layers, hidden) each.

    Raises:
        AssemblyError: names do not match, or a network does not fit the anchor.
    """
    closed = sorted(set(networks) - {ANCHOR})
    if set(gates) != {ANCHOR, *closed}:
        raise AssemblyError(
            f"saw gates of {', '.join(sorted(gates))}, wanted one for each of {', '.join([ANCHOR, *closed])}; train "
            "those that are missing"
        )
    none = RoutingRows(weight=torch.zeros_like(gates[ANCHOR]), bias=torch.zeros(len(gates[ANCHOR])))
    experts = [
        Expert(name=name, contribution=name, ffn={key: each.float() for key, each in networks[name].items()}, rows=none)
        for name in closed
    ]
    model = compose(anchor.model(torch.float32), experts, top_k=min(TOP_K, len(gates)))
    for number, layer in enumerate(model.model.layers):
        layer.mlp.router = Affinity(torch.stack([gates[name][number] for name in model.config.names]))
    return model
