"""The data plane as owners meet it: a server process, their commands, and lines and processes that break."""

import json
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def forget_receipt(stage, name: str) -> None:
    """As if the answer had been lost on its way to the owner."""
    for file in ("receipt.json", "sent.json"):
        (stage.outbox(name) / file).unlink()


def test_contribute_withdraw_and_no_way_back(trained, on_stage) -> None:
    stage = on_stage(trained)
    stage.serve()
    owner = stage.owner("medicine")
    sent = stage.motet("contribute", "--dir", owner, "--yes", "--json").json
    receipt = (stage.outbox("medicine") / "receipt.json").read_bytes()
    assert sent["status"] == "admitted"
    assert sent["sent_bytes"] > (stage.outbox("medicine") / "update.motetup").stat().st_size

    again = stage.here("contribute", "--dir", owner, "--yes", "--json").json
    forget_receipt(stage, "medicine")
    lost = stage.here("contribute", "--dir", owner, "--yes", "--json").json
    assert again == sent
    assert lost["status"] == "admitted"
    assert lost["sent_bytes"] < 10_000
    assert (stage.outbox("medicine") / "receipt.json").read_bytes() == receipt
    assert [kind for kind, _ in stage.ledger()].count("admitted") == 1

    withdrawn = [stage.here("withdraw", "--dir", owner, "--yes", "--json").json for _ in range(2)]
    assert withdrawn[0] == withdrawn[1]
    assert withdrawn[0]["status"] == "withdrawn"
    kept = stage.here("contribute", "--dir", owner, "--yes", "--json", code=11).json
    assert kept["status"] == "withdrawn"
    (stage.outbox("medicine") / "receipt.json").unlink()
    refused = stage.here("contribute", "--dir", owner, "--yes", code=9).message
    assert "refused (withdrawn)" in refused
    assert "new version" in refused
    assert [kind for kind, _ in stage.ledger()].count("withdrawn") == 1


def test_owners_score_a_composite_at_home(gathered, on_stage) -> None:
    stage = on_stage(gathered)
    digest = stage.here("assemble", "--dir", stage.coordinator, "--json").json["digest"]
    stage.serve()
    owner = stage.owner("mathematics")
    pulled = stage.here("pull", digest, "--dir", owner, "--json").json
    original = stage.coordinator / "composites" / Path(pulled["path"]).name
    assert {p.name: p.read_bytes() for p in Path(pulled["path"]).iterdir()} == {
        p.name: p.read_bytes() for p in original.iterdir()
    }
    scored = stage.motet("eval", digest, "--dir", owner, "--json").json
    assert scored["domain"] == "mathematics"
    assert set(scored["bits_per_byte"]) == {
        *("anchor", "soup", "composite", "expert:medicine", "expert:mathematics"),
        *("composite-without:medicine", "composite-without:mathematics"),
    }
    assert all(0 < bits < 10 for bits in scored["bits_per_byte"].values())
    assert stage.here("eval", digest, "--dir", owner, "--json").json == scored


def test_a_composite_is_no_longer_handed_out_once_a_member_has_left(gathered, on_stage) -> None:
    stage = on_stage(gathered)
    digest = stage.here("assemble", "--dir", stage.coordinator, "--no-stock", "--json").json["digest"]
    stage.serve()
    stage.here("withdraw", "--dir", stage.owner("medicine"), "--yes")
    refused = stage.here("pull", digest, "--dir", stage.owner("mathematics"), code=9)
    assert digest in refused.message
    assert not list((stage.owner("mathematics") / "composites").glob("*/composite.json"))


def test_an_upload_survives_a_killed_owner_and_a_killed_server(wide, on_stage, proxy_before, start) -> None:
    stage = on_stage(wide)
    server, owner = stage.serve(), stage.owner("medicine")
    size = (stage.outbox("medicine") / "update.motetup").stat().st_size
    assert size > 7_000_000

    first = start("first", "contribute", "--dir", owner, "--yes")
    proxy_before.until(to_server=2_500_000)
    first.kill()
    first.wait()

    second = start("second", "contribute", "--dir", owner, "--yes", "--json")
    proxy_before.until(to_server=5_500_000)
    server.kill()
    server.wait()
    stage.serve()
    assert second.wait(60) == 0

    receipt = json.loads(json.loads((stage.outbox("medicine") / "receipt.json").read_bytes())["payload"])
    assert receipt["status"] == "admitted"
    assert size < proxy_before.to_server < 1.6 * size
    assert [kind for kind, _ in stage.ledger()] == ["charter", "enrolled", "admitted"]
    assert not [path for path in (stage.coordinator / "intake").rglob("*") if path.is_file() and path.stat().st_size]


def test_a_cut_pull_goes_on_where_it_was(wide, on_stage, proxy_before, start) -> None:
    stage = on_stage(wide)
    stage.here("contribute", "--dir", stage.owner("medicine"), "--to", stage.file("medicine"), "--yes")
    stage.here("admit", stage.file("medicine"), "--dir", stage.coordinator)
    digest = stage.here("assemble", "--dir", stage.coordinator, "--no-stock", "--json").json["digest"]
    stage.serve()
    pulling = start("pull", "pull", digest, "--dir", stage.owner("medicine"))
    proxy_before.until(to_client=4_000_000)
    pulling.send_signal(signal.SIGKILL)
    pulling.wait()
    folder = stage.owner("medicine") / "composites" / digest.partition(":")[2]
    assert folder.is_dir()
    assert not (folder / "composite.json").exists()
    time.sleep(0.2)  # what was on its way still counts as the first attempt's

    pulled = stage.here("pull", digest, "--dir", stage.owner("medicine"), "--json").json
    total = sum(path.stat().st_size for path in Path(pulled["path"]).iterdir())
    assert total > 15_000_000
    assert total < proxy_before.to_client < 1.3 * total
    assert stage.here("pull", digest, "--dir", stage.owner("medicine"), "--json").json == pulled
