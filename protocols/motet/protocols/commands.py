"""The sub-commands that belong to neither side: `motet version` and `motet doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from motet.protocols.output import Json, show


def register(app: typer.Typer) -> None:
    """Add this room's sub-commands to the command line."""
    app.command()(version)
    app.command()(doctor)


def version(as_json: Json = False) -> None:
    """Print the versions of motet and of what it stands on."""
    from motet.protocols.checks import versions

    found = versions()
    show(found, as_json=as_json, lines=[f"{name} {number or 'not installed'}" for name, number in found.items()])


def doctor(
    directory: Annotated[
        Path, typer.Option("--dir", help="A home of an owner or of a coordinator to look into.")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Check this machine and a home: versions, device, disk, keys, charter, anchor, ports."""
    from motet.protocols.checks import examine

    checks = examine(directory)
    marks = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
    show(
        [check.as_json() for check in checks],
        as_json=as_json,
        lines=[f"{marks[check.status]}  {check.name}: {check.message}" for check in checks],
    )
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
