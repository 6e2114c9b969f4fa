"""The coordinator's processes under one command, and how a run is watched."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from motet.coordinator import operations
from motet.coordinator.flower_link import SuperLink
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.operations import LOOKS, PATIENCE, _link, _Teller, _Watch
from motet.coordinator.run_record import OwnerProgress, RunPhase, RunRecord, RunState
from motet.protocols.errors import ConfigurationError, FederationError
from motet.protocols.processes import Troupe

OWNER = "ed25519:" + "1" * 64


class Balky:
    """A SuperLink that fails to answer when told so, and does not let everybody in."""

    def __init__(self, *, failures: int = 0, refuses: str = "") -> None:
        self.failures = failures
        self.refuses = refuses
        self.inside: list[str] = []

    def status(self, run: str) -> str:
        self.failures -= 1
        if self.failures >= 0:
            raise FederationError("`flwr list` took longer than 60 s")
        return "running"

    def register(self, name: str, flower_key: str) -> None:
        if name == self.refuses:
            raise FederationError(f"the SuperLink did not register {name}")
        self.inside.append(name)


def watch(link: Balky, flower_keys: Callable[[], dict[str, str]] = dict) -> _Watch:
    return _Watch(cast(SuperLink, link), "7", flower_keys, registered={"early"})


def test_a_busy_superlink_is_asked_again_but_not_for_ever() -> None:
    asked = watch(Balky(failures=PATIENCE - 1))
    assert [asked() for _ in range(PATIENCE)] == ["unknown"] * (PATIENCE - 1) + ["running"]
    asked = watch(Balky(failures=PATIENCE))
    for _ in range(PATIENCE - 1):
        asked()
    with pytest.raises(FederationError, match="flwr list"):
        asked()


def test_late_owners_are_let_in_once_and_one_who_is_not_stops_nobody() -> None:
    link = Balky(refuses="law")
    asked = watch(link, lambda: {"early": "0", "law": "1", "medicine": "2"})
    assert [asked(), asked()] == ["running", "running"]
    assert link.inside == ["medicine"]
    link.refuses = ""
    asked()
    assert link.inside == ["medicine", "law"]


def test_a_superlink_is_asked_now_and_then_only_while_the_run_lives() -> None:
    alive, link = [True], Balky(failures=2)
    asked = _Watch(cast(SuperLink, link), "7", dict, registered=set(), alive=lambda: alive[0])
    assert [asked() for _ in range(LOOKS)] == ["running"] * (LOOKS - 1) + ["unknown"]
    alive[0] = False
    assert [asked(), asked()] == ["unknown", "running"]


def test_what_is_new_is_told_once() -> None:
    told: list[str] = []
    tell = _Teller(told.append)

    def state(**owner: object) -> RunState:
        known = {"name": "medicine", "connected": False, "standing": "open"} | owner
        owners = {OWNER: OwnerProgress.model_validate(known)}
        return RunState(run="7", phase="gather", updated=0.0, owners=owners)

    for _ in range(2):
        tell(state())
    tell(state(connected=True))
    tell(state(connected=True, job="running", progress=0.1))
    tell(state(connected=True, job="running", progress=0.2))
    tell(state(connected=True, job="failed", standing="failed", detail="the loss is not finite"))
    assert told == [
        "phase gather",
        "gather: medicine not connected",
        "gather: medicine not heard of yet",
        "gather: medicine running",
        "gather: medicine failed: the loss is not finite",
    ]


@pytest.mark.parametrize("address", ["nowhere", ":80", "host:", "host:port", "127.0.0.1:65536", "127.0.0.1:²"])
def test_an_address_that_is_none(home: CoordinatorHome, address: str) -> None:
    with pytest.raises(ConfigurationError, match="wanted host:port"):
        _link(home.path, address)


@pytest.mark.parametrize(("address", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_a_superlink_that_others_reach_says_so(
    home: CoordinatorHome, address: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execvpe", lambda file, command, environment: started.append(command))
    told: list[str] = []
    operations.run_superlink(home.path, listen=f"{address}:0", announce=told.append)
    assert started[0][started[0].index("--host") + 1] == address
    assert any("can start runs on the owners' nodes" in line for line in told) is warned


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[str]]:
    """The command lines of a troupe whose members run stand-ins: `run` does what RUN says, the others sleep."""
    seen: dict[str, list[str]] = {}
    start = Troupe.start

    def started(self: Troupe, name: str, command: list[str], **options: object) -> object:
        seen[name] = command
        program = os.environ["RUN"] if name == "run" else "import time; time.sleep(60)"
        return start(self, name, [command[0], "-c", program], **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Troupe, "start", started)
    return seen


def all_until(home: CoordinatorHome, word: str, settings: dict[str, str | int | float] | None = None) -> list[str]:
    """What `run_all` tells; it is sent SIGTERM once a line with `word` came."""
    told: list[str] = []

    def terminate() -> None:
        deadline = time.monotonic() + 60
        while not any(word in line for line in told) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    other = threading.Thread(target=terminate)
    other.start()
    operations.run_all(home.path, settings=settings, announce=told.append)
    other.join()
    return told


def test_the_settings_reach_a_run_whose_failure_stops_nobody_else(
    home: CoordinatorHome, commands: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN", "print('too few owners'); raise SystemExit(15)")
    settings = {"min-owners": 3, "gather-seconds": 1.5, "shapley": True}
    told = all_until(home, "another", settings)
    assert "too few owners" in told
    assert told[-1] == f"the run failed; serving until Ctrl-C; for another: motet coordinate run --dir {home.path}"
    assert commands["run"][-5:] == ["--min-owners", "3", "--gather-seconds", "1.5", "--shapley"]
    assert commands["superlink"][-4:] == ["coordinate", "superlink", "--dir", str(home.path)]


def test_it_serves_on_when_the_run_is_through_until_a_signal(
    home: CoordinatorHome, commands: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN", "pass")
    before = signal.getsignal(signal.SIGTERM)
    told = all_until(home, "the run is through")
    assert told[-1] == f"the run is through: motet report --dir {home.path}; serving until Ctrl-C"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("phase", "status", "followed"),
    [
        ("gather", "running", True),
        ("gather", "finished:failed", False),
        ("gather", None, False),
        ("done", "running", False),
    ],
)
def test_a_run_that_goes_on_is_followed_not_doubled(
    tmp_path: Path, phase: RunPhase, status: str | None, followed: bool
) -> None:
    class Link:
        def status(self, run: str) -> str:
            if status is None:
                raise FederationError(f"the SuperLink does not know the run {run}")
            return status

    with RunRecord.hold(tmp_path, "7") as record:
        record.publish(RunState(run="7", phase=phase, updated=0.0))
    found = operations._going_on(cast(SuperLink, Link()), tmp_path)
    assert found == ("7" if followed else None)


def test_a_setting_that_is_off_is_not_typed() -> None:
    assert operations._command("run", Path("home"), {"shapley": False})[-2:] == ["--dir", "home"]


def test_without_a_run_before_nothing_is_followed(tmp_path: Path) -> None:
    assert operations._going_on(cast(SuperLink, None), tmp_path) is None
