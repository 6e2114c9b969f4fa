"""The sub-command `motet usage`."""

import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from motet.protocols.output import Json, note, show

if TYPE_CHECKING:
    from motet.serving.usage.statement import UsageStatement
    from motet.serving.usage.store import Total

_COLUMNS = ("name", "owner", "contribution", "answers", "generated_tokens", "microtokens", "share")


def register(app: typer.Typer) -> None:
    """Add this sub-command to the command line."""
    app.command()(usage)


def usage(
    state: Annotated[
        Path | None, typer.Option(help="The server's folder, as for `motet serve`; below $XDG_STATE_HOME if not given.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's experts, by public key.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only what this tenant used.")] = None,
    since: Annotated[str | None, typer.Option(help="From this day or time on, UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this day or time, UTC.")] = None,
    statement: Annotated[
        Path | None, typer.Option(help="Write a statement here, signed with the server's key; it names no tenants.")
    ] = None,
    verify: Annotated[Path | None, typer.Option(help="Check a statement's signature, and show it.")] = None,
    by: Annotated[str | None, typer.Option(help="For --verify: the server's public key that must have signed.")] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print rows for a spreadsheet.")] = False,
) -> None:
    """Show how much experts took part in a server's answers, by gate mass: usage, not value."""
    from motet.serving.usage.figures import rows_of, usage_json
    from motet.serving.usage.statement import NOTICE

    which = {"--owner": owner, "--tenant": tenant, "--since": since, "--until": until}
    chosen = {"--state": state, **which, "--statement": statement}
    _require_meant(chosen, as_json=as_json, as_csv=as_csv, verify=verify, by=by)
    if verify is not None:
        _show_statement(verify, by, as_json=as_json, as_csv=as_csv)
        return
    total = _total(state, owner=owner, tenant=tenant, since=since, until=until, statement=statement)
    rows = rows_of(total)
    if as_csv:
        show(None, as_json=False, lines=[_csv(rows)])
    else:
        show(usage_json(total), as_json=as_json, lines=[_heading(total), *_table(rows), NOTICE])


def _total(
    state: Path | None,
    *,
    owner: str | None,
    tenant: str | None,
    since: str | None,
    until: str | None,
    statement: Path | None,
) -> "Total":
    """What was used, and the statement written if one was asked for."""
    from motet.protocols.canonical import write_atomically
    from motet.protocols.errors import ConfigurationError
    from motet.serving.state import USAGE_FILE, default_state
    from motet.serving.usage.books import write_down_owed
    from motet.serving.usage.statement import server_key, statement_of
    from motet.serving.usage.store import Period, UsageStore

    _require_key(owner)
    begin, end = _period(since, until)
    folder = state or default_state()
    if not (folder / USAGE_FILE).is_file():
        raise ConfigurationError(f"saw no {folder / USAGE_FILE}, wanted a server's folder; name it with --state")
    with UsageStore(folder / USAGE_FILE) as store:
        write_down_owed(store)
        end = store.now() if end is None else end  # once, so that what is shown is what is signed
        if statement is not None:
            signed = statement_of(store, server_key(folder), owner=owner, since=begin, until=end)
            write_atomically(statement, signed.canonical())
            note(f"wrote {statement}, signed by {signed.key}")
        period = Period(since=begin or 0, until=end)
        return store.total(period, owner=owner) if tenant is None else store.total(period, owner=owner, tenant=tenant)


def _require_meant(
    chosen: Mapping[str, object], *, as_json: bool, as_csv: bool, verify: Path | None, by: str | None
) -> None:
    """Raises BadParameter for options that would be ignored; `chosen` are those that say what is counted."""
    if as_json and as_csv:
        raise typer.BadParameter("saw --json and --csv, wanted one of them")
    if verify is None and by is not None:
        raise typer.BadParameter("saw --by without --verify, which names the statement to check")
    beside = [option for option, value in chosen.items() if value is not None]
    if verify is not None and beside:
        raise typer.BadParameter(
            f"saw --verify with {', '.join(beside)}, but it shows the whole statement and looks at no server's folder; "
            "drop one"
        )
    if {"--statement", "--tenant"} <= set(beside):
        raise typer.BadParameter("saw --statement with --tenant, but statements are of all tenants; drop one")


def _require_key(owner: str | None) -> None:
    from pydantic import TypeAdapter, ValidationError

    from motet.protocols.documents import PublicKey

    try:
        TypeAdapter[str | None](PublicKey | None).validate_python(owner)
    except ValidationError as error:
        raise typer.BadParameter(
            f"saw --owner {owner}, wanted an owner's public key: ed25519: and 64 hexadecimal digits, as `motet usage` "
            "without --owner shows them"
        ) from error


def _show_statement(path: Path, by: str | None, *, as_json: bool, as_csv: bool) -> None:
    from motet.serving.usage.statement import checked

    stated = checked(path, by=by)
    rows = _stated_rows(stated)
    trusted = "" if by is not None else "; compare the key with the server's own, or name it with --by"
    note(f"the signature holds: {stated.server}{trusted}")
    if as_csv:
        show(None, as_json=False, lines=[_csv(rows)])
        return
    heading = f"from {stated.since} to {stated.until}: {stated.answers} answers, {stated.generated_tokens} tokens"
    show(stated.as_json(), as_json=as_json, lines=[heading, *_table(rows), stated.notice])


def _stated_rows(stated: "UsageStatement") -> list[dict[str, Any]]:
    whole = stated.generated_tokens * 1_000_000
    return [
        each.model_dump(mode="json") | {"share": each.microtokens / whole if whole else 0.0} for each in stated.experts
    ]


def _heading(total: "Total") -> str:
    from motet.serving.usage.shares import moment

    begin, end = moment(total.period.since), moment(total.period.until)
    return f"from {begin} to {end}: {total.answers} answers, {total.generated_tokens} tokens"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Name, gate mass in tokens, share, answers, owner."""
    return [
        f"{row['name']:<16} {row['microtokens'] / 1e6:>14,.3f} tokens  {100 * row['share']:6.2f} %  "
        f"in {row['answers']} answers  {row['owner'] or '-'}"
        for row in rows
    ]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().removesuffix("\n")


def _period(since: str | None, until: str | None) -> tuple[int | None, int | None]:
    """Its beginning and its end in milliseconds, None where nothing is said."""
    begin, end = _milliseconds(since), _milliseconds(until)
    if begin is not None and end is not None and begin > end:
        raise typer.BadParameter(f"saw --since {since} after --until {until}, wanted it before")
    return begin, end


def _milliseconds(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        given = datetime.fromisoformat(text)
        return int((given if given.tzinfo else given.replace(tzinfo=UTC)).astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"saw {text!r}, wanted a day such as 2027-01-31, or a time") from error
