"""How far a training is: one line of a job's state, which the owner's worker writes and the coordinator reads.

    step = TrainingStep(step=20, steps=100, loss=4.2, training="3f2a91bc04d7")
    line = str(step)                            # "step 20 of 100, loss 4.200 nats per token, training 3f2a91bc04d7"
    TrainingStep.told_in(line + ", 900 tokens/s")                # the same again; None for any other line

A line that people read is enough for programs too, and owners' releases differ in nothing else: earlier ones name no
training. What an owner says need not be true; it is two whole numbers, one that is neither negative nor endless, and
at most twelve hexadecimal digits.
"""

import re
from dataclasses import dataclass
from typing import Self

NAME_DIGITS = 12
_TOLD = re.compile(
    r"step ([0-9]{1,9}) of ([0-9]{1,9}), loss ([0-9]{1,6}\.[0-9]{3}) nats per token\b"
    rf"(?:, training ([0-9a-f]{{{NAME_DIGITS}}})\b)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """One step of a training.

    loss: in nats per token, of that step alone.
    training: `NAME_DIGITS` hexadecimal digits, the same while a training goes on, also after an interruption; None
        of an owner who names none.
    """

    step: int
    steps: int
    loss: float
    training: str | None = None

    def __str__(self) -> str:
        line = f"step {self.step} of {self.steps}, loss {self.loss:.3f} nats per token"
        return line if self.training is None else f"{line}, training {self.training}"

    @classmethod
    def told_in(cls, line: str) -> Self | None:
        """The step that a line begins with, None if it begins with something else."""
        found = _TOLD.match(line)
        if found is None:
            return None
        return cls(step=int(found[1]), steps=int(found[2]), loss=float(found[3]), training=found[4])
