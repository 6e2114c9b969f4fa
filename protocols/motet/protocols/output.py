"""What commands print: results on stdout, as lines for people or one JSON value for programs; the rest on stderr.

show({"digest": digest}, as_json=as_json, lines=[f"composite {digest}"])
note("ready on 127.0.0.1:9443")
upload(..., progress=progress_line("sending"))
adopt(home, folder, report=share_line())
bench_group(app).command()(codec)                # `motet bench codec`; several rooms have something to measure
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of lines.")]

_PLAIN_SECONDS = 5.0
_SHARE_SECONDS = 2.0


def show(value: Any, *, as_json: bool, lines: Iterable[str]) -> None:  # noqa: ANN401 - any JSON value
    """Print `value` as JSON, or `lines`; a reader who has gone away, such as `head`, is no error."""
    text = json.dumps(value, indent=2, ensure_ascii=False) if as_json else "\n".join(lines)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # click would end with 1, and the interpreter complain when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(line: str) -> None:
    """Tell people at the terminal something that is no result: a line on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def bench_group(app: typer.Typer) -> typer.Typer:
    """The one group of commands that measure, `motet bench`, made when a room first asks for it."""
    for registered in app.registered_groups:
        if registered.name == "bench" and registered.typer_instance is not None:
            return registered.typer_instance
    group = typer.Typer(help="Measure this installation on this machine.", no_args_is_help=True)
    app.add_typer(group, name="bench")
    return group


def progress_line(what: str, unit: str = "bytes") -> Callable[[int, int], None]:
    """A callback (done, total): one line that renews itself on a terminal, else a line every few seconds."""
    terminal, told = sys.stderr.isatty(), time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        now, over = time.monotonic(), done >= total
        if not over and now - told < (0.1 if terminal else _PLAIN_SECONDS):
            return
        told = now
        line = f"{what} {done:,} of {total:,} {unit}"
        if terminal:
            sys.stderr.write(f"\r{line}" + ("\n" if over else ""))
            sys.stderr.flush()
        elif not over:
            note(line)

    return progress


def share_line(announce: Callable[[str], None] = note) -> Callable[[float, str], None]:
    """A callback (share done, 0 to 1; what is being done), which is told every few seconds."""
    told = float("-inf")

    def report(share: float, line: str) -> None:
        nonlocal told
        if time.monotonic() - told >= _SHARE_SECONDS:
            told = time.monotonic()
            announce(f"{100 * share:3.0f} %  {line}")

    return report
