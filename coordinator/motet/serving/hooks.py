"""Where others come in: who may use which experts, what is written down, and what has been withdrawn.

Guarantees: `authorise` is asked before anything of a request is computed, and `ready` before anything is generated;
`meter` has returned before an answer is finished, so that what it keeps on disk is exact to the last answered request;
`withdrawn` is asked before every step of the model, for running and waiting sequences alike.

    hooks = Hooks(authorise=door, meter=books.keep, ready=books.require_open, withdrawn=withdrawals)
    app = build_app(Service(composite, engine, name, hooks))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import HTTPConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a request may do.

    tenant: whom it is booked for; None where there are no accounts.
    allowed: names of the experts that it may use beside the anchor; None for all.
    """

    tenant: str | None = None
    allowed: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One choice of an answer.

    tokens: how many were generated.
    finish_reason: as the answer says it; "cancelled" if the client had gone.
    shares: for every generated token the share of its gate mass by expert id of the composite, averaged over layers;
        each sums to one.
    """

    tokens: int
    finish_reason: str
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one request used.

    id: the answer's.
    created: seconds since the epoch.
    model: the composite's name; composite: its digest.
    experts: names by expert id, of the whole composite.
    expert_set: the digest of the set; used: its names.
    """

    id: str
    created: int
    tenant: str | None
    endpoint: str
    model: str
    composite: str
    experts: tuple[str, ...]
    expert_set: str
    used: tuple[str, ...]
    prompt_tokens: int
    choices: tuple[Generated, ...]

    @property
    def generated_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(choice.tokens for choice in self.choices)

    def mass(self) -> dict[str, float]:
        """Gate mass by expert, in tokens: they sum to `generated_tokens`."""
        rows = [share for choice in self.choices for share in choice.shares]
        return {name: sum(row[number] for row in rows) for number, name in enumerate(self.experts)}


def everybody(request: HTTPConnection) -> Access:
    """Everybody may use everything."""
    return Access()


def nothing(record: Record) -> None:
    """Nothing is kept."""


def always(under_way: Sequence[int]) -> None:
    """Answers may begin at any time."""


def nobody(names: frozenset[str]) -> frozenset[str]:
    """No expert has been withdrawn."""
    return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions that decide and remember.

    keyed: whether `authorise` asks for keys, which the API's description then says.
    authorise: what a request may do, from its headers. Raises `motet.serving.api.errors.Refusal` to refuse it. Called
        from a thread, and may block for milliseconds.
    meter: keeps a record; what it raises becomes an answer 503, or a stream's last event. Called from a thread.
    ready: raises StorageError while records cannot be kept, so that streams are not given away. Told how many choices
        each answer has that is under way, which `meter` has not returned from yet, the one that is to begin at the end.
        Called from the event loop: keep it to a look at memory.
    withdrawn: which of these experts are withdrawn or expired by now. Called from the event loop and for every step:
        keep it to a look at memory, and let it not raise.
    """

    keyed: bool = False
    authorise: Callable[[HTTPConnection], Access] = everybody
    meter: Callable[[Record], None] = nothing
    ready: Callable[[Sequence[int]], None] = always
    withdrawn: Callable[[frozenset[str]], frozenset[str]] = nobody
