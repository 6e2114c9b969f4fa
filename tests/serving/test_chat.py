"""A conversation in the terminal: what its commands do, and one through a pipe with a real server."""

import io
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection

from motet.cli import run
from motet.protocols.errors import AssemblyError, ConfigurationError, FederationError
from motet.serving.chat.conversation import HELP, Conversation, as_text
from motet.serving.chat.local import local_server
from motet.serving.chat.terminal import converse
from motet.serving.chat.voice import Manner, Voice, printable
from motet.serving.hooks import Access, Hooks

from .conftest import NAME, Running, running, tiny_composite
from .federated import Federation, found_federation

SHORT = Manner(max_tokens=6, temperature=0.0)


@pytest.fixture
def talk() -> Conversation:
    return Conversation(experts=("art", "law", "news"))


@pytest.mark.parametrize(
    ("lines", "excluded", "said"),
    [
        (["/mute news"], ("news",), "speaking: anchor, art, law; muted: news"),
        (["/mute news art"], ("art", "news"), "speaking: anchor, law; muted: art, news"),
        (["/mute news", "/unmute news"], (), "speaking: anchor, art, law, news"),
        (["/only law"], ("art", "news"), "speaking: anchor, law; muted: art, news"),
        (["/only anchor"], ("art", "law", "news"), "speaking: anchor; muted: art, law, news"),
        (["/only law", "/all"], (), "speaking: anchor, art, law, news"),
        (["/only law", "/only anchor art"], ("law", "news"), "speaking: anchor, art; muted: law, news"),
        (["/mute laws"], (), "saw laws, wanted some of art, law, news"),
        (["/mute"], (), "saw no name, wanted some of art, law, news"),
        (["/mute law", "/experts"], ("law",), "speaking: anchor, art, news; muted: law"),
        (["/who"], (), "nobody has spoken yet"),
    ],
)
def test_commands_mute_and_call(talk: Conversation, lines: list[str], excluded: tuple[str, ...], said: str) -> None:
    for line in lines:
        told = talk.command(line)
    assert (talk.excluded, told) == (excluded, [said])


def test_experts_that_this_key_may_not_use_are_not_said_to_speak() -> None:
    talk = Conversation(experts=("math",), closed=("art", "law"))
    assert talk.command("/experts") == ["speaking: anchor, math; not to be used with this key now: art, law"]
    assert talk.command("/only art") == ["saw art, wanted some of math; not to be used with this key now: art, law"]
    assert talk.excluded == ()


def test_help_tells_every_command_and_so_does_a_wrong_one(talk: Conversation) -> None:
    assert talk.command("/help") == list(HELP)
    assert talk.command("/sing") == ["saw /sing, wanted one of these:", *HELP]
    for line in HELP:
        assert "wanted one of these" not in "".join(talk.command(line.split()[0]))


def test_who_spoke_is_ranked_by_share(talk: Conversation) -> None:
    talk.spoke({"anchor": 1.0, "law": 3.0, "art": 0.0})
    assert [line.split() for line in talk.command("/who")] == [
        ["law", "75.0", "%"],
        ["anchor", "25.0", "%"],
        ["art", "0.0", "%"],
    ]


def test_forgetting_keeps_the_system_prompt_and_who_is_muted() -> None:
    talk = Conversation(experts=("art",), system="Be brief.")
    talk.messages += [{"role": "user", "content": "hi"}]
    talk.command("/mute art")
    talk.command("/forget")
    assert (talk.messages, talk.excluded) == ([{"role": "system", "content": "Be brief."}], ("art",))
    assert as_text(talk.messages) == "System: Be brief.\nAssistant:"


def test_nothing_that_steers_a_terminal_comes_through() -> None:
    assert printable("a\x1b[2Jb\x07\x9bc\td\né\r") == "a[2Jbc\td\né"


def said(server: Running, *lines: str, **settings: object) -> str:
    out = io.StringIO()
    voice = Voice(f"{server.url}/v1", **{"manner": SHORT} | settings)
    converse(voice, lines=lines, write=out.write)
    voice.close()
    return out.getvalue()


def test_what_is_muted_does_not_speak(server: Running) -> None:
    count = len(server.records)
    told = said(server, "hello", "/only math", "again", "/who", "/quit", "never sent")
    first, second = server.records[count:]
    assert first.used == ("anchor", "art", "law", "math", "news", "verse")
    assert second.used == ("anchor", "math")
    assert second.prompt_tokens > first.prompt_tokens  # it remembers what was said
    shares = {line.split()[0]: float(line.split()[1]) for line in told.splitlines() if line.endswith(" %")}
    assert shares.keys() == {"anchor", "math"}
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    assert told.count("[stopped: as long as was asked for]") == 2


def test_a_model_without_a_template_is_asked_in_plain_text() -> None:
    composite = tiny_composite()
    composite.tokenizer.chat_template = None
    with running(composite) as server:
        told = said(server, "hello", "/who")
        assert [record.endpoint for record in server.records] == ["/v1/completions"]
    assert "anchor" in told


def test_a_withdrawn_expert_is_told_of_and_the_conversation_goes_on() -> None:
    gone: set[str] = set()
    count = 0

    def withdrawn(names: frozenset[str]) -> frozenset[str]:
        nonlocal count
        count += 1
        if count == 4:
            gone.add("law")
        return names & gone

    with running(tiny_composite(), hooks=lambda records: Hooks(meter=records.append, withdrawn=withdrawn)) as server:
        told = said(server, "hello", "and now?")
        assert "[stopped: an expert that spoke has been withdrawn]" in told
        assert [record.choices[0].finish_reason for record in server.records] == ["expert_withdrawn", "length"]


def test_what_the_server_refuses_is_said_and_forgotten(server: Running) -> None:
    told = said(server, "x" * 500, "hello")
    assert told.startswith("[no answer: saw a prompt of ")
    assert told.split("]")[0].endswith("; /forget begins anew")
    assert told.count("[no answer") == 1


@pytest.mark.parametrize("templated", [True, False])
def test_a_long_conversation_has_what_room_is_left(templated: bool) -> None:
    composite = tiny_composite(context=96)
    if not templated:
        composite.tokenizer.chat_template = None
    with running(composite) as server:
        told = said(server, "hi", "and", "so", "/forget", "hi", manner=Manner(max_tokens=40, temperature=0.0))
        tokens = [record.choices[0].tokens for record in server.records]
        room = 96 - server.records[1].prompt_tokens
    assert (tokens[0], tokens[-1]) == (40, 40)
    assert room // 2 <= tokens[1] <= room < 40
    assert "[stopped: the model's context is full; /forget begins anew]" in told


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOTET_API_KEY", raising=False)
    heard: list[str | None] = []

    def authorise(request: HTTPConnection) -> Access:
        heard.append(request.headers.get("authorization"))
        return Access(allowed=frozenset({"math", "news"}))

    with running(tiny_composite(), hooks=lambda _: Hooks(authorise=authorise)) as server:
        told = said(server, "/experts", "hello")
        assert told.startswith("speaking: anchor, math, news; not to be used with this key now: art, law, verse\n")
        assert len(heard) == 3
        assert set(heard) == {None}
        assert said(server, key="motet-1") == ""
        assert set(heard[3:]) == {"Bearer motet-1"}


def test_a_server_that_is_not_there_or_has_no_such_model(server: Running) -> None:
    with pytest.raises(FederationError, match=r"cannot reach http://127\.0\.0\.1:9/v1"):
        Voice("http://127.0.0.1:9/v1")
    with pytest.raises(ConfigurationError, match=f"saw the models {NAME} on .*wanted other"):
        Voice(f"{server.url}/v1", model="other")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return found_federation(tmp_path_factory.mktemp("federation"))


def test_a_composite_is_served_for_the_while(federation: Federation) -> None:
    with local_server(federation.composite) as url:
        voice = Voice(url, manner=SHORT)
        assert sorted(voice.experts) == ["art", "law", "math", "news"]
        assert "".join(voice.answer([{"role": "user", "content": "hi"}], excluded=["law"]))
        assert sorted(voice.mass) == ["anchor", "art", "math", "news"]
        voice.close()
    with pytest.raises(FederationError):
        Voice(url)


def test_a_conversation_through_a_pipe(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "/help\nhello there\n/mute news law\nand again\n/who\n\n/nonsense\n/quit\nnever sent\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(script))
    assert run(["chat", str(federation.composite), "--max-tokens", "5", "--seed", "1"]) == 0
    told, notes = capsys.readouterr()
    assert told.startswith(HELP[0])
    assert "speaking: anchor, " in told
    assert {each.split()[0] for each in told.splitlines() if each.endswith(" %")} == {"anchor", "art", "math"}
    assert "saw /nonsense" in told
    assert "withdrawals are not watched" in notes
    assert run(["chat", str(tmp_path)]) == AssemblyError.exit_code
    assert "composite.json" in capsys.readouterr().err
