"""Uploads over real TLS on loopback: they arrive, resume, are refused with a reason, and twice is once."""

import random
import resource
import threading
from pathlib import Path

import grpc
import pytest

from motet.protocols.canonical import digest_of
from motet.protocols.contribution import Contribution, Withdrawal
from motet.protocols.errors import AdmissionRefused, FederationError, SignatureError, TransferBroken, TransferRefused
from motet.protocols.receipts import Receipt
from motet.protocols.signing import SigningKey, seal
from motet.protocols.transfer import Patience, connect, probe, upload, withdraw
from motet.protocols.transfer import expert_transfer_pb2 as pb2
from motet.protocols.transfer.expert_transfer_pb2_grpc import ExpertTransferStub

MIB = 1 << 20


def _bytes(count, seed=0):
    return random.Random(seed).randbytes(count)


def test_an_update_arrives_whole_and_the_receipt_is_the_coordinators(site):
    data = _bytes(3 * MIB + 17)
    signed, path = site.contribution(data)
    seen = []
    with site.serving() as rules:
        outcome = site.upload(signed, path, progress=lambda done, total: seen.append((done, total)))
    receipt = outcome.receipt.open(Receipt, by=site.coordinator.public)
    assert (receipt.status, receipt.received_bytes) == ("admitted", len(data))
    assert rules.admitted == [signed.open(Contribution).update]
    assert seen[0] == (0, len(data))
    assert seen[-1] == (len(data), len(data))
    assert len(data) < outcome.sent_bytes < len(data) + 8192
    assert list(rules.intake_directory.iterdir()) == []


def test_sent_bytes_agree_with_what_crossed_the_socket(site, proxy_to):
    signed, path = site.contribution(_bytes(2 * MIB))
    with site.serving(), proxy_to(site.port) as proxy:
        outcome = site.upload(signed, path, port=proxy.port)
        assert outcome.sent_bytes < proxy.bytes_to_server < 1.02 * outcome.sent_bytes + 8192


def test_a_cut_connection_resumes_instead_of_beginning_anew(site, proxy_to):
    data = _bytes(12 * MIB)
    signed, path = site.contribution(data)
    with site.serving() as rules, proxy_to(site.port, cut_after=8 * MIB, bytes_per_second=60 * MIB) as proxy:
        outcome = site.upload(signed, path, port=proxy.port)
        assert proxy.connections == 2
    assert rules.admitted == [signed.open(Contribution).update]
    assert outcome.sent_bytes < 1.35 * len(data)
    assert len(data) <= outcome.receipt.open(Receipt).received_bytes < 1.2 * len(data)


def test_what_the_progress_callback_raises_ends_the_upload_and_the_next_call_resumes(site, proxy_to):
    data = _bytes(12 * MIB)
    signed, path = site.contribution(data)

    def stop(done, total):
        if done > 6 * MIB:
            raise KeyboardInterrupt

    with site.serving() as rules:
        with proxy_to(site.port, bytes_per_second=30 * MIB) as proxy, pytest.raises(KeyboardInterrupt):
            site.upload(signed, path, port=proxy.port, progress=stop)
        outcome = site.upload(signed, path)
    assert rules.admitted == [signed.open(Contribution).update]
    assert outcome.sent_bytes < 0.7 * len(data)


def test_a_duplicate_upload_gets_the_first_receipt_and_sends_nothing(site):
    signed, path = site.contribution(_bytes(MIB))
    with site.serving() as rules:
        first = site.upload(signed, path)
        second = site.upload(signed, path)
    assert second.receipt == first.receipt
    assert second.sent_bytes < 8192
    assert len(rules.admitted) == 1


def test_two_uploads_of_one_contribution_admit_it_once(site):
    signed, path = site.contribution(_bytes(MIB))
    entered, leave = threading.Event(), threading.Event()
    outcomes = []
    with site.serving() as rules:
        rules.before_admission = lambda: (entered.set(), leave.wait(20))[0]
        threads = [threading.Thread(target=lambda: outcomes.append(site.upload(signed, path))) for _ in range(2)]
        threads[0].start()
        assert entered.wait(10)
        threads[1].start()
        threads[1].join(1)
        leave.set()
        for thread in threads:
            thread.join(20)
    assert [outcome.receipt for outcome in outcomes] == [outcomes[0].receipt] * 2
    assert len(rules.admitted) == 1
    assert min(outcome.sent_bytes for outcome in outcomes) < 8192


def test_a_refusal_by_admission_reaches_the_owner_as_a_signed_receipt(site):
    signed, path = site.contribution(b"REFUSE" + _bytes(MIB))
    with site.serving() as rules:
        receipt = site.upload(signed, path).receipt.open(Receipt)
    assert (receipt.status, receipt.reason) == ("refused", "not-finite")
    assert list(rules.intake_directory.iterdir()) == []


def test_a_refusal_raised_by_admission_surfaces_and_its_bytes_are_dropped(site):
    signed, path = site.contribution(_bytes(MIB))

    def refuse():
        raise AdmissionRefused("saw another anchor; train on this one", reason="wrong-anchor")

    with site.serving() as rules:
        rules.before_admission = refuse
        with pytest.raises(TransferRefused, match="another anchor") as caught:
            site.upload(signed, path)
        assert caught.value.reason == "wrong-anchor"
        assert list(rules.intake_directory.glob("*.part")) == []


def test_a_failing_coordinator_is_told_without_its_secrets_tried_once_and_the_bytes_are_kept(site):
    signed, path = site.contribution(_bytes(MIB))
    attempts = []

    def fail():
        attempts.append(1)
        raise RuntimeError("/etc/secret")

    with site.serving() as rules:
        rules.before_admission = fail
        with pytest.raises(TransferRefused, match="its log says why") as caught:
            site.upload(signed, path)
        rules.before_admission = lambda: None
        assert "secret" not in str(caught.value)
        assert attempts == [1]
        assert site.upload(signed, path).sent_bytes < 8192


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"charter": digest_of("another")}, {}, "wrong-charter"),
        ({}, {"max_bytes": 100}, "too-large"),
    ],
)
def test_a_manifest_that_would_be_refused_is_refused_before_its_bytes_travel(site, changes, options, reason):
    signed, path = site.contribution(_bytes(MIB), **changes)
    with site.serving(**options), pytest.raises(TransferRefused) as caught:
        site.upload(signed, path)
    assert caught.value.reason == reason


def test_an_unknown_owner_is_refused(site):
    stranger = SigningKey.generate()
    signed, path = site.contribution(_bytes(100), owner=stranger.public)
    signed = seal(signed.open(Contribution), stranger)
    with site.serving(), pytest.raises(TransferRefused, match="not enrolled") as caught:
        site.upload(signed, path, key=stranger)
    assert caught.value.reason == "unknown-owner"


def test_a_request_for_another_coordinator_is_refused(site):
    signed, path = site.contribution(_bytes(100))
    with site.serving(), pytest.raises(TransferRefused) as caught:
        site.upload(signed, path, audience=f"{digest_of('charter')}@elsewhere.example:9443")
    assert caught.value.reason == "wrong-audience"


def test_a_file_that_is_not_what_the_manifest_says_is_named(site):
    data = _bytes(MIB)
    signed, path = site.contribution(data)
    with site.serving() as rules:
        path.write_bytes(data[:-1])
        with pytest.raises(TransferRefused, match="pack and sign"):
            site.upload(signed, path)
        path.write_bytes(data[:-1] + b"x")
        with pytest.raises(TransferRefused, match="pack and sign") as caught:
            site.upload(signed, path)
    assert caught.value.reason == "digest-mismatch"
    assert rules.admitted == []


def test_a_full_disk_is_told_and_what_arrived_is_kept(site):
    data = _bytes(4 * MIB)
    signed, path = site.contribution(data)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with site.serving() as rules:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB + 1000, limits[1]))
        try:
            with pytest.raises(TransferRefused, match="free space") as caught:
                site.upload(signed, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.reason == "storage"
        outcome = site.upload(signed, path)
    assert rules.admitted == [signed.open(Contribution).update]
    assert outcome.sent_bytes < 2.1 * MIB


def test_a_disk_without_room_is_told_before_a_byte_travels(site, monkeypatch):
    signed, path = site.contribution(_bytes(MIB))
    monkeypatch.setattr("motet.protocols.transfer.service.shutil.disk_usage", lambda _: type("Usage", (), {"free": 9}))
    with site.serving(), pytest.raises(TransferRefused, match="9 bytes are free") as caught:
        site.upload(signed, path)
    assert caught.value.reason == "storage"


def test_a_receipt_by_another_key_is_not_believed(site):
    signed, path = site.contribution(_bytes(100))
    with site.serving(), pytest.raises(SignatureError):
        site.upload(signed, path, coordinator=SigningKey.generate().public)


def test_a_withdrawal_brings_a_receipt(site):
    withdrawal = Withdrawal(charter=digest_of("charter"), contribution=digest_of("x"), owner=site.owner.public)
    options = {
        "key": site.owner,
        "audience": f"{digest_of('charter')}@coordinator.example:9443",
        "coordinator": site.coordinator.public,
    }
    with site.serving(), site.channel() as channel:
        receipt = withdraw(channel, signed=seal(withdrawal, site.owner), **options).open(Receipt)
    assert (receipt.status, receipt.contribution) == ("withdrawn", digest_of("x"))


def test_nothing_is_spoken_in_the_clear_and_no_other_authority_is_trusted(site, certificates):
    with site.serving():
        with grpc.insecure_channel(site.address) as channel, pytest.raises(grpc.RpcError) as caught:
            ExpertTransferStub(channel).Nonce(pb2.NonceRequest(), timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        other = Path(grpc.__file__).parent / "_cython" / "_credentials" / "roots.pem"
        with connect(site.address, other.read_bytes()) as channel, pytest.raises(TransferBroken):
            probe(channel)
        with site.channel() as channel:
            probe(channel)


def test_no_server_is_a_broken_transfer_after_bounded_attempts(site):
    signed, path = site.contribution(_bytes(100))
    with pytest.raises(TransferBroken, match="run the same command again"):
        site.upload(signed, path, patience=Patience(attempts=2, first_seconds=0.01))


def test_a_port_in_use_is_named(site):
    with site.serving(), pytest.raises(FederationError, match="in use"), site.serving():
        pass


def test_upload_wants_a_manifest_of_its_own_key(site):
    signed, path = site.contribution(_bytes(100))
    with site.channel() as channel, pytest.raises(SignatureError):
        upload(
            channel,
            signed=signed,
            update=path,
            key=SigningKey.generate(),
            audience="a",
            coordinator=site.coordinator.public,
        )


def test_what_a_killed_server_left_of_a_decided_upload_goes(site):
    data = _bytes(MIB)
    signed, path = site.contribution(data)
    with site.serving() as rules:
        site.upload(signed, path)
        name = signed.open(Contribution).digest.removeprefix("sha256:")
        left = [rules.intake_directory / f"{name}.{suffix}" for suffix in ("part", "journal")]
        for file in left:
            file.write_bytes(b"as if the process had died before it came to this")
        site.upload(signed, path)
        assert not any(file.exists() for file in left)
