"""How many threads a pass of the model computes with.

A pass that has every processor waits, product by product, for the one that HTTP is busy on: on two processors it was
slower with two threads than with one (docs/serving.md). So one is left to everything else.

    compute_with(threads)                   # before the engine is made; None for the default
"""

import os

import torch


def default_threads() -> int:
    """All processors that this process may use but one, at least one, and no more than OMP_NUM_THREADS allows."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), processors - 1))


def compute_with(threads: int | None) -> int:
    """Sets it for threads that start from now on; returns what was set."""
    chosen = threads or default_threads()
    torch.set_num_threads(chosen)
    return chosen
