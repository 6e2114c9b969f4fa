"""The ledger for people: a line an entry, and nothing of a ledger that is no longer there."""

from pathlib import Path

import pytest

from motet.protocols.errors import LedgerError, SignatureError
from motet.serving.web.ledger_reading import LedgerReading

from ..federated import TERMS, Federation, found_federation


@pytest.fixture(scope="module")
def federation_template(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return found_federation(tmp_path_factory.mktemp("federation"), context=None)


@pytest.fixture
def federation(federation_template: Federation, tmp_path: Path) -> Federation:
    return federation_template.beside(tmp_path)


def reading_of(federation: Federation) -> LedgerReading:
    reading = LedgerReading(federation.home / "ledger.sqlite")
    reading.look()
    return reading


def test_each_entry_is_a_line_once(federation: Federation) -> None:
    reading = reading_of(federation)
    federation.withdraw("news")
    for _ in range(2):
        reading.look()
    assert [line.kind for line in reading.lines] == ["charter", *["enrolled", "admitted"] * len(TERMS), "withdrawn"]
    assert [line.sequence for line in reading.lines] == list(range(len(reading.lines)))
    newest = reading.decisions[-1]
    assert (newest.kind, newest.who, newest.subject) == ("withdrawn", "news", federation.contribution("news").digest)
    assert list(reading.lines) == list(reading_of(federation).lines)


def test_the_page_reads_an_older_ledger_from_its_beginning(federation: Federation, tmp_path: Path) -> None:
    backup = federation.backup(tmp_path / "backup")
    reading = reading_of(federation)
    federation.withdraw("news")
    reading.look()
    federation.restore(backup)
    reading.look()
    assert not reading.standing.withdrawn
    federation.withdraw("law")  # an entry with the number of the one that is lost
    reading.look()
    assert list(reading.lines) == list(reading_of(federation).lines)
    assert reading.standing.withdrawn == {federation.contribution("law").digest}


def test_a_ledger_that_does_not_hold_takes_nothing_from_what_was_read(federation: Federation, tmp_path: Path) -> None:
    reading, other = reading_of(federation), found_federation(tmp_path / "other", context=None)
    lines, charter = list(reading.lines), reading.charter
    files = other.backup(tmp_path / "backup")
    for error, changed, seen in (
        (LedgerError, "ledger.sqlite.head", b'{"sequence":99,"digest":"x"}'),
        (LedgerError, "ledger.sqlite", files["ledger.sqlite"].replace(b'"sequence":1,', b'"sequence":2,')),
        (
            SignatureError,
            "ledger.sqlite",
            files["ledger.sqlite"].replace(b'\\"name\\":\\"test\\"', b'\\"name\\":\\"tost\\"'),
        ),
    ):
        assert seen != files[changed]
        federation.restore(files | {changed: seen})
        with pytest.raises(error):
            reading.look()
        assert (list(reading.lines), reading.charter) == (lines, charter)
        assert set(reading.standing.active) == {federation.contribution(name).digest for name in TERMS}
    federation.restore(files)
    reading.look()
    assert {line.who for line in reading.decisions} == set(TERMS)
    assert set(reading.standing.active) == {other.contribution(name).digest for name in TERMS}
