"""The training losses that one owner told, step by step, in a file that does not grow without end.

Guarantees: the losses are of one training, the last that was told of: with the first loss of another all before it are
forgotten. At most `MOST` points are told, the first and the last among them, and twice as many lines are kept; a
training that goes on from a checkpoint replaces the step it is first heard of and all later ones. A line that was cut
off when the process was killed is passed over.

    record = LossRecord(path)                      # OSError if it cannot be read
    record.add(120, 3.41, training="3f2a91bc04d7") # one line more
    read_losses(path)                              # {..., 120: 3.41}; {} where there is no file

Each line is a JSON array: the step, its loss in nats per token, and the training's name, which is left out where the
owner told none, as owners of earlier releases do; their trainings cannot be told apart, and count as one.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from motet.protocols.canonical import storage_errors, write_atomically

MOST = 240


class LossRecord:
    """The file of one owner, written by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = _bytes_of(path)
        self._curve = _curve_in(data)
        self._lines = data.count(b"\n")
        self._whole = data.endswith(b"\n") or not data

    def add(self, step: int, loss: float, *, training: str | None = None) -> None:
        """Keep the loss of a step, unless it is there already. Raises StorageError."""
        curve = self._curve
        if curve.training == training and curve.losses.get(step) == loss:
            return
        curve.add(step, loss, training)
        if self._whole and self._lines < 2 * MOST:
            self._append(_line(step, loss, training))
            self._lines += 1
        else:
            write_atomically(self._path, b"".join(_line(*point, training) for point in curve.losses.items()))
            self._lines, self._whole = len(curve.losses), True

    def _append(self, line: bytes) -> None:
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._whole = False  # until all of it is there
            with self._path.open("ab", buffering=0) as file:
                self._whole = file.write(line) == len(line)


def read_losses(path: Path) -> dict[int, float]:
    """Step -> loss in nats per token, in the order of steps. Raises OSError."""
    return _curve_in(_bytes_of(path)).losses


@dataclass(slots=True)
class _Curve:
    """The losses of one training. training: its name, None of an owner who told none."""

    training: str | None = None
    losses: dict[int, float] = field(default_factory=dict)

    def add(self, step: int, loss: float, training: str | None) -> None:
        if training != self.training:
            self.training, self.losses = training, {}
        losses = self.losses
        if losses and step <= next(reversed(losses)):
            for later in [known for known in losses if known >= step]:
                del losses[later]
        losses[step] = loss
        if len(losses) > MOST:
            for known in list(losses)[1:-1:2]:
                del losses[known]


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _curve_in(data: bytes) -> _Curve:
    curve = _Curve()
    for line in data.split(b"\n")[:-1]:
        if (point := _point(line)) is not None:
            curve.add(*point)
    return curve


def _point(line: bytes) -> tuple[int, float, str | None] | None:
    try:
        step, loss, training = [*json.loads(line), None][:3]
        sound = math.isfinite(loss) and isinstance(training, str | None)
        return (int(step), float(loss), training) if sound else None
    except (ValueError, TypeError, OverflowError):
        return None


def _line(step: int, loss: float, training: str | None) -> bytes:
    point = [step, loss] if training is None else [step, loss, training]
    return json.dumps(point, separators=(",", ":")).encode() + b"\n"
