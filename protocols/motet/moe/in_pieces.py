"""Work on many tokens done a few at a time, forward and backward, so that what it makes on the way stays in the cache.

Guarantees: the values are those of the pieces put together; of what lies in between nothing is kept, the backward pass
makes it once more; gradients reach the rows and the parameters that need them.

    inner, outer = in_pieces(mixed, (tokens, gate, up), parameters, size=32)     # mixed(*rows) -> tensors
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Mixed = Callable[..., tuple[Tensor, ...]]


def in_pieces(function: Mixed, rows: Sequence[Tensor], parameters: Sequence[Tensor], *, size: int) -> list[Tensor]:
    """What `function(*rows)` gives, made of `size` rows at a time.

    Args:
        function: of tensors that have as many rows each, to tensors of as many; each row by itself.
        rows: what it is called with.
        parameters: what else it depends on and may need a gradient.
        size: how many rows at a time.
    """
    return list(_InPieces.apply(function, size, len(rows), *rows, *parameters))  # type: ignore[no-untyped-call]


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Mixed, size: int, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.function, ctx.size, ctx.count = function, size, count
        ctx.save_for_backward(*tensors)
        made = [function(*piece) for piece in _pieces(tensors[:count], size)]
        return tuple(torch.cat(parts) for parts in zip(*made, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        rows, parameters = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        needed = ctx.needs_input_grad[3:]
        # One room for the whole, whose pieces are filled in; parameters' gradients are added up.
        found = [torch.empty_like(row) if need else None for row, need in zip(rows, needed, strict=False)]
        sums = [
            torch.zeros_like(each) if need else None for each, need in zip(parameters, needed[ctx.count :], strict=True)
        ]
        learning = [each for each, total in zip(parameters, sums, strict=True) if total is not None]
        rooms = _pieces([room for room in found if room is not None], ctx.size) if any(needed[: ctx.count]) else None
        for piece, told in zip(_pieces(rows, ctx.size), _pieces(gradients, ctx.size), strict=True):
            leaves = [row.detach().requires_grad_(need) for row, need in zip(piece, needed, strict=False)]
            with torch.enable_grad():
                made = ctx.function(*leaves)
            asked = [leaf for leaf in leaves if leaf.requires_grad]
            given = torch.autograd.grad(made, [*asked, *learning], told, materialize_grads=True)
            if rooms is not None:
                for room, gradient in zip(next(rooms), given, strict=False):
                    room.copy_(gradient)
            for total, gradient in zip((each for each in sums if each is not None), given[len(asked) :], strict=True):
                total.add_(gradient)
        return None, None, None, *found, *sums


def _pieces(tensors: Sequence[Tensor], size: int) -> Any:  # noqa: ANN401
    """So many rows of each at a time."""
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
