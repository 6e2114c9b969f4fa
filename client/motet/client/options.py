"""Options that several of the owner's sub-commands take, each described in one place; loads nothing heavy.

def pull(directory: Home, as_json: Json = False) -> None: ...
def withdraw(directory: Home, contribution: ContributionDigest = None, to: ToFile = None, yes: Yes = False) -> None: ...
"""

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path, typer.Option("--dir", help="The owner's home.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ContributionDigest = Annotated[str | None, typer.Argument(help="Its digest; the newest if not given.")]
ToFile = Annotated[Path | None, typer.Option(help="Write a file for `motet admit` instead of sending.")]
Member = Annotated[str | None, typer.Option(help="A composite's member by name; of a home, a contribution's digest.")]
BaseConfirmed = Annotated[
    bool, typer.Option("--base-confirmed", help="Vouch that the adapter was trained on the charter's anchor.")
]
