"""Whether a server's answer is what the same request gives alone: the same tokens, text and end.

wrong = fault(composite, job, [Said(ids=(5, 9), text="ab", finish="length")])         # None if nothing is
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from motet.serving.engine.batch import Batch
from motet.serving.engine.job import Job, Step
from motet.serving.engine.loading import Composite
from motet.serving.engine.network import Network, Row
from motet.serving.engine.prefixes import Prefixes
from motet.serving.engine.sampling import SEEDS
from motet.serving.engine.sequence import Ticket
from motet.serving.hooks import nobody

NEAR_TIE = 1e-4


@dataclass(frozen=True)
class Said:
    """One choice of an answer."""

    ids: tuple[int, ...]
    text: str
    finish: str


def alone(composite: Composite, job: Job) -> list[Said]:
    """What the job's samples are with nobody else in the batch, and nothing known from before."""
    steps: list[Step] = []
    batch = Batch(
        Network(composite.model),
        composite.tokenizer,
        max_batch=job.samples,
        prefixes=Prefixes(tokens=0),
        ends=composite.ends,
        withdrawn=nobody,
    )
    batch.begin(Ticket(job, steps.append))
    while batch.running:
        batch.step()
    return [_said([step for step in steps if step.sample == sample]) for sample in range(job.samples)]


def fault(composite: Composite, job: Job, said: Sequence[Said]) -> str | None:
    """What is wrong with an answer; None where it is the one given alone, or leaves it at a near tie."""
    wanted = alone(composite, job)
    if len(said) != len(wanted):
        return f"{len(said)} choices instead of {len(wanted)}"
    faults = [_fault(composite, job, sample, *each) for sample, each in enumerate(zip(said, wanted, strict=True))]
    return next((each for each in faults if each), None)


def _said(steps: Sequence[Step]) -> Said:
    return Said(
        ids=tuple(step.token.id for step in steps if step.token),
        text="".join(step.text for step in steps),
        finish=str(steps[-1].finish),
    )


def _fault(composite: Composite, job: Job, sample: int, said: Said, wanted: Said) -> str | None:
    if said == wanted:
        return None
    if not said.ids or said.finish not in ("stop", "length"):
        return f"{said} is no whole answer"
    if said.finish == "length" and len(said.ids) != job.sampling.max_tokens:
        return f"{len(said.ids)} tokens are not the {job.sampling.max_tokens} asked for"
    at = next((at for at, (one, other) in enumerate(zip(said.ids, wanted.ids, strict=False)) if one != other), None)
    if at is None:  # whose end, or text, is another one
        return f"{said} instead of {wanted}"
    lead = _lead(composite, job, sample, wanted.ids[: at + 1])
    return None if lead < NEAR_TIE else f"{said} instead of {wanted}, which led by {lead} at token {at}"


def _lead(composite: Composite, job: Job, sample: int, ids: Sequence[int]) -> float:
    """By how much the last of `ids` was ahead of the next best, in logits; drawn ones with what the draw added to each.

    `torch.multinomial` draws by p / q, q exponential, that is by logit / temperature - log q.
    """
    network, state = Network(composite.model), Network(composite.model).new_state(job.experts.digest)
    read = (*job.prompt, *ids[:-1])
    logits = network.run([Row(state=state, tokens=read, mask=job.experts.mask)]).logits[0].double()
    if job.sampling.temperature:
        generator = torch.Generator().manual_seed((int(job.sampling.seed or 0) + sample) % SEEDS)
        for _ in ids:
            luck = torch.empty_like(logits).exponential_(1, generator=generator)
        logits = logits - job.sampling.temperature * luck.log()
    best = torch.topk(logits, 2)
    assert int(best.indices[0]) == ids[-1], "the judge draws otherwise than the server"
    return float(best.values[0] - best.values[1])
