"""What stops while a server runs: by a ledger, a deny list, or the clock; and what happens when nobody can look."""

import threading
import time
from pathlib import Path

import pytest

from motet.coordinator.ledger_store import LedgerStore
from motet.protocols.errors import ConfigurationError, LedgerError
from motet.serving.policy.members import members_of, missing, read_contributions, terms_of, write_contributions
from motet.serving.policy.sources import DenyList, LedgerSource
from motet.serving.policy.withdrawals import BLIND_SECONDS, LOOK_SECONDS, Withdrawals

from .federated import TERMS, Federation, found_federation

EVERY = frozenset({"anchor", *TERMS})


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def federation_template(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return found_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def federation(federation_template: Federation, tmp_path: Path) -> Federation:
    return federation_template.beside(tmp_path)


def test_a_withdrawal_in_the_ledger_is_seen_at_the_next_look(federation: Federation) -> None:
    clock, source = Clock(), LedgerSource(federation.home, federation.roster)
    gone = Withdrawals(EVERY, sources=[source], clock=clock)
    assert gone(EVERY) == frozenset()
    federation.withdraw("law")
    assert gone(EVERY) == frozenset()
    gone.look()
    assert gone(EVERY) == {"law"}
    assert gone(frozenset({"math", "anchor"})) == frozenset()


def test_what_was_withdrawn_before_the_start_never_speaks(federation: Federation) -> None:
    federation.withdraw("news")
    source = LedgerSource(federation.home, federation.roster)
    assert Withdrawals(EVERY, sources=[source])(EVERY) == {"news"}


def test_an_expired_expert_stops_by_the_clock() -> None:
    now = Clock()
    gone = Withdrawals(EVERY, expiries={"math": 105.0}, now=now)
    assert gone(EVERY) == frozenset()
    now.seconds = 105.0
    assert gone(EVERY) == {"math"}


def test_a_deny_list_is_read_again_when_it_changes(federation: Federation, tmp_path: Path, caplog) -> None:
    path = tmp_path / "denied"
    path.write_text(f"# withdrawn\n\n{federation.contribution('law').digest}  # in May\nsha256:{'9' * 64}\n")
    gone = Withdrawals(EVERY, sources=[DenyList(path, federation.roster)])
    assert gone(EVERY) == {"law"}
    assert caplog.text == ""
    path.write_text("news\nlawyer\nanchor\n")
    gone.look()
    assert gone(EVERY) == {"news"}
    assert "nobody who is served is called anchor, lawyer" in caplog.text


def test_a_line_written_wrong_is_an_error_while_it_runs_too(federation: Federation, tmp_path: Path, caplog) -> None:
    path, clock = tmp_path / "denied", Clock()
    path.write_text("law\n")
    gone = Withdrawals(EVERY, sources=[DenyList(path, federation.roster)], clock=clock)
    path.write_text("law\nnews, math\n")
    for _ in range(3):
        clock.seconds += LOOK_SECONDS
        gone.look()
        assert gone(EVERY) == {"law"}  # as it was told last
    assert caplog.text.count("saw 'news, math', wanted an expert's name") == 1
    clock.seconds += LOOK_SECONDS
    assert gone(EVERY) == set(TERMS)
    path.write_text("law\nnews\nmath\n")
    gone.look()
    assert gone(EVERY) == {"law", "news", "math"}
    assert "can be seen again" in caplog.text


def test_a_source_out_of_sight_stops_everybody_until_it_is_back(federation: Federation, tmp_path: Path, caplog) -> None:
    path, clock = tmp_path / "denied", Clock()
    path.write_text("law\n")
    gone = Withdrawals(EVERY, sources=[DenyList(path, federation.roster)], clock=clock)
    path.rename(tmp_path / "moved")
    clock.seconds += LOOK_SECONDS
    gone.look()
    assert gone(EVERY) == {"law"}  # as it was told last
    clock.seconds += BLIND_SECONDS
    gone.look()
    assert gone(EVERY) == set(TERMS)  # never the anchor
    assert "all experts are stopped" in caplog.text
    (tmp_path / "moved").rename(path)
    gone.look()
    assert gone(EVERY) == {"law"}


def test_what_one_source_tells_counts_though_another_cannot_be_read(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "denied").write_text("")
    sources = [DenyList(tmp_path / "denied", federation.roster), LedgerSource(federation.home, federation.roster)]
    gone = Withdrawals(EVERY, sources=sources)
    (tmp_path / "denied").unlink()
    federation.withdraw("law")
    gone.look()
    assert gone(EVERY) == {"law"}


def test_a_source_that_does_not_answer_keeps_nobody_waiting_and_stops_everybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("motet.serving.policy.withdrawals.LOOK_SECONDS", 0.01)
    clock, asked, answer = Clock(), threading.Event(), threading.Event()

    def hanging() -> frozenset[str]:
        if threading.current_thread().name == "motet-withdrawals":
            asked.set()
            assert answer.wait(20)
        return frozenset()

    with Withdrawals(EVERY, sources=[hanging], clock=clock) as gone:
        assert asked.wait(20)
        assert gone(EVERY) == frozenset()
        clock.seconds += BLIND_SECONDS
        assert gone(EVERY) == set(TERMS)
        answer.set()
        for _ in range(2000):
            if gone(EVERY) == frozenset():
                break
            time.sleep(0.01)
        else:
            pytest.fail("it was never seen again")


def test_a_ledger_that_no_longer_holds_stops_everybody(federation: Federation) -> None:
    clock, source = Clock(), LedgerSource(federation.home, federation.roster)
    gone = Withdrawals(EVERY, sources=[source], clock=clock)
    (federation.home / "ledger.sqlite").write_bytes(b"no ledger" * 1000)
    clock.seconds += BLIND_SECONDS
    gone.look()
    assert gone(EVERY) == set(TERMS)


def test_a_ledger_that_was_put_in_the_others_place_is_read(federation: Federation, tmp_path: Path) -> None:
    gone = Withdrawals(EVERY, sources=[LedgerSource(federation.home, federation.roster)])
    federation.restore(federation.backup(tmp_path / "backup"))
    federation.withdraw("news")
    gone.look()
    assert gone(EVERY) == {"news"}


def test_an_older_ledger_gives_no_withdrawal_back(federation: Federation, tmp_path: Path, caplog) -> None:
    backup = federation.backup(tmp_path / "backup")
    gone = Withdrawals(EVERY, sources=[LedgerSource(federation.home, federation.roster)])
    federation.withdraw("news")
    gone.look()
    federation.restore(backup)
    gone.look()
    assert gone(EVERY) == {"news"}
    assert "read again from its beginning" in caplog.text
    federation.withdraw("law")  # an entry with the number of the one that is lost
    gone.look()
    assert gone(EVERY) == {"news", "law"}


def test_another_federations_ledger_is_none(federation: Federation, tmp_path: Path) -> None:
    clock, other = Clock(), found_federation(tmp_path / "other", context=None)
    gone = Withdrawals(EVERY, sources=[LedgerSource(federation.home, federation.roster)], clock=clock)
    federation.restore(other.backup(tmp_path / "backup"))
    clock.seconds += BLIND_SECONDS
    gone.look()
    assert gone(EVERY) == set(TERMS)


def test_a_home_is_only_read(federation: Federation) -> None:
    for path in federation.home.iterdir():
        if path.name not in ("ledger.sqlite", "ledger.sqlite.head"):
            path.unlink()
    before = {path.name: path.read_bytes() for path in federation.home.iterdir()}
    gone = Withdrawals(EVERY, sources=[LedgerSource(federation.home, federation.roster)])
    gone.look()
    assert {path.name: path.read_bytes() for path in federation.home.iterdir()} == before
    with LedgerStore(federation.home / "ledger.sqlite"):  # and while a coordinator works there
        gone.look()
        assert gone(EVERY) == frozenset()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"law, news", b"sha256:12"])
def test_a_deny_list_that_cannot_be_read_starts_no_server(
    content: bytes, federation: Federation, tmp_path: Path
) -> None:
    (tmp_path / "denied").write_bytes(content)
    with pytest.raises(ConfigurationError, match="denied"):
        DenyList(tmp_path / "denied", federation.roster)
    with pytest.raises(ConfigurationError, match="cannot read the deny list"):
        DenyList(tmp_path / "none", federation.roster)


def test_a_home_must_have_admitted_what_is_served(federation: Federation, tmp_path: Path) -> None:
    stranger = found_federation(tmp_path / "other", {"art": TERMS["art"]})
    with pytest.raises(ConfigurationError, match=r"saw art, which the ledger in .* never admitted"):
        LedgerSource(federation.home, stranger.roster)
    with pytest.raises(ConfigurationError, match="no coordinator's home"):
        LedgerSource(tmp_path / "none", federation.roster)


def test_a_ledger_that_was_cut_starts_no_server(federation: Federation) -> None:
    (federation.home / "ledger.sqlite").unlink()
    LedgerStore(federation.home / "fresh.sqlite").close()
    (federation.home / "fresh.sqlite").replace(federation.home / "ledger.sqlite")
    with pytest.raises(LedgerError):
        LedgerSource(federation.home, federation.roster)


def test_signed_terms_travel_in_a_file(federation: Federation, tmp_path: Path) -> None:
    with LedgerStore(federation.home / "ledger.sqlite") as ledger:
        assert write_contributions(tmp_path / "c.jsonl", ledger.entries()) == 4
    members = members_of(federation.roster, read_contributions(tmp_path / "c.jsonl"))
    assert terms_of(federation.roster, members) == TERMS
    del members["law"]
    assert missing(federation.roster, members) == ("law",)
    assert terms_of(federation.roster, members)["law"] is None


def test_terms_that_were_changed_are_nobodys(federation: Federation, tmp_path: Path) -> None:
    line = federation.signed["law"].canonical()
    for bad in (line.replace(b"Research only", b"Anything else"), line[:-5], b"{}"):
        (tmp_path / "c.jsonl").write_bytes(b"\n" + bad + b"\n")
        with pytest.raises(ConfigurationError, match=r"c\.jsonl, line 2"):
            read_contributions(tmp_path / "c.jsonl")
