"""The federation's page follows what happens."""

import re
from pathlib import Path

from .chromium import SCREENSHOTS, Tab, expect, needs_chromium, picture, require_accessible
from .watched import MARKUP, Site, Watched

LOOK = 2000
"""Milliseconds after which the page looks again."""


@needs_chromium
def test_the_federations_page_follows_what_happens(pages: Site, scene: Watched, tab: Tab) -> None:
    page = tab()
    page.clock.install()
    page.goto(f"{pages.url}/federation")
    status = page.get_by_role("status")
    expect(status).to_contain_text("Run 7: gather. 2 of 3 owners present. Decisions: 2 admitted, 1 refused")
    expect(page.get_by_role("row", name=re.compile("^news"))).to_contain_text("no")
    expect(page.get_by_role("progressbar", name="Progress of law")).to_have_attribute("value", "0.2")
    decisions = page.get_by_role("region", name="Table of decisions")
    expect(decisions).to_contain_text("saw licence Own-1.0, wanted one of CC0-1.0, Apache-2.0")
    decisions.focus()
    scene.progress(law=60, medicine=55, news=5)
    page.clock.fast_forward(LOOK)
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
    page.clock.fast_forward(LOOK)
    expect(page.get_by_role("progressbar", name="Upload of news")).to_have_attribute("value", "1000000")
    expect(page.get_by_role("listitem").filter(has_text="news")).to_contain_text("1.0 MB of 4.0 MB")
    first.with_suffix(".part").unlink()
    law = page.get_by_role("article", name="law")
    expect(law).to_contain_text(MARKUP)
    expect(law).to_contain_text(f"{scene.size_of('law').parameters:,} parameters")
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
    page.clock.fast_forward(LOOK)
    page.wait_for_timeout(300)
    expect(page.get_by_role("progressbar", name="Progress of law")).to_have_attribute("value", "0.6")
