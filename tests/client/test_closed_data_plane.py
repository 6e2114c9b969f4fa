"""An owner who reaches Flower's port alone: what works, and how the rest says why it does not."""

import shutil
from pathlib import Path

import pytest

from motet.client.preparation import fetch_anchor
from motet.client.spool import Spool
from motet.client.trying import try_composite
from motet.client.worker import run_worker
from motet.protocols.control import EvaluateRequest, JobState, TrainRequest
from motet.protocols.errors import TransferBroken
from motet.protocols.jobs import rides_inline
from motet.protocols.transfer import Patience
from tests.client.conftest import published

LOWRANK = {"kind": "lowrank", "rank": 2, "steps": 2}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as ever, without the pauses between."""
    monkeypatch.setattr(Patience, "delay", lambda self, failures: 0.0)


def done(home, kind: str, request: EvaluateRequest | TrainRequest) -> JobState:
    job = Spool(home.path).submit(kind, request)
    run_worker(home.path, once=True)
    return Spool(home.path).job(job.id).state


def test_it_trains_and_contributes_and_is_told_why_it_is_left_out_of_evaluation(
    make_home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = make_home(training=LOWRANK, codec={"method": "int8"})
    trained = done(home, "train", TrainRequest(charter=home.charter.digest))
    assert trained.state == "done"
    assert rides_inline(trained)
    composite = published(home, tmp_path / "composite")
    request = EvaluateRequest(charter=home.charter.digest, composite=composite)
    failed = done(home, "evaluate", request)
    assert failed.state == "failed"
    assert failed.detail.startswith("TransferBroken: the coordinator's data plane cannot be reached, or ")
    for told in (
        home.charter.addresses.data_plane,
        "behind Flower's port an owner trains and contributes, and is left out of evaluation",
        str(home.composite(composite)),
    ):
        assert told in caplog.text
        assert told not in failed.detail
    shutil.rmtree(home.composite(composite))
    shutil.copytree(tmp_path / "composite", home.composite(composite))  # carried by hand
    assert done(home, "evaluate", request).state == "done"


def test_what_is_fetched_says_how_to_do_without(make_home) -> None:
    home = make_home()
    with pytest.raises(TransferBroken, match="give it with --composite"):
        try_composite(home)
    home.anchor.unlink()
    with pytest.raises(TransferBroken, match="copies the coordinator's folder anchor/ to"):
        fetch_anchor(home)
