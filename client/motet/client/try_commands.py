"""The sub-command `motet try`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from motet.client.options import BaseConfirmed
from motet.protocols.errors import ConfigurationError
from motet.protocols.output import Json, note, progress_line, show

if TYPE_CHECKING:
    from motet.client.composite_trial import CompositeTrial
    from motet.client.owner import OwnerHome
    from motet.client.trying import TrialPlan


class FileFormat(StrEnum):
    """What the files of a text are, as data.format in owner.toml."""

    AUTO = "auto"
    JSONL = "jsonl"
    TEXT = "text"
    PARQUET = "parquet"
    MESSAGES = "messages"


_Charter = Annotated[Path | None, typer.Option(help="Before joining: the coordinator's charter.signed.json.")]
_Coordinator = Annotated[str | None, typer.Option(help="Before joining: the key that must have signed it.")]
_Data = Annotated[
    list[str] | None, typer.Option(help="Before joining: a file or glob pattern of your text; may be repeated.")
]
_TextField = Annotated[
    str | None, typer.Option(help="Before joining: the field or column that holds a document; text if not given.")
]
_Format = Annotated[
    FileFormat | None,
    typer.Option("--format", help="Before joining: what the files are; messages are JSON lines of conversations."),
]
_MaxBytes = Annotated[
    int | None, typer.Option(min=1, help="Before joining: about how much of the text to use; 256 KiB.")
]


def try_command(
    directory: Annotated[Path, typer.Option("--dir", help="Your home; before joining, a folder for what is fetched.")],
    digest: Annotated[
        str | None, typer.Argument(metavar="COMPOSITE", help="Its digest; the newest published if not given.")
    ] = None,
    composite: Annotated[
        Path | None, typer.Option(help="The composite's folder, where it was handed over; nothing of it is fetched.")
    ] = None,
    charter: _Charter = None,
    coordinator: _Coordinator = None,
    data: _Data = None,
    text_field: _TextField = None,
    file_format: _Format = None,
    max_bytes: _MaxBytes = None,
    expert: Annotated[Path | None, typer.Option(help="Your expert's file instead of the newest in the outbox.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Your expert as a PEFT adapter trained elsewhere.")] = None,
    base_confirmed: BaseConfirmed = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would be fetched and scored, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Measure on your own text what a composite brings, alone and with your expert added. Nothing is uploaded.

    In bits per byte of documents held out, with intervals over documents. Before joining it takes the charter, the
    coordinator's key and a charter that allows it (experts.try_before_joining), or the composite as a folder.
    """
    from motet.client.own_expert import find_source
    from motet.client.trying import plan_trial, try_composite

    kind = file_format and file_format.value
    told = {"files": data, "text_field": text_field, "format": kind, "max_bytes": max_bytes}
    home = _home(directory, charter, coordinator, {key: value for key, value in told.items() if value})
    source = find_source(home, file=expert, adapter=adapter, base_confirmed=base_confirmed)
    what: dict[str, Any] = {"composite": digest, "folder": composite, "source": source}
    found: TrialPlan | CompositeTrial
    if dry_run:
        found = plan_trial(home, **what)
    else:
        found = try_composite(home, **what, tell=note, progress=progress_line("fetching"))
    show(found.as_json(), as_json=as_json, lines=found.lines())


def _home(directory: Path, charter: Path | None, coordinator: str | None, data: dict[str, Any]) -> "OwnerHome":
    """The owner's home, or a guest's folder with the text that the options say."""
    from motet.client.owner import DataConfig, OwnerHome
    from motet.client.trying import guest

    if charter is None:
        if coordinator is not None or data:
            raise ConfigurationError(
                "saw --coordinator or an option that says which text without --charter; a home has its own in "
                "owner.toml, before joining give --charter, --coordinator and --data"
            )
        return OwnerHome.load(directory)
    if coordinator is None or "files" not in data:
        raise ConfigurationError(
            "saw --charter without --coordinator and --data, wanted the key that must have signed it and your text; "
            "ask the coordinator for the key"
        )
    return guest(charter, directory, data=DataConfig(**data), coordinator=coordinator)
