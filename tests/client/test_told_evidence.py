"""What the evidence by token tells is shown before it leaves, as it stands in the file that leaves."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from motet.cli import build
from motet.client.contribute import describe
from motet.client.outbox import Packed
from motet.client.owner import OwnerHome
from motet.client.told_evidence import SHOWN, told_evidence
from motet.protocols.canonical import file_digest
from motet.protocols.codec import CodecSettings, UpdateReader, encode
from motet.protocols.codec.changes import narrow
from motet.protocols.errors import TransferError
from motet.protocols.expert_files import ROUTER_TOKENS
from motet.protocols.tensor_files import TensorSpec

from .conftest import MakeHome, packed_of

VOCABULARY = 259


class Table:
    """A codec source of one tensor."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = narrow(values.astype(np.float32), "BF16")

    def read(self, spec: TensorSpec, start: int, count: int) -> np.ndarray:
        return self.values[start : start + count]


@pytest.fixture
def with_table(make_home: MakeHome, tmp_path: Path):
    """`with_table({id: nats}, rest=0.0)`: an update that holds this table and nothing else, and a home."""
    home = make_home()

    def make(told: dict[int, float], *, rest: float = 0.0) -> tuple[Packed, OwnerHome]:
        values = np.full(VOCABULARY, rest)
        values[list(told)] = list(told.values())
        spec = TensorSpec(name=ROUTER_TOKENS, dtype="BF16", shape=(VOCABULARY,))
        anchor = home.charter.anchor.digest
        path = tmp_path / "update.motetup"
        encode(path, Table(values), [spec], CodecSettings(method="lossless"), anchor=anchor)
        return Packed(folder=tmp_path, signed=None, contribution=SimpleNamespace(update=file_digest(path))), home

    return make


def test_tokens_with_a_value_of_their_own_are_counted_and_the_largest_named(with_table) -> None:
    packed, home = with_table({65 + n: n / 8 for n in range(1, 21)} | {4: 0.0, 5: -1.0}, rest=-4.5)
    told = told_evidence(packed, home)
    assert told.tokens == 21  # not the one with 0, nor the rest, which count as absent
    assert [nats for _, nats in told.largest] == [n / 8 for n in range(20, 20 - SHOWN, -1)]
    assert len({text for text, _ in told.largest}) == SHOWN
    assert told.lines()[1].startswith(f"  most of all: {told.largest[0][0]} +2.5, ")


def test_what_cannot_be_printed_is_escaped(with_table) -> None:
    for first in (0, 24, 130):
        told = told_evidence(*with_table(dict.fromkeys(range(first, first + SHOWN), 1.0)))
        assert all(text.isprintable() and text[0] in "'\"" for text, _ in told.largest)
        assert all(line.isprintable() for line in told.lines())


def test_a_file_that_was_changed_since_it_was_signed_is_not_shown(with_table) -> None:
    packed, home = with_table({7: 1.0})
    packed.update.write_bytes(packed.update.read_bytes()[:-1])
    with pytest.raises(TransferError, match="pack and sign the contribution again"):
        told_evidence(packed, home)


def test_zeros_tell_nothing_and_a_table_of_less_names_none(with_table) -> None:
    assert told_evidence(*with_table({})) is None
    told = told_evidence(*with_table({7: -1.0, 8: -2.0}))
    assert (told.tokens, told.largest) == (1, ())
    assert "none more often" in told.lines()[1]


def test_the_consent_screen_says_it(make_home: MakeHome) -> None:
    home = make_home()
    packed = packed_of(home)
    lines = describe(packed, home)
    told = told_evidence(packed, home)
    assert set(told.lines()) <= set(lines)
    assert any(line.startswith("stays here") and "all statistics of their text but" in line for line in lines)
    with UpdateReader(packed.update) as update:
        values = update.tensor(ROUTER_TOKENS)
    assert told.largest[0][1] == values.max() > 0
    result = CliRunner().invoke(build(), ["contribute", "--dry-run", "--json", "--dir", str(home.path)])
    assert json.loads(result.stdout)["evidence"] == told.as_json()
