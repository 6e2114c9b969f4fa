"""The playground: two answers side by side, while they are made, and what a form may hold."""

import json
import re
import socket
import time

import httpx
import pytest

from motet.serving.web.live import MEDIA_TYPE

from ..conftest import TEMPLATE
from .chromium import SECONDS, Tab, expect, needs_chromium, picture, require_accessible
from .watched import MARKUP, WORDS, Site, site, speaking

LIVE = {"Accept": MEDIA_TYPE}


def completed(pages: Site, prompt: str, **experts: list[str]) -> str:
    body = {"model": "demo", "prompt": prompt, "max_tokens": 12, "temperature": 0, "experts": experts}
    return httpx.post(f"{pages.url}/v1/completions", json=body).json()["choices"][0]["text"]


@needs_chromium
def test_two_answers_with_the_keyboard_alone(pages: Site, tab: Tab) -> None:
    page, before = tab(), len(pages.records)
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
    asked = (each for each in pages.records[before:] if each.endpoint == "/")
    booked = next(each for each in asked if "news" not in each.used)
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
def test_a_switch_shows_its_state_where_the_system_chooses_the_colours(pages: Site, tab: Tab) -> None:
    page = tab(forced_colors="active")
    page.goto(pages.url)
    switch = page.get_by_role("switch", name="news")
    drawn = switch.evaluate("each => [getComputedStyle(each).appearance, getComputedStyle(each, '::after').content]")
    assert drawn == ["auto", "none"]  # by the browser: of ours, which is all backgrounds, nothing would be left
    on = switch.screenshot()
    switch.uncheck()
    assert switch.screenshot() != on


@needs_chromium
def test_markup_that_a_model_writes_is_text(tab: Tab) -> None:
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
