"""The sub-command `motet export-adapter`."""

from pathlib import Path
from typing import Annotated

import typer

from motet.client.options import Member
from motet.protocols.output import Json, show


def export_adapter(
    source: Annotated[
        Path, typer.Argument(help="An owner's home, a composite, or an expert's file: update, container, store file.")
    ],
    out: Annotated[Path, typer.Argument(help="The adapter's folder; a new one.")],
    anchor: Annotated[Path | None, typer.Option(help="The anchor's folder; needed for a file.")] = None,
    expert: Member = None,
    as_json: Json = False,
) -> None:
    """Write a low-rank expert as a PEFT adapter that loads on the anchor. Nothing leaves.

    The adapter is the anchor with this expert alone: routing rows have no place in it.
    """
    from motet.client.adapter_sources import lowrank_in
    from motet.client.adapters import write_adapter
    from motet.moe.lowrank import common_rank

    found = lowrank_in(source, anchor=anchor, expert=expert)
    base = None if found.base is None else str(found.base.absolute())
    write_adapter(out, found.factors, base=base)
    rank = common_rank(found.factors)
    show(
        {"adapter": str(out), "rank": rank, "base": base},
        as_json=as_json,
        lines=[f"wrote {out}, rank {rank}", f'To use it: PeftModel.from_pretrained(anchor_model, "{out}")'],
    )
