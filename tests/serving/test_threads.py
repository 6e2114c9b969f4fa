"""How many threads a pass computes with: one processor is left to HTTP."""

import os
from collections.abc import Iterator

import pytest
import torch

from motet.serving.engine.threads import compute_with, default_threads


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("processors", "allowed", "wanted"), [(1, 1, 1), (2, 2, 1), (8, 8, 7), (8, 3, 3), (2, 1, 1)])
def test_one_processor_is_left(monkeypatch: pytest.MonkeyPatch, processors: int, allowed: int, wanted: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)))
    torch.set_num_threads(allowed)
    assert default_threads() == wanted
    assert compute_with(None) == torch.get_num_threads() == wanted


def test_somebody_who_names_a_number_has_it() -> None:
    assert compute_with(2) == torch.get_num_threads() == 2
