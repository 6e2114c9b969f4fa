"""The reference of the API, which comes from this server alone."""

import re

import httpx
from starlette.requests import HTTPConnection

from motet.serving.api.errors import Refusal
from motet.serving.hooks import Access, Hooks

from .chromium import Tab, expect, needs_chromium
from .watched import WORDS, Site, site, speaking


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
def test_the_reference_shows_an_operation(pages: Site, tab: Tab) -> None:
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
def test_the_reference_sends_the_readers_key(tab: Tab) -> None:
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
