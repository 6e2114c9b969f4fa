"""Messages and pages name only commands that exist: an error's next step must be one."""

import re
from pathlib import Path

import typer

from motet.cli import build

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`motet ([a-z][a-z-]*)")


def test_every_command_that_is_named_exists() -> None:
    known = set(typer.main.get_command(build()).commands)  # type: ignore[attr-defined]
    pages = [path for side in ("protocols", "client", "coordinator") for path in (ROOT / side).rglob("*.py")]
    pages += [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    named = {(name, path.name) for path in pages for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    assert len({name for name, _ in named}) > 8
    assert {(name, where) for name, where in named if name not in known} == set()
