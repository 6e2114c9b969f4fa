"""What the engine is asked for, and what it answers.

job = Job(prompt=(1, 17, 4), experts=roster.every(), sampling=Sampling(max_tokens=20, temperature=0.0))
"""

from dataclasses import dataclass, field
from typing import Literal

from motet.protocols.errors import MotetError
from motet.serving.expert_sets import ExpertSet

FinishReason = Literal["stop", "length", "expert_withdrawn", "cancelled", "error"]


class QueueFull(MotetError):  # noqa: N818 - reads as what happened
    """The engine has as much waiting as it was allowed to; never leaves the server.

    Attributes:
        retry_after: seconds after which there should be a place again.
    """

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closing(MotetError):  # noqa: N818
    """The engine takes no more jobs: the server is being stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    max_tokens: at most so many are generated.
    temperature: what logits are divided by; 0 takes the likeliest token, the lowest id of several.
    top_p: only the likeliest tokens that together have this probability.
    seed: of this sequence's own generator; sample i of a job takes seed + i. None draws one.
    stop: texts that end the answer, and are not part of it.
    logprobs: of how many of the likeliest tokens to tell log probabilities, beside the chosen one's; None of none.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prompt, token ids, of which `samples` continuations are wanted, under one expert set.

    salt: beginnings that were computed before are used again only between jobs with the same salt; a tenant's name.
    """

    prompt: tuple[int, ...]
    experts: ExpertSet
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    salt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token.

    text: what this token alone reads.
    logprob: in nats, before temperature and top_p; likeliest: (id, its text, log probability), falling. None and empty
        unless asked for.
    shares: of its gate mass, by expert id, averaged over layers: of the pass that made it. Sums to one.
    """

    id: int
    text: str
    shares: tuple[float, ...]
    logprob: float | None = None
    likeliest: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """News of one sample: the next token, the text that is certain by now, and at its end why it ended.

    The texts of all steps are the answer. Text is held back while a stop text or a character may be beginning.
    """

    sample: int
    token: Token | None = None
    text: str = ""
    finish: FinishReason | None = None
    cached: int = 0
    """Tokens of the prompt that were not computed again."""
