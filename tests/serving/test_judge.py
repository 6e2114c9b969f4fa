"""The judge of the soak: it lets near ties pass and nothing else."""

from dataclasses import replace

import pytest
import torch

from motet.serving.engine.job import Job, Sampling
from motet.serving.engine.loading import Composite

from . import judge
from .batches import prompts
from .judge import Said, alone, fault

GREEDY = Sampling(max_tokens=4, temperature=0.0)
DRAWN = Sampling(max_tokens=4, temperature=1.0, seed=3)


def job_of(composite: Composite, sampling: Sampling, samples: int = 1) -> Job:
    return Job(prompt=prompts(1)[0], experts=composite.roster.every(), sampling=sampling, samples=samples)


def wrongs(said: Said) -> list[Said]:
    return [
        replace(said, ids=said.ids[:-1]),
        replace(said, ids=()),
        replace(said, ids=(), text="", finish="stop"),
        replace(said, ids=said.ids[:2], finish="stop"),
        replace(said, ids=(*said.ids[:-1], (said.ids[-1] + 1) % 200)),
        replace(said, text=said.text + "x"),
        replace(said, finish="stop"),
        replace(said, finish="error"),
        replace(said, finish="expert_withdrawn", ids=said.ids[:2]),
    ]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_what_is_not_the_answer_is_a_fault(composite: Composite, sampling: Sampling) -> None:
    job = job_of(composite, sampling, samples=2)
    first, second = alone(composite, job)
    assert fault(composite, job, [first, second]) is None
    assert fault(composite, job, [first])
    assert all(fault(composite, job, [first, wrong]) for wrong in wrongs(second))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_another_token_passes_at_a_near_tie_alone(
    composite: Composite, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(composite, sampling)
    said = alone(composite, job)[0]
    other = Said(ids=(*said.ids[:2], said.ids[2] + 1, *said.ids[3:]), text=said.text, finish="length")
    assert "which led by" in str(fault(composite, job, [other]))
    monkeypatch.setattr(judge, "NEAR_TIE", torch.inf)
    assert fault(composite, job, [other]) is None
    assert fault(composite, job, [replace(other, ids=other.ids[:-1])])
