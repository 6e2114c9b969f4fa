"""The proxies that a contribution names: none unless charter and owner both say so, chosen once and kept.

Later versions under the same charter name the same documents, since two choices would tell what came in between. The
preview, with scores and first words, lies beside the packed contribution for the owner's eyes and never travels.

    require_ready(home)                        # before training, not after
    named = name_proxies(material, home)       # None: nothing is named
    named.ids, named.preview
"""

from dataclasses import dataclass

from motet.client.outbox import packed_contributions
from motet.client.owner import OwnerHome
from motet.client.preparation import Material
from motet.client.proxies import choose_proxies, require_classifier


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedProxies:
    """`ids` leave; `preview` is what the owner is shown of them, line by line."""

    ids: tuple[str, ...]
    preview: tuple[str, ...]


def wanted_proxies(home: OwnerHome) -> int:
    """How many public documents to name: what the charter asks for, if the owner agrees; else 0."""
    return home.charter.routing.proxies if home.config.contribution.proxies else 0


def require_ready(home: OwnerHome) -> None:
    """Raise ConfigurationError when proxies are to be named and what chooses them is not installed."""
    if wanted_proxies(home):
        require_classifier()


def name_proxies(material: Material, home: OwnerHome) -> NamedProxies | None:
    """Choose the proxies, or take those of an earlier version under this charter; None when none are wanted.

    Raises:
        ConfigurationError: scikit-learn is not installed.
        DataError: there are fewer public documents than the charter asks for.
    """
    count = wanted_proxies(home)
    if count == 0:
        return None
    for packed in reversed(packed_contributions(home)):
        if packed.contribution.charter == material.charter and packed.contribution.proxies:
            return NamedProxies(ids=packed.contribution.proxies, preview=tuple(packed.proxies_preview()))
    seed = home.charter.routing.projection_seed
    chosen = choose_proxies(material.corpus.train, material.public.train, count=count, seed=seed)
    return NamedProxies(ids=chosen.ids, preview=tuple(chosen.lines()))
