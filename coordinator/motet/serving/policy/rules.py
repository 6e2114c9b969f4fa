"""`policy.toml`, and what it and the experts' own terms allow a tenant.

Guarantees: an expert's own terms are conditions beside the policy's, so that no policy allows what they do not.

    policy = Policy.from_toml(Path("policy.toml"))       # ConfigurationError names the key that is wrong
    policy.require_known(roster.names)
    usable(policy.tenants["clinic"], terms)              # names of experts, beside the anchor
"""

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from motet.protocols.contribution import Terms
from motet.protocols.documents import Name, Strict, TomlFile
from motet.protocols.errors import ConfigurationError


class Tenant(Strict):
    """Somebody who may use the server, with the keys that are made for it."""

    allowed: tuple[Name, ...] | None = None
    """The experts that it may use; None is all."""
    denied: tuple[Name, ...] = ()
    """Experts that it may not use, whatever `allowed` says."""
    purposes: tuple[str, ...] = ()
    """What it uses experts for, in the words of their terms: an expert that is lent for a purpose is its only if that
    purpose is here."""
    licences: tuple[str, ...] | None = None
    """Licences whose conditions it has accepted, as the experts' terms name them; None is any."""


class Policy(TomlFile):
    """`policy.toml`. Paths in it are absolute, or relative to its folder."""

    keys_documented_in: ClassVar[str] = "docs/serving.md"

    schema_: Literal["motet.serving-policy/1"] = Field("motet.serving-policy/1", alias="schema")
    tenants: dict[Name, Tenant] = Field(min_length=1)
    """Who may use the server, by name."""
    without_key: Name | None = None
    """The tenant that a request without a key is; None refuses it."""
    keys: str = "keys.json"
    """The file of hashed keys that `motet api-key` writes; read again whenever it changes."""
    contributions: str | None = None
    """The file with the owners' signed manifests and their terms that `motet terms` writes; None leaves them to the
    coordinator's ledger that `--home` names."""
    deny_list: str | None = None
    """A file of experts that have been withdrawn, a name or a contribution's digest a line; read again whenever it
    changes. None is none, and withdrawals are not watched where there is no ledger either."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.without_key is not None and self.without_key not in self.tenants:
            known = ", ".join(self.tenants)
            raise ValueError(f"without_key, tenants: saw the tenant {self.without_key!r}, wanted one of {known}")
        return self

    def require_known(self, names: Collection[str]) -> None:
        """Raises ConfigurationError where a tenant's lists name an expert that is not served: a denial of a name
        written wrong would deny nobody."""
        for name, tenant in self.tenants.items():
            for key, named in (("allowed", tenant.allowed or ()), ("denied", tenant.denied)):
                if unknown := sorted(set(named) - set(names)):
                    raise ConfigurationError(
                        f"tenants.{name}.{key}: saw {unknown[0]}, wanted an expert of this composite: "
                        f"{', '.join(names)}; correct the name, or drop it"
                    )


EVERYBODY = Tenant()
"""Who uses a server that has no policy: nothing was said of purposes, so that experts lent for one stay silent."""


def usable(tenant: Tenant, terms: Mapping[str, Terms | None]) -> frozenset[str]:
    """The names of the experts that a tenant may use beside the anchor, by the policy and by the experts' own terms.

    `terms` holds every expert; None where they are not known, which asks nothing.
    """
    return frozenset(name for name, own in terms.items() if obstacle(tenant, name, own) is None)


def obstacle(tenant: Tenant, name: str, terms: Terms | None) -> str | None:
    """Why a tenant may not use an expert; None if it may."""
    if name in tenant.denied:
        return "denied by the policy"
    if tenant.allowed is not None and name not in tenant.allowed:
        return "not among those that the policy allows"
    if terms is None:
        return None
    if terms.purpose is not None and _plain(terms.purpose) not in map(_plain, tenant.purposes):
        return f"lent for {terms.purpose!r}, which is none of the tenant's purposes"
    if tenant.licences is not None and terms.licence not in tenant.licences:
        return f"lent under {terms.licence}, which the tenant has not accepted"
    return None


def _plain(purpose: str) -> str:
    """A purpose whatever its case and spaces."""
    return " ".join(purpose.casefold().split())
