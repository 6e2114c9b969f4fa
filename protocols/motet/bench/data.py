"""The input of the benchmarks: Gaussian differences and an anchor, both bf16, in two safetensors files.

Independent positions are the codec's hardest case: no row and no neighbour tells anything about another. The values
depend on the seed and the sizes only, and at most a few megabytes of them are in memory.

    inputs = Inputs.in_folder(Path("tmp"))
    write_inputs(inputs, specs_of(50_000_000))
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from motet.protocols.codec.changes import narrow
from motet.protocols.codec.pipeline import ordered
from motet.protocols.tensor_files import TensorSpec, TensorWriter

COLUMNS = 2000
TENSORS = 24
LEAST = COLUMNS * TENSORS
ANCHOR = "sha256:" + "0" * 64
"""Stands for the anchor's digest, which is not measured here."""

_SLAB = 1 << 20
_SPREADS = (1e-3, 2e-2)
"""The standard deviations of the differences and of the anchor: about those of a trained expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The two files."""

    difference: Path
    anchor: Path

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Their places in a folder."""
        return cls(difference=folder / "difference.safetensors", anchor=folder / "anchor.safetensors")


def specs_of(params: int) -> list[TensorSpec]:
    """24 matrices of `params` values together, which are a multiple of 2000."""
    rows = params // COLUMNS
    heights = [rows * (index + 1) // TENSORS - rows * index // TENSORS for index in range(TENSORS)]
    return [
        TensorSpec(name=f"layers.{index}.weight", dtype="BF16", shape=(height, COLUMNS))
        for index, height in enumerate(heights)
    ]


def write_inputs(
    inputs: Inputs,
    specs: Sequence[TensorSpec],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write both files; `on_progress` is told bytes written, of how many."""
    done, total = 0, 2 * sum(spec.nbytes for spec in specs)
    for number, (path, spread) in enumerate(zip((inputs.difference, inputs.anchor), _SPREADS, strict=True)):

        def slab(job: tuple[int, int, int], number: int = number, spread: float = spread) -> NDArray[np.uint16]:
            index, start, count = job
            random = np.random.default_rng((seed, number, index, start))
            return narrow(random.standard_normal(count, np.float32) * np.float32(spread), "BF16").view(np.uint16)

        with TensorWriter(path, specs) as writer:
            for index, spec in enumerate(specs):

                def parts(index: int = index, spec: TensorSpec = spec) -> Iterator[memoryview]:
                    nonlocal done
                    values = spec.nbytes // 2
                    jobs = ((index, start, min(_SLAB, values - start)) for start in range(0, values, _SLAB))
                    for part in ordered(slab, jobs):
                        yield part.data
                        done += part.nbytes
                        on_progress(done, total)

                writer.write(spec.name, parts())
