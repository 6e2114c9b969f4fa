"""The coordinator's Flower ServerApp: the edge between Flower and `motet.coordinator.conduct`.

    flwr run flower_app --run-config 'motet-home="/srv/motet" min-owners=3'

Each run holds `home/run`, logs to `home/run/log`, and continues what an earlier one left.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from motet.coordinator.conduct import Federation, Run
from motet.coordinator.gather import Policy
from motet.coordinator.post import Post
from motet.coordinator.run_record import RunRecord


def serve(open_federation: Callable[[Path], Federation]) -> ServerApp:
    """A ServerApp over the homes that `open_federation` opens."""
    application = ServerApp()

    @application.main()
    def main(grid: Grid, context: Context) -> None:
        home = Path(str(context.run_config["motet-home"]))
        with RunRecord.hold(home, str(context.run_id)) as record, _log_to(home / "run" / "log"):
            shapley = bool(context.run_config.get("shapley", False))
            run = Run(federation=open_federation(home), post=Post(grid), record=record, shapley=shapley)
            run.play(gather=_policy(context, "gather-seconds"), evaluate=_policy(context, "evaluate-seconds"))

    return application


def _open(home: Path) -> Federation:
    from motet.coordinator.run_federation import RunFederation

    return RunFederation.open(home)


app = serve(_open)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Log into a file: what a ServerApp prints goes to nowhere but `flwr log`."""
    handler, root = logging.FileHandler(path, encoding="utf-8"), logging.getLogger("motet")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _policy(context: Context, deadline: str) -> Policy:
    seconds = float(context.run_config[deadline])
    return Policy(
        min_owners=int(context.run_config["min-owners"]),
        deadline_seconds=seconds if seconds > 0 else None,
        poll_seconds=float(context.run_config["poll-seconds"]),
    )
