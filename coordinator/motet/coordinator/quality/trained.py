"""Systems whose models another room trains and knows how to load again: `phatgoose` and the joint mixtures.

A package offers a loader under the entry point group `motet.quality_models`, as it does stages:

    joint      (folder, anchor) -> model
    phatgoose  (anchor, networks, gates) -> model       # by name: feed-forward tensors, and (layers, hidden)

A model is called as one of transformers is, with `input_ids` and `use_cache`, and answers with `logits`.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from safetensors.torch import load_file

from motet.coordinator.quality.material import read_ffn
from motet.coordinator.quality.measuring import Bench, System
from motet.protocols.errors import ConfigurationError

GATE_FILE = "gate.safetensors"
GROUP = "motet.quality_models"


def joint(bench: Bench, *, system: str) -> System:
    """The mixture that the input `joint` holds."""
    model = loader("joint")(bench.material.inputs["joint"], bench.material.anchor)
    return System(name=system, nats=bench.measure(model))


def phatgoose(bench: Bench) -> System:
    """The networks `specialist:NAME` and the anchor's, each token routed by the gates `gate:NAME`."""
    anchor = bench.material.anchor
    networks = {name: read_ffn(folder, anchor) for name, folder in bench.material.each("specialist:").items()}
    gates = {name: load_file(folder / GATE_FILE)["gate"] for name, folder in bench.material.each("gate:").items()}
    return System(name="phatgoose", nats=bench.measure(loader("phatgoose")(anchor, networks, gates)))


def loader(name: str) -> Callable[..., Any]:
    """What loads a kind of model.

    Raises:
        ConfigurationError: nothing installed does.
    """
    for entry in entry_points(group=GROUP, name=name):
        found: Callable[..., Any] = entry.load()
        return found
    raise ConfigurationError(f"saw nothing that loads {name}, wanted it under {GROUP}; install Motet with its client")
