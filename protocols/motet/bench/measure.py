"""One measurement, in a process that does nothing else: `python -m motet.bench.measure JOB RESULT`.

The process imports, sends a small update both ways, so that compiled loops are there, and notes its memory. Then it
encodes and decodes the real one, up to three times, and hashes the same input before, between and after.

    measured = measure(Job(case=case, folder="tmp"))
"""

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from motet.bench.data import LEAST, Inputs, specs_of, write_inputs
from motet.bench.memory import MemoryWatch
from motet.bench.rows import Case, Row
from motet.bench.trials import Trial, bound_of, trial_of
from motet.protocols.canonical import CHUNK_BYTES
from motet.protocols.codec import FileSource
from motet.protocols.codec.kernels import Kernels
from motet.protocols.documents import Strict

ROUNDS = 3
ENOUGH_SECONDS = 2.5
SAME_DENSITY = 1e-3
"""Densities that differ by no more than this part are called the same."""


class Job(Strict):
    """What to measure, and where the input lies."""

    case: Case
    folder: str


class Measured(Strict):
    """A row, and what it was measured against."""

    row: Row
    sha256_mb_s: float
    exact_memory: bool


def measure(job: Job) -> Measured:
    """Measure. Needs the two files of `Inputs` in the folder."""
    folder = Path(job.folder)
    inputs, out = Inputs.in_folder(folder), folder / "measured"
    trial = trial_of(job.case, _kernels(job.case))
    _warm(trial, folder / "warm")
    trial.prepare(inputs)
    watch = MemoryWatch.begin()
    encoded, decoded, hashed = _rounds(trial, inputs, out)
    extra = watch.extra_mb()
    with FileSource(inputs.difference) as source:
        values = sum(spec.nbytes for spec in source.specs) // 2
    speeds = (2e-6 * values / median(encoded), 2e-6 * values / median(decoded))
    row = _row(job.case, trial.kept(out), 8 * out.stat().st_size / values, speeds, median(hashed), extra)
    return Measured(row=row, sha256_mb_s=median(hashed), exact_memory=watch.exact)


def _kernels(case: Case) -> Kernels:
    if case.path == "native":
        from motet.protocols.codec.native_kernels import NativeKernels

        return NativeKernels()
    from motet.protocols.codec.numpy_kernels import NumpyKernels

    return NumpyKernels()


def _warm(trial: Trial, folder: Path) -> None:
    """Both ways once, with the least there is."""
    folder.mkdir(exist_ok=True)
    inputs, out = Inputs.in_folder(folder), folder / "measured"
    if not inputs.anchor.exists():
        write_inputs(inputs, specs_of(LEAST))
    trial.prepare(inputs)
    trial.encode(inputs, out)
    for _ in trial.decode(inputs, out):
        pass


def _rounds(trial: Trial, inputs: Inputs, out: Path) -> tuple[list[float], list[float], list[float]]:
    """Seconds of encoding, seconds of decoding, and MB/s of hashing in between."""
    encoded: list[float] = []
    decoded: list[float] = []
    hashed = [_sha256_mb_s(inputs.difference)]
    begun = time.perf_counter()
    while len(encoded) < ROUNDS and time.perf_counter() - begun < ENOUGH_SECONDS:
        encoded.append(_seconds(lambda: trial.encode(inputs, out)))
        hashed.append(_sha256_mb_s(inputs.difference))
        decoded.append(_seconds(lambda: _exhaust(trial, inputs, out)))
        hashed.append(_sha256_mb_s(inputs.difference))
    return encoded, decoded, hashed


def _exhaust(trial: Trial, inputs: Inputs, out: Path) -> None:
    for _ in trial.decode(inputs, out):
        pass


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _sha256_mb_s(path: Path) -> float:
    """MB/s of SHA-256 on one thread, the reading left out."""
    state, spent, done = hashlib.sha256(), 0.0, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            begun = time.perf_counter()
            state.update(chunk)
            spent += time.perf_counter() - begun
            done += len(chunk)
    return done / 1e6 / spent


def _row(case: Case, share: float | None, bits: float, speeds: tuple[float, float], hashed: float, extra: float) -> Row:
    bound, density = bound_of(share), case.density
    if share is not None and density is not None and abs(share - density) > SAME_DENSITY * density:
        density = share
    return Row(
        method=case.method,
        path=case.path,
        density=density,
        bits_per_parameter=bits,
        bound=bound,
        over_bound_percent=100 * (bits / bound - 1) if bound else None,
        encode_mb_s=speeds[0],
        decode_mb_s=speeds[1],
        encode_vs_sha256=speeds[0] / hashed,
        decode_vs_sha256=speeds[1] / hashed,
        extra_rss_mb=extra,
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(measure(Job.model_validate_json(sys.argv[1])).model_dump_json())
