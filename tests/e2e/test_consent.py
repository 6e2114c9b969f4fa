"""Consent and the third way of travel, in one run over real Flower: nothing leaves before its owner agrees.

Medicine's update is small enough for Flower's own reply and leaves when it is ready; mathematics wants to be asked.
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


def test_an_inline_update_and_one_that_waits_for_its_owner(trained, on_stage, start) -> None:
    stage = on_stage(trained)
    inline, asked = stage.owner("medicine"), stage.owner("mathematics")
    let(inline, transport="flower", consent="automatic")
    let(asked, transport="data-plane", consent="ask")
    stage.serve()
    start("superlink", "coordinate", "superlink", "--dir", stage.coordinator)
    for home in (inline, asked):
        start(f"supernode-{home.name}", "work", "supernode", "--dir", home)
        start(f"worker-{home.name}", "work", "worker", "--dir", home)
    options = ("--min-owners", 2, "--poll-seconds", 0.5)
    run = start("run", "coordinate", "run", "--dir", stage.coordinator, *options)

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
    assert run.wait(90) == 0, (stage.root.parent / "logs" / "run.log").read_text()
    assert sorted(s for kind, s in stage.ledger() if kind == "admitted") == sorted(digests.values())

    report = stage.here("report", "--dir", stage.coordinator, "--json").json
    assert sorted(report["domains"]) == ["mathematics", "medicine", "public"]
    for name, wire in report["wire"].items():
        size = (stage.outbox(name) / "update.motetup").stat().st_size
        assert wire["update_bytes"] == size <= wire["sent_bytes"] < 1.05 * size
