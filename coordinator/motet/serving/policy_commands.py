"""The sub-commands `motet api-key` and `motet terms`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.protocols.output import Json, note, show

if TYPE_CHECKING:
    from motet.serving.policy.rules import Policy

PolicyFile = Annotated[Path, typer.Option("--policy", help="The server's policy.toml.")]

keys = typer.Typer(help="Make, list and revoke the keys of a server's tenants.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these sub-commands to the command line."""
    app.add_typer(keys, name="api-key")
    app.command()(terms)


@keys.command("new")
def new(
    policy: PolicyFile,
    tenant: Annotated[str, typer.Option(help="The tenant, as the policy names it.")],
    text: Annotated[str, typer.Option("--note", help="A word to know it by.")] = "",
    as_json: Json = False,
) -> None:
    """Make a key for a tenant: printed once, kept as a hash. It counts at once on a running server."""
    from motet.protocols.errors import ConfigurationError
    from motet.serving.policy.keys import ApiKey, make_key
    from motet.serving.policy.rules import Policy

    rules = Policy.from_toml(policy)
    if tenant not in rules.tenants:
        raise ConfigurationError(f"saw the tenant {tenant!r}, wanted one of {', '.join(rules.tenants)} as in {policy}")
    if len(text) > 200:
        raise ConfigurationError(f"saw a note of {len(text)} characters, wanted 200 at most; shorten it")
    path = _key_file(policy, rules)
    secret = make_key(path, tenant=tenant, note=text)
    known_as = ApiKey.id_of(secret)
    show({"key": secret, "id": known_as, "tenant": tenant}, as_json=as_json, lines=[secret])
    note(f"This is the only time that the key is shown; {path} has its hash, and calls it {known_as}.")


@keys.command("list")
def listed(policy: PolicyFile, as_json: Json = False) -> None:
    """List keys by id, with tenant, day and note."""
    from motet.serving.policy.keys import read_keys
    from motet.serving.policy.rules import Policy

    found = read_keys(_key_file(policy, Policy.from_toml(policy))).keys
    rows = [{"id": each.id, "tenant": each.tenant, "made": _day(each.made), "note": each.note} for each in found]
    show(rows, as_json=as_json, lines=["  ".join(row.values()).rstrip() for row in rows])


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, as `motet api-key list` shows it.")],
    policy: PolicyFile,
    as_json: Json = False,
) -> None:
    """Take a key back, by its id as `motet api-key list` shows it; a running server refuses it at once."""
    from motet.serving.policy.keys import revoke_key
    from motet.serving.policy.rules import Policy

    gone = revoke_key(_key_file(policy, Policy.from_toml(policy)), key)
    show({"id": gone.id, "tenant": gone.tenant}, as_json=as_json, lines=[f"revoked {gone.id} of {gone.tenant}"])


def terms(
    home: Annotated[Path, typer.Option("--home", help="The coordinator's home.")],
    out: Annotated[Path, typer.Option(help="Write the signed manifests here, for `contributions` in a policy.")],
    deny_list: Annotated[
        Path | None, typer.Option(help="Write what is withdrawn here, for `deny_list` in a policy.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what a server elsewhere needs of the ledger: owners' signed terms, and who has withdrawn."""
    from motet.coordinator.ledger_store import LedgerStore
    from motet.protocols.canonical import write_atomically
    from motet.protocols.errors import ConfigurationError
    from motet.serving.policy.members import write_contributions

    path = home / "ledger.sqlite"
    if not path.is_file():
        raise ConfigurationError(f"saw no {path}: {home} is no coordinator's home; name one made by `motet init`")
    with LedgerStore(path) as ledger:
        written = write_contributions(out, ledger.entries())
        withdrawn = sorted(ledger.standing().withdrawn)
    if deny_list is not None:
        write_atomically(deny_list, "".join(f"{digest}\n" for digest in withdrawn).encode())
    value = {"contributions": written, "withdrawn": len(withdrawn), "file": str(out)}
    show(value, as_json=as_json, lines=[f"{written} contributions, {len(withdrawn)} of them withdrawn, in {out}"])


def _key_file(policy: Path, rules: "Policy") -> Path:
    return policy.parent / Path(rules.keys).expanduser()


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
