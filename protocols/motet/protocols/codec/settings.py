"""What an owner may choose about the encoding of an update.

CodecSettings(method="ternary", density=0.2)
"""

from typing import Literal, get_args

from pydantic import Field

from motet.protocols.documents import Strict

Method = Literal["ternary", "levels", "int8", "int4", "lossless", "raw"]
"""ternary: sign and one scale for the largest values, zero for the rest. levels: a dead-zone uniform quantiser. int8
and int4: blocks with a scale each. lossless: the bf16 difference, exponents entropy-coded. raw: the bytes."""

METHODS: tuple[Method, ...] = get_args(Method)


class CodecSettings(Strict):
    """How the two-dimensional bf16 tensors of an update travel; routing rows and norms always travel unchanged."""

    method: Method = "lossless"
    density: float = Field(0.2, gt=0, le=1)
    """ternary: the share of values kept, the largest of the whole update."""
    balance: float = Field(0.0, ge=0, le=1)
    """ternary: how far rows are put on one footing before the largest values are chosen: values compete as
    |x| / rms(row)^balance. 0 is one threshold for all."""
    row_scales: bool = False
    """ternary: whether each row has a scale of its own beside its tensor's, for some four bits a row."""
    step: float = Field(1.0, ge=1e-3, le=1e3)
    """levels: the distance between levels, in units of the update's root mean square."""
    block: int = Field(64, ge=8, le=4096)
    """int8, int4: how many values share a scale."""

    @property
    def balanced(self) -> bool:
        """Whether rows are weighed before values are chosen."""
        return self.method == "ternary" and self.balance > 0

    @property
    def surveyed(self) -> bool:
        """Whether the method looks at the whole update before it encodes any of it, and has scales to tune."""
        return self.method in ("ternary", "levels")
