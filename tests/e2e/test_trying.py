"""`motet try` against a real data plane: the newest composite, with the own expert in it, and a guest at the door."""

import pytest

from motet.protocols.charter import Charter
from motet.protocols.errors import TransferRefused

from .conftest import QUICKSTART, Stage

pytestmark = pytest.mark.slow


def test_an_owner_tries_the_newest_composite_and_a_guest_is_told_what_to_ask_for(gathered: Stage, on_stage) -> None:
    stage = on_stage(gathered)
    stage.serve()
    home = stage.owner("medicine")
    none = stage.here("try", "--dir", home, "--dry-run", code=TransferRefused.exit_code)
    assert "no composite is published here yet" in none.message
    made = stage.here("assemble", "--dir", stage.coordinator, "--no-stock", "--json").json

    plan = stage.here("try", "--dir", home, "--dry-run", "--json").json
    assert plan["composite"] == made["digest"]
    assert plan["systems"] == ["anchor", "expert", "composite", "composite-without"]
    trial = stage.here("try", "--dir", home, "--json").json
    assert list(trial["bits_per_byte"]) == plan["systems"]
    assert trial["documents"] == plan["documents"]
    assert [entry for entry in stage.ledger() if entry[0] == "composite"] == [("composite", made["digest"])]

    charter, text = stage.coordinator / "charter.signed.json", QUICKSTART / "text" / "medicine.jsonl"
    key = Charter.from_toml(stage.coordinator / "charter.toml").coordinator
    options = ("--charter", charter, "--coordinator", key, "--data", text, "--max-bytes", 12000)
    refused = stage.here("try", "--dir", stage.root / "guest", *options, code=TransferRefused.exit_code)
    assert "ask for the composite as a folder and give it with --composite" in refused.message
    handed = stage.here("try", "--dir", stage.root / "guest", *options, "--composite", made["path"], "--json").json
    assert list(handed["bits_per_byte"]) == ["anchor", "composite"]
