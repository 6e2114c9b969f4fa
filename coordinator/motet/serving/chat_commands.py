"""The sub-command `motet chat`."""

import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from motet.protocols.output import note


def register(app: typer.Typer) -> None:
    """Add this sub-command to the command line."""
    app.command()(chat)


def chat(
    model: Annotated[
        str, typer.Argument(metavar="URL|COMPOSITE", help="A server's address, ending in /v1, or a composite's folder.")
    ] = "http://127.0.0.1:8000/v1",
    key: Annotated[
        str | None, typer.Option(envvar="MOTET_API_KEY", help="The key that the server asks for.", show_envvar=True)
    ] = None,
    name: Annotated[str | None, typer.Option("--model", help="The model's name; the server's first if not given.")] = (
        None
    ),
    system: Annotated[str | None, typer.Option(help="What the model is told in front of everything.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 256,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 takes the likeliest word.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable.")] = None,
) -> None:
    """Talk to a model in the terminal, muting and calling its experts in between; /help tells how."""
    import openai  # noqa: F401 - first, so that its extra is named if it is missing

    from motet.serving.chat.terminal import converse, take_any_text, typed
    from motet.serving.chat.voice import Manner, Voice, printable

    _require_sendable(temperature, {"--model": name, "--system": system})
    take_any_text()
    manner = Manner(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with _address(model) as url, closing(Voice(url, key=key, model=name, manner=manner)) as voice:
        if url != model:
            note(
                "note: the terms of the experts are not looked at, and withdrawals are not watched; `motet serve` does"
            )
        note(
            f"{printable(voice.model)}: {', '.join(['anchor', *voice.experts])}; /help tells how to mute and call them"
        )
        if voice.closed:
            note(f"not to be used with this key now: {', '.join(voice.closed)}")
        converse(voice, lines=typed(), write=_write, system=system)


def _require_sendable(temperature: float | None, texts: Mapping[str, str | None]) -> None:
    """Raises BadParameter for what JSON cannot hold: no number, and bytes that are no text."""
    if temperature is not None and not math.isfinite(temperature):
        raise typer.BadParameter(f"saw --temperature {temperature}, wanted a number from 0 to 2")
    for option, text in texts.items():
        if any("\ud800" <= letter <= "\udfff" for letter in text or ""):
            raise typer.BadParameter(f"saw {option} {text!r}, wanted text in the terminal's encoding; type it anew")


def _address(model: str) -> AbstractContextManager[str]:
    """Of a server, or of one that is started for a composite."""
    if model.startswith(("http://", "https://")):
        return nullcontext(model)
    from motet.serving.chat.local import local_server

    return local_server(Path(model))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
