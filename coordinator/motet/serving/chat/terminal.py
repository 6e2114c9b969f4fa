"""Lines in, answers out; plain, so that a pipe does as well as a terminal.

Guarantees: after `take_any_text`, neither bytes that are no text nor a terminal that lacks a letter end a conversation.

take_any_text()
converse(voice, lines=typed(), write=sys.stdout.write, system=None)
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator

from motet.serving.chat.conversation import Conversation
from motet.serving.chat.voice import Unanswered, Voice

Write = Callable[[str], object]
_ENDS = {
    "expert_withdrawn": "[stopped: an expert that spoke has been withdrawn]",
    "length": "[stopped: as long as was asked for]",
    "full": "[stopped: the model's context is full; /forget begins anew]",
    "error": "[stopped: the model failed]",
    "cancelled": "[stopped: the server was stopped]",
}


def converse(voice: Voice, *, lines: Iterable[str], write: Write, system: str | None = None) -> None:
    """Answers every line until there are no more, or one is /quit. Raises FederationError when the server is gone."""
    talk = Conversation(experts=voice.experts, closed=voice.closed, system=system)
    for line in lines:
        said = line.strip()
        if said.startswith("/"):
            _show(talk.command(said), write)
        elif said:
            _answer(talk, voice, said, write)
        if talk.over:
            return


def take_any_text() -> None:
    """What stdin's and stdout's encoding cannot express is replaced from now on, instead of an error."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def typed() -> Iterator[str]:
    """The lines of stdin; on a terminal with a prompt."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401 - lets input() be edited

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return


def _answer(talk: Conversation, voice: Voice, said: str, write: Write) -> None:
    asked = {"role": "user", "content": said}
    pieces: list[str] = []
    note: str | None = None
    try:
        for piece in voice.answer([*talk.messages, asked], excluded=talk.excluded):
            pieces.append(piece)
            write(piece)
        note = _ENDS.get(voice.finish or "")
    except KeyboardInterrupt:
        note = "[stopped: by you]"
    except Unanswered as error:
        note = f"[no answer: {error}]"
    text = "".join(pieces)
    write("\n" if text and not text.endswith("\n") else "")
    if note is not None:
        _show([note], write)
    if voice.mass:
        talk.spoke(voice.mass)
    if text:
        talk.messages += [asked, {"role": "assistant", "content": text.strip()}]


def _show(lines: Iterable[str], write: Write) -> None:
    for line in lines:
        write(f"{line}\n")
