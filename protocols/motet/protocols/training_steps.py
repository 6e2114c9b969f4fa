"""How far a training is: one line of a job's state, which the owner's worker writes and the coordinator reads.

    line = str(TrainingStep(step=20, steps=100, loss=4.2))       # "step 20 of 100, loss 4.200 nats per token"
    TrainingStep.told_in(line + ", 900 tokens/s")                # the same again; None for any other line

A line that people read is enough for programs too, and owners' releases differ in nothing else. What an owner says
need not be true; it is two whole numbers and one that is neither negative nor endless.
"""

import re
from dataclasses import dataclass
from typing import Self

_TOLD = re.compile(r"step ([0-9]{1,9}) of ([0-9]{1,9}), loss ([0-9]{1,6}\.[0-9]{3}) nats per token\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """One step of a training. loss: in nats per token, of that step alone."""

    step: int
    steps: int
    loss: float

    def __str__(self) -> str:
        return f"step {self.step} of {self.steps}, loss {self.loss:.3f} nats per token"

    @classmethod
    def told_in(cls, line: str) -> Self | None:
        """The step that a line begins with, None if it begins with something else."""
        found = _TOLD.match(line)
        return None if found is None else cls(step=int(found[1]), steps=int(found[2]), loss=float(found[3]))
