"""Uploads over real TLS on loopback: they arrive, resume, are refused with a reason, and twice is once."""

import random
import resource
import threading
import time
import zlib
from pathlib import Path

import grpc
import pytest

from motet.protocols.canonical import digest_of
from motet.protocols.contribution import Contribution, Withdrawal
from motet.protocols.errors import AdmissionRefused, FederationError, SignatureError, TransferBroken, TransferRefused
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, SigningKey, seal
from motet.protocols.transfer import AccessRequest, Patience, connect, probe, upload, withdraw
from motet.protocols.transfer import expert_transfer_pb2 as pb2
from motet.protocols.transfer.expert_transfer_pb2_grpc import ExpertTransferStub
from motet.protocols.transfer.service import MAX_STRANGERS

MIB = 1 << 20


def _bytes(count, seed=0):
    return random.Random(seed).randbytes(count)


def _reason(error):
    return dict(error.value.trailing_metadata()).get("motet-reason")


def _access(site, stub, subject, *, action="contribute", audience=None, nonce=None, key=None):
    key = key or site.owner
    nonce = nonce or stub.Nonce(pb2.NonceRequest()).nonce
    audience = audience or f"{digest_of('charter')}@coordinator.example:9443"
    request = AccessRequest(action=action, nonce=nonce, audience=audience, subject=subject, owner=key.public)
    return seal(request, key).canonical()


def _begin(site, stub, signed, **changes):
    digest = signed.open(Contribution).digest
    return stub.Begin(pb2.BeginRequest(access=_access(site, stub, digest, **changes), manifest=signed.canonical()))


def _chunk(session, offset, data, *, crc32=None):
    return pb2.Chunk(session=session, offset=offset, data=data, crc32=zlib.crc32(data) if crc32 is None else crc32)


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


def test_a_begin_is_good_once(site):
    signed, _ = site.contribution(_bytes(100))
    with site.serving(), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        access = _access(site, stub, signed.open(Contribution).digest)
        request = pb2.BeginRequest(access=access, manifest=signed.canonical())
        assert stub.Begin(request).session
        with pytest.raises(grpc.RpcError) as caught:
            stub.Begin(request)
    assert _reason(caught) == "replayed"


def test_a_nonce_is_good_once_whatever_is_signed_with_it(site):
    signed, _ = site.contribution(_bytes(100))
    with site.serving(), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        nonce = stub.Nonce(pb2.NonceRequest()).nonce
        _begin(site, stub, signed, nonce=nonce)
        with pytest.raises(grpc.RpcError) as replayed:
            stub.Begin(pb2.BeginRequest(access=_access(site, stub, digest_of("x"), action="fetch", nonce=nonce)))
        with pytest.raises(grpc.RpcError) as invented:
            _begin(site, stub, signed, nonce="00" * 40)
    assert (_reason(replayed), _reason(invented)) == ("replayed", "stale-nonce")


def test_a_nonce_does_not_outlive_the_server(site):
    signed, _ = site.contribution(_bytes(100))
    with site.channel() as channel:
        stub = ExpertTransferStub(channel)
        with site.serving():
            nonce = stub.Nonce(pb2.NonceRequest()).nonce
        with site.serving():
            grpc.channel_ready_future(channel).result(timeout=10)
            with pytest.raises(grpc.RpcError) as caught:
                _begin(site, stub, signed, nonce=nonce)
    assert _reason(caught) == "stale-nonce"


def test_an_access_request_covers_the_manifest_beside_it(site):
    first, _ = site.contribution(_bytes(100, 1))
    second, _ = site.contribution(_bytes(100, 2))
    with site.serving(), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        access = _access(site, stub, first.open(Contribution).digest)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Begin(pb2.BeginRequest(access=access, manifest=second.canonical()))
    assert _reason(caught) == "wrong-subject"


def test_a_changed_signature_is_refused(site):
    signed, _ = site.contribution(_bytes(100))
    with site.serving(), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        access = Signed.parse(_access(site, stub, signed.open(Contribution).digest))
        forged = access.model_copy(update={"signature": "0" * 128}).canonical()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Begin(pb2.BeginRequest(access=forged, manifest=signed.canonical()))
        with pytest.raises(grpc.RpcError) as garbage:
            stub.Begin(pb2.BeginRequest(access=b"\xff{", manifest=signed.canonical()))
    assert (_reason(caught), _reason(garbage)) == ("bad-signature", "bad-document")


@pytest.mark.parametrize(
    ("offset", "length", "crc32", "reason"),
    [
        (0, MIB, 1, "bad-checksum"),
        (MIB, MIB, None, "wrong-offset"),
        (0, MIB + 1, None, "bad-chunk"),
        (0, 1, None, "bad-chunk"),
        (2 * MIB, MIB, None, "too-large"),
    ],
)
def test_a_chunk_that_breaks_a_rule_is_refused_and_what_was_there_stays(site, offset, length, crc32, reason):
    data = _bytes(2 * MIB + 5)
    signed, path = site.contribution(data)
    with site.serving() as rules, site.channel() as channel:
        stub = ExpertTransferStub(channel)
        session = _begin(site, stub, signed).session
        with pytest.raises(grpc.RpcError) as caught:
            stub.Push(iter([_chunk(session, offset, _bytes(length), crc32=crc32)]))
        assert _reason(caught) == reason
        assert _begin(site, stub, signed).offset == 0
        assert site.upload(signed, path).receipt.open(Receipt).status == "admitted"
        assert rules.admitted == [signed.open(Contribution).update]


def test_a_truncated_update_cannot_be_committed(site):
    signed, _ = site.contribution(_bytes(2 * MIB))
    with site.serving(), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        session = _begin(site, stub, signed).session
        assert stub.Push(iter([_chunk(session, 0, _bytes(MIB))])).offset == MIB
        with pytest.raises(grpc.RpcError) as caught:
            stub.Commit(pb2.CommitRequest(session=session))
    assert _reason(caught) == "wrong-offset"


def test_a_tampered_update_is_dropped_at_commit_and_can_be_sent_again(site):
    data = _bytes(MIB)
    signed, path = site.contribution(data)
    with site.serving() as rules, site.channel() as channel:
        stub = ExpertTransferStub(channel)
        session = _begin(site, stub, signed).session
        stub.Push(iter([_chunk(session, 0, bytes(MIB))]))
        with pytest.raises(grpc.RpcError) as caught:
            stub.Commit(pb2.CommitRequest(session=session))
        assert _reason(caught) == "digest-mismatch"
        assert rules.admitted == []
        receipt = site.upload(signed, path).receipt.open(Receipt)
    assert (receipt.status, receipt.received_bytes) == ("admitted", 2 * MIB)


def test_the_client_starts_over_once_when_what_lay_there_was_wrong(site):
    data = _bytes(2 * MIB)
    signed, path = site.contribution(data)
    with site.serving() as rules, site.channel() as channel:
        stub = ExpertTransferStub(channel)
        session = _begin(site, stub, signed).session
        stub.Push(iter([_chunk(session, 0, bytes(MIB))]))
        outcome = site.upload(signed, path)
    assert rules.admitted == [signed.open(Contribution).update]
    assert outcome.sent_bytes > 3 * MIB


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


def test_a_later_session_takes_over(site):
    signed, _ = site.contribution(_bytes(2 * MIB))
    with site.serving(), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        first = _begin(site, stub, signed).session
        stub.Push(iter([_chunk(first, 0, _bytes(MIB))]))
        second = _begin(site, stub, signed)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Push(iter([_chunk(first, MIB, _bytes(MIB))]))
    assert second.offset == MIB
    assert _reason(caught) == "superseded"


def test_sessions_of_one_owner_are_bounded_and_a_session_is_for_one_thing(site):
    signed, _ = site.contribution(_bytes(MIB))
    with site.serving(), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        sessions = [_begin(site, stub, signed).session for _ in range(9)]
        with pytest.raises(grpc.RpcError) as evicted:
            stub.Commit(pb2.CommitRequest(session=sessions[0]))
        with pytest.raises(grpc.RpcError) as misused:
            list(stub.Fetch(pb2.FetchRequest(session=sessions[-1], name="config.json")))
    assert (_reason(evicted), _reason(misused)) == ("unknown-session", "unknown-session")


def test_a_peer_that_stands_still_is_let_go_and_its_bytes_are_kept(site):
    signed, path = site.contribution(_bytes(2 * MIB))
    held = threading.Event()

    def chunks(session):
        yield _chunk(session, 0, path.read_bytes()[:MIB])
        held.wait(20)

    with site.serving(stall_seconds=0.5), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        session = _begin(site, stub, signed).session
        with pytest.raises(grpc.RpcError):
            stub.Push(chunks(session), timeout=10)
        held.set()
        assert _begin(site, stub, signed).offset == MIB


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


def _first_refusal(stub, waiting, silent):
    """Why the first push is refused that is; a silent stream that met one of ours in the door is renewed."""
    for _ in range(400):
        waiting[:] = [stub.Push.future(silent()) if call.done() else call for call in waiting]
        call = stub.Push.future(iter([]))
        if call.code() is not grpc.StatusCode.OK:
            return dict(call.trailing_metadata()).get("motet-reason")
        time.sleep(0.05)
    return None


def test_streams_that_say_nothing_keep_nobody_else_out(site):
    """Anybody can open them, without a key: they must not use up the threads that serve owners."""
    data = _bytes(MIB)
    signed, path = site.contribution(data)
    silence = threading.Event()

    def nothing():
        silence.wait(30)
        yield from ()

    with site.serving(max_workers=MAX_STRANGERS + 4), site.channel() as channel:
        stub = ExpertTransferStub(channel)
        waiting = [stub.Push.future(nothing()) for _ in range(MAX_STRANGERS)]
        assert _first_refusal(stub, waiting, nothing) == "busy"
        assert _begin(site, stub, signed).offset == 0
        silence.set()
        assert [call.result(timeout=20).offset for call in waiting] == [0] * MAX_STRANGERS
        assert site.upload(signed, path).receipt.open(Receipt).status == "admitted"
