"""Reading an update that nobody vouches for, in a child process with little memory and little time.

Guarantees that the process which holds the coordinator's key never parses an update: the child does, under caps of
its own (private memory, CPU time, no file written, no core), and what it says is parsed strictly. It streams the file
once for its digest and once for its values, and finds the largest magnitude by comparing bits: for IEEE formats
without the sign their order is the magnitudes' order, with infinity and NaN above all.

    findings = inspect(Path("update.safetensors"))
"""

import ctypes
import hashlib
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

from motet.coordinator.admission import Findings, FoundTensor
from motet.protocols.canonical import CHUNK_BYTES
from motet.protocols.errors import AdmissionRefused, FederationError, TensorFileError
from motet.protocols.tensor_files import TensorReader, TensorSpec

MEMORY_BYTES = 256 << 20
"""Private memory of the child, which needs numpy and no torch."""
SECONDS, BYTES_PER_SECOND = 60, 20 << 20
"""CPU time allowed: this many seconds, and one more for so many bytes."""
MAX_TENSORS = 100_000

_PR_SET_PDEATHSIG = 1
_PATIENCE = 5
"""Wall-clock seconds for each of CPU time: a busy machine or a slow disk is no fault of the file."""
_STOPPED = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGKILL}
"""How a child ends that somebody stopped: the service on its way down, or the kernel short of memory."""
_BITS = {"BF16": ("<u2", 0x7FFF, 0x7F80, 16), "F32": ("<u4", 0x7FFFFFFF, 0x7F800000, 0)}
"""dtype -> numpy's word, the bits of the magnitude, those of infinity, and what makes it float32's bits."""


def inspect(update: Path) -> Findings:
    """What is in the file. Runs a child process.

    Raises:
        AdmissionRefused: with the reason "uninspectable", when the child met its caps: the file is built to do harm.
        FederationError: the child could not be run, or was stopped: nothing was found out.
    """
    size = update.stat().st_size
    answer = run_child("motet.coordinator.inspection", [str(update)], cpu_seconds=SECONDS + size // BYTES_PER_SECOND)
    try:
        return Findings.model_validate_json(answer)
    except ValueError as error:
        raise _uninspectable(f"its inspection answered {answer[:200]!r}") from error


def run_child(module: str, arguments: list[str], *, cpu_seconds: float) -> bytes:
    """Run a module of ours as `python -m` in a child process; its standard output.

    The module calls `limit_resources`, then `ready` before it touches what it was given: whatever goes wrong before is
    our fault, and so is a child that somebody stops or that this machine has no time for.

    Raises:
        AdmissionRefused: with the reason "uninspectable": it ran out of CPU time or memory, or crashed.
        FederationError: it could not be started, was stopped, or took far longer than its CPU time.
    """
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", module, *arguments]
    try:
        ran = subprocess.run(  # noqa: S603 - our own interpreter, our own module, a path that we made
            command,
            capture_output=True,
            check=False,
            timeout=_PATIENCE * cpu_seconds,
            stdin=subprocess.DEVNULL,
            env=os.environ | quiet,
            start_new_session=True,  # Ctrl-C is for the service, which lets an admission finish
        )
    except subprocess.TimeoutExpired as error:
        raise FederationError(
            f"{module} took more than {error.timeout:.0f} s: this machine is too busy; send the contribution again"
        ) from error
    except OSError as error:
        raise FederationError(f"cannot start {module}: {error}; free memory or processes and try again") from error
    if ran.returncode in _STOPPED:
        raise FederationError(f"{module} was stopped by signal {-ran.returncode}; send the contribution again")
    if ran.returncode != 0:
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
        if not ran.stdout:
            raise FederationError(f"{module} ended with status {ran.returncode} before it read anything: {last}")
        raise _uninspectable(f"reading it ended with status {ran.returncode}: {last}")
    return ran.stdout


def limit_resources(*, memory_bytes: int, seconds: int) -> None:
    """Cap this process for good: private memory, CPU seconds, no core dump, and no life without its parent.

    RLIMIT_DATA counts private writable memory; RLIMIT_AS would count every library and file that is mapped. The hard
    CPU limit is a little above the soft one, so that SIGXCPU comes first: SIGKILL is then somebody else's.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ready() -> None:
    """Tell the parent that the child is up and the work begins."""
    sys.stdout.write("\n")
    sys.stdout.flush()


def read_findings(path: Path) -> Findings:
    """What is in the file, in this process."""
    size, digest = path.stat().st_size, _digest(path)
    try:
        with TensorReader(path) as reader:
            if len(reader.specs) > MAX_TENSORS:
                raise TensorFileError(f"saw {len(reader.specs)} tensors, wanted at most {MAX_TENSORS}")
            found = tuple(_look(reader, spec) for spec in reader.specs)
            return Findings(size=size, digest=digest, tensors=found)
    except TensorFileError as error:
        return Findings(size=size, digest=digest, problem=str(error).replace(str(path), path.name)[:1000])


def _digest(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return "sha256:" + state.hexdigest()


def _look(reader: TensorReader, spec: TensorSpec) -> FoundTensor:
    return FoundTensor(name=spec.name, dtype=spec.dtype, shape=spec.shape, largest=largest_magnitude(reader, spec))


def largest_magnitude(reader: TensorReader, spec: TensorSpec) -> float | None:
    """The largest magnitude in a tensor; None if a value is not finite or the dtype is neither BF16 nor F32."""
    import numpy

    if spec.dtype not in _BITS:
        return None
    word, magnitude, infinity, shift = _BITS[spec.dtype]
    largest = 0
    for chunk in reader.chunks(spec.name, CHUNK_BYTES):
        largest = max(largest, int((numpy.frombuffer(chunk, dtype=word) & magnitude).max()))
    if largest >= infinity:
        return None
    return float(struct.unpack("<f", struct.pack("<I", largest << shift))[0])


def main() -> None:
    """The child: caps first, then the file named on the command line, findings on standard output."""
    path = Path(sys.argv[1])
    limit_resources(memory_bytes=MEMORY_BYTES, seconds=SECONDS + path.stat().st_size // BYTES_PER_SECOND)
    import numpy  # noqa: F401 - before `ready`: numpy missing would be our fault

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    ready()
    sys.stdout.write(read_findings(path).model_dump_json())


def _uninspectable(why: str) -> AdmissionRefused:
    return AdmissionRefused(
        f"refused (uninspectable): {why}; wanted a plain safetensors file, packed by motet", reason="uninspectable"
    )


if __name__ == "__main__":
    main()
