"""The sub-command `motet usage`."""

import csv
import io
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

    _require_meant(as_json=as_json, as_csv=as_csv, tenant=tenant, statement=statement, verify=verify, by=by)
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

    folder = state or default_state()
    if not (folder / USAGE_FILE).is_file():
        raise ConfigurationError(f"saw no {folder / USAGE_FILE}, wanted a server's folder; name it with --state")
    begin, end = _milliseconds(since), _milliseconds(until)
    with UsageStore(folder / USAGE_FILE) as store:
        write_down_owed(store)
        if statement is not None:
            signed = statement_of(store, server_key(folder), owner=owner, since=begin, until=end)
            write_atomically(statement, signed.canonical())
            note(f"wrote {statement}, signed by {signed.key}")
        period = Period(since=begin or 0, until=store.now() if end is None else end)
        return store.total(period, owner=owner) if tenant is None else store.total(period, owner=owner, tenant=tenant)


def _require_meant(
    *, as_json: bool, as_csv: bool, tenant: str | None, statement: Path | None, verify: Path | None, by: str | None
) -> None:
    if as_json and as_csv:
        raise typer.BadParameter("saw --json and --csv, wanted one of them")
    if statement is not None and tenant is not None:
        raise typer.BadParameter("saw --statement with --tenant, but statements are of all tenants; drop one")
    if verify is None and by is not None:
        raise typer.BadParameter("saw --by without --verify, which names the statement to check")
    if verify is not None and statement is not None:
        raise typer.BadParameter("saw --verify and --statement, wanted one of them")


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


def _milliseconds(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"saw {text!r}, wanted a day such as 2027-01-31, or a time") from error
    return int((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp() * 1000)
