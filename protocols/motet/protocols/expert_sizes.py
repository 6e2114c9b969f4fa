"""How large the experts of a composite are: parameters and bytes, by kind and rank. Needs no torch.

    ExpertSize.of("medicine", tensors, rank=16)                   # of tensors in memory
    composite_sizes(Path("composite"))                            # of the files, by expert id, the anchor's first

Counted is what lies below `mlp.experts.{e}`, an expert's own matrices or factors; the router is not.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from motet.protocols.documents import Strict
from motet.protocols.errors import AssemblyError, TensorFileError
from motet.protocols.expert_files import rank_of
from motet.protocols.tensor_files import TensorReader, TensorSpec


class ExpertSize(Strict):
    """One expert of a composite: what it is called, which kind it is, and what it takes."""

    name: str
    kind: Literal["anchor", "full", "lowrank"]
    rank: int | None
    """Of a low-rank expert's factors."""
    parameters: int = Field(ge=0)
    bytes: int = Field(ge=0)

    @classmethod
    def of(cls, name: str, tensors: Iterable[Any], rank: int | None) -> Self:
        """Of an expert's tensors in memory; `name` "anchor" is the anchor's own network."""
        sizes = [(tensor.numel(), tensor.nbytes) for tensor in tensors]
        return cls._of(name, rank, parameters=sum(size for size, _ in sizes), size=sum(size for _, size in sizes))

    @classmethod
    def of_specs(cls, name: str, specs: Iterable[TensorSpec]) -> Self:
        """Of an expert's tensors in a file, its routing not counted."""
        own = [spec for spec in specs if ".router." not in spec.name]
        parameters = sum(math.prod(spec.shape) for spec in own)
        return cls._of(name, rank_of(own), parameters=parameters, size=sum(spec.nbytes for spec in own))

    @classmethod
    def _of(cls, name: str, rank: int | None, *, parameters: int, size: int) -> Self:
        kind: Literal["anchor", "full", "lowrank"] = "full" if rank is None else "lowrank"
        return cls(name=name, kind="anchor" if name == "anchor" else kind, rank=rank, parameters=parameters, bytes=size)

    def __str__(self) -> str:
        """A line of a listing: "medicine  lowrank, rank 16  1,234 parameters  0.01 MB"."""
        kind = self.kind if self.rank is None else f"{self.kind}, rank {self.rank}"
        return f"{self.name}  {kind}  {self.parameters:,} parameters  {self.bytes / 1e6:.2f} MB"


def composite_sizes(directory: Path) -> tuple[ExpertSize, ...]:
    """The experts of an assembled composite by id, from its configuration and the headers of its files.

    Raises:
        AssemblyError: the directory is no assembled composite.
    """
    try:
        names = json.loads((directory / "config.json").read_text(encoding="utf-8"))["expert_names"]
        return sizes_in(directory, names)
    except (OSError, ValueError, KeyError, TypeError, TensorFileError) as error:
        raise AssemblyError(
            f"cannot read the experts of {directory}: {error}; fetch or assemble the composite again"
        ) from error


def sizes_in(directory: Path, names: Sequence[str]) -> tuple[ExpertSize, ...]:
    """The experts of these names, by id, in the files of a directory; raises OSError or TensorFileError."""
    return tuple(_in_file(directory / expert_file(number), name) for number, name in enumerate(names))


def expert_file(number: int) -> str:
    """What the file with the tensors of the expert of this id is called."""
    return f"expert-{number:05d}.safetensors"


def _in_file(path: Path, name: str) -> ExpertSize:
    with TensorReader(path) as reader:
        return ExpertSize.of_specs(name, reader.specs)
