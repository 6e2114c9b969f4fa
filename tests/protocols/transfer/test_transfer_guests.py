"""Guests: whoever has a charter that allows it fetches what is published, and does nothing else, in nobody's way."""

from pathlib import Path

import grpc
import pytest

from motet.protocols.canonical import digest_of, hex_of
from motet.protocols.contribution import Contribution, Withdrawal
from motet.protocols.errors import TransferRefused
from motet.protocols.signing import SigningKey, seal
from motet.protocols.transfer import Patience, fetch, manifest_of, withdraw, write_bundle
from motet.protocols.transfer import expert_transfer_pb2 as pb2
from motet.protocols.transfer.channel import Caller, Meter
from motet.protocols.transfer.expert_transfer_pb2_grpc import ExpertTransferStub
from motet.protocols.transfer.nonces import MAX_SPENT_BY_GUESTS, Nonces
from motet.protocols.transfer.service import MAX_GUEST_STREAMS

CHARTER = digest_of("charter")
AUDIENCE = f"{CHARTER}@coordinator.example:9443"
IMPATIENT = Patience(attempts=2, first_seconds=0.05, longest_seconds=0.1)


@pytest.fixture
def published(site) -> str:
    staging = site.home / "staging"
    staging.mkdir()
    (staging / "config.json").write_bytes(b"{}")
    (staging / "weights.bin").write_bytes(bytes(range(256)) * 40_000)
    digest = write_bundle(staging).digest
    folder = site.home / "published" / hex_of(digest)
    folder.parent.mkdir()
    staging.rename(folder)
    return digest


def _options(key: SigningKey) -> dict[str, object]:
    return {"key": key, "audience": AUDIENCE, "patience": IMPATIENT}


def test_a_guest_is_refused_unless_the_charter_lets_guests_in(site, published, tmp_path: Path) -> None:
    stranger = SigningKey.generate()
    with site.serving() as rules, site.channel() as channel:
        with pytest.raises(TransferRefused, match="is not enrolled here") as refused:
            fetch(channel, digest=published, into=tmp_path / "into", **_options(stranger))
        assert refused.value.reason == "unknown-owner"
        rules.guests = True
        folder = fetch(channel, digest=published, into=tmp_path / "into", **_options(stranger))
    assert (folder / "weights.bin").read_bytes() == bytes(range(256)) * 40_000


def test_a_guest_can_neither_send_nor_withdraw(site, tmp_path: Path) -> None:
    signed, path = site.contribution(b"an update")
    stranger = SigningKey.generate()
    own = seal(signed.open(Contribution).model_copy(update={"owner": stranger.public}), stranger)
    with site.serving() as rules:
        rules.guests = True
        with pytest.raises(TransferRefused, match="is not enrolled here"):
            site.upload(own, path, key=stranger)
        farewell = Withdrawal(charter=CHARTER, contribution=digest_of("x"), owner=stranger.public)
        options = {"key": stranger, "audience": AUDIENCE, "coordinator": site.coordinator.public}
        with site.channel() as channel, pytest.raises(TransferRefused, match="is not enrolled here"):
            withdraw(channel, signed=seal(farewell, stranger), **options)
        assert rules.admitted == []


def test_the_charters_digest_asks_for_the_newest_composite(site, published, tmp_path: Path) -> None:
    with site.serving() as rules, site.channel() as channel:
        with pytest.raises(TransferRefused, match="no composite is published here yet") as refused:
            manifest_of(channel, CHARTER, **_options(site.owner))
        assert refused.value.reason == "unknown-publication"
        rules.newest = published
        told = manifest_of(channel, CHARTER, **_options(site.owner))
        assert told == manifest_of(channel, published, **_options(site.owner))
    assert told == (site.home / "published" / hex_of(published) / "bundle.json").read_bytes()


def test_guests_have_sessions_and_streams_of_their_own(site, published) -> None:
    def caller(channel: grpc.Channel, key: SigningKey) -> Caller:
        return Caller(stub=ExpertTransferStub(channel), key=key, audience=AUDIENCE, meter=Meter())

    def begin(channel: grpc.Channel, key: SigningKey) -> str:
        each = caller(channel, key)
        return each.begin(pb2.BeginRequest(access=each.access("fetch", published))).session

    def first_chunk(channel: grpc.Channel, session: str):
        call = ExpertTransferStub(channel).Fetch(pb2.FetchRequest(session=session, name="weights.bin", offset=0))
        return call, next(call)

    with site.serving() as rules, site.channel() as channel:
        rules.guests = True
        owned = begin(channel, site.owner)
        sessions = [begin(channel, SigningKey.generate()) for _ in range(9)]
        with pytest.raises(grpc.RpcError) as over:  # the ninth closed the first
            first_chunk(channel, sessions[0])
        assert over.value.details().startswith("saw a session that is not open here")
        calls = [first_chunk(channel, sessions[-1])[0] for _ in range(MAX_GUEST_STREAMS)]
        with pytest.raises(grpc.RpcError) as over:
            first_chunk(channel, sessions[-1])
        assert over.value.details() == "too many guests are fetching; try again"
        assert first_chunk(channel, owned)[1].data  # an owner is not held up
        for call in calls:
            call.cancel()


def test_what_guests_spend_keeps_no_owner_out() -> None:
    nonces = Nonces()
    spent = nonces.issue()
    nonces.spend(spent, guest=True)
    with pytest.raises(TransferRefused, match="was made before"):
        nonces.spend(spent, guest=True)
    for _ in range(MAX_SPENT_BY_GUESTS - 1):
        nonces.spend(nonces.issue(), guest=True)
    with pytest.raises(TransferRefused, match="too many requests"):
        nonces.spend(nonces.issue(), guest=True)
    nonces.spend(nonces.issue())
