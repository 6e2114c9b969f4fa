"""All measurements of a run, one process after the other, on input that is written once and cleared away after.

result = run_codec(50_000_000, cases, tmp=None, tell=note)
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, gettempdir

from motet.bench.data import COLUMNS, LEAST, Inputs, specs_of, write_inputs
from motet.bench.measure import Job, Measured
from motet.bench.rows import Case, Report, cases
from motet.protocols.canonical import storage_errors
from motet.protocols.errors import ConfigurationError
from motet.protocols.output import progress_line
from motet.protocols.processes import Troupe, ending_as_interrupt

SECONDS_PER_PARAMETER = 5e-6
"""More than any measurement takes, many times over; on top of a minute to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A report, and what it says of the machine."""

    report: Report
    sha256_mb_s: float
    exact_memory: bool


def planned(methods: Sequence[str], tell: Callable[[str], None]) -> list[Case]:
    """The cases that this installation can measure; tells what it leaves out, and why."""
    native = find_spec("numba") is not None
    if not native:
        tell("native is left out: it needs numba; pip install 'motet[native]'")
    if "zstd-3" in methods and find_spec("zstandard") is None:
        tell("zstd-3 is left out: it needs zstandard; pip install 'motet[bench]'")
        methods = [method for method in methods if method != "zstd-3"]
    return cases(tuple(methods), native=native)


def run_codec(params: int, wanted: Sequence[Case], *, tmp: Path | None, tell: Callable[[str], None]) -> Result:
    """Measure each case.

    Args:
        params: parameters of the update; rounded down to a multiple of 2000.
        wanted: the cases.
        tmp: where the input and what is made of it lies meanwhile; the system's temporary folder when None.
        tell: told what is being measured.

    Raises:
        ConfigurationError: too few parameters, or no folder `tmp`.
        FederationError: a measurement failed; the message ends with its log.
        StorageError: the disk is full.
    """
    params = params // COLUMNS * COLUMNS
    if params < LEAST:
        raise ConfigurationError(f"saw {params} parameters, wanted at least {LEAST}; give --params more")
    if tmp is not None and not tmp.is_dir():
        raise ConfigurationError(f"saw no folder {tmp}; make it, or name another with --tmp")
    with ending_as_interrupt(), _temporary(tmp) as name:
        folder = Path(name)
        write_inputs(Inputs.in_folder(folder), specs_of(params), on_progress=progress_line("writing the input,"))
        measured = []
        with Troupe(logs=folder / "logs") as troupe:
            for number, case in enumerate(wanted):
                tell(f"{number + 1} of {len(wanted)}: {case}")
                measured.append(_measured(troupe, case, folder, 60 + SECONDS_PER_PARAMETER * params))
    return Result(
        report=Report(rows=tuple(each.row for each in measured), params=params),
        sha256_mb_s=median(each.sha256_mb_s for each in measured),
        exact_memory=all(each.exact_memory for each in measured),
    )


def _temporary(tmp: Path | None) -> TemporaryDirectory[str]:
    with storage_errors(tmp or Path(gettempdir())):
        return TemporaryDirectory(dir=tmp, prefix="motet-bench-")


def _measured(troupe: Troupe, case: Case, folder: Path, timeout: float) -> Measured:
    """One case, in a process of its own."""
    result = folder / "result.json"
    job = Job(case=case, folder=str(folder))
    troupe.start("measure", [sys.executable, "-m", "motet.bench.measure", job.model_dump_json(), str(result)])
    troupe.wait("measure", timeout=timeout)
    return Measured.model_validate_json(result.read_bytes())
