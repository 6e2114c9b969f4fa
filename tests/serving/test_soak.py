"""`motet serve` under many clients: no 5xx, no leak, every answer as alone; and its orderly end.

`make nightly` runs it with MOTET_SOAK_REQUESTS=2000; a tenth otherwise.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx
import psutil
import pytest

from motet.serving.engine.loading import load_composite

from .conftest import NAME
from .federated import found_federation
from .judge import fault
from .soak import soak

REQUESTS = int(os.environ.get("MOTET_SOAK_REQUESTS", "200"))
OUTSIDE = "models.example.org"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def composite_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found_federation(tmp_path_factory.mktemp("soak")).composite


@pytest.fixture(scope="module")
def served(composite_directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One server for all tests; the last one ends it."""
    state = composite_directory.with_name("state")
    arguments = ["serve", str(composite_directory), "--port", "0", "--name", NAME, "--state", str(state)]
    line = [
        sys.executable,
        "-m",
        "motet.cli",
        *arguments,
        "--max-batch",
        "8",
        "--queue",
        "16",
        "--allowed-host",
        OUTSIDE,
    ]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        said = ""
        try:
            while "ready on" not in said:
                said = process.stderr.readline()
                assert said, process.wait()
            found = re.search(r"http://[^/]+", said)
            assert found is not None
            yield process, found.group()
        finally:
            process.kill()


@pytest.mark.timeout(240 + REQUESTS)
def test_many_clients_with_random_sets(served: tuple[subprocess.Popen[str], str], composite_directory: Path) -> None:
    process, url = served
    composite = load_composite(composite_directory)
    outcome = asyncio.run(soak(url, composite, psutil.Process(process.pid), requests=REQUESTS, clients=32))
    assert {status for status in outcome.statuses if status >= 500} == set(), outcome.statuses
    assert outcome.statuses.total() == REQUESTS
    assert outcome.statuses[200] > REQUESTS / 2
    assert outcome.statuses[400] > REQUESTS / 20
    assert outcome.cancelled > REQUESTS / 20
    assert outcome.full > 0
    assert emptied(url) == {"status": "ok", "waiting": 0, "running": 0}
    assert [wrong for answer in outcome.answers if (wrong := fault(composite, *answer))] == []
    quarter = len(outcome.resident) // 4
    begun, ended = (median(part) for part in (outcome.resident[quarter : 2 * quarter], outcome.resident[-quarter:]))
    assert ended < 1.05 * begun


def test_a_name_that_was_allowed_is_answered_and_no_other(served: tuple[subprocess.Popen[str], str]) -> None:
    _, url = served
    for host, status in ((OUTSIDE, 200), (f"{OUTSIDE}:443", 200), ("rebound.example", 400)):
        assert httpx.get(f"{url}/v1/models", headers={"Host": host}).status_code == status


def test_a_client_that_leaves_frees_its_places(served: tuple[subprocess.Popen[str], str]) -> None:
    _, url = served
    body = {"model": NAME, "prompt": "x", "max_tokens": 180, "temperature": 0, "n": 8}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=body, timeout=httpx.Timeout(60, read=0.3))
    with httpx.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}, timeout=60) as answer:
        next(answer.iter_lines())
    before = generated(url, "length")
    assert emptied(url)["running"] == 0
    assert generated(url, "length") == before
    assert generated(url, "cancelled") > 0


def test_at_sigterm_answers_under_way_are_finished(served: tuple[subprocess.Popen[str], str]) -> None:
    process, url = served
    body = {"model": NAME, "prompt": "a prompt", "max_tokens": 120, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        said = [line for line in lines if line]
    assert said[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in said[-2] or '"finish_reason":"stop"' in said[-2]
    assert process.wait(timeout=60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def emptied(url: str) -> dict[str, object]:
    """What the server says of itself as soon as nothing runs, or after a while."""
    for _ in range(100):
        told = httpx.get(f"{url}/healthz", timeout=60).json()
        if not told["running"]:
            break
        time.sleep(0.05)
    return told


def generated(url: str, reason: str) -> float:
    """Tokens generated so far by sequences that ended for this reason."""
    told = httpx.get(f"{url}/metrics", timeout=60).text
    found = re.search(rf'motet_generated_tokens_total{{finish_reason="{reason}"}} (\S+)', told)
    return float(found.group(1)) if found else 0.0
