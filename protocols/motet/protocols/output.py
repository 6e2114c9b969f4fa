"""What commands print: results on stdout, as lines for people or one JSON value for programs.

show({"digest": digest}, as_json=as_json, lines=[f"composite {digest}"])
"""

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of lines.")]


def show(value: Any, *, as_json: bool, lines: Iterable[str]) -> None:  # noqa: ANN401 - any JSON value
    """Print `value` as JSON, or `lines`."""
    text = json.dumps(value, indent=2, ensure_ascii=False) if as_json else "\n".join(lines)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """Tell people at the terminal something that is no result: a line on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
