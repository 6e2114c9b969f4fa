"""The sub-command `motet squeeze`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from motet.client.options import Member
from motet.protocols.output import Json, share_line, show

if TYPE_CHECKING:
    from motet.client.squeeze import Goal, Report
    from motet.client.squeezing import Outcome
    from motet.protocols.codec import Method


class FactorMethod(StrEnum):
    """How factors are encoded."""

    INT8 = "int8"
    INT4 = "int4"
    LOSSLESS = "lossless"


_Source = Annotated[
    Path | None, typer.Argument(help="An expert's file (update, container, store file) or a composite's folder.")
]
_OwnHome = Annotated[
    Path | None, typer.Option("--dir", help="An owner's home instead: its expert, as its next contribution.")
]
_AnchorFolder = Annotated[Path | None, typer.Option(help="The anchor's folder; a file or a composite needs it.")]
_Energy = Annotated[
    float | None,
    typer.Option(help="The smallest rank that keeps this share of the squared norm of all changes, such as 0.9."),
]
_Loss = Annotated[
    float | None,
    typer.Option(
        help="The smallest rank that loses at most this share of the expert's gain: (bits per byte at the rank - "
        "those of the expert) / (those of the anchor - those of the expert), such as 0.01, on held-out text."
    ),
]
_Method = Annotated[
    FactorMethod | None, typer.Option(help="How factors are encoded; as owner.toml says, or int8 for files.")
]
_MaxRank = Annotated[
    int, typer.Option(min=1, help="For a file or a composite: the largest rank; a home has its charter's.")
]
_Text = Annotated[
    list[str] | None, typer.Option(help="For a file or a composite: text to measure on; may be repeated.")
]
_To = Annotated[Path | None, typer.Option(help="Write an update file, a new one, instead of a contribution.")]


class _Asked(TypedDict):
    """What is asked for wherever the expert lies."""

    goal: "Goal"
    to: Path | None
    report: "Report"


def squeeze(
    source: _Source = None,
    directory: _OwnHome = None,
    anchor: _AnchorFolder = None,
    expert: Member = None,
    rank: Annotated[int | None, typer.Option(help="The rank.")] = None,
    energy: _Energy = None,
    loss: _Loss = None,
    method: _Method = None,
    max_rank: _MaxRank = 64,
    text: _Text = None,
    to: _To = None,
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

    asked: _Asked = {"goal": Goal(rank=rank, energy=energy, loss=loss), "to": to, "report": share_line()}
    chosen: Method | None = None if method is None else method.value
    if directory is not None:
        if source is not None or anchor is not None or text:
            raise typer.BadParameter("an owner's home has its own expert, anchor and text; leave out the others")
        done = squeeze_own(OwnerHome.load(directory), contribution=expert, method=chosen, **asked)
    elif source is None or anchor is None:
        raise typer.BadParameter("name an owner's home with --dir, or a file or composite and its --anchor")
    else:
        done = squeeze_file(
            source, anchor, expert=expert, method=chosen or "int8", max_rank=max_rank, texts=tuple(text or ()), **asked
        )
    _show(done, directory, as_json=as_json)


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
