"""Routing keeps its digits: scores in bfloat16 have three, and a softmax turns their error into a factor.

class Router(Wide, nn.Linear): ...           # stays float32 when its model is made bfloat16
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


def wide_dtype() -> torch.dtype:
    """What routing is computed in: float64 where that is the default, else float32."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


class Wide(nn.Module):
    """A module whose tensors follow their model to other devices, and never to a half-precision dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def widened(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        super()._apply(widened, recurse)  # type: ignore[no-untyped-call]
        return self
