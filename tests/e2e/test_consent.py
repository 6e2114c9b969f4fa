"""Consent and the third way of travel, in one run over real Flower: nothing leaves before its owner agrees.

Medicine's update is small enough for Flower's own reply and leaves when it is ready; mathematics wants to be asked.
Medicine's site reaches Flower's port alone: what its worker sends to the data plane goes to a port that nobody is at.
"""

import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from motet.client.spool import Spool
from motet.protocols.control import JobState
from motet.protocols.flower_home import free_port
from tests.e2e.conftest import line_of

pytestmark = pytest.mark.slow


def let(home: Path, **settings: str) -> None:
    owner = tomllib.loads((home / "owner.toml").read_text())
    owner["contribution"] = settings
    (home / "owner.toml").write_text(tomli_w.dumps(owner))


def await_that(seen: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def job_of(home: Path) -> JobState | None:
    jobs = Spool(home).jobs()
    assert not [job.detail for job in jobs if job.state == "failed"]
    return jobs[0] if jobs else None


def payload(path: Path) -> dict:
    return json.loads(json.loads(path.read_bytes())["payload"])


def shut_in() -> dict[str, str]:
    """The environment of a process whose gRPC calls all end at a port that nobody is at."""
    return {"grpc_proxy": f"http://127.0.0.1:{free_port()}", "no_grpc_proxy": "nowhere.invalid"}


def test_an_inline_update_and_one_that_waits_for_its_owner(trained, on_stage, start, troupe) -> None:
    stage = on_stage(trained)
    inline, asked = stage.owner("medicine"), stage.owner("mathematics")
    let(inline, transport="flower", consent="automatic")
    let(asked, transport="data-plane", consent="ask")
    stage.serve()
    start("superlink", "coordinate", "superlink", "--dir", stage.coordinator)
    start("worker-mathematics", "work", "worker", "--dir", asked)
    troupe.start("worker-medicine", line_of("work", "worker", "--dir", inline), environment=shut_in(), may_end=True)
    options = ("--poll-seconds", 0.5, "--evaluate-seconds", 1)  # all contribute; who can evaluates
    run = start("run", "coordinate", "run", "--dir", stage.coordinator, *options)
    log = stage.root.parent / "logs" / "run.log"
    await_that(lambda: run.poll() is not None or "nodes let in" in log.read_text(), "the owners' nodes are let in")
    for home in (inline, asked):
        start(f"supernode-{home.name}", "work", "supernode", "--dir", home)

    await_that(lambda: (job := job_of(asked)) is not None and job.state == "waiting", "mathematics waits for consent")
    receipt = stage.outbox("medicine") / "receipt.json"
    await_that(receipt.exists, "medicine has its receipt")
    digests = {name: f"sha256:{stage.outbox(name).name}" for name in ("medicine", "mathematics")}
    assert [subject for kind, subject in stage.ledger() if kind == "admitted"] == [digests["medicine"]]
    assert payload(receipt)["status"] == "admitted"
    assert payload(receipt)["contribution"] == digests["medicine"]
    assert not (stage.outbox("medicine") / "sent.json").exists()
    assert "motet contribute" in job_of(asked).detail
    assert run.poll() is None

    sent = stage.here("contribute", "--dir", asked, "--yes", "--json").json
    assert sent["status"] == "admitted"
    assert job_of(asked).state == "done"
    assert run.wait(90) == 0, log.read_text()
    assert sorted(s for kind, s in stage.ledger() if kind == "admitted") == sorted(digests.values())

    logs = stage.root.parent / "logs"
    await_that(lambda: "trying again" in (logs / "worker-medicine.log").read_text(), "medicine is shut in")
    assert not (inline / "composites").exists() or not list((inline / "composites").glob("*/composite.json"))
    report = stage.here("report", "--dir", stage.coordinator, "--json").json
    assert sorted(report["domains"]) == ["mathematics", "public"]
    for name, wire in report["wire"].items():
        size = (stage.outbox(name) / "update.motetup").stat().st_size
        assert wire["update_bytes"] == size <= wire["sent_bytes"] < 1.05 * size
