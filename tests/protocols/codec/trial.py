"""Tries files against the codec in every way that somebody opens one, beside `reference`.

Trial(folder, parts)(data)      # AssertionError unless both decoders agree, and every refusal says where
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from motet.protocols.codec import UpdateReader, apply, describe, verify
from motet.protocols.codec.kernels import Kernels
from motet.protocols.codec.native_kernels import NativeKernels
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.errors import CodecError
from motet.protocols.tensor_files import DTYPE_BYTES, TensorSpec

from . import reference
from .surgery import Frame, Parts, fields, take_apart

VECTORS = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parents[2] / "vectors").glob("*.motetup"))}
BOTH: list[Kernels] = [NumpyKernels(), NativeKernels()]
PLACE = r"hostile\.motetup: (header: |footer: |anchor: |base: |[\w.-]+: saw |[\w.-]+, chunk \d+: |saw no update file)"


def specs_of(header: Any) -> list[TensorSpec]:
    return [
        TensorSpec(name=tensor["name"], dtype=tensor["dtype"], shape=tuple(tensor["shape"]))
        for tensor in header["tensors"]
    ]


def refusal(action: Callable[[], object]) -> str | None:
    """What the CodecError says that an action raises; None if it raises nothing."""
    try:
        action()
    except CodecError as error:
        return str(error)
    return None


class Trial:
    """Tries files against the codec in every way that somebody opens one."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self.path, self.parts = folder / "hostile.motetup", parts
        self.header = parts.header
        self.wanted = specs_of(self.header)
        self.refused = self.taken = 0

    def __call__(self, data: bytes) -> None:
        self.path.unlink(missing_ok=True)  # overwriting would wait for the disk
        self.path.write_bytes(data)
        try:
            header, expected = reference.decode(data)
        except reference.RefusedError:
            header, expected = {}, None
        for look in (verify, describe):
            self.expect(expected is not None, lambda look=look: look(self.path))
        for kernels in BOTH:
            self.expect(None if expected is None else self.fits(header), lambda kernels=kernels: self.use(kernels))
        if expected is None:
            self.refused += 1
        else:
            self.taken += 1
            self.compare(expected)

    def refuse(self, data: bytes) -> None:
        """What no decoder takes: only the codec is asked, and only to read it all."""
        self.path.unlink(missing_ok=True)  # overwriting would wait for the disk
        self.path.write_bytes(data)
        self.expect(False, lambda: verify(self.path))

    def fits(self, header: Any) -> bool:
        """Whether a sound file's header says what is wanted."""
        same = {spec.name: spec for spec in specs_of(header)} == {spec.name: spec for spec in self.wanted}
        return same and (header["anchor"], header.get("base")) == (self.header["anchor"], self.header.get("base"))

    def expect(self, sound: bool | None, action: Callable[[], object]) -> None:
        """Run it: it must raise CodecError, naming the place, unless the file is sound; None is for either."""
        problem = refusal(action)
        if sound is not None:
            assert (problem is None) == sound, problem or "a file was taken that docs/format.md refuses"
        if problem is not None:
            assert re.match(PLACE, problem), problem
            assert problem.isprintable()
            assert len(problem) < 1200

    def use(self, kernels: Kernels) -> None:
        """As a coordinator does: with specs, anchor and base of its own, applied to what it has."""
        anchor, base = self.header["anchor"], self.header.get("base")
        with UpdateReader(self.path, wanted=self.wanted, anchor=anchor, base=base, paths=kernels) as update:
            stored = lambda spec, start, count: bytes(count * DTYPE_BYTES[spec.dtype])  # noqa: E731
            for spec, _, words in apply(update, stored, self.wanted, workers=1):
                assert words.nbytes <= spec.nbytes

    def compare(self, expected: dict[str, np.ndarray]) -> None:
        for kernels in BOTH:
            with UpdateReader(self.path, paths=kernels) as update:
                assert {spec.name for spec in update.specs} == expected.keys()
                for name, values in expected.items():
                    if update.header.values < 1 << 20:
                        np.testing.assert_array_equal(update.tensor(name).reshape(-1), values)


def alone(parts: Parts, at: int) -> Parts:
    """A file of nothing but one chunk."""
    frame = parts.frames[at]
    tensor = parts.header["tensors"][frame.tensor]
    rows, columns = list(reference.chunks(tensor, parts.header["chunk_values"]))[frame.number]
    if len(tensor["shape"]) > 1:
        tensor |= {"shape": [rows, columns]}
    return replace(parts, frames=(Frame(tensor=0, number=0, payload=frame.payload),)).with_header(tensors=[tensor])


def seeds() -> dict[str, Parts]:
    """A chunk of each kind of payload, the last of its kind in each vector, which is the ragged one."""
    found = {}
    for name, data in VECTORS.items():
        parts = take_apart(data)
        for at, frame in enumerate(parts.frames):
            tensor = parts.header["tensors"][frame.tensor]
            kind = " ".join([tensor["method"], tensor["dtype"], *(field.name for field in fields(parts, at))])
            found[f"{name}: {kind}" if "ternary" in kind else kind] = alone(parts, at)
    return found


SEEDS = seeds()
