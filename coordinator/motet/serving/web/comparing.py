"""Two answers to one prompt, with and without some experts, and who spoke in each.

Guarantees: both are metered as any answer is; when the reader leaves, both free their places.

    pair = pair_of(roster, on=["law"], usable=usable)         # the sets to compare, with what they are called
    pieces = await spoken(request, answers)                   # None if the reader has gone
    told(pair[0], pieces[0], roster.names)
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from motet.serving.api.answer import Answer
from motet.serving.engine.job import Step, Token
from motet.serving.expert_sets import ANCHOR, ExpertSet, Roster

STRENGTHS = 4
"""How many strengths of tint there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the sets that are compared."""

    title: str
    experts: ExpertSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One generated token: its text as far as it is certain, and who led.

    leader: the expert id with the largest share; share: from 0 to 1; strength: of the tint, 1 to `STRENGTHS`.
    """

    text: str
    leader: int
    name: str
    share: float
    strength: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer to be shown. shares: (expert id, name, mean share of gate mass), of the experts of its set; finish:
    empty while it is made."""

    title: str
    experts: ExpertSet
    pieces: tuple[Piece, ...]
    tail: str
    """Text that was held back until no token was left to follow it."""
    shares: tuple[tuple[int, str, float], ...]
    finish: str

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(piece.text for piece in self.pieces) + self.tail


def pair_of(roster: Roster, *, on: Collection[str], usable: Collection[str]) -> tuple[Side, ...]:
    """Every expert that may be used, and those that are `on`; the anchor alone beside them if all are.

    One side only where no expert but the anchor may be used. Raises ExpertSetError for unknown names.
    """
    every, chosen = roster.choose(allowed=usable), roster.choose(include=[ANCHOR, *on], allowed=usable)
    title = "Without " + ", ".join(name for name in every.names if name not in chosen.names)
    if chosen == every or chosen.names == (ANCHOR,):
        chosen, title = roster.choose(include=[ANCHOR]), "Without any: the anchor alone"
    sides = (Side(title="With every expert", experts=every), Side(title=title, experts=chosen))
    return sides if chosen != every else sides[:1]


async def merged(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Step]]:
    """Every step of answers that are made at once, with the number of its answer, as it comes.

    Raises as `Answer.steps`: when one fails, nobody waits for the others.
    """
    news: asyncio.Queue[tuple[int, Step | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_follow(number, answer, news)) for number, answer in enumerate(answers)]
    try:
        under_way = len(tasks)
        while under_way:
            number, step = await news.get()
            if isinstance(step, Exception):
                raise step
            if step is None:
                under_way -= 1
            else:
                yield number, step
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def spoken(request: Request, answers: Sequence[Answer]) -> list[list[Step]] | None:
    """The steps of every answer, or None if the reader has gone. Raises as `Answer.steps`."""
    working = asyncio.ensure_future(_all(answers))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


def told(side: Side, steps: Sequence[Step], names: Sequence[str]) -> Told:
    """What is shown of an answer whose steps were these."""
    rows = [step.token.shares for step in steps if step.token is not None]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)] if rows else [0.0] * len(names)
    return Told(
        title=side.title,
        experts=side.experts,
        pieces=tuple(_pieces(steps, names)),
        tail="".join(step.text for step in steps if step.token is None),
        shares=tuple((at, name, mean[at]) for at, name in enumerate(names) if side.experts.mask[at]),
        finish=next((step.finish for step in reversed(steps) if step.finish is not None), ""),
    )


def piece_of(text: str, token: Token, names: Sequence[str]) -> Piece:
    """A token as it is shown, with the text that is certain by it."""
    share = max(token.shares)
    leader = token.shares.index(share)
    strength = min(STRENGTHS, 1 + int(share * STRENGTHS))
    return Piece(text=text, leader=leader, name=names[leader], share=share, strength=strength)


def _pieces(steps: Sequence[Step], names: Sequence[str]) -> Iterator[Piece]:
    for step in steps:
        if step.token is not None:
            yield piece_of(step.text, step.token, names)


async def _all(answers: Sequence[Answer]) -> list[list[Step]]:
    steps: list[list[Step]] = [[] for _ in answers]
    async for number, step in merged(answers):
        steps[number].append(step)
    return steps


async def _follow(number: int, answer: Answer, news: asyncio.Queue[tuple[int, Step | Exception | None]]) -> None:
    try:
        async for _, step in answer.steps():
            news.put_nowait((number, step))
        news.put_nowait((number, None))
    except Exception as error:
        news.put_nowait((number, error))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
