"""A server with policy, ledger and books: who gets in, whose experts speak, what stops, and what is written down."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import openai
import pytest

from motet.coordinator.ledger_store import LedgerStore
from motet.protocols.contribution import Terms
from motet.protocols.errors import ConfigurationError
from motet.serving.api.described import UsageAnswer
from motet.serving.chat.voice import Voice
from motet.serving.engine.loading import Composite, load_composite
from motet.serving.governing import governed
from motet.serving.policy.keys import make_key, revoke_key
from motet.serving.policy.members import write_contributions
from motet.serving.usage.statement import server_key
from motet.serving.usage.store import Period, UsageStore

from .conftest import NAME
from .federated import TERMS, Federation, Served, found_federation, served

GREEDY = {"model": NAME, "prompt": "a prompt of a few words", "temperature": 0.0, "max_tokens": 8}
ENDLESS = {"model": NAME, "prompt": "on and on", "max_tokens": 16000, "stream": True, "temperature": 0}
POLICY = """
contributions = "contributions.jsonl"
deny_list = "denied"
[tenants.clinic]
purposes = ["research only"]
licences = ["CC0-1.0"]
[tenants.school]
denied = ["news"]
[tenants.guest]
allowed = []
"""


@pytest.fixture(scope="module")
def federation_template(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return found_federation(tmp_path_factory.mktemp("federation"), context=16384)


@pytest.fixture(scope="module")
def loaded(federation_template: Federation) -> Composite:
    """No token ends its answers, so that an endless one is, however fast the machine."""
    return replace(load_composite(federation_template.composite), ends=frozenset())


@pytest.fixture
def federation(federation_template: Federation, tmp_path: Path) -> Federation:
    return federation_template.beside(tmp_path)


@pytest.fixture
def policy(federation: Federation, tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "denied").write_text("")
    with LedgerStore(federation.home / "ledger.sqlite") as ledger:
        write_contributions(tmp_path / "contributions.jsonl", ledger.entries())
    return tmp_path / "policy.toml"


@pytest.fixture
def server(loaded: Composite, policy: Path, tmp_path: Path) -> Iterator[Served]:
    with served(loaded, state=tmp_path / "state", policy=policy) as started:
        yield started


def speaking(server: Served, key: str, **asked: object) -> list[str]:
    return server.client(key).completions.create(**GREEDY | asked).model_extra["experts_used"]


def test_tenants_have_the_experts_that_policy_and_terms_allow(server: Served, policy: Path) -> None:
    clinic, school, guest = (
        make_key(policy.parent / "keys.json", tenant=name) for name in ("clinic", "school", "guest")
    )
    assert sorted(speaking(server, clinic)) == ["anchor", "law", "math", "news"]  # art is NC, and not accepted
    assert sorted(speaking(server, school)) == ["anchor", "art", "math"]  # law is lent for research
    assert speaking(server, guest) == ["anchor"]
    with pytest.raises(openai.BadRequestError, match="saw law, wanted experts that may be used here and now"):
        speaking(server, school, extra_body={"experts": {"include": ["law"]}})
    told = httpx.get(f"{server.url}/v1/experts", headers={"Authorization": f"bearer {school}"}).json()
    assert {each["id"] for each in told["data"] if each["usable"]} == {"anchor", "art", "math"}


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer none", "Basic bW90ZXQ6", "Bearer motet-\xff", ""])
def test_without_a_good_key_nothing_is_told(header: str | None, server: Served) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method, path in (("GET", "models"), ("GET", "experts"), ("GET", "usage"), ("POST", "completions")):
        body = GREEDY if method == "POST" else None
        found = httpx.request(method, f"{server.url}/v1/{path}", headers=headers, json=body)
        assert found.status_code == 401
        assert found.json()["error"]["code"] == "invalid_api_key"
        assert found.headers["www-authenticate"] == "Bearer"
    assert server.service.engine.load().passes == 0


def test_a_revoked_key_is_refused_at_once(server: Served, policy: Path) -> None:
    from motet.serving.policy.keys import ApiKey

    key = make_key(policy.parent / "keys.json", tenant="guest")
    speaking(server, key)
    revoke_key(policy.parent / "keys.json", ApiKey.id_of(key))
    with pytest.raises(openai.AuthenticationError, match="no longer"):
        speaking(server, key)


def test_keys_that_cannot_be_read_let_nobody_in(server: Served, policy: Path) -> None:
    key = make_key(policy.parent / "keys.json", tenant="guest")
    (policy.parent / "keys.json").write_text("{")
    with pytest.raises(openai.InternalServerError) as caught:
        speaking(server, key)
    assert (caught.value.status_code, caught.value.code) == (503, "keys_unreadable")


def test_a_policy_may_let_people_in_without_a_key(
    loaded: Composite, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOTET_API_KEY", raising=False)
    policy.write_text('without_key = "guest"\n' + POLICY)
    with served(loaded, state=tmp_path / "state", policy=policy) as server:
        found = httpx.post(f"{server.url}/v1/completions", json=GREEDY)
        assert found.json()["experts_used"] == ["anchor"]
        assert httpx.get(f"{server.url}/v1/usage").json()["tenant"] == "guest"
        no_key = {"extra_headers": {"Authorization": openai.Omit()}}
        assert speaking(server, "none", **no_key) == ["anchor"]
        with closing(Voice(f"{server.url}/v1")) as voice:
            assert (voice.experts, sorted(voice.closed)) == ((), sorted(TERMS))
        with pytest.raises(openai.AuthenticationError):
            speaking(server, "wrong")


def stopped_by(server: Served, stop: object, key: str = "none", **asked: object) -> tuple[float, str]:
    """Seconds from the withdrawal to the end of an answer that is under way, and why it ended."""
    called: list[float] = []

    def call() -> None:
        called.append(time.monotonic())
        stop()

    timer, reason = threading.Timer(0.1, call), ""
    for number, chunk in enumerate(server.client(key).completions.create(**ENDLESS | asked)):
        if number == 2:
            timer.start()
        reason = chunk.choices[0].finish_reason or reason
    timer.join()
    return time.monotonic() - called[0], reason


def test_a_withdrawal_in_the_ledger_ends_answers_within_seconds(
    loaded: Composite, federation: Federation, tmp_path: Path
) -> None:
    with served(loaded, state=tmp_path / "state", home=federation.home) as server:
        seconds, reason = stopped_by(server, lambda: federation.withdraw("news"))
        assert (reason, seconds < 5) == ("expert_withdrawn", True)
        assert sorted(speaking(server, "none")) == ["anchor", "art", "math"]  # and without it, the server goes on
        with pytest.raises(openai.BadRequestError, match="saw news, wanted experts that may be used"):
            speaking(server, "none", extra_body={"experts": {"include": ["news"]}})
    with UsageStore(tmp_path / "state" / "usage.sqlite") as store:
        assert store.total(Period()).answers == 2  # what it generated until then is on the books
        assert store.total(Period()).generated_tokens > 8


def test_a_deny_list_ends_answers_within_seconds_and_others_go_on(server: Served, policy: Path) -> None:
    key = make_key(policy.parent / "keys.json", tenant="clinic")
    other = server.client(key).completions.create(**ENDLESS | {"extra_body": {"experts": {"exclude": ["math"]}}})
    next(other)
    seconds, reason = stopped_by(server, lambda: (policy.parent / "denied").write_text("math\n"), key)
    assert (reason, seconds < 5) == ("expert_withdrawn", True)
    assert next(other).choices[0].finish_reason is None
    other.close()


def under_terms_that_end(loaded: Composite, end: datetime, directory: Path) -> tuple[Composite, Path]:
    """The same networks, lent under other terms, and the home whose ledger says so."""
    terms = TERMS | {"math": Terms(licence="CC0-1.0", expiry=end.isoformat())}
    federation = found_federation(directory, terms, context=None)
    digests = tuple(federation.contribution(name).digest for name in loaded.roster.names[1:])
    return replace(loaded, roster=replace(loaded.roster, contributions=digests)), federation.home


def test_an_expert_stops_when_its_terms_end(loaded: Composite, tmp_path: Path) -> None:
    for seconds in (3, 6, 10, 15, 20, 30):  # until a busy machine has started its server before that
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
        composite, home = under_terms_that_end(loaded, end, tmp_path / f"federation-{seconds}")
        with served(composite, state=tmp_path / "state", home=home) as server:
            chunks = list(server.client().completions.create(**ENDLESS))
            ended, after = time.time(), speaking(server, "none")
        if "math" in chunks[0].model_extra["experts_used"]:
            break
    assert chunks[-1].choices[0].finish_reason == "expert_withdrawn"
    assert 0 <= ended - end.timestamp() < 5
    assert "math" not in after


def test_every_expert_needs_terms_where_there_is_a_policy(loaded: Composite, policy: Path, tmp_path: Path) -> None:
    policy.write_text(POLICY.replace('contributions = "contributions.jsonl"', ""))
    with (
        pytest.raises(ConfigurationError, match=r"saw no terms of .*--home"),
        governed(loaded, policy=policy, home=None, state=tmp_path / "state"),
    ):
        pass


def test_what_may_surprise_is_noted(loaded: Composite, federation: Federation, tmp_path: Path) -> None:
    with governed(loaded, policy=None, home=federation.home, state=tmp_path / "state") as given:
        assert given.notes == ("nobody may use law: lent for 'Research only', which is none of the tenant's purposes",)
    with governed(loaded, policy=None, home=None, state=tmp_path / "state") as given:
        assert given.notes[0].startswith("the terms of ")
        assert "neither their purpose nor their expiry counts" in given.notes[0]
        other = replace(loaded, digest="sha256:" + "9" * 64)
        with (
            pytest.raises(ConfigurationError, match="in use by a server of another composite"),
            governed(other, policy=None, home=None, state=tmp_path / "state"),
        ):
            pass
        assert given.notes[1:] == ("withdrawals are not watched; --home or a policy's `deny_list` tells them",)


@pytest.mark.parametrize("watched", [True, False])
def test_a_policy_that_names_no_deny_list_says_so(watched: bool, loaded: Composite, policy: Path) -> None:
    if not watched:
        policy.write_text(POLICY.replace('deny_list = "denied"', ""))
    with governed(loaded, policy=policy, home=None, state=policy.parent / "state") as given:
        assert any("withdrawals are not watched" in note for note in given.notes) is not watched


def test_a_tenant_sees_its_own_usage(server: Served, policy: Path, federation: Federation, tmp_path: Path) -> None:
    clinic, guest = (make_key(policy.parent / "keys.json", tenant=name) for name in ("clinic", "guest"))
    whole = server.client(clinic).completions.create(**GREEDY, extra_body={"attribution": True})
    server.client(guest).completions.create(**GREEDY)
    told = httpx.get(f"{server.url}/v1/usage", headers={"Authorization": f"Bearer {clinic}"}).json()
    UsageAnswer.model_validate(told, strict=True, extra="forbid")
    assert (told["tenant"], told["answers"], told["generated_tokens"]) == ("clinic", 1, 8)
    assert told["server"] == server_key(tmp_path / "state").public
    assert sum(each["microtokens"] for each in told["experts"]) == 8_000_000
    mass = whole.choices[0].model_extra["attribution"]["mass"]
    assert {each["name"]: each["microtokens"] for each in told["experts"]} == {
        name: pytest.approx(value * 1e6, abs=10) for name, value in mass.items()
    }
    owners = {each["name"]: each["owner"] for each in told["experts"]}
    assert owners == {"anchor": None} | {name: federation.keys[name].public for name in ("law", "math", "news")}
    later = httpx.get(
        f"{server.url}/v1/usage?since={int(time.time()) + 9}", headers={"Authorization": f"Bearer {clinic}"}
    ).json()
    assert (later["answers"], later["experts"]) == (0, [])


def test_the_key_is_looked_at_first_and_described(server: Served) -> None:
    assert httpx.get(f"{server.url}/v1/usage?since=x").status_code == 401
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert described["paths"]["/v1/usage"]["get"]["security"] == [{"HTTPBearer": []}]


@pytest.mark.parametrize("query", ["since=-1", "since=x", "since=9&until=3", "until=99999999999999"])
def test_a_period_that_is_none_is_refused(query: str, server: Served, policy: Path) -> None:
    key = make_key(policy.parent / "keys.json", tenant="guest")
    found = httpx.get(f"{server.url}/v1/usage?{query}", headers={"Authorization": f"Bearer {key}"})
    assert found.status_code == 400
    assert found.json()["error"]["message"]
