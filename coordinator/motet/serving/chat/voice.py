"""Answers from a server, piece by piece, through OpenAI's client.

Guarantees: what a server or a model says holds no control characters when it reaches the terminal; an error of the
server is an `Unanswered` with its words, one of the connection a FederationError; what is no such server, or says what
none would, is told of in the same way; where a conversation leaves less room than an answer may take, the answer has
what room is left. Without a key none is sent.

    voice = Voice("http://127.0.0.1:8000/v1", key=None)
    for piece in voice.answer(messages, excluded=("news",)): ...
    voice.mass, voice.finish                   # of that answer; "full" when the context was
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from motet.protocols.errors import ConfigurationError, FederationError
from motet.serving.chat.conversation import ANCHOR, NEXT, as_text

_SECONDS = 600.0
_FULL = "context_length_exceeded"
_NONSENSE = (AttributeError, TypeError, ValueError)
"""What OpenAI's client, and reading what it makes of an answer, end in where that is none: a page, a list, a part."""


class Unanswered(Exception):  # noqa: N818 - reads as what happened
    """The server refused, and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How answers are drawn: tokens at most, temperature (None: the server's), seed (None: drawn)."""

    max_tokens: int = 256
    temperature: float | None = None
    seed: int | None = None


class Voice:
    """A model on a server."""

    def __init__(
        self, url: str, *, key: str | None = None, model: str | None = None, manner: Manner = Manner()
    ) -> None:
        """`url` ends in /v1. Raises FederationError where nobody answers, and ConfigurationError where the address or
        the key can be none, the key is refused, no such server answers, or there is no such model."""
        secret = key or os.environ.get("MOTET_API_KEY")
        self._url, self._manner = url, manner
        self._headers: dict[str, Any] = {} if secret else {"Authorization": openai.Omit()}
        self._client = _client(url, secret or "none")
        self.mass: dict[str, float] = {}
        self.finish: str | None = None
        self._templated = True
        self.model, known = self._met(model)
        self.experts, self.closed = self._usable(known)

    def answer(self, messages: Sequence[Mapping[str, str]], *, excluded: Sequence[str] = ()) -> Iterator[str]:
        """The answer to a conversation, in pieces. Raises Unanswered and FederationError."""
        self.mass, self.finish = {}, None
        try:
            limit, answer = self._begun(messages, excluded)
            with answer as chunks:
                for choice in (choice for chunk in chunks for choice in chunk.choices):
                    self._note(choice)
                    yield printable((choice.delta.content if self._templated else choice.text) or "")
            if self.finish is None:
                raise Unanswered("the answer broke off, and nothing says why; ask again")
            if self.finish == "length" and limit != self._manner.max_tokens:
                self.finish = "full"
        except openai.APIStatusError as error:
            full = "; /forget begins anew" if error.code == _FULL else ""
            raise Unanswered(printable(_said(error)) + full) from error
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from error
        except openai.APIError as error:  # in the middle of a stream
            raise Unanswered(printable(error.message)) from error
        except _NONSENSE as error:
            raise Unanswered(f"saw an answer that cannot be read: {_reason(error)}; ask again") from error

    def close(self) -> None:
        """Lets go of the connection."""
        self._client.close()

    def _begun(self, messages: Sequence[Mapping[str, str]], excluded: Sequence[str]) -> tuple[int | None, Any]:
        """An answer of as many tokens as there is room for, and that number; None for what is left of the context."""
        limit: int | None = self._manner.max_tokens
        while True:
            try:
                return limit, self._stream(messages, excluded, limit)
            except openai.BadRequestError as error:
                if error.code != _FULL or limit in (None, 1):
                    raise
                limit = None if self._templated else limit // 2  # completions have 16 where nothing is said

    def _stream(self, messages: Sequence[Mapping[str, str]], excluded: Sequence[str], limit: int | None) -> Any:  # noqa: ANN401
        """Chunks from the endpoint that this model has a use for."""
        ours: dict[str, Any] = {"attribution": True}
        if excluded:
            ours["experts"] = {"exclude": list(excluded)}
        asked: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "extra_body": ours,
            "extra_headers": self._headers,
        }
        given = {"max_tokens": limit, "temperature": self._manner.temperature, "seed": self._manner.seed}
        asked |= {name: value for name, value in given.items() if value is not None}
        if self._templated:
            try:
                return self._client.chat.completions.create(**(asked | {"messages": list(messages)}))
            except openai.BadRequestError as error:
                if error.code != "no_chat_template":
                    raise
                self._templated = False
        return self._client.completions.create(prompt=as_text(messages), stop=NEXT, **asked)

    def _note(self, choice: Any) -> None:  # noqa: ANN401 - of two classes, with fields of ours
        self.finish = choice.finish_reason or self.finish
        for name, mass in ((choice.model_extra or {}).get("attribution") or {}).get("mass", {}).items():
            self.mass[name] = self.mass.get(name, 0.0) + mass

    def _met(self, wanted: str | None) -> tuple[str, tuple[str, ...]]:
        """The model's name and its closed experts."""
        try:
            listed = self._client.models.list(extra_headers=self._headers)
            models = {str(each.id): _experts(each) for each in listed}
        except openai.APIStatusError as error:
            hint = "does the address end in /v1?" if error.status_code == 404 else "--key names a key"
            raise ConfigurationError(f"{self._url} refused: {printable(_said(error))}; {hint}") from error
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from error
        except (openai.APIError, *_NONSENSE) as error:
            raise ConfigurationError(
                f"what answers at {self._url} is no OpenAI-compatible server: {_reason(error)}; does the address end "
                "in /v1, and is nothing in between that asks to sign in?"
            ) from error
        if not models or (wanted is not None and wanted not in models):
            raise ConfigurationError(
                f"saw the models {printable(', '.join(models)) or 'none'} on {self._url}, wanted {wanted or 'one'}; "
                "name it with --model"
            )
        name = next(iter(models)) if wanted is None else wanted
        return name, models[name]

    def _usable(self, known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of the model's closed experts those that may be used with this key now, and the others."""
        try:
            told: Any = self._client.get("/experts", cast_to=object, options={"headers": self._headers})
            usable = {printable(str(each["id"])) for each in told["data"] if each["usable"]}
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from error
        except (openai.APIError, KeyError, TypeError, ValueError):  # a server of another kind
            return known, ()
        return tuple(each for each in known if each in usable), tuple(each for each in known if each not in usable)

    def _unreachable(self, error: openai.APIConnectionError) -> FederationError:
        return FederationError(
            f"cannot reach {self._url}: {error.__cause__ or error}; is `motet serve` running there, and does the "
            "address end in /v1?"
        )


def _client(url: str, secret: str) -> openai.OpenAI:
    """Of a server, nothing asked yet. Raises ConfigurationError."""
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise ConfigurationError(
            "saw a key with letters that no key has, wanted one as its server handed it out: ASCII without spaces and "
            "control characters; copy it whole"
        )
    try:
        return openai.OpenAI(base_url=url, api_key=secret, timeout=_SECONDS, max_retries=1)
    except Exception as error:  # of the HTTP library below, which is another one from release to release
        raise ConfigurationError(
            f"saw the address {url!r}, which cannot be used: {error}; wanted one such as http://127.0.0.1:8000/v1"
        ) from error


def _experts(model: Any) -> tuple[str, ...]:  # noqa: ANN401 - a field of ours
    """A model's closed experts; none on a server of another kind."""
    experts = (model.model_extra or {}).get("experts") or []
    return tuple(printable(str(each)) for each in experts if each != ANCHOR)


def _reason(error: Exception) -> str:
    """An error in one short line."""
    return printable(" ".join(str(error).split()))[:200]


def printable(text: str) -> str:
    """A text without control characters but ends of lines and tabs, which could do things to a terminal."""
    return "".join(letter for letter in text if letter in "\n\t" or not _controls(letter))


def _controls(letter: str) -> bool:
    return ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0


def _said(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)
