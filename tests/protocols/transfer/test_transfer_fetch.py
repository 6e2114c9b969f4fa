"""Fetching a publication: whole, resumed, verified, and only under harmless names."""

import json
import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.protocols.canonical import bytes_digest, canonical_json, digest_of, hex_of
from motet.protocols.errors import StorageError, TransferBroken, TransferRefused
from motet.protocols.signing import SigningKey
from motet.protocols.transfer import Patience, fetch, write_bundle
from motet.protocols.transfer.publication import Listing, harmless

MIB = 1 << 20
AUDIENCE = f"{digest_of('charter')}@coordinator.example:9443"
IMPATIENT = Patience(attempts=4, first_seconds=0.05, longest_seconds=0.2)


def _publish(site, files):
    staging = site.home / "staging"
    staging.mkdir()
    for name, data in files.items():
        (staging / name).write_bytes(data)
    digest = write_bundle(staging).digest
    return digest, _install(site, staging, digest)


def _install(site, staging, digest):
    folder = site.home / "published" / hex_of(digest)
    folder.parent.mkdir(exist_ok=True)
    return staging.rename(folder)


def _publish_listing(site, files):
    """A publication whose manifest says whatever the test wants."""
    listing = {"schema": "motet.composite/1", "files": files}
    staging = site.home / "staging"
    staging.mkdir()
    (staging / "bundle.json").write_bytes(canonical_json(listing))
    (staging / "a.bin").write_bytes(b"abc")
    digest = digest_of(listing)
    _install(site, staging, digest)
    return digest


def _fetch(site, digest, into, *, port=None, **changes):
    options = {"key": site.owner, "audience": AUDIENCE, "patience": IMPATIENT}
    with site.channel(port) as channel:
        return fetch(channel, digest=digest, into=into, **(options | changes))


def _content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def files():
    source = random.Random(0)
    return {"config.json": b"{}", "empty.txt": b"", "a.safetensors": source.randbytes(6 * MIB + 3), "b.bin": b"b"}


def test_a_publication_arrives_whole(site, files, tmp_path):
    digest, folder = _publish(site, files)
    seen = []
    with site.serving():
        into = _fetch(site, digest, tmp_path / "into", progress=lambda done, total: seen.append((done, total)))
    total = sum(len(data) for data in files.values())
    assert _content(into) == _content(folder)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_is_there_already_is_not_fetched_again(site, files, tmp_path, proxy_to):
    digest, folder = _publish(site, files)
    with site.serving(), proxy_to(site.port) as proxy:
        into = _fetch(site, digest, tmp_path / "into")
        (into / "b.bin").write_bytes(b"X")
        _fetch(site, digest, into, port=proxy.port)
        assert proxy.bytes_to_client < MIB
    assert _content(into) == _content(folder)


def test_a_cut_fetch_resumes(site, files, tmp_path, proxy_to):
    digest, folder = _publish(site, files)
    with site.serving(), proxy_to(site.port, cut_after=4 * MIB, bytes_per_second=60 * MIB) as proxy:
        into = _fetch(site, digest, tmp_path / "into", port=proxy.port)
        assert proxy.connections == 2
        assert proxy.bytes_to_client < 8 * MIB
    assert _content(into) == _content(folder)


def test_a_fetch_stopped_by_its_caller_resumes_at_the_next_call(site, files, tmp_path, proxy_to):
    digest, folder = _publish(site, files)

    def stop(done, total):
        if done > 4 * MIB:
            raise KeyboardInterrupt

    with site.serving(), proxy_to(site.port) as proxy:
        with pytest.raises(KeyboardInterrupt):
            _fetch(site, digest, tmp_path / "into", progress=stop)
        into = _fetch(site, digest, tmp_path / "into", port=proxy.port)
        assert proxy.bytes_to_client < 3 * MIB
    assert _content(into) == _content(folder)


def test_a_torn_partial_file_is_replaced(site, files, tmp_path):
    digest, folder = _publish(site, files)
    into = tmp_path / "into"
    into.mkdir()
    part = into / f".{hex_of(bytes_digest(files['a.safetensors']))}.part"
    part.write_bytes(bytes(MIB))
    (into / f".{'0' * 64}.part").write_bytes(b"of another publication")
    with site.serving():
        _fetch(site, digest, into)
    assert _content(into) == _content(folder)


def test_a_file_that_was_tampered_with_is_refused_and_no_manifest_is_written(site, files, tmp_path):
    digest, folder = _publish(site, files)
    data = bytearray(files["a.safetensors"])
    data[1000] ^= 1
    (folder / "a.safetensors").write_bytes(data)
    with site.serving(), pytest.raises(TransferRefused, match=r"a\.safetensors") as caught:
        _fetch(site, digest, tmp_path / "into")
    assert caught.value.reason == "digest-mismatch"
    assert not {"a.safetensors", "bundle.json"} & set(_content(tmp_path / "into"))


def test_a_truncated_file_is_a_broken_transfer(site, files, tmp_path):
    digest, folder = _publish(site, files)
    (folder / "a.safetensors").write_bytes(files["a.safetensors"][:MIB])
    with site.serving(), pytest.raises(TransferBroken, match=r"a\.safetensors"):
        _fetch(site, digest, tmp_path / "into")


def test_a_file_that_grew_is_refused(site, files, tmp_path):
    digest, folder = _publish(site, files)
    (folder / "b.bin").write_bytes(b"b" * 3 * MIB)
    with site.serving(), pytest.raises(TransferRefused, match="more than 1 bytes"):
        _fetch(site, digest, tmp_path / "into")


@pytest.mark.parametrize("name", ["../evil", "/etc/x", "a/b", "a\\b", ".hidden", "", "..", "a\x00b", "a\nb", "x" * 300])
def test_a_hostile_name_reaches_no_disk(site, tmp_path, name):
    file = {"name": name, "size": 3, "sha256": bytes_digest(b"abc")}
    digest = _publish_listing(site, [file])
    with site.serving(), pytest.raises(TransferRefused) as caught:
        _fetch(site, digest, tmp_path / "into")
    assert caught.value.reason == "bad-manifest"
    assert list((tmp_path / "into").iterdir()) == []


@pytest.mark.parametrize(
    "files",
    [
        [{"name": "a.bin", "size": -1, "sha256": bytes_digest(b"abc")}],
        [{"name": "a.bin", "size": 1 << 60, "sha256": bytes_digest(b"abc")}],
        [{"name": "a.bin", "size": 3, "sha256": "abc"}],
        [{"name": "a.bin", "size": 3, "sha256": bytes_digest(b"abc")}] * 2,
        "a.bin",
        None,
    ],
)
def test_a_malformed_manifest_is_refused(site, tmp_path, files):
    digest = _publish_listing(site, files)
    with site.serving(), pytest.raises(TransferRefused) as caught:
        _fetch(site, digest, tmp_path / "into")
    assert caught.value.reason == "bad-manifest"


def test_a_manifest_of_another_digest_is_refused(site, files, tmp_path):
    digest, folder = _publish(site, files)
    manifest = json.loads((folder / "bundle.json").read_bytes())
    manifest["files"].pop()
    (folder / "bundle.json").write_bytes(canonical_json(manifest))
    with site.serving(), pytest.raises(TransferRefused) as caught:
        _fetch(site, digest, tmp_path / "into")
    assert caught.value.reason == "digest-mismatch"


def test_an_unknown_publication_and_an_unknown_owner_are_told(site, files, tmp_path):
    digest, _ = _publish(site, files)
    with site.serving():
        with pytest.raises(TransferRefused) as unknown:
            _fetch(site, digest_of("nothing"), tmp_path / "into")
        with pytest.raises(TransferRefused) as stranger:
            _fetch(site, digest, tmp_path / "into", key=SigningKey.generate())
    assert (unknown.value.reason, stranger.value.reason) == ("unknown-publication", "unknown-owner")


def test_a_publication_that_is_taken_back_serves_no_further_file(site, files, tmp_path):
    digest, folder = _publish(site, files)

    def take_back(done, total):
        if done > MIB and folder.exists():
            folder.rename(site.home / "taken-back")

    with site.serving(), pytest.raises(TransferRefused) as caught:
        _fetch(site, digest, tmp_path / "into", progress=take_back)
    assert caught.value.reason == "unknown-publication"
    assert "config.json" not in _content(tmp_path / "into")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["files", "name", "size"]), inner),
    )
)
def test_any_manifest_is_a_listing_or_refused_and_nothing_else(value):
    with suppress(TransferRefused):
        listing = Listing.of(canonical_json(value), digest_of(value))
        assert all(harmless(name) for name in listing.files)


def test_a_publication_without_room_is_told_before_it_travels(site, tmp_path):
    digest = _publish_listing(site, [{"name": "a.bin", "size": 1 << 42, "sha256": bytes_digest(b"abc")}])
    with site.serving(), pytest.raises(StorageError, match="free space"):
        _fetch(site, digest, tmp_path / "into")
