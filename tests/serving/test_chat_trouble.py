"""`motet chat` and what it may meet: bytes that are no text, keys and addresses that are none, and other servers."""

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from motet.cli import run
from motet.protocols.errors import ConfigurationError
from motet.serving.chat.voice import Unanswered, Voice

from .conftest import Running

PAGE = "<!doctype html><title>Sign in</title>"
MODELS = '{"object": "list", "data": [{"id": "m\\u001b[2J", "object": "model", "experts": ["law"]}]}'
EVENT = '{"choices": [{"index": 0, "delta": {"content": "so"}, "finish_reason": null}]}'


@contextmanager
def another_server(answers: Mapping[str, str]) -> Iterator[str]:
    """What answers 200 with these bodies by the end of the path, and 404 elsewhere; its address, ending in /v1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.rpartition("/")[2]
            body = answers.get(path, "").encode()
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200 if path in answers else 404)
            kind = "text/html" if body.startswith(b"<") else "application/json"
            self.send_header("Content-Type", "text/event-stream" if body.startswith(b"data:") else kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "models",
    [
        PAGE,
        "[]",
        '["m"]',
        "{broken",
        "null",
        '"m"',
        '{"data": 5}',
        '{"data": [5]}',
        '{"data": [{"id": "m", "experts": 5}]}',
        '{"data": []}',
    ],
)
def test_what_is_no_such_server_is_told_of(models: str) -> None:
    with another_server({"models": models}) as url, pytest.raises(ConfigurationError, match=url):
        Voice(url)


@pytest.mark.parametrize(
    "answer",
    [
        f"data: {EVENT}\n\ndata: {{broken\n\n",
        "data: []\n\n",
        "data: 5\n\n",
        'data: {"choices": null}\n\n',
        'data: {"choices": [{"delta": null}]}\n\n',
        'data: {"choices": [{"delta": {"content": 5}}]}\n\n',
        'data: {"choices": [{"delta": {}, "attribution": {"mass": {"law": "much"}}}]}\n\n',
        'data: {"choices": [{"delta": {}, "attribution": []}]}\n\n',
        f"data: {EVENT}\n\n",
        PAGE,
        "{}",
    ],
)
def test_an_answer_that_is_none_is_told_of(answer: str) -> None:
    with another_server({"models": MODELS, "completions": answer}) as url:
        voice = Voice(url)
        assert voice.experts == ("law",)
        with pytest.raises(Unanswered):
            list(voice.answer([{"role": "user", "content": "hi"}]))
        voice.close()


def test_a_terminal_without_letters_and_bytes_that_are_no_text_do(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, shown = len(server.records), io.BytesIO()
    said = io.BytesIO(b"caf\xe9\n/\xc3\xbc\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(said, "utf-8", "surrogateescape"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, "ascii", "strict"))
    assert run(["chat", f"{server.url}/v1", "--max-tokens", "8", "--seed", "3"]) == 0
    assert len(server.records) == count + 1
    assert b"saw /?, wanted one of these:" in shown.getvalue()


def test_what_a_server_calls_its_model_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    with another_server({"models": MODELS}) as url:
        assert run(["chat", url]) == 0
        assert run(["chat", url, "--model", "other"]) == ConfigurationError.exit_code
    told, notes = capsys.readouterr()
    assert told.startswith("[no answer: ")
    assert notes.startswith("m[2J: anchor, law;")
    assert "\x1b" not in notes


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--temperature", "nan"], 2, "saw --temperature nan"),
        (["--system", "caf\udce9"], 2, "saw --system"),
        (["--model", "caf\udce9"], 2, "saw --model"),
        (["--key", "schl\u00fcssel"], 3, "saw a key with letters that no key has"),
        (["--key", "two words"], 3, "saw a key with letters that no key has"),
        (["--key", "cut\r"], 3, "saw a key with letters that no key has"),
    ],
)
def test_options_that_cannot_be_sent(
    options: list[str], code: int, said: str, server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["chat", f"{server.url}/v1", *options]) == code
    told = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert said in told
    assert options[0] != "--key" or options[1].strip() not in told


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/v1", "http://[::1", "http://a\x1b/v1", "http://caf\udce9/v1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"which cannot be used.*wanted one such as http://"):
        Voice(url)


def test_an_address_that_does_not_end_in_v1(server: Running) -> None:
    with pytest.raises(ConfigurationError, match=r"saw GET /models, .*does the address end in /v1\?$"):
        Voice(server.url)


def test_an_address_where_nobody_can_be() -> None:
    with pytest.raises(ConfigurationError, match=r"http://\.\.\./v1 is no OpenAI-compatible server"):
        Voice("http://.../v1")
