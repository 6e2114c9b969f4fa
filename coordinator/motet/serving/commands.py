"""The sub-command `motet serve`, and those of this room that lie elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.protocols.output import note
from motet.serving.bench.commands import register as register_bench
from motet.serving.chat_commands import register as register_chat
from motet.serving.policy_commands import register as register_policy
from motet.serving.usage_commands import register as register_usage

if TYPE_CHECKING:
    from motet.serving.run import ServerSettings

CompositeFolder = Annotated[
    Path, typer.Argument(metavar="COMPOSITE", help="The composite's folder, in its native form.")
]
Host = Annotated[str, typer.Option(help="The address to listen on; anything but loopback is open to others.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        help="A name by which the server is reached, say behind a proxy; may be repeated. Other names than these "
        "and localhost are refused; where --host is not loopback, only if one is given."
    ),
]
ModelName = Annotated[str | None, typer.Option(help="The model's name; the folder's if not given.")]
MaxBatch = Annotated[int, typer.Option(min=1, max=1024, help="Sequences that are generated at once.")]
Queue = Annotated[int, typer.Option(min=1, help="Prompts that may wait; more are answered 429.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads that the model computes with; all processors but one if not given."),
]
PolicyFile = Annotated[
    Path | None, typer.Option(help="policy.toml: tenants, their keys and experts; everybody may come in without.")
]
Home = Annotated[
    Path | None,
    typer.Option(
        help="A coordinator's home on this machine, whose ledger tells terms and withdrawals; /federation shows it."
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        help="The folder of the server's key and usage, of one composite at a time; below $XDG_STATE_HOME if not given."
    ),
]


def register(app: typer.Typer) -> None:
    """Add this room's sub-commands to the command line."""
    app.command()(serve)
    register_bench(app)
    register_chat(app)
    register_policy(app)
    register_usage(app)


def serve(
    composite: CompositeFolder,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allowed_host: AllowedHosts = None,
    name: ModelName = None,
    max_batch: MaxBatch = 16,
    queue: Queue = 64,
    threads: Threads = None,
    policy: PolicyFile = None,
    home: Home = None,
    state: State = None,
) -> None:
    """Serve a composite to OpenAI's clients, each request with the experts it names; to people, a page at /."""
    import uvicorn  # noqa: F401 - first, so that its extra is named if it is missing

    from motet.serving.run import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        allowed_hosts=tuple(allowed_host or ()),
        name=_model_name(name or composite.resolve().name),
        max_batch=max_batch,
        queue=queue,
        threads=threads,
    )
    _run(composite, settings, policy=policy, home=home, state=state)


def _model_name(name: str) -> str:
    if ":" in name:
        raise typer.BadParameter(f"saw the name {name!r}, wanted one without a colon, which names experts behind it")
    return name


def _run(
    composite: Path, settings: "ServerSettings", *, policy: Path | None, home: Path | None, state: Path | None
) -> None:
    """Serves it under its policy, with its pages, until it is stopped."""
    from fastapi import FastAPI

    from motet.serving.engine.loading import load_composite
    from motet.serving.governing import governed
    from motet.serving.run import serve as run
    from motet.serving.state import default_state
    from motet.serving.web import mount

    loaded = load_composite(composite)
    with governed(
        loaded,
        policy=policy,
        home=home,
        state=state or default_state(),
        max_batch=settings.max_batch,
        queue=settings.queue,
    ) as given:
        for line in given.notes:
            note(f"note: {line}")

        def extend(app: FastAPI) -> None:
            given.extend(app)
            mount(app, home=home)

        run(loaded, settings, hooks=given.hooks, extend=extend, ready=note)
