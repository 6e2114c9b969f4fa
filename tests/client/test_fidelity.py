"""What `motet bench fidelity` measures on an owner's own expert."""

import json

import pytest

from motet.cli import run
from motet.client import fidelity as room
from motet.client.fidelity import fidelity
from motet.protocols.codec import CodecSettings
from motet.protocols.errors import DataError


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some of the encodings: the others take the same code."""
    chosen = (CodecSettings(method="ternary", density=0.2), CodecSettings(method="lossless"))
    monkeypatch.setattr(room, "SETTINGS", chosen)
    monkeypatch.setattr(room, "RANKS", (4,))


def test_exact_encodings_keep_all_and_sparse_ones_cost_less(make_home, few) -> None:
    rows = {(row.method, row.options): row for row in fidelity(make_home(training={"steps": 20}))}
    ternary, lossless = rows[("ternary", "k = 20 %")], rows[("lossless", "")]
    assert lossless.gain_kept == pytest.approx(1.0, abs=0.02)
    assert lossless.factor is None
    assert 0.3 < ternary.gain_kept < 1.3
    assert ternary.factor > 1
    assert ternary.bits_per_parameter < lossless.bits_per_parameter
    assert rows[("int8", "rank 4")].gain_kept == pytest.approx(1.0, abs=0.02)
    assert set(rows) == {("ternary", "k = 20 %"), ("lossless", ""), ("int4", "rank 4"), ("int8", "rank 4")}


def test_the_command_prints_the_rows(make_home, few, capsys: pytest.CaptureFixture[str]) -> None:
    home = make_home(training={"steps": 20})
    assert run(["bench", "fidelity", "--dir", str(home.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "medicine"
    assert [row["method"] for row in found["rows"]] == ["ternary", "lossless", "int4", "int8"]


def test_one_held_out_document_is_too_few(make_home, few) -> None:
    with pytest.raises(DataError, match="wanted two at least"):
        list(fidelity(make_home(texts=[f"document {number} of two" for number in range(3)])))


def test_of_a_low_rank_expert_its_own_factors_are_measured(make_home) -> None:
    training = {"steps": 30, "kind": "lowrank", "rank": 4, "learning_rate": 3e-2}
    rows = {row.method: row for row in fidelity(make_home(training=training, codec={"method": None}))}
    assert {row.options for row in rows.values()} == {"rank 4 as trained"}
    assert rows["lossless"].gain_kept == pytest.approx(1.0, abs=0.01)
    assert rows["int8"].gain_kept == pytest.approx(1.0, abs=0.02)
    assert rows["int4"].bits_per_parameter < rows["int8"].bits_per_parameter < rows["lossless"].bits_per_parameter
