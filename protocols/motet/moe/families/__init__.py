"""The anchor architectures a composite can be built from, one small file each.

To support another architecture, write a module like `llama` and list its family here (docs/anchors.md).

    family = family_of("olmo2")
    name = family.ffn_names(layer=0)[0]  # "model.layers.0.mlp.gate_proj.weight"
"""

from motet.moe.families.family import Family
from motet.moe.families.llama import LLAMA
from motet.moe.families.mistral import MISTRAL
from motet.moe.families.olmo2 import OLMO2
from motet.moe.families.qwen3 import QWEN3
from motet.protocols.errors import AnchorError

FAMILIES = {family.model_type: family for family in (OLMO2, LLAMA, MISTRAL, QWEN3)}


def family_of(model_type: str) -> Family:
    """The family of a transformers `model_type`. Raises AnchorError when there is none."""
    if model_type not in FAMILIES:
        raise AnchorError(
            f"saw an anchor of model_type {model_type!r}, wanted one of {', '.join(sorted(FAMILIES))}; "
            "take such an anchor, or add the architecture to motet/moe/families"
        )
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "Family", "family_of"]
