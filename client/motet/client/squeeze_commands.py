"""The sub-command `motet squeeze`."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.protocols.output import Json, note, show

if TYPE_CHECKING:
    from motet.client.squeeze import Report
    from motet.client.squeezing import Outcome
    from motet.protocols.codec import Method


_TELL_SECONDS = 2.0


class FactorMethod(StrEnum):
    """How factors are encoded."""

    INT8 = "int8"
    INT4 = "int4"
    LOSSLESS = "lossless"


def squeeze(
    source: Annotated[
        Path | None, typer.Argument(help="An expert's file (update, container, store file) or a composite's folder.")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="An owner's home instead: its expert, as its next contribution.")
    ] = None,
    anchor: Annotated[Path | None, typer.Option(help="The anchor's folder; a file or a composite needs it.")] = None,
    expert: Annotated[
        str | None, typer.Option(help="A composite's member by name; of a home, a contribution's digest.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="The rank.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="The smallest rank that keeps this share of the squared norm of all changes, such as 0.9."),
    ] = None,
    loss: Annotated[
        float | None,
        typer.Option(
            help="The smallest rank that loses at most this share of the expert's gain: (bits per byte at the rank - "
            "those of the expert) / (those of the anchor - those of the expert), such as 0.01, on held-out text."
        ),
    ] = None,
    method: Annotated[
        FactorMethod | None, typer.Option(help="How factors are encoded; as owner.toml says, or int8 for files.")
    ] = None,
    max_rank: Annotated[
        int, typer.Option(min=1, help="For a file or a composite: the largest rank; a home has its charter's.")
    ] = 64,
    text: Annotated[
        list[str] | None, typer.Option(help="For a file or a composite: text to measure on; may be repeated.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Write an update file, a new one, instead of a contribution.")] = None,
    as_json: Json = False,
) -> None:
    """Make an expert low-rank, and show what every rank keeps of it. Nothing leaves.

    Each matrix's difference to the anchor is cut to its largest singular values
    (PHLoRA, arXiv 2509.10971). Without --rank, --energy or --loss only the curve
    is shown. Of a home it is the expert as trained there, or the newest
    contribution if no training is finished; what is made is a new version,
    signed, for `motet contribute`. docs/squeeze.md says more.
    """
    from motet.client.owner import OwnerHome
    from motet.client.squeeze import Goal
    from motet.client.squeezing import squeeze_file, squeeze_own

    goal = Goal(rank=rank, energy=energy, loss=loss)
    chosen: Method | None = None if method is None else method.value
    if directory is not None:
        if source is not None or anchor is not None or text:
            raise typer.BadParameter("an owner's home has its own expert, anchor and text; leave out the others")
        home = OwnerHome.load(directory)
        done = squeeze_own(home, goal, contribution=expert, method=chosen, to=to, report=_told())
    elif source is None or anchor is None:
        raise typer.BadParameter("name an owner's home with --dir, or a file or composite and its --anchor")
    else:
        done = squeeze_file(
            source,
            anchor,
            goal,
            expert=expert,
            method=chosen or "int8",
            max_rank=max_rank,
            texts=tuple(text or ()),
            to=to,
            report=_told(),
        )
    _show(done, directory, as_json=as_json)


def _told() -> "Report":
    """Tells people where it is, every few seconds."""
    last = float("-inf")

    def report(share: float, line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_SECONDS:
            last = time.monotonic()
            note(f"{100 * share:3.0f} %  {line}")

    return report


def _show(done: "Outcome", directory: Path | None, *, as_json: bool) -> None:
    packed, made = done.packed, list[str]()
    if packed is not None:
        made = [f"contribution {packed.digest}", f"Nothing has left. To send it: motet contribute --dir {directory}"]
    elif done.file is not None:
        made = [f"wrote {done.file}"]
    value = done.curve.as_json() | {
        "contribution": None if packed is None else packed.digest,
        "update": str(packed.update) if packed is not None else None if done.file is None else str(done.file),
        "contribution_bits_per_byte": None if packed is None else packed.contribution.bits_per_byte,
    }
    show(value, as_json=as_json, lines=[*done.curve.lines(), *made])
