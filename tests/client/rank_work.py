"""What ranks are given to do in `test_ranks`: by itself, since every rank imports whatever stands beside it."""

import os
import time
from pathlib import Path

import torch

from motet.protocols.errors import StorageError


def refuse(tell, should_stop) -> None:
    assert not should_stop()
    if torch.distributed.get_rank() == 1:
        raise StorageError("saw a full disk, wanted room; make some")
    torch.distributed.barrier()


def wait_for_ever(folder: Path, tell, should_stop) -> None:
    (folder / str(os.getpid())).touch()
    while not should_stop():
        time.sleep(0.01)
