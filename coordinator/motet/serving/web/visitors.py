"""Who looks at a page: a browser, whose key lies in a cookie, for it cannot send one as programs do.

Guarantees: the cookie is out of reach of scripts, is sent to this server alone, and never by a request that another
site started; whatever changes or costs something is refused when it comes from another site's page.

    access = await access_of(request)              # Refusal, 401 where a key is wanted
    require_own_page(request)                      # Refusal, 403
    keep_key(request, response, key)
"""

import re
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from motet.serving.api.errors import Refusal
from motet.serving.hooks import Access

COOKIE = "motet_key"
MAX_FIELDS = 512
"""Fields of one form; there is one for each expert."""
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{1,512}")


async def access_of(request: Request, *, key: str | None = None) -> Access:
    """What this visitor may do, with `key` or the one kept. Raises whatever the server's policy refuses with."""
    key = request.cookies.get(COOKIE) if key is None else key
    if key is None or not _KEY.fullmatch(key) or "authorization" in request.headers:
        known = request
    else:
        headers = [*request.scope["headers"], (b"authorization", b"Bearer " + key.encode())]
        known = Request(dict(request.scope, headers=headers))
    access: Access = await request.app.state.service.access(known)
    return access


def require_own_page(request: Request) -> None:
    """Refuse what another site's page sent with its visitor's browser. Raises Refusal."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if _foreign(origin, request.headers.get("host")) or site not in (None, "same-origin", "none"):
        raise Refusal("saw a form of another site, wanted one of this server's own pages", status=403)


def _foreign(origin: str | None, host: str | None) -> bool:
    try:
        return origin is not None and urlsplit(origin).netloc != host
    except ValueError:  # no address at all
        return True


async def form_of(request: Request) -> dict[str, list[str]]:
    """The fields of a form as browsers send it. Raises Refusal."""
    try:
        return await run_in_threadpool(_fields, await request.body())  # half a second for the largest that is let in
    except ValueError as error:
        raise Refusal(f"saw a form that cannot be read: {error}; send it again from the page") from error


def _fields(form: bytes) -> dict[str, list[str]]:
    return parse_qs(form.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)


def keep_key(request: Request, response: Response, key: str) -> None:
    """Let the browser keep a key, or forget it if it is empty. Raises Refusal for one that none can be."""
    if not key:
        response.delete_cookie(COOKIE)
        return
    if not _KEY.fullmatch(key):
        raise Refusal("saw no key, wanted one as this server hands them out; copy it whole", status=401)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, key, httponly=True, samesite="strict", secure=secure)
