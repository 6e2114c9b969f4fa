"""What a ClientApp may do for a coordinator, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from motet.client.desk import Desk, fitting
from motet.client.owner import DataConfig, OwnerConfig, OwnerHome
from motet.protocols.canonical import write_atomically
from motet.protocols.charter import Addresses, AnchorPin, Charter, ExpertRules
from motet.protocols.contribution import Terms
from motet.protocols.control import EvaluateRequest, JobState, OwnerStatus, TrainRequest
from motet.protocols.errors import DocumentError, FederationError, SignatureError
from motet.protocols.jobs import InlineUpdate, StatusQuery, contribution_of, job_id
from motet.protocols.receipts import Receipt
from motet.protocols.signing import SigningKey, seal

NOTHING = "sha256:" + "0" * 64
MINE = "sha256:" + "a" * 64
COORDINATOR = SigningKey.generate()


@pytest.fixture
def home(tmp_path: Path) -> OwnerHome:
    charter = Charter(
        name="desk",
        anchor=AnchorPin(digest=NOTHING, statistics=NOTHING, public_text=NOTHING, bundle=NOTHING),
        experts=ExpertRules(inline_bytes=1000),
        addresses=Addresses(data_plane="127.0.0.1:1", flower="127.0.0.1:2"),
        coordinator=COORDINATOR.public,
        certificate_authority="-----BEGIN CERTIFICATE-----",
    )
    config = OwnerConfig(
        name="medicine",
        coordinator=COORDINATOR.public,
        data=DataConfig(files=("*.jsonl",)),
        terms=Terms(licence="CC0-1.0"),
    )
    return OwnerHome.create(tmp_path / "owner", config, seal(charter, COORDINATOR))


@pytest.fixture
def desk(home: OwnerHome) -> Desk:
    return Desk.open(home.path, home.key.public)


def offer(home: OwnerHome, desk: Desk, *, update: bytes, transport: str = "flower", state: str = "done") -> None:
    name = desk.spool.submit("train", TrainRequest(charter=desk.charter.digest)).id
    write_atomically(home.contribution(MINE) / "contribution.json", b"{}")
    write_atomically(home.contribution(MINE) / "update.motetup", update)
    desk.spool.update(name, state, result={"contribution": MINE, "transport": transport})  # type: ignore[arg-type]


def test_a_wish_becomes_a_job_and_an_answer(home: OwnerHome, desk: Desk) -> None:
    request = TrainRequest(charter=desk.charter.digest)
    status = desk.submit(request)
    assert (status.owner, status.name, status.worker_alive) == (home.key.public, "medicine", False)
    assert [(job.id, job.state) for job in status.jobs] == [(job_id(request), "queued")]
    evaluate = EvaluateRequest(charter=desk.charter.digest, composite=MINE)
    assert [job.kind for job in desk.submit(evaluate).jobs] == ["train", "evaluate"]


def test_requests_under_another_charter_are_refused(desk: Desk) -> None:
    with pytest.raises(FederationError, match="under the charter sha256:0000"):
        desk.submit(TrainRequest(charter=NOTHING))
    with pytest.raises(FederationError, match="joins again"):
        desk.answer(StatusQuery(charter=NOTHING))
    assert desk.spool.jobs() == []


def test_an_offered_update_is_handed_over(home: OwnerHome, desk: Desk) -> None:
    offer(home, desk, update=b"\x00" * 1000)
    _, inline = desk.answer(StatusQuery(charter=desk.charter.digest, inline=MINE))
    assert inline == InlineUpdate(manifest=b"{}", update=b"\x00" * 1000)


@pytest.mark.filterwarnings("ignore:'click.utils:DeprecationWarning")  # typer's own imports, under Flower's
def test_documents_and_updates_pass_through_flowers_records(desk: Desk) -> None:
    from motet.protocols.flower_records import pack, unpack, unpack_inline

    update = InlineUpdate(manifest=b"{}", update=bytes(range(256)))
    content = pack(desk.status(), update)
    assert unpack(content, OwnerStatus) == desk.status()
    assert unpack_inline(content) == update
    assert unpack_inline(pack(desk.status())) is None
    with pytest.raises(DocumentError, match="not a valid TrainRequest"):
        unpack(content, TrainRequest)


@pytest.mark.parametrize(("transport", "state"), [("data-plane", "done"), ("flower", "waiting")])
def test_what_the_owner_did_not_offer_stays(home: OwnerHome, desk: Desk, transport: str, state: str) -> None:
    offer(home, desk, update=b"x", transport=transport, state=state)
    with pytest.raises(FederationError, match="does not offer"):
        desk.answer(StatusQuery(charter=desk.charter.digest, inline=MINE))


def test_an_update_above_the_charters_limit_stays(home: OwnerHome, desk: Desk) -> None:
    offer(home, desk, update=b"\x00" * 1001)
    with pytest.raises(FederationError, match="larger than 1000 bytes"):
        desk.answer(StatusQuery(charter=desk.charter.digest, inline=MINE))


def receipt(desk: Desk, owner: str) -> Receipt:
    return Receipt(
        charter=desk.charter.digest,
        contribution=MINE,
        owner=owner,
        status="admitted",
        received_bytes=1,
        entry=NOTHING,
        sequence=1,
    )


def test_a_receipt_is_kept_if_it_is_the_coordinators(home: OwnerHome, desk: Desk) -> None:
    offer(home, desk, update=b"x")
    signed = seal(receipt(desk, home.key.public), COORDINATOR)
    desk.answer(StatusQuery(charter=desk.charter.digest, receipts=(signed,)))
    assert (home.contribution(MINE) / "receipt.json").read_bytes() == signed.canonical()
    for forged in (
        seal(receipt(desk, home.key.public), home.key),
        seal(receipt(desk, COORDINATOR.public), COORDINATOR),
    ):
        with pytest.raises(SignatureError):
            desk.answer(StatusQuery(charter=desk.charter.digest, receipts=(forged,)))


def test_a_status_stays_small_however_long_the_history(desk: Desk) -> None:
    for number in range(20):
        composite = f"sha256:{number:064x}"
        desk.submit(EvaluateRequest(charter=desk.charter.digest, composite=composite))
    jobs = desk.status().jobs
    assert len(jobs) == 16
    assert jobs[-1].id == job_id(EvaluateRequest(charter=desk.charter.digest, composite=f"sha256:{19:064x}"))


def test_results_that_would_not_fit_a_message_are_told_of_the_latest_jobs() -> None:
    jobs = [
        JobState(
            id=f"evaluate-{number:016x}", kind="evaluate", state="done", updated=number, result={"report": "x" * size}
        )
        for number, size in enumerate((10, 1000, 1000, 1000))
    ]
    told = fitting(jobs, limit=2600)
    assert [job.id for job in told] == [job.id for job in jobs]
    assert [job.result is not None for job in told] == [True, False, True, True]
    assert fitting(jobs) == tuple(jobs)


def test_a_request_without_expert_sets_is_the_job_that_it_always_was() -> None:
    plain = EvaluateRequest(charter=NOTHING, composite=MINE)
    assert set(plain.as_json()) == {"schema", "charter", "composite"}
    assert job_id(plain) != job_id(EvaluateRequest(charter=NOTHING, composite=MINE, sets=True))
    assert EvaluateRequest.parse(plain.canonical()) == plain


@pytest.mark.parametrize("word", ["sha256:../../keys", "", MINE + "0", 7, None])
def test_a_result_names_a_contribution_only_by_a_digest(word: object) -> None:
    job = JobState(id="train-" + "0" * 16, kind="train", state="done", updated=0.0, result={"contribution": word})
    assert contribution_of(job) is None


def test_the_client_app_imports_no_torch() -> None:
    heavy = (
        "import sys, motet.client.client_app; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "[]\n"
