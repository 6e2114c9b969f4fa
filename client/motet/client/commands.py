"""The owner's sub-commands: join, train, work, contribute, withdraw, pull, eval, try, export-adapter, squeeze."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.client.adapter_commands import export_adapter
from motet.client.options import BaseConfirmed, ContributionDigest, Home, ToFile, Yes
from motet.client.speed.commands import train_speed
from motet.client.squeeze_commands import squeeze
from motet.client.try_commands import try_command
from motet.protocols.errors import AdmissionRefused
from motet.protocols.output import Json, bench_group, note, progress_line, show

if TYPE_CHECKING:
    from motet.client.contribute import Sent
    from motet.client.outbox import Packed
    from motet.client.owner import OwnerHome

_Coordinator = Annotated[
    str | None, typer.Option(help="The key that must have signed the charter; asked for if not given.")
]
_Setting = Annotated[
    list[str] | None, typer.Option("--set", help="A key of owner.toml, for example training.steps=200.")
]
_Adapter = Annotated[
    Path | None, typer.Option(help="A PEFT adapter trained elsewhere: measure it on your text and pack it first.")
]


class Part(StrEnum):
    """The processes of an owner."""

    ALL = "all"
    WORKER = "worker"
    SUPERNODE = "supernode"


def register(app: typer.Typer) -> None:
    """Add this room's sub-commands to the command line."""
    for command in (join, train, work, contribute, withdraw, pull):
        app.command()(command)
    app.command("eval")(evaluate)
    app.command("try")(try_command)
    app.command("export-adapter")(export_adapter)
    app.command()(squeeze)
    bench_group(app).command()(fidelity)
    bench_group(app).command("train")(train_speed)


def join(
    charter: Annotated[Path, typer.Argument(help="The coordinator's charter.signed.json.")],
    directory: Home,
    name: Annotated[str, typer.Option(help="What the expert, and its column in every table, is called.")],
    data: Annotated[list[str], typer.Option(help="A file or glob pattern of your text; may be repeated.")],
    licence: Annotated[str, typer.Option(help="SPDX identifier of the terms you lend the expert under.")],
    coordinator: _Coordinator = None,
    attribution: Annotated[str | None, typer.Option(help="The line to show where the expert is used.")] = None,
    purpose: Annotated[str | None, typer.Option(help="What the expert may be used for.")] = None,
    setting: _Setting = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Join a federation: make the two keys, owner.toml and a signed join request."""
    from motet.client.joining import join as join_federation

    joined = join_federation(
        charter,
        directory,
        name=name,
        files=tuple(data),
        terms={"licence": licence, "attribution": attribution, "purpose": purpose},
        coordinator=coordinator,
        settings=tuple(setting or ()),
        confirm=lambda question: yes or typer.confirm(question, err=True),
    )
    if not joined.matched:
        note(f"warning: no file matches {', '.join(data)} yet; mend data.files in {directory / 'owner.toml'}")
    show(
        joined.as_json(),
        as_json=as_json,
        lines=[
            f"owner         {joined.owner}",
            f"join request  {joined.request}",
            f"Give the join request to the coordinator, who runs `motet admit`; then: motet work --dir {directory}",
        ],
    )


def train(
    directory: Home,
    dry_run: Annotated[bool, typer.Option(help="Say what it would take: parameters, memory, minutes, bytes.")] = False,
    as_json: Json = False,
) -> None:
    """Train and pack the expert now, on this machine; nothing leaves. Resumes where it was interrupted."""
    from motet.client.foreground import train_now
    from motet.client.plan import plan_training

    if dry_run:
        plan = plan_training(directory)
        show(plan.as_json(), as_json=as_json, lines=plan.lines())
        return
    packed = train_now(directory, announce=note)
    show(
        {
            "contribution": packed.digest,
            "update": str(packed.update),
            "bits_per_byte": packed.contribution.bits_per_byte,
        },
        as_json=as_json,
        lines=[f"contribution {packed.digest}", f"Nothing has left. To send it: motet contribute --dir {directory}"],
    )


def work(
    directory: Home,
    part: Annotated[Part, typer.Argument(help="Which of the owner's processes to run.")] = Part.ALL,
    once: Annotated[
        bool, typer.Option(help="For worker: end when nothing is queued; in error if a job failed.")
    ] = False,
    superlink: Annotated[str | None, typer.Option(help="host:port of the SuperLink instead of the charter's.")] = None,
) -> None:
    """Run the owner's side: the SuperNode that takes wishes, and the worker that fulfils them."""
    from motet.client import operations

    if part is Part.ALL:
        operations.run_all(directory, superlink=superlink, announce=note)
    elif part is Part.WORKER:
        operations.run_worker(directory, once=once, announce=note)
    else:
        raise typer.Exit(operations.run_supernode(directory, superlink=superlink, announce=note))


def contribute(
    directory: Home,
    contribution: ContributionDigest = None,
    adapter: _Adapter = None,
    base_confirmed: BaseConfirmed = False,
    to: ToFile = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would leave, and stop.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Show what leaves, ask, and send the contribution; a broken transfer resumes."""
    from motet.client import contribute as contributing
    from motet.client.outbox import deciding
    from motet.client.owner import OwnerHome

    home = OwnerHome.load(directory)
    meant = _meant(home, contribution, adapter, base_confirmed=base_confirmed)
    with deciding(meant, home) as agree:
        leaving = contributing.describe(meant, home)
        if dry_run:
            value = {"contribution": meant.digest, "sent": False} | contributing.described(meant, home)
            show(value, as_json=as_json, lines=[*leaving, "nothing was sent"])
            return
        for line in leaving:
            note(line)
        if not yes:
            typer.confirm("Let this leave?", abort=True, err=True)
        packed = agree()
    if to is not None:
        _show_written(packed.digest, contributing.export(packed, to), as_json=as_json)
        return
    sent = contributing.contribute(home, packed, progress=progress_line("sending"))
    _show_sent(packed.digest, sent, as_json=as_json)


def _meant(home: "OwnerHome", contribution: str | None, adapter: Path | None, *, base_confirmed: bool) -> "Packed":
    """The contribution that is to leave: one of the outbox, or an adapter's, packed now as a draft."""
    from motet.client.outbox import find_packed

    if adapter is None:
        return find_packed(home, contribution)
    if contribution is not None:
        raise typer.BadParameter("name a contribution that is packed, or an adapter to pack, not both")
    from motet.client.adoption import adopt

    return adopt(home, adapter, base_confirmed=base_confirmed, draft=True, report=lambda share, line: note(line))


def _show_written(contribution: str, file: Path, *, as_json: bool) -> None:
    """What was written for the owner to hand over."""
    told = f"Give it to the coordinator, who runs: motet admit {file.name} --dir FEDERATION"
    show({"contribution": contribution, "file": str(file)}, as_json=as_json, lines=[f"wrote {file}", told])


def _show_sent(contribution: str, sent: "Sent | None", *, as_json: bool) -> None:
    """What came of sending; ends with the exit code of a refusal if it is one."""
    if sent is None:
        line = "agreed; Flower carries it when the coordinator asks"
        show({"contribution": contribution, "status": "offered"}, as_json=as_json, lines=[line])
        return
    verdict = sent.verdict
    value = {
        "contribution": contribution,
        "status": verdict.status,
        "reason": verdict.reason,
        "sent_bytes": sent.sent_bytes,
    }
    why = f": {verdict.message}" if verdict.message else ""
    show(value, as_json=as_json, lines=[f"{verdict.status}, ledger entry {verdict.sequence}{why}"])
    if verdict.status != "admitted":
        raise typer.Exit(AdmissionRefused.exit_code)


def withdraw(
    directory: Home,
    contribution: ContributionDigest = None,
    reason: Annotated[str | None, typer.Option(help="Kept in the ledger, for everybody to read.")] = None,
    to: ToFile = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Take a contribution back: every later composite leaves the expert out. It cannot be undone."""
    from motet.client import contribute as contributing
    from motet.client.outbox import find_packed
    from motet.client.owner import OwnerHome
    from motet.protocols.canonical import write_atomically

    home = OwnerHome.load(directory)
    digest = contribution or find_packed(home).digest
    if not yes:
        typer.confirm(f"Withdraw {digest} for ever?", abort=True, err=True)
    if to is not None:
        write_atomically(to, contributing.sign_withdrawal(home, digest, reason=reason).canonical())
        _show_written(digest, to, as_json=as_json)
        return
    receipt = contributing.withdraw(home, digest, reason=reason)
    show(receipt.model_dump(mode="json"), as_json=as_json, lines=[f"withdrawn, ledger entry {receipt.sequence}"])


def pull(
    composite: Annotated[str, typer.Argument(help="The composite's digest, as the coordinator tells it.")],
    directory: Home,
    as_json: Json = False,
) -> None:
    """Fetch a composite, verified against its digest; a broken transfer resumes."""
    from motet.client.evaluation import pull as fetch
    from motet.client.owner import OwnerHome

    folder = fetch(OwnerHome.load(directory), composite, progress=progress_line("fetching"))
    show({"composite": composite, "path": str(folder)}, as_json=as_json, lines=[str(folder)])


def evaluate(
    composite: Annotated[str, typer.Argument(help="The composite's digest.")],
    directory: Home,
    as_json: Json = False,
) -> None:
    """Score a composite on your own held-out text, row by row, in bits per byte. Nothing leaves.

    Shows too whom its gate trusts with your text, and how the loss falls as a text goes on.
    """
    from motet.client.evaluation import evaluate as score
    from motet.client.owner import OwnerHome
    from motet.moe.scoring import bits_per_byte
    from motet.protocols.contribution import EvaluationReport
    from motet.protocols.report_page import page_of_own

    report = score(OwnerHome.load(directory), composite).open(EvaluationReport)
    figures = {row: round(bits_per_byte(found), 6) for row, found in report.rows.items()}
    width = max(map(len, figures))
    lines = [f"{row:<{width}}  {figure:.3f}" for row, figure in figures.items()]
    value: dict[str, object] = {"domain": report.domain, "bits_per_byte": figures}
    if report.diagnostics is not None:
        page = page_of_own(report.domain, report.diagnostics)
        lines += ["", *page.lines()]
        value["evaluation"] = page.as_json()
    show(value, as_json=as_json, lines=[report.domain, *lines])


def fidelity(directory: Home, as_json: Json = False) -> None:
    """Measure what each encoding of your trained expert costs, and how much of its gain is kept. Nothing leaves.

    Trains the expert first unless that is done. Scales are tuned on one half of the held-out documents and the gain is
    measured on the other, then the halves change places; gains are in bits per byte against the anchor.
    """
    from motet.client.fidelity import fidelity as measure
    from motet.client.owner import OwnerHome

    home = OwnerHome.load(directory)
    rows = list(measure(home, tell=note))
    lines = [f"{'method':<10}{'options':<28}{'bits/param':>11}{'gain kept':>11}{'factor':>8}"]
    for row in rows:
        factor = "" if row.factor is None else f"{row.factor:.2f}"
        lines.append(
            f"{row.method:<10}{row.options:<28}{row.bits_per_parameter:>11.3f}{100 * row.gain_kept:>10.1f}%{factor:>8}"
        )
    show(
        {"name": home.config.name, "rows": [row.model_dump(mode="json") for row in rows]}, as_json=as_json, lines=lines
    )
