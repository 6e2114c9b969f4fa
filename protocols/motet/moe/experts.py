"""Experts as differences to the anchor's feed-forward layers."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from motet.moe.routing import RoutingRows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expert:
    """One owner's expert as it runs: a whole feed-forward network and its routing rows.

    `ffn` has the anchor's tensor names (`model.layers.{l}.mlp.{gate_proj,up_proj,down_proj}.weight`), shapes and
    dtype; `contribution` is the digest that identifies the expert and orders it within a composite.
    """

    name: str
    contribution: str
    ffn: Mapping[str, Tensor]
    rows: RoutingRows
