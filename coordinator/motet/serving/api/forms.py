"""How answers are written: OpenAI's objects, whole and in chunks, with the experts beside them.

CompletionForm(answer).whole()
ChatForm(answer).chunk(choice, step)
"""

from collections.abc import Sequence
from typing import Any

from motet.serving.api.answer import Answer
from motet.serving.api.pieces import Candidate, Piece, Reading
from motet.serving.engine.job import Step, Token


class Form:
    """What both kinds of answers have."""

    object_ = ""
    chunk_ = ""

    def __init__(self, answer: Answer, *, model: str, logprobs: bool, attribution: bool) -> None:
        self.answer, self.model, self.logprobs, self.attribution = answer, model, logprobs, attribution
        self._readings: dict[int, Reading] = {}

    def whole(self) -> dict[str, Any]:
        """The finished answer."""
        choices = [
            self._choice(number, choice.text, choice.tokens, choice.finish)
            for number, choice in enumerate(self.answer.choices)
        ]
        return self._head(self.object_) | {"choices": choices, "usage": self.answer.usage()}

    def opening(self) -> list[dict[str, Any]]:
        """Chunks in front of the first step."""
        return []

    def chunk(self, number: int, step: Step) -> dict[str, Any]:
        """One step of one choice."""
        tokens = [] if step.token is None else [step.token]
        return self._head(self.chunk_) | {"choices": [self._delta(number, step.text, tokens, step.finish)]}

    def usage(self) -> dict[str, Any]:
        """A chunk that counts."""
        return self._head(self.chunk_) | {"choices": [], "usage": self.answer.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        experts = self.answer.experts
        head = {"id": self.answer.id, "object": kind, "created": self.answer.created, "model": self.model}
        return head | {"experts_used": list(experts.names), "expert_set": experts.digest}

    def _choice(self, number: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, number: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        return self._choice(number, text, tokens, finish)

    def _told(self, number: int, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        """What choices and deltas of both kinds have."""
        told: dict[str, Any] = {"index": number, "finish_reason": finish}
        pieces = self._pieces(number, tokens) if self.logprobs or self.attribution else []
        told["logprobs"] = self._logprobs(pieces) if self.logprobs and pieces else None
        if self.attribution:
            told["attribution"] = self._attributed(tokens, pieces)
        return told

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        raise NotImplementedError

    def _pieces(self, number: int, tokens: Sequence[Token]) -> list[Piece]:
        """What the next tokens of a choice say; they must come in their order."""
        if number not in self._readings:
            job = self.answer.jobs[number // self.answer.jobs[0].samples]
            self._readings[number] = Reading(self.answer.service.composite.tokenizer, job.prompt)
        return [self._readings[number].take(token) for token in tokens]

    def _attributed(self, tokens: Sequence[Token], pieces: Sequence[Piece]) -> dict[str, Any]:
        """Gate mass: each expert's, in tokens, and its share of every token, by expert name where it has any."""
        names = self.answer.service.composite.roster.names
        named = [
            {name: round(share, 6) for name, share in zip(names, token.shares, strict=True) if share}
            for token in tokens
        ]
        mass = {name: round(sum(token.shares[at] for token in tokens), 6) for at, name in enumerate(names)}
        return {
            "mass": {name: value for name, value in mass.items() if name in self.answer.experts.names},
            "tokens": [
                {"id": token.id, "token": piece.chosen.name, "shares": shares}
                for token, piece, shares in zip(tokens, pieces, named, strict=True)
            ],
        }


class CompletionForm(Form):
    """Answers of /v1/completions."""

    object_ = chunk_ = "text_completion"

    def _choice(self, number: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        return self._told(number, tokens, finish) | {"text": text}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        return {
            "tokens": [_key(piece.chosen) for piece in pieces],
            "token_logprobs": [piece.chosen.logprob for piece in pieces],
            "top_logprobs": [_by_key(piece) for piece in pieces],
            "text_offset": [piece.offset for piece in pieces],
        }


class ChatForm(Form):
    """Answers of /v1/chat/completions."""

    object_ = "chat.completion"
    chunk_ = "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        """One chunk for each choice that says who speaks."""
        return [
            self._head(self.chunk_) | {"choices": [self._told(number, [], None) | {"delta": _SPEAKER}]}
            for number in range(len(self.answer.choices))
        ]

    def _choice(self, number: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._told(number, tokens, finish) | {"message": message}

    def _delta(self, number: int, text: str, tokens: Sequence[Token], finish: str | None) -> dict[str, Any]:
        return self._told(number, tokens, finish) | {"delta": {"content": text} if text else {}}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        content = [
            _told(piece.chosen) | {"top_logprobs": [_told(each) for each in piece.likeliest]} for piece in pieces
        ]
        return {"content": content, "refusal": None}


_SPEAKER = {"role": "assistant", "content": ""}


def _told(token: Candidate) -> dict[str, Any]:
    return {"token": token.name, "logprob": token.logprob, "bytes": list(token.data)}


def _key(token: Candidate) -> str:
    """What /v1/completions calls a token, as OpenAI's does where it holds a part of a character."""
    return f"bytes:{token.name}" if token.partial else token.name


def _by_key(piece: Piece) -> dict[str, float | None]:
    """Log probabilities, falling, and the chosen token's too; of tokens that are called alike, the likeliest one's."""
    told: dict[str, float | None] = {}
    for each in piece.likeliest:
        told.setdefault(_key(each), each.logprob)
    return told | {_key(piece.chosen): piece.chosen.logprob}
