"""The coordinator's sub-commands: init, coordinate, admit, assemble, ablate, report."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from pydantic import ValidationError

from motet.protocols.output import Json, note, progress_line, show

if TYPE_CHECKING:
    from motet.protocols.charter import Charter
    from motet.protocols.documents import Strict

Home = Annotated[Path, typer.Option("--dir", help="The coordinator's home.")]
_Anchor = Annotated[
    Path,
    typer.Option(help="The anchor: an olmo2, llama, mistral or qwen3 checkpoint, statistics.safetensors beside it."),
]
_TryBeforeJoining = Annotated[
    bool, typer.Option("--try-before-joining", help="Let whoever has the charter fetch composites to try them.")
]
_DropBias = Annotated[
    bool,
    typer.Option(
        help="Drop the router's bias from the stock export, and a filter where it cannot be kept; says the cost."
    ),
]
_Tune = Annotated[
    int | None,
    typer.Option(min=1, metavar="STEPS", help="Then tune the router on the members' proxies; says what changed."),
]
_Rules = TypeVar("_Rules", bound="Strict")


class Part(StrEnum):
    """The processes of a coordinator."""

    ALL = "all"
    SUPERLINK = "superlink"
    DATA_PLANE = "data-plane"
    RUN = "run"


class Routing(StrEnum):
    """What a composite's weights follow, as far as it needs no further setting."""

    FILTER = "filter"
    TOKEN = "token"  # noqa: S105 - a kind of routing


def register(app: typer.Typer) -> None:
    """Add this room's sub-commands to the command line."""
    for command in (init, coordinate, admit, assemble, ablate, report):
        app.command()(command)


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new home; must not exist or be empty.")],
    name: Annotated[str, typer.Option(help="What the federation is called.")],
    anchor: _Anchor,
    public_text: Annotated[Path, typer.Option(help="Public text, JSON lines with a text each.")],
    data_plane: Annotated[str, typer.Option(help="host:port where owners reach the data plane.")],
    flower: Annotated[str, typer.Option(help="host:port where owners reach the SuperLink, or the proxy before it.")],
    host: Annotated[list[str] | None, typer.Option(help="A further name for the TLS certificate.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Experts per token; all of them if not given.")] = None,
    routing: Annotated[Routing, typer.Option(help="Route natively, or as stock checkpoints can.")] = Routing.FILTER,
    proxies: Annotated[int, typer.Option(min=0, help="Public documents each owner may name for router tuning.")] = 0,
    try_before_joining: _TryBeforeJoining = False,
    as_json: Json = False,
) -> None:
    """Make a coordinator's home: keys, private CA, signed charter, ledger."""
    from motet.coordinator.founding import init as make_home
    from motet.protocols.charter import Addresses, ExpertRules, RoutingRules

    wanted = "wanted host:port, such as motet.example.org:9443"
    addresses = _rules(Addresses, wanted, data_plane=data_plane, flower=flower)
    rules = _rules(RoutingRules, "change --routing or --proxies", kind=routing.value, proxies=proxies, top_k=top_k)
    charter = make_home(
        directory,
        name=name,
        anchor_directory=anchor,
        public_text=public_text,
        addresses=addresses,
        experts=ExpertRules(try_before_joining=try_before_joining),
        routing=rules,
        hosts=tuple(host or ()),
    )
    _show_founded(charter, directory, as_json=as_json)


def _rules(part: type[_Rules], advice: str, /, **told: object) -> _Rules:
    """The part of a charter that options tell; raises ConfigurationError, with `advice`, for what is none."""
    from motet.protocols.documents import first_problem
    from motet.protocols.errors import ConfigurationError

    try:
        return part.model_validate(told)
    except ValidationError as error:
        raise ConfigurationError(f"{first_problem(error)}; {advice}") from error


def _show_founded(charter: "Charter", directory: Path, *, as_json: bool) -> None:
    """What owners need, and what composites of this anchor can be exported as."""
    from motet.coordinator.anchor_rules import export_notes, family_at

    signed = directory / "charter.signed.json"
    show(
        {"charter": charter.digest, "coordinator": charter.coordinator, "file": str(signed)},
        as_json=as_json,
        lines=[
            f"charter      {charter.digest}",
            f"coordinator  {charter.coordinator}",
            *export_notes(family_at(directory / "anchor"), charter.routing),
            f"Give owners {signed} and the key above; then: motet coordinate --dir {directory}",
        ],
    )


def coordinate(
    directory: Home,
    part: Annotated[Part, typer.Argument(help="Which of the coordinator's processes to run.")] = Part.ALL,
    listen: Annotated[str | None, typer.Option(help="host:port to bind; the charter's address if not given.")] = None,
    superlink: Annotated[str | None, typer.Option(help="For run: host:port of the SuperLink on this machine.")] = None,
    min_owners: Annotated[int, typer.Option(min=1, help="Owners that must have an admitted expert.")] = 1,
    gather_seconds: Annotated[float, typer.Option(min=0, help="Then min-owners suffice; 0 waits for all.")] = 0.0,
    evaluate_seconds: Annotated[
        float, typer.Option(min=0, help="Then one owner's scores suffice; 0 waits for all.")
    ] = 0.0,
    poll_seconds: Annotated[float, typer.Option(min=0, help="Seconds between two questions to an owner.")] = 0.5,
    shapley: Annotated[bool, typer.Option("--shapley", help="Owners score every expert set, of 8 at most.")] = False,
) -> None:
    """Run the coordinator: the SuperLink, the data plane, and a run that gathers, assembles and evaluates."""
    from motet.coordinator import operations

    _require_meant(part, listen, superlink)
    settings: dict[str, str | int | float] = {
        "min-owners": min_owners,
        "gather-seconds": gather_seconds,
        "evaluate-seconds": evaluate_seconds,
        "poll-seconds": poll_seconds,
        "shapley": shapley,
    }
    if part is Part.ALL:
        operations.run_all(directory, settings=settings, announce=note)
    elif part is Part.SUPERLINK:
        operations.run_superlink(directory, listen=listen, announce=note)
    elif part is Part.DATA_PLANE:
        operations.run_data_plane(directory, listen=listen, announce=note)
    else:
        operations.run_federation(directory, superlink=superlink, settings=settings, announce=note)


def _require_meant(part: Part, listen: str | None, superlink: str | None) -> None:
    """An address that the part has no use for was meant for another one."""
    if listen is not None and part not in (Part.SUPERLINK, Part.DATA_PLANE):
        raise typer.BadParameter(
            f"--listen is for superlink or data-plane, not for {part.value}: start them one by one"
        )
    if superlink is not None and part is not Part.RUN:
        raise typer.BadParameter(f"--superlink is for run, not for {part.value}")


def admit(
    file: Annotated[Path, typer.Argument(help="A join request, a contribution, or a withdrawal.")],
    directory: Home,
    receipt: Annotated[Path | None, typer.Option(help="Write the signed receipt here, for the owner.")] = None,
    as_json: Json = False,
) -> None:
    """Take in a file that an owner handed over: enrol, admit, or withdraw."""
    from motet.coordinator.federation import Federation
    from motet.protocols.canonical import write_atomically

    with Federation.open(directory) as federation:
        filed = federation.admit_file(file)
    if receipt is not None and filed.receipt is not None:
        write_atomically(receipt, filed.receipt.canonical())
    value = {
        "status": filed.status,
        "subject": filed.subject,
        "receipt": None if filed.receipt is None else filed.receipt.as_json(),
    }
    why = "" if filed.message is None else f"\n{filed.message}"
    show(value, as_json=as_json, lines=[f"{filed.status} {filed.subject}{why}"])
    if filed.status == "refused":
        raise typer.Exit(11)


def assemble(
    directory: Home,
    without: Annotated[list[str] | None, typer.Option(help="Leave this expert out; may be repeated.")] = None,
    stock: Annotated[bool, typer.Option(help="Also export a checkpoint for plain transformers.")] = True,
    drop_bias: _DropBias = False,
    tune: _Tune = None,
    dry_run: Annotated[
        bool, typer.Option(help="Say what would be assembled, and what both forms take on the disk.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Assemble the composite of everything admitted, not withdrawn and not expired, and export it."""
    from motet.coordinator import composite_plan, composites
    from motet.coordinator.federation import Federation

    with Federation.open(directory) as federation:
        if dry_run:
            plan = composite_plan.plan(federation, tuple(without or ()), stock=stock, drop_bias=drop_bias, tune=tune)
            show(plan.as_json(), as_json=as_json, lines=plan.lines())
            return
        made = composites.make(
            federation,
            tuple(without or ()),
            stock=stock,
            drop_bias=drop_bias,
            tune=tune,
            progress=progress_line("assembling"),
            on_step=progress_line("tuning", "steps"),
        )
    show(made.as_json(), as_json=as_json, lines=made.lines())
    if made.not_exported is not None:
        note("the native form is made, but no stock export; --no-stock asks for none")
        raise made.not_exported


def ablate(
    directory: Home,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Score this JSON lines file too, under this name; may be repeated."),
    ] = None,
    check: Annotated[
        int,
        typer.Option(min=0, help="Assemble so many of the best sets, as many others, and all together, to compare."),
    ] = 0,
    dry_run: Annotated[bool, typer.Option(help="Say how many models would be scored, and on what.")] = False,
    as_json: Json = False,
) -> None:
    """Predict which sets of experts are worth assembling, from averages of their parameters."""
    from motet.coordinator import ablation
    from motet.coordinator.federation import Federation

    texts = _named_files(text or [])
    with Federation.open(directory) as federation:
        if dry_run:
            plan = ablation.plan(federation, texts, check=check)
            show(plan.as_json(), as_json=as_json, lines=plan.lines())
            return
        found = ablation.ablate(federation, texts, check=check, progress=progress_line("scoring", "models"))
    show(found.as_json(), as_json=as_json, lines=found.lines())


def _named_files(given: list[str]) -> dict[str, Path]:
    """NAME=FILE, each name once."""
    pairs = [entry.partition("=") for entry in given]
    for entry, (name, equals, file) in zip(given, pairs, strict=True):
        if not (name and equals and file):
            raise typer.BadParameter(f"saw --text {entry}, wanted NAME=FILE such as law=law.jsonl")
        if [other for other, _, _ in pairs].count(name) > 1:
            raise typer.BadParameter(f"saw two texts called {name}, wanted each name once")
    return {name: Path(file) for name, _, file in pairs}


def report(
    directory: Home,
    composite: Annotated[str | None, typer.Option(help="Its digest; the newest if not given.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page here, one file with figures.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the page's tables here.")] = None,
    as_json: Json = False,
) -> None:
    """Print what a composite scores on public text and, as its owners told, on theirs."""
    from motet.coordinator.federation import Federation
    from motet.coordinator.reporting import report_of
    from motet.protocols.canonical import write_atomically
    from motet.protocols.report_page import INTERVALS

    with Federation.open(directory) as federation:
        found = report_of(federation, composite)
    lines = [*found.table(), "", *found.wire_table()]
    if found.evaluation is not None:
        warnings = [f"! {line}" for line in found.evaluation.notes if line != INTERVALS]
        lines += [*(["", *warnings] if warnings else []), "", *found.evaluation.lines()]
        if html is not None:
            write_atomically(html, found.evaluation.html().encode())
        if markdown is not None:
            write_atomically(markdown, found.evaluation.markdown().encode())
    show(found.as_json(), as_json=as_json, lines=lines)
