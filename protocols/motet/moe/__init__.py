"""The expert contract: what both sides of the federation must compute alike.

Importing it registers composites with transformers:

    import motet.moe
    model = AutoModelForCausalLM.from_pretrained("composite")
    with motet.moe.only("math"):
        model.generate(**inputs)
"""

from motet.moe.composite import MotetForCausalLM, compose
from motet.moe.config import ANCHOR, MotetConfig
from motet.moe.expert_sets import only, without
from motet.moe.experts import Expert
from motet.moe.lowrank import Factors, LowRankExpert
from motet.moe.routing import RoutingRows

__all__ = [
    "ANCHOR",
    "Expert",
    "Factors",
    "LowRankExpert",
    "MotetConfig",
    "MotetForCausalLM",
    "RoutingRows",
    "compose",
    "only",
    "without",
]
