"""An engine's batch in hand, pass by pass, and what its tickets were told.

batch = batch_of(composite)
told = begin(batch, prompts(1)[0], composite.roster.every(), max_tokens=4)
finish(batch)
told.tokens(), told.finish
"""

import threading
from dataclasses import dataclass, field

import torch

from motet.serving.engine.batch import Batch
from motet.serving.engine.job import Job, Sampling, Step
from motet.serving.engine.loading import Composite
from motet.serving.engine.network import Network
from motet.serving.engine.prefixes import Prefixes
from motet.serving.engine.sequence import Ticket
from motet.serving.hooks import nobody


def prompts(number: int, length: int = 9) -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(7)
    return [tuple(torch.randint(3, 200, (length + at,), generator=draw).tolist()) for at in range(number)]


@dataclass
class Heard:
    """What a ticket was told."""

    steps: list[Step] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        if step.finish:
            self.done.set()

    def tokens(self, sample: int = 0) -> list[int]:
        return [step.token.id for step in self.steps if step.token and step.sample == sample]

    @property
    def finish(self) -> list[str]:
        return [step.finish for step in self.steps if step.finish]


def batch_of(composite: Composite, *, prefix_tokens: int = 0, withdrawn=nobody, **settings) -> Batch:
    return Batch(
        Network(composite.model),
        composite.tokenizer,
        max_batch=8,
        prefixes=Prefixes(tokens=prefix_tokens),
        ends=composite.ends,
        withdrawn=withdrawn,
        **settings,
    )


def begin(batch: Batch, prompt, experts, **sampling) -> Heard:
    samples = sampling.pop("samples", 1)
    heard = Heard()
    how = Sampling(**{"temperature": 0.0, "max_tokens": 8} | sampling)
    batch.begin(Ticket(Job(prompt=tuple(prompt), experts=experts, sampling=how, samples=samples), heard))
    return heard


def alone(composite: Composite, prompt, experts, tokens: int = 8) -> list[int]:
    ids = torch.tensor([list(prompt)])
    how = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    return composite.model.generate(ids, expert_sets=[list(experts.names)], **how)[0, len(prompt) :].tolist()


def finish(batch: Batch) -> None:
    for _ in range(200):
        if not batch.running:
            return
        batch.step()
    raise AssertionError("the batch did not end")
