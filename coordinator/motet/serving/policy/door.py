"""Who a request is from, and what it may use.

Guarantees: with a policy, nobody passes without a key that is good now, or as the tenant that the policy lets in
without one.

    door = Doorkeeper(terms, policy=policy, keyring=Keyring(path))    # without a policy: everybody, as `EVERYBODY`
    Hooks(authorise=door)
"""

from collections.abc import Mapping

from starlette.requests import HTTPConnection

from motet.protocols.contribution import Terms
from motet.protocols.errors import ConfigurationError
from motet.serving.api.errors import Refusal
from motet.serving.hooks import Access
from motet.serving.policy.keys import Keyring
from motet.serving.policy.rules import EVERYBODY, Policy, usable


class Doorkeeper:
    """`Hooks.authorise` by a policy and the experts' terms."""

    def __init__(
        self, terms: Mapping[str, Terms | None], *, policy: Policy | None = None, keyring: Keyring | None = None
    ) -> None:
        """`terms` holds every expert but the anchor; without a `policy` nobody needs a key."""
        self._policy, self._keyring = policy, keyring
        tenants = {} if policy is None else policy.tenants
        self._everybody = Access(allowed=usable(EVERYBODY, terms))
        self._access = {name: Access(tenant=name, allowed=usable(tenant, terms)) for name, tenant in tenants.items()}

    def __call__(self, request: HTTPConnection) -> Access:
        """What a request may do. Raises Refusal: 401 without a good key, 503 while keys cannot be read."""
        if self._policy is None:
            return self._everybody
        secret = _bearer(request.headers.get("authorization"))
        if secret is None:
            if self._policy.without_key is not None:
                return self._access[self._policy.without_key]
            raise _unknown("saw no key")
        access = self._access.get(self._tenant(secret) or "")
        if access is None:
            raise _unknown("saw a key that is not, or no longer, known here")
        return access

    def _tenant(self, secret: str) -> str | None:
        try:
            return None if self._keyring is None else self._keyring.tenant_of(secret)
        except ConfigurationError as error:
            raise Refusal(
                "the server cannot read its keys now; try again later", status=503, code="keys_unreadable"
            ) from error


def _bearer(header: str | None) -> str | None:
    scheme, _, secret = (header or "").strip().partition(" ")
    if header is None or not secret.strip():
        return None
    return secret.strip() if scheme.lower() == "bearer" else ""


def _unknown(saw: str) -> Refusal:
    return Refusal(
        f"{saw}, wanted 'Authorization: Bearer motet-...'; ask whoever runs this server for a key",
        status=401,
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
