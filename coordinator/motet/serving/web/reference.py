"""The reference of the API, at /docs: Swagger UI over this server's own /openapi.json.

Guarantees: all of it comes from this server, and no script stands in the page. Swagger UI's files lie in the package
`fastapi-offline`; the page around them is ours, because FastAPI's and that package's have a script in the page.

    add_reference(app)                             # GET /docs, before the mount of /static
"""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from motet.serving.web.pages import page

SWAGGER_UI = Path(str(files("fastapi_offline"))) / "static"


def add_reference(app: FastAPI) -> None:
    """Add the page; anybody may read it, as anybody may read the schema that it shows."""
    app.mount("/static/swagger-ui", StaticFiles(directory=SWAGGER_UI), name="swagger-ui")

    @app.get("/docs", include_in_schema=False)
    async def reference() -> Response:
        return page("reference.html", images="'self' data:", schema=app.openapi_url)
