"""The commands of a governed server, as processes: keys, terms, usage, statements; and a server that is killed."""

import csv
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from openai import APIError, InternalServerError, OpenAI

from motet.cli import run
from motet.serving.engine.loading import load_composite
from motet.serving.governing import governed
from motet.serving.policy.keys import Keyring, make_key, read_keys
from motet.serving.policy.members import read_contributions
from motet.serving.usage.entries import entry_of
from motet.serving.usage.reserve import Reserve
from motet.serving.usage.store import UsageStore

from .federated import Federation, found_federation
from .test_usage import IDS, OWNER, record

FULL = 100_000
"""No file of a server with a full disk may be larger: less than the store's log after some answers."""
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return found_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text("[tenants.clinic]\n")
    return tmp_path / "policy.toml"


def motet(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capsys.readouterr()
    assert run([str(each) for each in arguments]) == code
    return capsys.readouterr().out


def test_a_key_is_made_listed_and_revoked(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = motet(capsys, "api-key", "new", "--policy", policy, "--tenant", "clinic", "--note", "ward 3").strip()
    assert re.fullmatch(r"motet-[\w-]{43}", secret)
    kept = read_keys(policy.parent / "keys.json").keys[0]
    listed = motet(capsys, "api-key", "list", "--policy", policy)
    assert listed.split() == [kept.id, "clinic", listed.split()[2], "ward", "3"]
    assert secret not in listed
    ring = Keyring(policy.parent / "keys.json")
    assert ring.tenant_of(secret) == "clinic"
    motet(capsys, "api-key", "revoke", kept.id, "--policy", policy)
    assert ring.tenant_of(secret) is None
    motet(capsys, "api-key", "new", "--policy", policy, "--tenant", "school", code=3)
    motet(capsys, "api-key", "revoke", kept.id, "--policy", policy, code=3)


def test_terms_are_written_for_a_server_elsewhere(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = federation.beside(tmp_path)
    own.withdraw("law")
    out, denied = tmp_path / "c.jsonl", tmp_path / "denied"
    motet(capsys, "terms", "--home", own.home, "--out", out, "--deny-list", denied)
    assert read_contributions(out).keys() == {own.contribution(name).digest for name in own.signed}
    assert denied.read_text().split() == [own.contribution("law").digest]
    motet(capsys, "terms", "--home", tmp_path, "--out", out, code=3)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    from motet.serving.usage.store import Expert

    (tmp_path / "state").mkdir()
    with UsageStore(tmp_path / "state" / "usage.sqlite") as store:
        named = zip(IDS, ("anchor", "law", "news"), (None, OWNER, None), strict=True)
        store.introduce([Expert(contribution=id, name=name, owner=owner) for id, name, owner in named])
        store.keep(record(0, (0.5, 0.25, 0.25), tenant="clinic"), IDS)
        store.keep(record(1, (0.5, 0.0, 0.5)), IDS)
    return tmp_path / "state"


def test_usage_is_shown_as_lines_json_and_csv(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = motet(capsys, "usage", "--state", state).splitlines()
    assert [line.split()[:2] for line in lines[1:-1]] == [["anchor", "1.000"], ["law", "0.250"], ["news", "0.750"]]
    assert "2 answers, 2 tokens" in lines[0]
    assert "usage, not value" in lines[-1]
    told = json.loads(motet(capsys, "usage", "--state", state, "--json", "--owner", OWNER))
    assert [(each["name"], each["microtokens"]) for each in told["experts"]] == [("law", 250_000)]
    rows = list(csv.DictReader(io.StringIO(motet(capsys, "usage", "--state", state, "--csv", "--tenant", "clinic"))))
    assert [(row["name"], row["microtokens"]) for row in rows] == [
        ("anchor", "500000"),
        ("law", "250000"),
        ("news", "250000"),
    ]
    none = json.loads(motet(capsys, "usage", "--state", state, "--json", "--since", "2999-01-01"))
    assert none["experts"] == []


def test_a_statement_is_signed_and_verified(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "statement.json"
    motet(capsys, "usage", "--state", state, "--owner", OWNER, "--statement", path)
    stated = json.loads(motet(capsys, "usage", "--verify", path, "--json"))
    assert [each["microtokens"] for each in stated["experts"]] == [250_000]
    assert "law" in motet(capsys, "usage", "--verify", path, "--by", stated["server"])
    motet(capsys, "usage", "--verify", path, "--by", OWNER, code=4)
    path.write_text(path.read_text().replace("250000", "950000"))
    motet(capsys, "usage", "--verify", path, code=4)


def test_usage_has_what_a_killed_server_still_owed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry_of(record(number, (0.5, 0.25, 0.25)), IDS) for number in (1, 2)]  # one is on the books already
    with closing(Reserve(state / "usage.owed-2", 4096)) as reserve:
        for entry in entries:
            reserve.add(entry.to_bytes())
        assert json.loads(motet(capsys, "usage", "--state", state, "--json"))["answers"] == 2  # it lives
    for _ in range(2):
        assert json.loads(motet(capsys, "usage", "--state", state, "--json"))["answers"] == 3


@pytest.mark.parametrize(
    "wrong",
    [
        ["--json", "--csv"],
        ["--statement", "s", "--tenant", "a"],
        ["--by", OWNER],
        ["--verify", "s", "--statement", "t"],
        ["--since", "tomorrow"],
        ["--since", "0001-01-01T00:00+23:00"],
        ["--since", "2027-01-01", "--until", "2026-01-01"],
        ["--owner", "notakey"],
        ["--owner", "ed25519:12", "--statement", "s"],
    ],
)
def test_options_that_do_not_belong_together(wrong: list[str], state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    motet(capsys, "usage", "--state", state, *wrong, code=2)
    assert sorted(each.name for each in state.iterdir() if "usage" not in each.name) == []


@pytest.mark.parametrize("beside", ["--state", "--owner", "--tenant", "--since", "--until", "--statement"])
def test_a_statement_is_verified_as_it_stands(
    beside: str, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "statement.json"
    motet(capsys, "usage", "--state", state, "--statement", path)
    value = OWNER if beside == "--owner" else "2026-01-01"
    assert run(["usage", "--verify", str(path), beside, value]) == 2
    assert f"saw --verify with {beside}," in capsys.readouterr().err
    motet(capsys, "usage", "--verify", path)


def test_what_is_shown_beside_a_statement_is_what_it_says(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "statement.json"
    shown = json.loads(motet(capsys, "usage", "--state", state, "--statement", path, "--json"))
    stated = json.loads(motet(capsys, "usage", "--verify", path, "--json"))
    assert (shown["since"], shown["until"]) == (stated["since"], stated["until"])


def test_usage_of_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    motet(capsys, "usage", "--state", tmp_path, code=3)


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real `motet serve`, and its address."""
    line = [sys.executable, "-m", "motet.cli", "serve", *map(str, arguments), "--port", "0", "--name", "demo"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            said: list[str] = []
            for told in process.stderr:
                said.append(told)
                if found := re.search(r"ready on (\S+),", told):
                    break
            else:
                pytest.fail("".join(said))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, found[1]
        finally:
            process.kill()


def chatted(url: str, key: str, script: str) -> str:
    """What `motet chat` says to a script that is piped into it."""
    line = [sys.executable, "-m", "motet.cli", "chat", url, "--max-tokens", "4"]
    done = subprocess.run(
        line, input=script, capture_output=True, text=True, check=False, env=ENVIRONMENT | {"MOTET_API_KEY": key}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_books_are_exact_to_the_last_answer_when_the_server_is_killed(federation: Federation, policy: Path) -> None:
    state, answered, lock = policy.parent / "state", {}, threading.Lock()
    given = ("--policy", policy, "--home", federation.home, "--state", state)
    with serving(federation.composite, *given) as (process, url):
        key = make_key(policy.parent / "keys.json", tenant="clinic")
        assert re.search(r"^anchor +\d+\.\d %$", chatted(url, key, "hi\n/who\n"), re.MULTILINE)
        client = OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)

        def ask(number: int) -> None:
            body = {"attribution": True, "experts": {"exclude": ["math"] if number % 2 else []}}
            asked = {"model": "demo", "prompt": f"number {number}", "max_tokens": 1 + number % 9}
            try:
                found = client.completions.create(**asked, extra_body=body)
            except APIError:
                return
            with lock:
                answered[found.id] = (found.usage.completion_tokens, found.choices[0].model_extra["attribution"])
                if len(answered) == 25:
                    process.send_signal(signal.SIGKILL)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask, range(60)))
        process.wait(timeout=30)
    assert 25 <= len(answered) < 60
    _compare(state, answered)


@pytest.mark.slow
def test_what_was_streamed_when_the_disk_became_full_outlives_a_kill(federation: Federation, tmp_path: Path) -> None:
    state, asked = tmp_path / "state", {"model": "demo", "prompt": "on", "max_tokens": 3, "stream": True}
    streamed: list[str] = []

    def given(client: OpenAI) -> bool:
        """Whether an answer is given to its end."""
        stream = client.completions.create(**asked)
        try:
            streamed.append(next(stream).id)
            return [chunk.id for chunk in stream] != []
        except APIError:
            return False

    with serving(federation.composite, "--state", state, "--max-batch", 1, "--queue", 1) as (process, url):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FULL, FULL))
        client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        while given(client):
            assert len(streamed) < 50
        with pytest.raises(InternalServerError, match="cannot record"):
            client.completions.create(**asked)
        process.kill()
        process.wait(timeout=30)
    with UsageStore(state / "usage.sqlite") as store:
        assert [store.holds(id) for id in streamed] == [True] * (len(streamed) - 1) + [False]
        with governed(load_composite(federation.composite), policy=None, home=None, state=state):
            assert store.holds(streamed[-1])


def _compare(state: Path, answered: dict[str, tuple[int, dict[str, dict[str, float]]]]) -> None:
    """Every answer that came is on the books with its shares, and no more than those that were under way."""
    with UsageStore(state / "usage.sqlite") as store:
        answers = dict(store._database.execute("SELECT id, generated_tokens FROM answers").fetchall())
        mass: dict[str, dict[str, int]] = {}
        query = (
            "SELECT id, name, microtokens FROM mass JOIN answers ON sequence = answer JOIN experts USING (contribution)"
        )
        for id, name, microtokens in store._database.execute(query):
            mass.setdefault(id, {})[name] = microtokens
    assert answered.keys() <= answers.keys()
    assert len(answers) - len(answered) <= 6 + 1  # written down but not answered any more, and the conversation
    for id, (tokens, told) in answered.items():
        assert answers[id] == tokens
        assert sum(mass[id].values()) == tokens * 1_000_000
        assert mass[id] == {name: pytest.approx(value * 1e6, abs=12) for name, value in told["mass"].items()}
