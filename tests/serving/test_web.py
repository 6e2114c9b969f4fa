"""Both pages, driven in headless Chromium as people do: by role and label, with the keyboard, on a telephone.

With MOTET_SCREENSHOTS=DIR in the environment the pictures of the documentation are written there.
"""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.requests import HTTPConnection

from motet.protocols.canonical import hex_of
from motet.protocols.errors import ConfigurationError
from motet.protocols.expert_sizes import ExpertSize, composite_sizes
from motet.serving.api.errors import Refusal
from motet.serving.hooks import Access, Hooks
from motet.serving.web.live import MEDIA_TYPE
from motet.serving.web.observing import Observer
from motet.serving.web.pages import rendered

from ..coordinator.conftest import (  # noqa: F401 - fixtures
    Owner,
    anchor_with_statistics,
    home_template,
    make_owner,
    public_text,
)
from .conftest import TEMPLATE
from .watched import MARKUP, TERMS, Site, Watched, site, speaking, watched

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: motet[test] has it")
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect  # noqa: E402

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: Debian's package of that name")
SCREENSHOTS = os.environ.get("MOTET_SCREENSHOTS")
SECONDS = 20
"""How long a busy machine may take to show something."""
PHONE, DESK = {"width": 360, "height": 740}, {"width": 960, "height": 900}
LIVE = {"Accept": MEDIA_TYPE}
WORDS = re.findall(
    r"\w+",
    "the patient court pleads with fever and a fine of two weeks under section nine is given every day by law "
    "nurse judge dose appeal ward bench symptom statute acute consent for",
)


@pytest.fixture(scope="module")
def scene(
    home_template: Path,  # noqa: F811
    make_owner: Callable[[str], Owner],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    with watched(home_template, tmp_path_factory.mktemp("watched") / "home", make_owner) as found:
        found.progress(law=20, medicine=35)
        yield found


@pytest.fixture(scope="module")
def pages(scene: Watched) -> Iterator[Site]:
    with site(speaking(WORDS), home=scene.home.path) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=SECONDS * 1000)
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`tab(**context settings)`: a page; whatever its console complains of, but a key asked for, fails the test."""
    complaints: list[str] = []
    opened = []

    def open_tab(**settings: object) -> Page:
        opened.append(browser.new_context(**{"viewport": DESK} | settings))
        page = opened[-1].new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_tab
    for context in opened:
        context.close()
    assert [line for line in complaints if "401 (Unauthorized)" not in line] == []


def picture(page: Page, name: str, *, whole: bool = False) -> None:
    if SCREENSHOTS:
        page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", animations="disabled", full_page=whole)


def require_accessible(page: Page) -> None:
    """axe-core's rules, WCAG 2.2 AA and best practices: names, roles, contrast, headings, landmarks."""
    found = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []


def size_in(scene: Watched, name: str) -> ExpertSize:
    """What an expert takes in the only composite there is."""
    (composite,) = (path for path in (scene.home.path / "composites").iterdir() if (path / "config.json").exists())
    return next(each for each in composite_sizes(composite) if each.name == name)


def completed(pages: Site, prompt: str, **experts: list[str]) -> str:
    body = {"model": "demo", "prompt": prompt, "max_tokens": 12, "temperature": 0, "experts": experts}
    return httpx.post(f"{pages.url}/v1/completions", json=body).json()["choices"][0]["text"]


@needs_chromium
def test_two_answers_with_the_keyboard_alone(pages: Site, tab: Callable[..., Page]) -> None:
    page = tab()
    page.goto(pages.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.get_by_label("Prompt").focus()
    page.keyboard.type("the judge is")
    for name in ("art", "law", "math", "news"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("switch", name=name)).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("switch", name="news")).not_to_be_checked()
    page.get_by_label("Tokens at most").focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    every = page.get_by_role("article", name="With every expert")
    without = page.get_by_role("article", name="Without news")
    said = "Answer: {}".format
    expect(every.get_by_role("region", name=said("With every expert"))).to_have_text(
        completed(pages, "the judge is", include=["art", "law", "math", "news", "verse"])
    )
    expect(without.get_by_role("region", name=said("Without news"))).to_have_text(
        completed(pages, "the judge is", exclude=["news"])
    )
    assert page.get_by_role("status").inner_text() == "With every expert: 12 tokens. Without news: 12 tokens."
    assert without.locator("details tbody tr").count() == 12
    assert {piece.split()[0] for piece in without.locator(".said .t").all_inner_texts()} <= set(WORDS)
    bars = without.get_by_role("table", name="Share of gate mass")
    rows = [row.split() for row in bars.locator("tbody tr").all_inner_texts()]
    assert [name for name, *_ in rows] == ["anchor", "art", "law", "math", "verse"]
    assert sum(float(share) for _, share, _ in rows) == pytest.approx(100, abs=0.3)
    assert all((box := row.bounding_box()) and box["height"] < 40 for row in bars.locator("tbody tr").all())
    booked = next(each for each in pages.records if each.endpoint == "/" and "news" not in each.used)
    mass = booked.mass()
    for name, share, _ in rows:
        assert float(share) == pytest.approx(100 * mass[name] / 12, abs=0.06)
    without.get_by_text("Token by token").click()
    table = without.get_by_role("region", name="Tokens: Without news").locator("tbody tr")
    led = table.first.locator("td").nth(1).inner_text()
    first = without.locator(".said .t").first
    assert (first.get_attribute("title") or "").startswith(led)
    require_accessible(page)
    without.get_by_text("Token by token").click()
    picture(page, "playground", whole=True)


@needs_chromium
def test_without_scripts_the_form_answers_all_the_same(pages: Site, tab: Callable[..., Page]) -> None:
    page = tab(java_script_enabled=False)
    page.goto(pages.url)
    page.get_by_label("Prompt").fill("a dose of")
    page.get_by_label("Tokens at most").fill("5")
    for name in ("art", "law", "math", "news", "verse"):
        page.get_by_role("switch", name=name).uncheck()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("article")).to_have_count(2)
    expect(page.get_by_role("article", name="Without any: the anchor alone")).to_be_visible()
    expect(page.get_by_label("Prompt")).to_have_value("a dose of")
    expect(page.get_by_role("switch", name="law")).not_to_be_checked()
    page.get_by_role("link", name="Federation").click()
    expect(page.get_by_role("table", name=re.compile("Who is enrolled"))).to_contain_text("medicine")
    expect(page.get_by_role("heading", name="Evaluation")).to_be_visible()


@needs_chromium
def test_markup_that_a_model_writes_is_text(tab: Callable[..., Page]) -> None:
    words = [f'<img/src=x{number}/onerror="document.title=1">' for number in range(20)]
    words += [f"</span><script>document.title={number}</script>" for number in range(20)]
    words += [f'"hx-get="/v1/models"hx-trigger="load"{number}' for number in range(20)]
    with site(speaking(words, template=TEMPLATE)) as loud:
        page = tab()
        page.goto(loud.url)
        expect(page.get_by_role("checkbox", name="Ask as in a conversation")).to_be_checked()
        page.get_by_label("Prompt").fill(MARKUP)
        page.get_by_role("button", name="Compare").click()
        answer = page.get_by_role("region", name="Answer: With every expert")
        expect(answer).to_contain_text(re.compile("onerror|script|hx-get"))
        expect(page.get_by_role("table", name="Share of gate mass")).to_have_count(2)
        assert page.locator("#answers :is(img, script, [onerror], [hx-get])").count() == 0
        assert page.title() == "demo, playground | Motet"
        assert set(answer.inner_text().split()) <= set(words)
        assert loud.records[-1].prompt_tokens == len(f"user: {MARKUP} assistant:".split())


@needs_chromium
def test_the_federations_page_follows_what_happens(pages: Site, scene: Watched, tab: Callable[..., Page]) -> None:
    page = tab()
    page.goto(f"{pages.url}/federation")
    status = page.get_by_role("status")
    expect(status).to_contain_text("Run 7: gather. 2 of 3 owners present. Decisions: 2 admitted, 1 refused")
    expect(page.get_by_role("row", name=re.compile("^news"))).to_contain_text("no")
    expect(page.get_by_role("progressbar", name="Progress of law")).to_have_attribute("value", "0.2")
    decisions = page.get_by_role("region", name="Table of decisions")
    expect(decisions).to_contain_text("saw licence Own-1.0, wanted one of CC0-1.0, Apache-2.0")
    decisions.focus()
    scene.progress(law=60, medicine=55, news=5)
    expect(page.get_by_role("progressbar", name="Progress of law")).to_have_attribute("value", "0.6")
    expect(status).to_contain_text("3 of 3 owners present")
    losses = page.get_by_role("region", name="Training losses")
    expect(losses.get_by_role("img", name="Training loss by step")).to_be_visible()
    expect(losses.locator("svg polyline")).to_have_count(3)
    told = losses.get_by_role("table", name="Training loss in nats per token")
    expect(told.get_by_role("columnheader")).to_have_text(["steps", "law", "medicine", "news"])
    expect(told.get_by_role("row", name=re.compile("^16 to 20"))).to_contain_text("4.200")
    expect(told.get_by_role("row", name=re.compile("^56 to 60"))).to_contain_text("2.600")
    expect(page.locator("#owner-law")).to_contain_text("2.600 nats per token")
    expect(decisions).to_be_focused()
    scene.home.intake_directory.mkdir(exist_ok=True)
    first = scene.home.intake_directory / ("0" * 64)
    signed = scene.owners["news"].manifest(scene.home, scene.home.path / "update", update_bytes=4_000_000)
    first.with_suffix(".signed").write_bytes(signed.canonical())
    first.with_suffix(".part").write_bytes(bytes(1_000_000))
    expect(page.get_by_role("progressbar", name="Upload of news")).to_have_attribute("value", "1000000")
    expect(page.get_by_role("listitem").filter(has_text="news")).to_contain_text("1.0 MB of 4.0 MB")
    first.with_suffix(".part").unlink()
    law = page.get_by_role("article", name="law")
    expect(law).to_contain_text(MARKUP)
    expect(law).to_contain_text(f"{size_in(scene, 'law').parameters:,} parameters")
    assert page.locator("main :is(img, script)").count() == 0
    expect(page.get_by_role("article", name="medicine")).to_contain_text("2099-01-31T00:00:00Z")
    heat = page.get_by_role("table", name="Bits per byte by system and domain")
    worst = heat.get_by_role("row", name=re.compile("^anchor")).get_by_role("cell").first
    assert worst.get_attribute("class") == "h8"
    require_accessible(page)
    picture(page, "federation")
    if SCREENSHOTS:
        losses.screenshot(path=Path(SCREENSHOTS) / "losses.png")
        page.locator("#measured section section").first.screenshot(path=Path(SCREENSHOTS) / "evaluation.png")
    page.get_by_role("link", name="Let it stand still").click()
    scene.progress(law=80, medicine=75, news=25)
    page.wait_for_timeout(2500)
    expect(page.get_by_role("progressbar", name="Progress of law")).to_have_attribute("value", "0.6")


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_by_day_and_by_night(pages: Site, tab: Callable[..., Page], scheme: str) -> None:
    page = tab(viewport=PHONE, color_scheme=scheme)
    page.goto(pages.url)
    page.get_by_label("Prompt").fill("the nurse " * 12)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("article")).to_have_count(2)
    for name, path in (("playground", None), ("federation", "/federation?live=off")):
        if path is not None:
            page.goto(pages.url + path)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        if scheme == "dark":  # by day the other tests ask
            require_accessible(page)
        picture(page, f"{name}-phone-{scheme}")


@needs_chromium
def test_a_key_is_asked_for_once_and_kept_from_scripts(tab: Callable[..., Page]) -> None:
    def authorise(request: HTTPConnection) -> Access:
        if request.headers.get("authorization") != "Bearer motet-good":
            raise Refusal("saw no key that is known, wanted one", status=401)
        return Access(tenant="clinic", allowed=frozenset({"law"}))

    records = []
    with site(speaking(WORDS), hooks=Hooks(authorise=authorise, meter=records.append)) as guarded:
        assert httpx.get(guarded.url).status_code == 401
        assert httpx.post(guarded.url, data={"prompt": "the"}).status_code == 401
        assert httpx.post(guarded.url, data={f"f{number}": "x" for number in range(600)}).status_code == 401
        page = tab(java_script_enabled=False)
        page.goto(guarded.url)
        page.get_by_label("Key").fill("motet-good")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("switch", name="law")).to_be_enabled()
        expect(page.get_by_role("switch", name="news")).to_be_disabled()
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.get_by_label("Prompt").fill("the")
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("article")).to_have_count(2)
        assert {record.tenant for record in records} == {"clinic"}
        assert {record.used for record in records} == {("anchor", "law"), ("anchor",)}


def test_every_page_says_that_nothing_comes_from_elsewhere(pages: Site) -> None:
    for path in ("/", "/federation", "/federation/now", "/federation/measured"):
        found = httpx.get(pages.url + path)
        assert found.status_code == 200
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert found.headers["x-content-type-options"] == "nosniff"
        addresses = re.findall(r'\b(?:src|href|action|hx-get|hx-post)="([^"]*)"', found.text)
        assert [each for each in addresses if not each.startswith(("/", "#"))] == []
        assert not re.search(r'<[^>]* (?:style|on\w+)="|<style|<script>', found.text.replace(MARKUP, ""))


def test_the_reference_of_the_api_comes_from_this_server_alone(pages: Site) -> None:
    found = httpx.get(f"{pages.url}/docs")
    assert found.status_code == 200
    assert not re.search(r"<script>|<style| style=|unsafe", found.text + found.headers["content-security-policy"])
    addresses = re.findall(r'\b(?:src|href|data-schema)="([^"]*)"', found.text)
    assert len(addresses) == 6
    for address in addresses:
        assert address.startswith("/")
        assert httpx.get(pages.url + address).status_code == 200
    assert httpx.get(f"{pages.url}/redoc").status_code == 404


@needs_chromium
def test_the_reference_shows_an_operation(pages: Site, tab: Callable[..., Page]) -> None:
    page, asked = tab(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{pages.url}/docs")
    expect(page.get_by_role("heading", name=re.compile("^Motet"))).to_be_visible()
    operation = page.locator("#operations-generation-chat_completions_v1_chat_completions_post")
    expect(operation).to_contain_text("/v1/chat/completions")
    operation.get_by_role("button").first.click()
    expect(operation.get_by_role("heading", name="Parameters")).to_be_visible()
    expect(operation).to_contain_text("Answer a conversation.")
    assert [url for url in asked if not url.startswith((pages.url, "data:"))] == []
    assert f"{pages.url}/openapi.json" in asked


@needs_chromium
def test_the_reference_sends_the_readers_key(tab: Callable[..., Page]) -> None:
    def authorise(request: HTTPConnection) -> Access:
        if request.headers.get("authorization") != "Bearer good":
            raise Refusal("saw no key that is known, wanted one", status=401)
        return Access()

    with site(speaking(WORDS), hooks=Hooks(keyed=True, authorise=authorise)) as guarded:
        page = tab()
        page.goto(f"{guarded.url}/docs")
        page.get_by_role("button", name="Authorize").first.click()
        asking = page.locator(".auth-container")
        asking.get_by_role("textbox").fill("good")
        asking.get_by_role("button", name="Apply credentials").click()
        asking.get_by_role("button", name="Close").click()
        operation = page.locator("#operations-listings-models_v1_models_get")
        operation.get_by_role("button").first.click()
        operation.get_by_role("button", name="Try it out").click()
        with page.expect_response(f"{guarded.url}/v1/models") as answered:
            operation.get_by_role("button", name="Execute").click()
        assert answered.value.status == 200


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"tokens": "0"}, "max_tokens"),
        ({"tokens": ""}, "max_tokens"),
        ({"seed": "9" * 30}, "seed"),
        ({"seed": "--5"}, "seed"),
        ({"prompt": "the " * 300}, "the model&#39;s context"),
        ({"on": ["law", "<b>"]}, "unknown experts &lt;b&gt;"),
        ({"on": ["x"] * 600}, "a form that cannot be read"),
    ],
)
def test_a_form_that_cannot_be_used_says_why(pages: Site, changes: dict[str, object], said: str) -> None:
    form = {"prompt": "the", "tokens": "4", "temperature": "0", "seed": "0", "on": ["law"]} | changes
    found = httpx.post(pages.url, data=form)
    live = httpx.post(pages.url, data=form, headers=LIVE)
    for answer, shown in ((found, found.text), (live, live.json()["answers"])):
        assert answer.status_code == 400
        assert 'role="alert"' in shown
        assert said in shown


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://elsewhere.example"}, {"Origin": "http://["}, {"Sec-Fetch-Site": "cross-site"}],
)
def test_another_sites_page_starts_nothing(pages: Site, headers: dict[str, str]) -> None:
    before = len(pages.records)
    for path in ("/", "/key"):
        found = httpx.post(pages.url + path, data={"prompt": "the", "key": "x"}, headers=headers)
        assert found.status_code == 403
        assert "set-cookie" not in found.headers
    assert len(pages.records) == before


def test_a_script_is_told_both_answers_while_they_are_made(pages: Site) -> None:
    form = {
        "prompt": "the judge is",
        "tokens": "9",
        "temperature": "0",
        "seed": "0",
        "on": ["art", "law", "math", "verse"],
    }
    with httpx.stream("POST", pages.url, data=form, headers=LIVE) as answer:
        first, *pieces, last = (json.loads(line) for line in answer.iter_lines())
    assert first["answers"].count("<article") == 2
    assert "<table" not in first["answers"]
    assert (first["news"], last["news"]) == ("", "With every expert: 9 tokens. Without news: 9 tokens.")
    assert all(sum(each["side"] == side for each in pieces) > 5 for side in (0, 1))  # some tokens have no text
    assert last["answers"].count("Token by token") == 2
    whole = re.findall(r'<div class="said"[^>]*>(.*)</div>', last["answers"])
    for side in (0, 1):
        assert "".join(each["piece"].strip() for each in pieces if each["side"] == side) == whole[side]
    assert all(said in httpx.post(pages.url, data=form).text for said in whole)


@pytest.mark.parametrize("live", [False, True])
def test_a_reader_who_leaves_frees_both_places(pages: Site, live: bool) -> None:
    before = len(pages.records)
    body = b"prompt=the&tokens=180&temperature=0&seed=0"
    accept = LIVE["Accept"] if live else "text/html"
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(pages.url.rpartition(":")[2]))) as connection:
        connection.sendall(head + body)
        while not pages.service.engine.load().running:
            time.sleep(0.001)
    deadline = time.monotonic() + SECONDS
    engine = pages.service.engine
    while (engine.load().running or len(pages.records) < before + 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    ends = [choice.finish_reason for record in pages.records[before:] for choice in record.choices]
    assert ends == ["cancelled", "cancelled"]
    assert (engine.load().running, engine.load().waiting) == (0, 0)


def test_what_cannot_be_read_is_told_beside_the_rest(scene: Watched, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(scene.home.path, home)
    observer = Observer(home)
    (home / "run" / "state.json").write_bytes(b"{")
    for path in (home / "evaluations").glob("*/*.json"):
        path.write_bytes(b"[]")
    assert [owner.name for owner in observer.now().owners] == ["law", "medicine", "news"]
    assert "The run's state cannot be read" in observer.now().problems[0]
    (losses,) = (home / "run" / "owners").glob(f"{hex_of(scene.owners['law'].key.public)}/losses.jsonl")
    losses.unlink()
    losses.mkdir()
    assert "The losses of law cannot be read" in observer.now().problems[1]
    for path in (home / "store" / "experts").glob("*/expert.safetensors"):
        path.write_bytes(b"no tensors")
    assert [card.size for card in observer.measured().cards] == [None, None]
    assert "The size of law cannot be read" in observer.measured().problems[0]
    assert "The evaluation of law is left out" in observer.measured().facts[0]
    for path in home.glob("ledger.sqlite*"):
        path.unlink()
    (home / "ledger.sqlite").write_bytes(b"no database")
    assert "The ledger cannot be read" in observer.now().problems[0]
    assert [card.expert.name for card in observer.measured().cards] == ["law", "medicine"]
    with pytest.raises(ConfigurationError, match=r"wanted a coordinator's home"):
        Observer(tmp_path)


def test_watching_writes_nothing(scene: Watched, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(scene.home.path, home)

    def everything() -> dict[Path, tuple[int, int]]:
        found = {path: path.stat() for path in home.rglob("*") if not path.name.endswith(("-shm", "-wal"))}
        return {path: (each.st_mtime_ns, each.st_size) for path, each in found.items() if path.is_file()}

    before = everything()
    observer = Observer(home)
    assert observer.now().entries > 0
    measured = observer.measured()
    assert measured.sections
    assert [card.size for card in measured.cards] == [size_in(scene, name) for name in ("law", "medicine")]
    assert everything() == before


def test_an_expired_expert_is_said_to_be(scene: Watched) -> None:
    end = TERMS["medicine"].expires_at
    assert end is not None
    for now, wanted in ((end - 1, []), (end, ["medicine"])):
        measured = Observer(scene.home.path, clock=lambda now=now: now).measured()
        assert [card.expert.name for card in measured.cards if card.expired] == wanted
        assert rendered("measured.html", measured=measured).count("; expired") == len(wanted)


def test_a_withdrawn_expert_has_no_card_and_its_composite_is_no_longer_shown(scene: Watched, tmp_path: Path) -> None:
    from motet.coordinator.home import CoordinatorHome

    home = tmp_path / "home"
    shutil.copytree(scene.home.path, home)
    observer = Observer(home)
    opened = CoordinatorHome(home)
    try:
        (digest,) = (digest for digest, each in opened.ledger.standing().active.items() if each.name == "law")
        Watched(opened, scene.owners, scene.record).withdraw("law", digest)
    finally:
        opened.close()
    assert [card.expert.name for card in observer.measured().cards] == ["medicine"]
    assert observer.measured().composite is None
    newest = observer.now().decisions[0]
    assert (newest.kind, newest.who) == ("withdrawn", "law")
