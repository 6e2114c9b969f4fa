"""The `motet` command: collects sub-commands from the entry point group `motet.commands`.

Results go to stdout, logs and progress to stderr. A `MotetError` ends the command with its own exit code
and one message; 2 is a wrong call, 130 an interrupt, 1 anything unforeseen.
"""

import logging
import os
import sys
from importlib.metadata import entry_points
from typing import Annotated

import click
import typer

from motet.protocols.errors import MotetError

INTERRUPTED = 130
_QUIET = {"GRPC_VERBOSITY": "NONE", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""What libraries would tell on stderr beside our own words, or warn about; read when they are imported."""
_EXTRAS = {"flwr": "client", "datasets": "client", "accelerate": "client"}


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


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        result = typer.main.get_command(build()).main(arguments, prog_name="motet", standalone_mode=False)
    except click.exceptions.Abort:
        return _fail("interrupted", INTERRUPTED)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on where it stopped", INTERRUPTED)
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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"motet: {message}\n")
    return code


def main() -> None:
    """Entry point of the `motet` command."""
    raise SystemExit(run())


if __name__ == "__main__":
    main()
