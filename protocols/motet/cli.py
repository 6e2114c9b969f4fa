"""The `motet` command: collects sub-commands from the entry point group `motet.commands`.

Results go to stdout, logs and progress to stderr. A `MotetError` ends the command with its own exit code
and one message; 2 is a wrong call, 130 an interrupt, 1 anything unforeseen.
"""

import logging
import os
import sys
from importlib.metadata import entry_points
from typing import Annotated, get_type_hints

import click
import typer
from typer.models import ArgumentInfo

from motet.protocols.errors import MotetError

INTERRUPTED = 130
_SURROUNDINGS = {
    "GRPC_VERBOSITY": "NONE",
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # children only exec; gRPC's own hooks in a fork can abort it
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Keeps libraries from telling on stderr what is not our own word, and from meddling; read when they are imported."""
_EXTRAS = {
    "flwr": "client",
    "datasets": "client",
    "accelerate": "client",
    "lm_eval": "harness",
    "openai": "chat",
} | dict.fromkeys(("fastapi", "fastapi_offline", "uvicorn", "prometheus_client"), "serving")


def build() -> typer.Typer:
    """The command line with every room's sub-commands."""
    app = typer.Typer(
        name="motet",
        help="Federated expert training: a mixture of experts, trained apart, toggled at will.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for entry in sorted(entry_points(group="motet.commands"), key=lambda entry: entry.name):
        entry.load()(app)
    return app


def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step to stderr.")] = False,
) -> None:
    level = logging.INFO if verbose or os.environ.get("MOTET_VERBOSE") else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def command_line() -> click.Command:
    """The same as a click command, with the arguments' help, which typer 0.20 loses under click 8.4 and newer."""
    app = build()
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)  # noqa: S101 - it has more than one command
    for registered in app.registered_commands:
        callback = registered.callback
        assert callback is not None  # noqa: S101 - every room registers functions
        hints = get_type_hints(callback, include_extras=True)
        for parameter in group.commands[registered.name or callback.__name__].params:
            for described in getattr(hints[parameter.name or ""], "__metadata__", ()):
                if isinstance(described, ArgumentInfo) and isinstance(parameter, click.Argument):
                    parameter.help = described.help
    return group


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    for name, value in _SURROUNDINGS.items():
        os.environ.setdefault(name, value)
    try:
        result = command_line().main(arguments, prog_name="motet", standalone_mode=False)
    except click.exceptions.Abort:
        return _fail("ended at the question, so nothing was done; run the command again to agree", INTERRUPTED)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except MotetError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _fail(f"this command needs the package {error.name}: pip install 'motet[{extra}]'", 3)
    if result == INTERRUPTED:  # what typer makes of KeyboardInterrupt, without a word
        return _fail("interrupted; what was complete is kept; run the same command again", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"motet: {message}\n")
    return code


def main() -> None:
    """Entry point of the `motet` command."""
    raise SystemExit(run())


if __name__ == "__main__":
    main()
