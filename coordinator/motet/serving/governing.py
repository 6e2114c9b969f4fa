"""What a server is given beside its composite: policy, terms, withdrawals and books, opened together and closed again.

Guarantees: with a policy, every expert's terms are known, or the server does not start; terms that are not known,
withdrawals that nobody watches for, and experts that nobody may use are told in `notes`.

    with governed(composite, policy=Path("policy.toml"), home=None, state=default_state()) as given:
        serve(composite, hooks=given.hooks, extend=given.extend, ...)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from motet.protocols.contribution import Contribution
from motet.protocols.errors import ConfigurationError
from motet.serving.engine.loading import Composite
from motet.serving.expert_sets import Roster
from motet.serving.hooks import Hooks
from motet.serving.policy.door import Doorkeeper
from motet.serving.policy.keys import Keyring
from motet.serving.policy.members import members_of, missing, read_contributions, terms_of
from motet.serving.policy.rules import EVERYBODY, Policy, obstacle
from motet.serving.policy.sources import DenyList, LedgerSource, Source
from motet.serving.policy.withdrawals import Withdrawals
from motet.serving.state import USAGE_FILE, used_by
from motet.serving.usage.books import Books
from motet.serving.usage.endpoint import usage_router
from motet.serving.usage.statement import server_key
from motet.serving.usage.store import Expert, UsageStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Governed:
    """Hooks, endpoints that belong to them, and what whoever starts the server should read."""

    hooks: Hooks
    extend: Callable[[FastAPI], None]
    notes: tuple[str, ...]


@contextmanager
def governed(
    composite: Composite,
    *,
    policy: Path | None,
    home: Path | None,
    state: Path,
    max_batch: int = 16,
    queue: int = 64,
) -> Iterator[Governed]:
    """Opens everything.

    Args:
        composite: what is served.
        policy: `policy.toml`; None lets everybody in, as far as the experts' own terms do.
        home: of a coordinator on this machine, whose ledger tells terms and withdrawals; None where there is none.
        state: the folder of the server's key and usage, made if it is not there.
        max_batch, queue: of the engine, which say how much can be under way when the disk becomes full.

    Raises:
        ConfigurationError: policy, home or state cannot be used, or terms are missing, or a server of another composite
            uses `state`.
        LedgerError: the ledger's chain does not hold.
        StorageError: `state` cannot be written, has no room for what a full disk would keep from the books, or what an
            earlier server owes cannot be written down.
    """
    roster, rules = composite.roster, None if policy is None else Policy.from_toml(policy)
    if rules is not None:
        rules.require_known(roster.names[1:])
    with ExitStack() as opened:
        ledger = None if home is None else LedgerSource(home, roster)
        members = members_of(roster, _known(ledger, rules, policy))
        unknown = missing(roster, members)
        if rules is not None and unknown:
            raise _no_terms(unknown)
        sources: list[Source] = [] if ledger is None else [ledger]
        if rules is not None and rules.deny_list is not None:
            sources.append(DenyList(_beside(policy, rules.deny_list), roster))
        opened.enter_context(used_by(state, composite.digest))
        store, server = opened.enter_context(_store(state, roster, members)), server_key(state).public
        ids = (roster.anchor, *roster.contributions)
        books = opened.enter_context(Books(store, ids, max_batch=max_batch, queue=queue))
        yield Governed(
            hooks=Hooks(
                keyed=rules is not None,
                authorise=_door(roster, members, rules, policy),
                meter=books.keep,
                ready=books.require_open,
                withdrawn=opened.enter_context(_withdrawals(roster, members, sources)),
            ),
            extend=lambda app: app.include_router(usage_router(app.state.service, store, server=server)),
            notes=(*_unseen(unknown, sources), *_silent(roster, members, rules)),
        )


def _no_terms(unknown: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(
        f"saw no terms of {', '.join(unknown)}, wanted each expert's where there is a policy; name the coordinator's "
        "home with --home, or a file that `motet terms` wrote as `contributions` in the policy"
    )


def _known(ledger: LedgerSource | None, rules: Policy | None, policy: Path | None) -> dict[str, Contribution]:
    known = {} if ledger is None else dict(ledger.known)
    if rules is not None and rules.contributions is not None:
        known |= read_contributions(_beside(policy, rules.contributions))
    return known


def _beside(policy: Path | None, named: str) -> Path:
    """A path that a policy names."""
    return (policy or Path()).parent / Path(named).expanduser()


def _door(roster: Roster, members: dict[str, Contribution], rules: Policy | None, policy: Path | None) -> Doorkeeper:
    keyring = None if rules is None else Keyring(_beside(policy, rules.keys))
    return Doorkeeper(terms_of(roster, members), policy=rules, keyring=keyring)


def _withdrawals(roster: Roster, members: dict[str, Contribution], sources: Sequence[Source]) -> Withdrawals:
    ends = {name: each.terms.expires_at for name, each in members.items()}
    expiries = {name: end for name, end in ends.items() if end is not None}
    return Withdrawals(roster.names, sources=sources, expiries=expiries)


def _store(state: Path, roster: Roster, members: dict[str, Contribution]) -> UsageStore:
    store = UsageStore(state / USAGE_FILE)
    try:
        own = zip(roster.contributions, roster.names[1:], strict=True)
        owners = {name: each.owner for name, each in members.items()}
        experts = [Expert(contribution=digest, name=name, owner=owners.get(name)) for digest, name in own]
        store.introduce([Expert(contribution=roster.anchor, name=roster.names[0]), *experts])
    except BaseException:
        store.close()
        raise
    return store


def _unseen(unknown: Sequence[str], sources: Sequence[Source]) -> Iterator[str]:
    """What nobody looks at."""
    if unknown:
        yield (
            f"the terms of {', '.join(unknown)} are not known, so that neither their purpose nor their expiry counts; "
            "--home or a policy's `contributions` tells them"
        )
    if not sources:
        yield "withdrawals are not watched; --home or a policy's `deny_list` tells them"


def _silent(roster: Roster, members: dict[str, Contribution], rules: Policy | None) -> Iterator[str]:
    """Experts whose own terms, or the policy, keep everybody from them."""
    tenants = [EVERYBODY] if rules is None else list(rules.tenants.values())
    for name, own in terms_of(roster, members).items():
        reasons = [obstacle(tenant, name, own) for tenant in tenants]
        if all(reasons):
            yield f"nobody may use {name}: {reasons[0]}"
