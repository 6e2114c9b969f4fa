"""Reading an update that nobody vouches for, in a child process with little memory and little time.

Guarantees that the process which holds the coordinator's key never parses an update: the child does, under caps of
its own (private memory, CPU time, no file written, no core), and what it says is parsed strictly. It streams the file
once for its digest, then reads the header; only if that promises exactly the tensors of the coordinator's own anchor
are their chunks decoded, one after the other, with numpy's kernels, which check every bound.

    findings = inspect(Path("update.motetup"), home, rank=contribution.rank)
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from motet.coordinator.admission import Findings, FoundTensor
from motet.coordinator.found_evidence import FoundEvidence
from motet.coordinator.home import CoordinatorHome, read_anchor_manifest
from motet.coordinator.public_tokens import keep_public_tokens, read_public_tokens
from motet.protocols.anchor_manifest import AnchorManifest
from motet.protocols.canonical import file_digest
from motet.protocols.codec import TensorHeader, UpdateReader
from motet.protocols.codec.numpy_kernels import NumpyKernels
from motet.protocols.errors import AdmissionRefused, CodecError, FederationError, NotFiniteError
from motet.protocols.expert_files import ROUTER_TOKENS, update_specs
from motet.protocols.tensor_files import TensorSpec

MEMORY_BYTES = 256 << 20
"""Private memory of the child, which needs numpy and no torch: at most 130 MB at any size of the model."""
SECONDS, BYTES_PER_SECOND = 60, 10 << 20
"""CPU time allowed: this many seconds, and one more for so many bytes, of the file and of what it decodes to."""
WORKERS = 1
"""A child has one core: the intake runs several children at a time."""

_PR_SET_PDEATHSIG = 1
_PATIENCE = 5
"""Wall-clock seconds for each of CPU time: a busy machine or a slow disk is no fault of the file."""
_STOPPED = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGKILL}
"""How a child ends that somebody stopped: the service on its way down, or the kernel short of memory."""
_OURS = os.EX_IOERR
"""How a child ends that this machine failed: a disk that cannot be read, no room, too many open files."""


def inspect(update: Path, home: CoordinatorHome, *, rank: int | None = None) -> Findings:
    """What is in an update that came to this home. Runs a child process.

    Args:
        update: the file.
        home: the coordinator's.
        rank: of the low-rank expert that it should be, within the charter's limit; None for a full one.

    Raises:
        AdmissionRefused: with the reason "uninspectable", when the child met its caps: the file is built to do harm.
        FederationError: the child could not be run, or was stopped: nothing was found out.
    """
    manifest = home.anchor_manifest
    seconds = cpu_seconds(update, manifest, rank, base=SECONDS, bytes_per_second=BYTES_PER_SECOND)
    arguments = [str(update), str(home.anchor_manifest_file), manifest.digest, str(rank or 0), str(seconds)]
    if home.charter.routing.counted:
        keep_public_tokens(home.public_tokens_file, home.anchor_directory, home.anchor_manifest.vocabulary_size)
        arguments.append(str(home.public_tokens_file))
    answer = run_child("motet.coordinator.inspection", arguments, cpu_seconds=seconds)
    try:
        return Findings.model_validate_json(answer)
    except ValueError as error:
        raise _uninspectable(f"its inspection answered {answer[:200]!r}") from error


def cpu_seconds(
    update: Path, manifest: AnchorManifest, rank: int | None = None, *, base: int, bytes_per_second: int
) -> int:
    """CPU time for an update: for its bytes, and for those it decodes to, as a small file may hold a large expert."""
    decoded = sum(spec.nbytes for spec in update_specs(manifest, rank))
    return base + (update.stat().st_size + decoded) // bytes_per_second


def run_child(module: str, arguments: list[str], *, cpu_seconds: float) -> bytes:
    """Run a module of ours as `python -m` in a child process; its standard output.

    The module calls `limit_resources`, then `ready` before it touches what it was given, and reads that within
    `own_faults`: whatever goes wrong before is our fault, and so is an error of the system, or a child that somebody
    stops or that this machine has no time for.

    Raises:
        AdmissionRefused: with the reason "uninspectable": it ran out of CPU time or memory, or crashed.
        FederationError: it could not be started, was stopped, took far longer than its CPU time, or the system failed
            it.
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
    _check_end(module, ran)
    return ran.stdout


def _check_end(module: str, ran: "subprocess.CompletedProcess[bytes]") -> None:
    """Whose fault it was if a child did not end well; see `run_child`."""
    if ran.returncode in _STOPPED:
        raise FederationError(f"{module} was stopped by signal {-ran.returncode}; send the contribution again")
    if ran.returncode != 0:
        last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
        if not ran.stdout:
            raise FederationError(f"{module} ended with status {ran.returncode} before it read anything: {last}")
        if ran.returncode == _OURS:
            raise FederationError(f"{module} met a fault of this machine: {last}; mend it, send the contribution again")
        raise _uninspectable(f"reading it ended with status {ran.returncode}: {last}")


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


@contextmanager
def own_faults() -> Iterator[None]:
    """End the child in a way that says whose fault it is, if the system fails: never that of the file."""
    try:
        yield
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(_OURS) from error


def read_findings(path: Path, wanted: Sequence[TensorSpec], public_tokens: NDArray[Any] | None = None) -> Findings:
    """What is in the file, in this process; chunks are decoded only if its tensors are exactly `wanted`, in any order.

    What the manifest promises of the file is not looked at here: `motet.coordinator.admission` compares. The evidence
    by token is looked at beside `public_tokens`, how often each occurs in public text (vocabulary,); not without them.
    """
    found = Findings(size=path.stat().st_size, digest=file_digest(path))
    try:
        with UpdateReader(path, paths=NumpyKernels()) as reader:
            header = reader.header
            tensors = tuple(_described(tensor) for tensor in header.tensors)
            found = found.model_copy(update={"anchor": header.anchor, "base": header.base, "tensors": tensors})
            if _by_name(header.specs) == _by_name(wanted):
                reader.check_footer()
                decoded = tuple(_described(tensor, _largest(reader, tensor)) for tensor in header.tensors)
                evidence = None if public_tokens is None else _evidence(reader, public_tokens)
                found = found.model_copy(update={"tensors": decoded, "evidence": evidence})
    except CodecError as error:
        said = str(error).replace(str(path), path.name)[:1000]
        return found.model_copy(update={"problem": said, "finite": not isinstance(error, NotFiniteError)})
    return found


def _by_name(specs: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in specs}


def _described(tensor: TensorHeader, largest: float | None = None) -> FoundTensor:
    return FoundTensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, method=tensor.method, largest=largest)


def _largest(reader: UpdateReader, tensor: TensorHeader) -> float:
    """The largest magnitude in a tensor, every chunk of it decoded."""
    return max((change.largest for change in reader.changes(tensor.name, workers=WORKERS)), default=0.0)


def _evidence(reader: UpdateReader, public_tokens: NDArray[Any]) -> FoundEvidence:
    parts = [change.values() for change in reader.changes(ROUTER_TOKENS, workers=WORKERS)]
    return FoundEvidence.of(np.concatenate(parts), public_tokens)


def main() -> None:
    """The child: `update manifest anchor rank seconds [public tokens]`, rank 0 for a full expert; caps first, findings
    on standard output."""
    update, manifest, anchor, rank, seconds, *counts = sys.argv[1:]
    limit_resources(memory_bytes=MEMORY_BYTES, seconds=int(seconds))
    wanted = update_specs(read_anchor_manifest(Path(manifest), expect=anchor), int(rank) or None)
    public_tokens = read_public_tokens(Path(counts[0])) if counts else None
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    ready()
    with own_faults():
        sys.stdout.write(read_findings(Path(update), wanted, public_tokens).model_dump_json())


def _uninspectable(why: str) -> AdmissionRefused:
    return AdmissionRefused(
        f"refused (uninspectable): {why}; wanted a plain update file, packed by motet", reason="uninspectable"
    )


if __name__ == "__main__":
    main()
