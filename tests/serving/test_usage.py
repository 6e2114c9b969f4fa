"""The books: whole microtokens, on disk, the same whenever they are asked for; and statements that can be checked."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.protocols.errors import ConfigurationError, DocumentError, SignatureError, StorageError
from motet.protocols.signing import SigningKey, seal
from motet.serving.hooks import Generated, Record
from motet.serving.usage.figures import rows_of, usage_json
from motet.serving.usage.shares import MICROTOKENS, apportioned
from motet.serving.usage.statement import NOTICE, UsageStatement, checked, server_key, statement_of
from motet.serving.usage.store import Expert, Period, UsageStore

IDS = ("sha256:" + "a" * 64, "sha256:" + "1" * 64, "sha256:" + "2" * 64)
OWNER = "ed25519:" + "0" * 64


def record(
    number: int,
    *shares: tuple[float, ...],
    tenant: str | None = None,
    used: tuple[str, ...] = ("anchor", "law", "news"),
) -> Record:
    choice = Generated(tokens=len(shares), finish_reason="stop", shares=shares)
    return Record(
        id=f"motet-{number}",
        created=5,
        tenant=tenant,
        endpoint="/v1/completions",
        model="demo",
        composite="c",
        experts=("anchor", "law", "news"),
        expert_set="s",
        used=used,
        prompt_tokens=7,
        choices=(choice,),
    )


@pytest.fixture
def store(tmp_path: Path):
    with UsageStore(tmp_path / "usage.sqlite") as opened:
        experts = zip(IDS, ("anchor", "law", "news"), (None, OWNER, None), strict=True)
        opened.introduce([Expert(contribution=id, name=name, owner=owner) for id, name, owner in experts])
        yield opened


def masses(store: UsageStore, **which: object) -> dict[str, int]:
    return {each.expert.name: each.microtokens for each in store.total(Period(), **which).experts}


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), max_size=20))
def test_whole_microtokens_sum_to_the_generated_tokens(rows: list[list[float]]) -> None:
    shares = tuple(tuple(value / (sum(row) or 1.0) for value in row) for row in rows)
    one = record(0, *shares)
    found = apportioned(one)
    assert sum(found) == len(rows) * MICROTOKENS
    assert min(found) >= 0
    if all(sum(row) for row in rows):
        assert all(abs(each / MICROTOKENS - mass) < 1e-5 for each, mass in zip(found, one.mass().values(), strict=True))


def test_a_share_of_one_third_each_is_told_to_the_last_microtoken() -> None:
    assert apportioned(record(0, (1 / 3, 1 / 3, 1 / 3))) == [333_334, 333_333, 333_333]
    assert apportioned(record(0)) == [0, 0, 0]


def test_what_is_kept_adds_up_by_tenant_and_owner(store: UsageStore) -> None:
    store.keep(record(0, (0.5, 0.25, 0.25), (0.5, 0.5, 0.0), tenant="clinic"), IDS)
    store.keep(record(1, (0.25, 0.0, 0.75), used=("anchor", "news")), IDS)
    assert masses(store) == {"anchor": 1_250_000, "law": 750_000, "news": 1_000_000}
    assert masses(store, tenant="clinic") == {"anchor": 1_000_000, "law": 750_000, "news": 250_000}
    assert masses(store, tenant=None) == {"anchor": 250_000, "news": 750_000}
    assert masses(store, owner=OWNER) == {"law": 750_000}
    total = store.total(Period())
    assert (total.answers, total.prompt_tokens, total.generated_tokens) == (2, 14, 3)
    assert [(row["name"], row["answers"], row["generated_tokens"], row["share"]) for row in rows_of(total)] == [
        ("anchor", 2, 3, 1.25 / 3),
        ("law", 1, 2, 0.25),
        ("news", 2, 3, 1 / 3),
    ]
    assert usage_json(total)["notice"] == NOTICE


def test_an_answer_is_kept_once_and_whole(store: UsageStore) -> None:
    store.keep(record(0, (0.5, 0.25, 0.25)), IDS)
    with pytest.raises(StorageError, match="UNIQUE"):
        store.keep(record(0, (0.5, 0.25, 0.25)), IDS)
    assert store.total(Period()).answers == 1


def keep_many(store: UsageStore, count: int) -> None:
    for number in range(count):
        store.keep(record(number, (0.5, 0.25, 0.25)), IDS)


def test_a_full_disk_keeps_nothing_of_an_answer(store: UsageStore) -> None:
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="full"):
        keep_many(store, 2000)
    total = store.total(Period())
    assert sum(masses(store).values()) == total.generated_tokens * MICROTOKENS == total.answers * MICROTOKENS


def test_what_a_damaged_or_later_file_holds_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "bad.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match=r"bad\.sqlite"):
        UsageStore(tmp_path / "bad.sqlite")
    UsageStore(tmp_path / "late.sqlite").close()
    with sqlite3.connect(tmp_path / "late.sqlite") as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(StorageError, match="saw format 9"):
        UsageStore(tmp_path / "late.sqlite")


def test_a_period_that_was_told_is_never_added_to(tmp_path: Path) -> None:
    with UsageStore(tmp_path / "usage.sqlite", clock=lambda: 50.0) as store:  # a clock that stands still, or goes back
        store.keep(record(0, (1.0, 0.0, 0.0)), IDS)
        until = store.now()
        store.keep(record(1, (1.0, 0.0, 0.0)), IDS)
        assert store.total(Period(until=until)).answers == 1
        assert store.total(Period(since=until)).answers == 1


def test_an_owner_once_known_is_not_forgotten(store: UsageStore) -> None:
    store.introduce([Expert(contribution=IDS[1], name="law"), Expert(contribution=IDS[2], name="news", owner=OWNER)])
    store.keep(record(0, (0.5, 0.25, 0.25)), IDS)
    assert masses(store, owner=OWNER) == {"law": 250_000, "news": 250_000}


def test_a_statement_holds_and_names_no_tenants(store: UsageStore, tmp_path: Path) -> None:
    store.keep(record(0, (0.5, 0.25, 0.25), tenant="clinic"), IDS)
    key = server_key(tmp_path)
    assert server_key(tmp_path).public == key.public
    signed = statement_of(store, key, owner=OWNER, since=None, until=None)
    (tmp_path / "s.json").write_bytes(signed.canonical())
    stated = checked(tmp_path / "s.json", by=key.public)
    assert [(each.name, each.microtokens) for each in stated.experts] == [("law", 250_000)]
    assert (stated.owner, stated.answers, stated.generated_tokens, stated.notice) == (OWNER, 1, 1, NOTICE)
    assert "clinic" not in signed.payload


def test_the_same_period_is_stated_alike_for_ever(store: UsageStore, tmp_path: Path) -> None:
    key, until = server_key(tmp_path), None
    store.keep(record(0, (0.5, 0.25, 0.25)), IDS)
    until = store.now()
    first = statement_of(store, key, owner=None, since=0, until=until)
    store.keep(record(1, (0.5, 0.25, 0.25)), IDS)
    assert statement_of(store, key, owner=None, since=0, until=until) == first


def test_an_owner_who_becomes_known_later_is_stated_what_was_used_before(store: UsageStore, tmp_path: Path) -> None:
    key, later = server_key(tmp_path), "ed25519:" + "1" * 64
    store.keep(record(0, (0.5, 0.25, 0.25)), IDS)
    until = store.now()

    def stated(owner: str | None) -> dict[str, int]:
        signed = statement_of(store, key, owner=owner, since=0, until=until)
        return {each.contribution: each.microtokens for each in signed.open(UsageStatement).experts}

    before = stated(None)
    assert stated(later) == {}
    store.introduce([Expert(contribution=IDS[2], name="news", owner=later)])
    assert stated(None) == before
    assert stated(later) == {IDS[2]: 250_000}


def test_a_period_must_be_over(store: UsageStore, tmp_path: Path) -> None:
    key = server_key(tmp_path)
    for since, until in ((0, store.now() + 60_000), (500, 400)):
        with pytest.raises(ConfigurationError, match="wanted a period that is over"):
            statement_of(store, key, owner=None, since=since, until=until)


def test_a_statement_that_was_changed_or_signed_by_another_is_refused(store: UsageStore, tmp_path: Path) -> None:
    key, other, path = server_key(tmp_path), SigningKey.generate(), tmp_path / "s.json"
    store.keep(record(0, (0.5, 0.25, 0.25)), IDS)
    good = statement_of(store, key, owner=None, since=None, until=None)
    path.write_bytes(good.canonical().replace(b"250000", b"990000"))
    with pytest.raises(SignatureError):
        checked(path)
    path.write_bytes(good.canonical())
    with pytest.raises(SignatureError, match="wanted ed25519"):
        checked(path, by=other.public)
    path.write_bytes(seal(good.open(UsageStatement), other).canonical())  # in the first server's name
    with pytest.raises(SignatureError):
        checked(path)
    path.write_bytes(b"{}")
    with pytest.raises(DocumentError):
        checked(path)
    with pytest.raises(ConfigurationError):
        checked(tmp_path / "none")


KEEP_ON = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.serving.test_usage import IDS, record
from motet.serving.usage.store import UsageStore
with UsageStore(Path(sys.argv[1])) as store:
    for number in range(100_000):
        store.keep(record(number, (0.5, 0.25, 0.25)), IDS)
        print(number, flush=True)
"""


def test_what_was_kept_survives_a_kill(tmp_path: Path) -> None:
    path, root = tmp_path / "usage.sqlite", str(Path(__file__).parents[2])
    line = [sys.executable, "-c", KEEP_ON.format(root=root), str(path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as writer:
        told = [int(writer.stdout.readline()) for _ in range(20)]
        writer.kill()
        told += [int(each) for each in writer.stdout.read().split()]
    with UsageStore(path) as store:
        total = store.total(Period())
        assert total.answers - len(told) in (0, 1)  # one may have been kept that nobody was told of
        assert sum(each.microtokens for each in total.experts) == total.answers * MICROTOKENS
