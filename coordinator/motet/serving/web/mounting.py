"""The pages' place in the application.

mount(app, home=Path("home"))
"""

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from motet.serving.web.federation import add_federation
from motet.serving.web.observing import Observer
from motet.serving.web.playground import add_playground
from motet.serving.web.reference import add_reference


def mount(app: FastAPI, *, home: Path | None = None) -> None:
    """Add the pages to an application of `motet.serving.api.app.build_app`.

    Args:
        app: the application; its `state.service` answers.
        home: a coordinator's, for the page of its federation; None for the playground alone.

    Raises:
        ConfigurationError: `home` is no coordinator's home.
        LedgerError, SignatureError: its ledger does not hold.
        StorageError: it cannot be read.
    """
    observer = None if home is None else Observer(home)
    add_reference(app)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    add_playground(app, federation=observer is not None)
    if observer is not None:
        add_federation(app, observer)
