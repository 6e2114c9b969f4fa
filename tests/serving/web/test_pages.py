"""What holds of every page: nothing comes from elsewhere, it works without scripts and on a telephone, keys count."""

import re

import httpx
import pytest
from starlette.requests import HTTPConnection

from motet.serving.api.errors import Refusal
from motet.serving.hooks import Access, Hooks

from .chromium import PHONE, Tab, expect, needs_chromium, picture, require_accessible
from .watched import MARKUP, WORDS, Site, site, speaking


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


@needs_chromium
def test_without_scripts_the_form_answers_all_the_same(pages: Site, tab: Tab) -> None:
    page = tab(java_script_enabled=False)
    page.goto(pages.url)
    page.get_by_label("Prompt").fill("\n\na dose of")
    page.get_by_label("Tokens at most").fill("5")
    for name in ("art", "law", "math", "news", "verse"):
        page.get_by_role("switch", name=name).uncheck()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("article")).to_have_count(2)
    expect(page.get_by_role("article", name="Without any: the anchor alone")).to_be_visible()
    expect(page.get_by_label("Prompt")).to_have_value("\n\na dose of")
    expect(page.get_by_role("switch", name="law")).not_to_be_checked()
    page.get_by_role("link", name="Federation").click()
    expect(page.get_by_role("table", name=re.compile("Who is enrolled"))).to_contain_text("medicine")
    expect(page.get_by_role("heading", name="Evaluation")).to_be_visible()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_by_day_and_by_night(pages: Site, tab: Tab, scheme: str) -> None:
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
def test_a_key_is_asked_for_once_and_kept_from_scripts(tab: Tab) -> None:
    def authorise(request: HTTPConnection) -> Access:
        if request.headers.get("authorization") != "Bearer motet-good":
            raise Refusal("saw no key that is known, wanted one", status=401)
        return Access(tenant="clinic", allowed=frozenset({"law"}))

    records = []
    with site(speaking(WORDS), hooks=Hooks(keyed=True, authorise=authorise, meter=records.append)) as guarded:
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
        page.get_by_role("link", name="Key").click()
        expect(page.get_by_role("alert")).to_have_count(0)
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("alert")).to_have_text("saw no key that is known, wanted one")
        assert page.context.cookies() == []


def test_whoever_may_come_in_without_a_key_can_give_one_and_take_it_back() -> None:
    tenants: list[str | None] = []

    def authorise(request: HTTPConnection) -> Access:
        key = request.headers.get("authorization")
        if key not in (None, "Bearer motet-good"):
            raise Refusal("saw no key that is known, wanted one", status=401)
        tenants.append("everybody" if key is None else "clinic")
        return Access(tenant=tenants[-1])

    hooks = Hooks(keyed=True, authorise=authorise)
    with site(speaking(WORDS), hooks=hooks) as open_to_all, httpx.Client(base_url=open_to_all.url) as browser:

        def give(key: str, status: int) -> str | None:
            before = len(tenants)
            assert '<a href="/key">Key</a>' in browser.get("/").text
            assert len(tenants) == before + 1
            found = browser.get("/key")
            assert (found.status_code, found.text.count('id="key"'), "alert" in found.text) == (200, 1, False)
            assert browser.post("/key", data={"key": key}).status_code == status
            assert browser.get("/").status_code == 200
            return tenants[-1]

        assert give("motet-good", 303) == "clinic"
        assert give("motet-bad", 401) == "clinic"
        assert give("", 303) == "everybody"


def test_a_server_that_asks_for_no_key_has_no_link_to_give_one(pages: Site) -> None:
    assert "/key" not in httpx.get(pages.url).text


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
