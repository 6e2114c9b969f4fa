"""Reading a chunk's payload front to back, with every length checked before it is believed.

cursor = Cursor(payload, where="medicine.motetup: model.layers.0.mlp.up_proj.weight, chunk 3")
mode, count = cursor.u8("mode"), cursor.u32("count", most=values)
signs = cursor.take(-(-count // 8), "signs")
cursor.end()
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from motet.protocols.errors import CodecError


class Cursor:
    """A position in a payload. Every error is a CodecError that begins with `where`."""

    def __init__(self, data: bytes, *, where: str) -> None:
        self.where = where
        self._data = memoryview(data)
        self._position = 0

    def take(self, size: int, what: str) -> memoryview:
        """The next `size` bytes, not copied."""
        end = self._position + size
        if end > len(self._data):
            left = len(self._data) - self._position
            raise self.problem(f"saw {left} bytes left for {what}, wanted {size}")
        found = self._data[self._position : end]
        self._position = end
        return found

    def u8(self, what: str, *, most: int = 0xFF) -> int:
        """A byte, at most `most`."""
        return self._number("<B", what, most)

    def u32(self, what: str, *, most: int) -> int:
        """A little-endian number of four bytes, at most `most`."""
        return self._number("<I", what, most)

    def end(self) -> None:
        """Nothing may follow."""
        if left := len(self._data) - self._position:
            raise self.problem(f"saw {left} bytes after the last section, wanted none")

    def problem(self, what: str, kind: type[CodecError] = CodecError) -> CodecError:
        """An error that says where; the caller raises it."""
        return kind(f"{self.where}: {what}; the file is damaged or was not made by this format: fetch it again")

    @contextmanager
    def naming_place(self) -> Iterator[None]:
        """Errors of what is called inside, which does not know the place, begin with `where`."""
        try:
            yield
        except CodecError as error:
            raise self.problem(str(error)) from error

    def _number(self, form: str, what: str, most: int) -> int:
        (number,) = struct.unpack(form, self.take(struct.calcsize(form), what))
        if number > most:
            raise self.problem(f"saw {what} {number}, wanted at most {most}")
        return int(number)
