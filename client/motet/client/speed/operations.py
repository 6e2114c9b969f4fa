"""What training has to multiply: floating-point operations of a step, counted from the shapes.

    shape = Shape(hidden=512, layers=8, intermediate=2048, vocabulary=8192, sequence=256)
    full_flop_bound(shape)                       # 0.67: how fast a full expert can train beside the frozen network

Counted are matrix products, a multiplication and an addition each; norms, activations and the optimiser are not. What
needs no gradient is not counted: there is none below the first layer's feed-forward network.
"""

from dataclasses import asdict, dataclass

_MATRICES = 3
"""gate, up and down of a feed-forward network"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A dense anchor with as many heads for keys and values as for queries, and the length of its sequences."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    sequence: int

    def as_json(self) -> dict[str, int]:
        """The shape as a JSON object."""
        return asdict(self)


def ffn_parameters(shape: Shape) -> int:
    """The parameters of a full expert."""
    return _MATRICES * shape.hidden * shape.intermediate * shape.layers


def fine_tune_flops(shape: Shape) -> int:
    """Operations for each token when the feed-forward networks of the model itself are trained, and nothing else."""
    attention, head = _attention(shape), 2 * shape.hidden * shape.vocabulary
    forward = 2 * ffn_parameters(shape) + shape.layers * attention.forward + head
    weights = 2 * ffn_parameters(shape)
    return forward + weights + _input_gradients(shape) + (shape.layers - 1) * attention.backward + head


def full_expert_flops(shape: Shape) -> int:
    """The same when they are a copy that learns beside the frozen original.

    The original is computed as well, and the gradient flows through it to the layers below, not into its weights.
    """
    matrix = 2 * shape.hidden * shape.intermediate
    frozen = 2 * ffn_parameters(shape) + (shape.layers - 1) * _MATRICES * matrix
    return fine_tune_flops(shape) + frozen


def full_flop_bound(shape: Shape) -> float:
    """The speed, in tokens, that counting allows a full expert, over that of the plain fine-tune."""
    return fine_tune_flops(shape) / full_expert_flops(shape)


def _input_gradients(shape: Shape) -> int:
    """Through trained feed-forward networks: all but gate and up of the first layer, below which nothing is trained."""
    matrix = 2 * shape.hidden * shape.intermediate
    return (shape.layers - 1) * _MATRICES * matrix + matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attention:
    """Of one layer, for each token."""

    forward: int
    backward: int


def _attention(shape: Shape) -> _Attention:
    """Four projections, and products of all positions with all: two forward; five backward, one of them again."""
    projections, positions = 8 * shape.hidden**2, 2 * shape.sequence * shape.hidden
    return _Attention(forward=projections + 2 * positions, backward=projections + 5 * positions)
