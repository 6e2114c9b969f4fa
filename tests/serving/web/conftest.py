"""The pages of a server, with a federation that something happens in, and a browser to look at them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...coordinator.conftest import (  # noqa: F401 - fixtures
    Owner,
    anchor_with_statistics,
    home_template,
    make_owner,
    public_text,
)
from .watched import WORDS, Site, Watched, site, speaking, watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from .chromium import Tab


@pytest.fixture(scope="session")
def scene(
    home_template: Path,  # noqa: F811
    make_owner: Callable[[str], Owner],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    """A federation with a run under way, shared by all tests: who changes its ledger does so in a copy of its home."""
    with watched(home_template, tmp_path_factory.mktemp("watched") / "home", make_owner) as found:
        found.progress(law=20, medicine=35)
        yield found


@pytest.fixture(scope="session")
def pages(scene: Watched) -> Iterator[Site]:
    """Both pages; other tests have asked it before."""
    with site(speaking(WORDS), home=scene.home.path) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """No longer than a file: while it runs no test of its process can run an event loop."""
    from .chromium import launched

    with launched() as started:
        yield started


@pytest.fixture
def tab(browser: "Browser") -> Iterator["Tab"]:
    """See `chromium.tabs`."""
    from .chromium import tabs

    with tabs(browser) as open_tab:
        yield open_tab
