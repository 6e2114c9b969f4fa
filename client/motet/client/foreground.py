"""Training at the owner's own wish, in the foreground: the same steps as the worker's, and nothing leaves.

packed = train_now(home, announce=print)  # resumes where it was interrupted
"""

import threading
from collections.abc import Callable
from pathlib import Path

from motet.client.outbox import Packed
from motet.client.owner import OwnerHome
from motet.client.spool import Spool
from motet.client.worker import make_contribution, stopped_by_signals
from motet.protocols.output import share_line


def train_now(directory: Path, *, announce: Callable[[str], None]) -> Packed:
    """Measure, train and pack; SIGINT and SIGTERM keep a checkpoint, a second one ends the process at once.

    Raises:
        KeyboardInterrupt: it was interrupted; the same call goes on from the checkpoint.
        WorkerBusy: a worker is at it; ask the coordinator, or stop it first.
        TrainingError: the loss is no longer finite.
        AnchorError, StatisticsError, DataError, TransferError, StorageError: what stands in the way.
    """
    home, stopping = OwnerHome.load(directory.absolute()), threading.Event()
    with stopped_by_signals(stopping), Spool(home.path).holding():
        packed = make_contribution(home, report=share_line(announce), should_stop=stopping.is_set)
    if packed is None:
        raise KeyboardInterrupt
    return packed
