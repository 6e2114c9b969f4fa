"""Either side is killed in the middle of an upload and started again; memory stays flat for any size."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from motet.protocols.canonical import hex_of
from motet.protocols.contribution import Contribution
from motet.protocols.receipts import Receipt
from motet.protocols.signing import Signed
from motet.protocols.transfer import Patience

MIB = 1 << 20
PATIENCE = Patience(attempts=12, first_seconds=0.2, longest_seconds=1.0)

pytestmark = pytest.mark.slow


def _peak_bytes(pid):
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _wait_for_part(site, size):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for part in (site.home / "intake").glob("*.part"):
            if part.stat().st_size >= size:
                label = Signed.parse(part.with_suffix(".signed").read_bytes())
                assert hex_of(label.open(Contribution).digest) == part.stem
                return
        time.sleep(0.02)
    raise AssertionError(f"no partial file of {size} bytes came to be")


def test_an_upload_goes_on_by_itself_after_the_server_was_killed(site, proxy_to):
    data = random.Random(0).randbytes(24 * MIB)
    signed, path = site.contribution(data)
    servers = [site.spawn("serve")]

    def kill_once(done, total):
        if done > 12 * MIB and len(servers) == 1:
            servers[0].send_signal(signal.SIGKILL)
            servers[0].wait()
            servers.append(site.spawn("serve"))

    with proxy_to(site.port, bytes_per_second=40 * MIB) as proxy:
        outcome = site.upload(signed, path, port=proxy.port, progress=kill_once, patience=PATIENCE)
    receipt = outcome.receipt.open(Receipt, by=site.coordinator.public)
    assert len(servers) == 2
    assert receipt.status == "admitted"
    assert outcome.sent_bytes < 1.25 * len(data)
    assert len(data) <= receipt.received_bytes < 1.25 * len(data)


def test_an_upload_goes_on_after_the_client_was_killed(site, proxy_to):
    data = random.Random(1).randbytes(24 * MIB)
    signed, path = site.contribution(data)
    path.rename(site.home / "update.bin")
    (site.home / "update.json").write_bytes(signed.canonical())
    with site.serving() as rules, proxy_to(site.port, bytes_per_second=30 * MIB) as proxy:
        first = site.spawn("upload", MOTET_TEST_PORT=str(proxy.port))
        _wait_for_part(site, 10 * MIB)
        first.send_signal(signal.SIGKILL)
        first.wait()
        second = site.spawn("upload")
        report = json.loads(second.communicate(timeout=60)[0])
    assert rules.admitted == [signed.open(Contribution).update]
    assert report["sent_bytes"] < 0.7 * len(data)
    assert Signed.parse(report["receipt"].encode()).open(Receipt).received_bytes >= len(data)


def test_memory_of_both_sides_stays_under_64_mb(site):
    path = site.home / "update.bin"
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for index in range(300):
            file.write(index.to_bytes(4) + block[4:])
    (site.home / "update.json").write_bytes(site.manifest_of(path).canonical())
    server = site.spawn("serve")
    before = _peak_bytes(server.pid)
    report = json.loads(site.spawn("upload").communicate(timeout=120)[0])
    grown = _peak_bytes(server.pid) - before
    print(f"server +{grown / MIB:.1f} MiB, client +{report['memory'] / MIB:.1f} MiB, {report['seconds']:.2f} s")  # noqa: T201
    assert Signed.parse(report["receipt"].encode()).open(Receipt).status == "admitted"
    assert grown < 64_000_000
    assert report["memory"] < 64_000_000
