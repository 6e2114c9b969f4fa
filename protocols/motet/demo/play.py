"""The demonstration from the first key to the report: every step a command that anyone can type.

    report = play(Path("motet-demo"), view, quickstart.cast())
    report.table()

Folders in the directory: `coordinator/`, `owners/NAME/`, `logs/`, and at the end `report.json`. `assembled.json` is
what the assembly told, such as the cost of an export without bias.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from motet.demo.cast import Cast
from motet.demo.samples import samples_of
from motet.protocols.canonical import write_atomically
from motet.protocols.errors import FederationError
from motet.protocols.flower_home import free_port
from motet.protocols.processes import Troupe
from motet.protocols.report import CompositeSummary, Report

_POLL_SECONDS = 0.3
_LET_IN = "nodes let in"
"""What `motet coordinate run` says when the owners' nodes may come: one that comes before is turned away, and ends."""


class View(Protocol):
    """Where the demonstration tells how far it is."""

    def step(self, line: str) -> None:
        """A new step has begun."""

    def owners(self, phase: str, owners: Sequence[dict[str, Any]]) -> None:
        """The owners as the coordinator sees them: name, job, progress, detail."""


@dataclass(kw_only=True, slots=True)
class Stopwatch:
    """Seconds per phase."""

    seconds: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add to a phase."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)

    def total(self) -> dict[str, float]:
        """The phases, and the time since the beginning."""
        return self.seconds | {"total": round(time.monotonic() - self._began, 1)}


def play(directory: Path, view: View, cast: Cast) -> Report:
    """Run the whole federation in a new or empty folder; no process outlives this call.

    Raises:
        FederationError: a process failed; the message has the end of its log.
        MotetError: as the steps raise them.
    """
    coordinator, watch = directory / "coordinator", Stopwatch()
    with Troupe(logs=directory / "logs", environment=_environment()) as troupe:
        with watch.phase("join"):
            _found(directory, coordinator, troupe, view, cast)
        with watch.phase("start"):
            count = len(cast.owners)
            view.step(f"starting the SuperLink, the data plane, {count} SuperNodes and {count} workers")
            _start(directory, coordinator, troupe, cast)
        _follow(coordinator, troupe, view, watch, cast.run_seconds)
        with watch.phase("export"):
            view.step("exporting the composite for plain transformers")
            made = _command(troupe, ["assemble", "--dir", str(coordinator), *cast.exporting, "--json"])
        with watch.phase("report"):
            found = _command(troupe, ["report", "--dir", str(coordinator), "--json"])
    with watch.phase("generate"):
        view.step("generating with and without one expert")
        write_atomically(directory / "assembled.json", json.dumps(made, indent=2).encode())
        made = {key: value for key, value in made.items() if key in CompositeSummary.model_fields}
        composite = CompositeSummary.model_validate(made)
        samples = samples_of(Path(composite.path), cast.prompts)
    told = {"composite": made, "seconds": watch.total(), "samples": samples, "evaluation": None}
    report = Report.model_validate(found | told)
    write_atomically(
        directory / "report.json", json.dumps(report.model_dump(mode="json", by_alias=True), indent=2).encode()
    )
    return report


def _environment() -> dict[str, str]:
    """Children's environment: telemetry off, nothing fetched from a hub, one thread each."""
    return os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "MOTET_VERBOSE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _found(directory: Path, coordinator: Path, troupe: Troupe, view: View, cast: Cast) -> None:
    """The coordinator's home, the owners' homes, and the enrolments."""
    view.step("the coordinator makes its keys, a private CA and the charter")
    texts = ["--anchor", str(cast.anchor), "--public-text", str(cast.public_text)]
    addresses = ["--data-plane", _address(), "--flower", _address()]
    _command(troupe, ["init", str(coordinator), "--name", cast.name, *texts, *addresses, "--json"])
    charter = coordinator / "charter.signed.json"
    for owner in cast.owners:
        view.step(f"{owner.name} joins with its own keys, and the coordinator enrols it")
        home = directory / "owners" / owner.name
        settings = [*cast.settings, *([f"data.max_bytes={owner.max_bytes}"] if owner.max_bytes else [])]
        options = [part for setting in settings for part in ("--set", setting)]
        named = ["--name", owner.name, "--data", owner.files, "--licence", owner.licence]
        _command(troupe, ["join", str(charter), "--dir", str(home), *named, *options, "--yes", "--json"])
        _command(troupe, ["admit", str(home / "join-request.json"), "--dir", str(coordinator), "--json"])


def _start(directory: Path, coordinator: Path, troupe: Troupe, cast: Cast) -> None:
    for part in ("superlink", "data-plane"):
        troupe.start(part, _line(["coordinate", part, "--dir", str(coordinator)]))
    run = ["coordinate", "run", "--dir", str(coordinator), "--min-owners", str(len(cast.owners))]
    troupe.start("run", _line(run), may_end=True)
    homes = {owner.name: str(directory / "owners" / owner.name) for owner in cast.owners}
    for name, home in homes.items():
        troupe.start(f"worker-{name}", _line(["work", "worker", "--dir", home]))
    log = directory / "logs" / "run.log"
    while troupe.running("run") and _LET_IN not in log.read_text(errors="replace"):
        troupe.check()
        time.sleep(_POLL_SECONDS)
    for name, home in homes.items():
        troupe.start(f"supernode-{name}", _line(["work", "supernode", "--dir", home]))


def _follow(coordinator: Path, troupe: Troupe, view: View, watch: Stopwatch, run_seconds: float) -> None:
    """Show the run until it is through; its phases, as the coordinator publishes them, are timed."""
    deadline, phase, began = time.monotonic() + run_seconds, "connect", time.monotonic()
    while troupe.running("run"):
        if time.monotonic() > deadline:
            raise FederationError(
                f"the run takes longer than {run_seconds:.0f} s; the logs are in {coordinator.parent}/logs"
            )
        troupe.check()
        state = _state(coordinator)
        if state is not None:
            now = "train" if state["phase"] == "gather" else str(state["phase"])
            if now != phase:
                watch.add(phase, time.monotonic() - began)
                phase, began = now, time.monotonic()
            view.owners(phase, list(state["owners"].values()))
        time.sleep(_POLL_SECONDS)
    watch.add(phase, time.monotonic() - began)
    troupe.wait("run", timeout=1)


def _state(coordinator: Path) -> dict[str, Any] | None:
    path = coordinator / "run" / "state.json"
    return json.loads(path.read_bytes()) if path.exists() else None


def _line(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "motet.cli", *arguments]


def _command(troupe: Troupe, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command to its end; its result is JSON."""
    command = ["motet", *arguments]
    done = subprocess.run(  # noqa: S603 - our own commands
        _line(arguments), env=troupe.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise FederationError(
            f"`{' '.join(command[:3])}` ended with code {done.returncode}: {done.stderr.strip()[-2000:]}"
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _address() -> str:
    return f"127.0.0.1:{free_port()}"
