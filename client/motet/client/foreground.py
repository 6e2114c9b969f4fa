"""Training at the owner's own wish, in the foreground: the same steps as the worker's, and nothing leaves.

packed = train_now(home, announce=print)  # resumes where it was interrupted
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from motet.client.outbox import Packed
from motet.client.owner import OwnerHome
from motet.client.spool import Spool
from motet.client.worker import make_contribution, stopped_by_signals

_TELL_SECONDS = 2.0


def train_now(directory: Path, *, announce: Callable[[str], None]) -> Packed:
    """Measure, train and pack; SIGINT and SIGTERM keep a checkpoint, a second one ends the process at once.

    Raises:
        KeyboardInterrupt: it was interrupted; the same call goes on from the checkpoint.
        WorkerBusy: a worker is at it; ask the coordinator, or stop it first.
        TrainingError: the loss is no longer finite.
        AnchorError, StatisticsError, DataError, TransferError, StorageError: what stands in the way.
    """
    home, stopping = OwnerHome.load(directory.absolute()), threading.Event()
    spool, told = Spool(home.path), float("-inf")

    def report(share: float, line: str) -> None:
        nonlocal told
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            announce(f"{100 * share:3.0f} %  {line}")

    try:
        with stopped_by_signals(stopping):
            spool.hold()
            packed = make_contribution(home, report=report, should_stop=stopping.is_set)
    finally:
        spool.close()
    if packed is None:
        raise KeyboardInterrupt
    return packed
