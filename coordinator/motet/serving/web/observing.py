"""A coordinator's home, watched from outside: what its ledger, its run, its intake and its measurements say.

Guarantees: nothing in the home is changed and no secret of it is read; it may be watched while a coordinator works
there; what cannot be read is a problem that is told, beside whatever can.

    observer = Observer(Path("home"))               # ConfigurationError if it is no coordinator's home
    observer.now()                                   # Scene: owners, their progress, decisions, the ledger
    observer.measured()                              # Measured: expert cards, the newest composite's evaluation
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from motet.coordinator.run_record import OwnerProgress, RunRecord, RunState, read_run
from motet.coordinator.store import store_file
from motet.protocols.contribution import Contribution
from motet.protocols.errors import ConfigurationError, DocumentError, MotetError
from motet.protocols.evaluation.sections import Section
from motet.protocols.expert_sizes import ExpertSize
from motet.protocols.signing import Signed
from motet.protocols.tensor_files import TensorReader
from motet.protocols.transfer.partial import LABEL
from motet.serving.web.ledger_reading import LedgerReading, Line
from motet.serving.web.losses import LossFigure, loss_figure
from motet.serving.web.measurements import Measurements

SHOWN = 50
"""Lines of the ledger, and decisions, that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerRow:
    """One owner. progress: None outside of a run; sent: bytes that its admitted update took on the wire; losses: step
    -> nats per token, of the training that it told of last."""

    name: str
    key: str
    since: str
    progress: OwnerProgress | None
    sent: int | None
    expert: Contribution | None
    losses: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An update on its way: the contribution's digits, whose it is, the bytes that are here and those there will be."""

    contribution: str
    name: str
    here: int
    whole: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """How things stand now."""

    run: RunState | None = None
    owners: tuple[OwnerRow, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    decisions: tuple[Line, ...] = ()
    lines: tuple[Line, ...] = ()
    entries: int = 0
    problems: tuple[str, ...] = ()

    @property
    def losses(self) -> LossFigure | None:
        """What owners' trainings told; None if nobody told any."""
        return loss_figure({row.name: row.losses for row in self.owners})

    @property
    def summary(self) -> str:
        """One sentence, which changes when there is news."""
        present = sum(row.progress is not None and row.progress.connected for row in self.owners)
        phase = "No run yet" if self.run is None else f"Run {self.run.run}: {self.run.phase}"
        kinds = [line.kind for line in self.decisions]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("admitted", "refused", "withdrawn"))
        return f"{phase}. {present} of {len(self.owners)} owners present. Decisions: {counts}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An expert that nobody took back. size: what it takes in a composite; None where its file cannot be read; expired:
    whether its terms have ended, so that no new composite holds it."""

    digest: str
    expert: Contribution
    received: int
    size: ExpertSize | None
    expired: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The experts, and what was measured of the newest composite."""

    cards: tuple[Card, ...] = ()
    composite: str | None = None
    facts: tuple[str, ...] = ()
    sections: tuple[Section, ...] = field(default=())
    problems: tuple[str, ...] = ()


class Observer:
    """Watches one home. Usable from several threads."""

    def __init__(self, home: Path, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells seconds since the epoch, by which terms end.

        Raises ConfigurationError where there is no ledger, StorageError and LedgerError where it cannot be read.
        """
        path = home / "ledger.sqlite"
        if not path.is_file():
            raise ConfigurationError(f"saw no {path}, wanted a coordinator's home; name one, or leave --home out")
        self._ledger = LedgerReading(path)
        self._ledger.look()
        if self._ledger.charter is None:
            raise ConfigurationError(f"saw an empty {path}, wanted a federation's; `motet init` founds one")
        self.home, self.charter, self._clock = home, self._ledger.charter, clock
        self._sizes: dict[str, ExpertSize] = {}
        self._measurements = Measurements(home, self.charter)
        self._alone = threading.Lock()

    def now(self) -> Scene:
        """How things stand."""
        with self._alone:
            problems: list[str] = []
            self._look(problems)
            run = self._run(problems)
            ledger = self._ledger
            return Scene(
                run=run,
                owners=self._owners(run, problems),
                arrivals=_arrivals(self.home / "intake"),
                decisions=tuple(reversed(ledger.decisions)),
                lines=tuple(reversed(ledger.lines))[:SHOWN],
                entries=0 if ledger.standing.last is None else ledger.standing.last.sequence + 1,
                problems=tuple(problems),
            )

    def measured(self) -> Measured:
        """Cards and measurements."""
        with self._alone:
            problems: list[str] = []
            self._look(problems)
            ledger = self._ledger
            cards = tuple(
                Card(
                    digest=digest,
                    expert=each,
                    received=ledger.received.get(digest, 0),
                    size=self._size(digest, each.name, problems),
                    expired=each.terms.ended(self._clock()),
                )
                for digest, each in sorted(ledger.standing.active.items(), key=lambda item: item[1].name)
            )
            try:
                facts, sections = self._measurements.of(ledger.composite, ledger.standing)
            except (MotetError, OSError, ValueError) as error:
                facts, sections = (), ()
                problems.append(f"The newest composite's evaluation cannot be read: {error}")
        return Measured(
            cards=cards, composite=ledger.composite, facts=facts, sections=sections, problems=tuple(problems)
        )

    def _look(self, problems: list[str]) -> None:
        try:
            self._ledger.look()
        except MotetError as error:
            problems.append(f"The ledger cannot be read: {error}")

    def _run(self, problems: list[str]) -> RunState | None:
        try:
            return read_run(self.home)
        except (MotetError, OSError) as error:
            problems.append(f"The run's state cannot be read: {error}")
            return None

    def _owners(self, run: RunState | None, problems: list[str]) -> tuple[OwnerRow, ...]:
        standing = self._ledger.standing
        experts = {each.owner: (digest, each) for digest, each in standing.active.items()}
        progress = {} if run is None else run.owners
        rows = []
        for owner, request in standing.owners.items():
            digest, expert = experts.get(owner, (None, None))
            rows.append(
                OwnerRow(
                    name=request.name,
                    key=owner,
                    since=self._ledger.enrolled[owner],
                    progress=progress.get(owner),
                    sent=None if digest is None else self._sent(owner, digest, problems),
                    expert=expert,
                    losses=self._losses(owner, request.name, problems),
                )
            )
        return tuple(sorted(rows, key=lambda row: row.name))

    def _sent(self, owner: str, contribution: str, problems: list[str]) -> int:
        """As the owner counted; else the payload that arrived here."""
        try:
            told = RunRecord.sent_bytes(self.home, owner, contribution)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"What {contribution} took on the wire cannot be read: {error}")
            told = None
        return self._ledger.received.get(contribution, 0) if told is None else told

    def _losses(self, owner: str, name: str, problems: list[str]) -> dict[int, float]:
        try:
            return RunRecord.losses(self.home, owner)
        except OSError as error:
            problems.append(f"The losses of {name} cannot be read: {error}")
            return {}

    def _size(self, contribution: str, name: str, problems: list[str]) -> ExpertSize | None:
        """From the expert's store file, whose tensors a composite copies; its content never changes."""
        try:
            if contribution not in self._sizes:
                with TensorReader(store_file(self.home / "store" / "experts", contribution)) as reader:
                    self._sizes[contribution] = ExpertSize.of_specs(name, reader.specs)
        except (MotetError, OSError) as error:
            problems.append(f"The size of {name} cannot be read: {error}")
        return self._sizes.get(contribution)


def _arrivals(intake: Path) -> tuple[Arrival, ...]:
    """Updates that are partly here; one that ends while this looks, or does not say whose it is, is passed over."""
    found: list[Arrival] = []
    for path in sorted(intake.glob("*.part")):
        try:
            contribution = Signed.parse(path.with_suffix(LABEL).read_bytes()).open(Contribution)
            size = path.stat().st_size
        except (OSError, DocumentError):
            continue
        name, whole = contribution.name, contribution.update_bytes
        found.append(Arrival(contribution=path.stem, name=name, here=min(size, whole), whole=whole))
    return tuple(found)
