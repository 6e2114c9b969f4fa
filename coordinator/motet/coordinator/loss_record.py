"""The training losses that one owner told, step by step, in a file that does not grow without end.

Guarantees: at most `MOST` points are told of a training, the first and the last among them, and twice as many lines
are kept; a training that goes on from a checkpoint, or anew, replaces the step it is first heard of and all later
ones, so that losses of earlier steps stay, of whichever training; a line that was cut off when the process was killed
is passed over.

    record = LossRecord(path)                      # OSError if it cannot be read
    record.add(120, 3.41)                          # one line more
    read_losses(path)                              # {..., 120: 3.41}; {} where there is no file

Each line is a JSON array, the step and its loss in nats per token.
"""

import json
import math
from pathlib import Path

from motet.protocols.canonical import storage_errors, write_atomically

MOST = 240


class LossRecord:
    """The file of one owner, written by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = _bytes_of(path)
        self._losses = _losses_in(data)
        self._lines = data.count(b"\n")
        self._whole = data.endswith(b"\n") or not data

    def add(self, step: int, loss: float) -> None:
        """Keep the loss of a step, unless it is there already. Raises StorageError."""
        if self._losses.get(step) == loss:
            return
        _add(self._losses, step, loss)
        if self._whole and self._lines < 2 * MOST:
            self._append(_line(step, loss))
            self._lines += 1
        else:
            write_atomically(self._path, b"".join(_line(*point) for point in self._losses.items()))
            self._lines, self._whole = len(self._losses), True

    def _append(self, line: bytes) -> None:
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._whole = False  # until all of it is there
            with self._path.open("ab", buffering=0) as file:
                self._whole = file.write(line) == len(line)


def read_losses(path: Path) -> dict[int, float]:
    """Step -> loss in nats per token, in the order of steps. Raises OSError."""
    return _losses_in(_bytes_of(path))


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _losses_in(data: bytes) -> dict[int, float]:
    losses: dict[int, float] = {}
    for line in data.split(b"\n")[:-1]:
        if (point := _point(line)) is not None:
            _add(losses, *point)
    return losses


def _add(losses: dict[int, float], step: int, loss: float) -> None:
    if losses and step <= next(reversed(losses)):
        for later in [known for known in losses if known >= step]:
            del losses[later]
    losses[step] = loss
    if len(losses) > MOST:
        for known in list(losses)[1:-1:2]:
            del losses[known]


def _point(line: bytes) -> tuple[int, float] | None:
    try:
        step, loss = json.loads(line)
        return (int(step), float(loss)) if math.isfinite(loss) else None
    except (ValueError, TypeError, OverflowError):
        return None


def _line(step: int, loss: float) -> bytes:
    return f"[{step},{loss}]\n".encode()
