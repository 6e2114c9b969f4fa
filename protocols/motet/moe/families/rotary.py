"""What a stock architecture takes over of an anchor's rotary embedding: its parameters, if it knows their type.

problem = rope_problem(config)                 # None, or "saw rope_type 'x', wanted one of default, dynamic, ..."
"""

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS)
"""What dense and stock architectures compute alike."""


def rope_problem(anchor: PreTrainedConfig) -> str | None:
    """Why no stock architecture turns its queries and keys as this anchor does; None if it does."""
    parameters = getattr(anchor, "rope_parameters", None) or {}
    seen = parameters.get("rope_type")
    if seen not in ROPE_TYPES:
        return f"saw rope_type {seen!r}, wanted one of {', '.join(sorted(ROPE_TYPES))}"
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        return f"saw partial_rotary_factor {parameters['partial_rotary_factor']}, wanted 1"
    return None
