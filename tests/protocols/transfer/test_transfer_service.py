"""The service as any client meets it over real TLS: what is good once, what breaks a rule, and who is let go."""

import random
import threading
import time
import zlib

import grpc
import pytest

from motet.protocols.canonical import digest_of
from motet.protocols.contribution import Contribution
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed, seal
from motet.protocols.transfer import AccessRequest
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
