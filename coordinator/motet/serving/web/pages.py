"""How a page is written: templates that escape everything, and headers that let nothing in from elsewhere.

Guarantees: values become text unless a template marks them otherwise, and none does; a page that forgot a value fails
instead of showing nothing.

    return page("playground.html", status=200, service=service, told=())
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined
from starlette.responses import HTMLResponse

from motet.protocols.evaluation.charts import BarChart

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Accept, Cookie",
}
"""Sent with every page, beside its policy."""
HUES = 12
"""How many experts differ in colour; the next ones begin again."""


def page(
    name: str,
    *,
    status: int = 200,
    images: str = "'self'",
    headers: Mapping[str, str] = MappingProxyType({}),
    **values: object,
) -> HTMLResponse:
    """The template `name` with these values; `images` says where its pictures may come from, `headers` what else is
    sent."""
    own = HEADERS | {"Content-Security-Policy": _policy(images)}
    return HTMLResponse(rendered(name, **values), status_code=status, headers={**headers, **own})


def rendered(name: str, **values: object) -> str:
    """The template `name` with these values, as text."""
    return _environment().get_template(name).render(values)


def _policy(images: str) -> str:
    """Scripts and styles come as files of this server alone: none stands in a page, so that text which slipped through
    as markup would still do nothing."""
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


@cache
def _environment() -> Environment:
    shared = PrefixLoader({"evaluation": PackageLoader("motet.protocols.evaluation")})
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("motet.serving.web"), shared]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"hue": _hue, "short": _short, "size": _size, "clock": _clock}
    environment.tests["bars"] = lambda chart: isinstance(chart, BarChart)
    return environment


def _hue(expert: int) -> int:
    return expert % HUES


def _short(digest: str) -> str:
    """The first digits of a digest or key, enough to tell it from others."""
    return digest.rpartition(":")[2][:12]


def _size(count: int) -> str:
    """Bytes for people."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count:,} bytes" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"


def _clock(at: str) -> str:
    """A moment of the ledger, ISO 8601 in UTC, to the second."""
    return f"{at[:10]} {at[11:19]} UTC"
