"""Which names a server answers to: its own, and nobody else's."""

import http.client
from urllib.parse import urlsplit

import httpx
import pytest

from motet.protocols.errors import ConfigurationError
from motet.serving.api.hosts import LOOPBACK, host_name, known_names

from .conftest import Running


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST", "localhost.", "127.0.0.9:7"])
def test_a_server_on_loopback_answers_by_the_names_of_loopback(server: Running, host: str) -> None:
    assert httpx.get(f"{server.url}/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example",
        "rebound.example:8000",
        "127.0.0.1.example",
        "localhost.example",
        "10.0.0.1",
        "",
        "a b",
        "[::1",
    ],
)
@pytest.mark.parametrize("path", ["/v1/experts", "/healthz", "/nowhere"])
def test_a_page_whose_name_was_pointed_here_gets_nothing(server: Running, host: str, path: str) -> None:
    found = httpx.get(server.url + path, headers={"Host": host})
    assert found.status_code == 400
    error = found.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "unknown_host", None)
    assert "--allowed-host" in error["message"]


def test_a_foreign_name_of_any_length_is_refused_shortly_and_counted(server: Running) -> None:
    def refused() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if 'status="400"' in line and "requests_total" in line)

    before = refused()
    found = httpx.post(f"{server.url}/v1/completions", headers={"Host": "x" * 5000}, content=b"{")
    assert found.status_code == 400
    assert len(found.content) < 500
    assert refused() == before + 1


def test_a_request_without_a_host_is_refused(server: Running) -> None:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
    connection.putrequest("GET", "/healthz", skip_host=True)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_what_a_server_is_called_follows_from_where_it_listens_and_what_is_allowed() -> None:
    assert known_names("127.0.0.1") == LOOPBACK
    assert known_names("::1") == LOOPBACK
    assert known_names("127.0.0.1", ["Models.Example.org."]) == LOOPBACK | {"models.example.org"}
    assert known_names("0.0.0.0") is None
    assert known_names("10.0.0.7", ["models.example.org"]) == LOOPBACK | {"models.example.org", "10.0.0.7"}
    assert known_names("10.0.0.7", ["2001:db8::1", "[2001:db8::2]"]) == LOOPBACK | {
        "2001:db8::1",
        "2001:db8::2",
        "10.0.0.7",
    }


@pytest.mark.parametrize("name", ["", "*", "*.example.org", "https://example.org", "example.org:8000", "a b", "a/b"])
def test_what_is_no_name_cannot_be_allowed(name: str) -> None:
    with pytest.raises(ConfigurationError, match="wanted a name such as"):
        known_names("127.0.0.1", [name])


@pytest.mark.parametrize(
    ("said", "name"),
    [("[2001:DB8::1]:80", "2001:db8::1"), ("a.b:", "a.b"), ("a:b", None), ("u@a", None), ("::1", None), (".", "")],
)
def test_a_host_header_is_read_as_browsers_write_it(said: str, name: str | None) -> None:
    assert host_name(said) == name
