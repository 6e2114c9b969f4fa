"""What each token of an answer says: its own bytes, what it is called, and where in the text it begins.

Guarantees: the bytes of an answer's tokens, joined, are its text in UTF-8, up to a stop text; a token that holds a part
of a character has that part; special tokens, which no text shows, have none.

    reading = Reading(tokenizer, prompt)
    piece = reading.take(token)                 # piece.chosen.name, piece.chosen.data, piece.offset, piece.likeliest
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from motet.serving.engine.job import Token
from motet.serving.engine.text import BEFORE

_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    r"""A token that was or could have been taken.

    name: its text, in which bytes that are no characters by themselves stand as `\xe2`; a special token's own name.
    data: its bytes.
    logprob: in nats.
    """

    name: str
    data: bytes
    logprob: float | None

    @property
    def partial(self) -> bool:
        """Whether it holds a part of a character."""
        return self.data.decode("utf-8", "replace").encode() != self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A token of an answer.

    offset: characters of the answer's text before the one in which the token begins.
    likeliest: the likeliest tokens at this place, falling.
    """

    chosen: Candidate
    offset: int
    likeliest: tuple[Candidate, ...]


class Reading:
    """One answer, token by token."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:  # noqa: ANN401 - transformers is untyped
        self._alphabet = alphabet_of(tokenizer)
        self._before = list(prompt[-BEFORE:])
        self._characters, self._decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, token: Token) -> Piece:
        """What the next token says."""
        chosen = self._candidate(token.id, token.logprob)
        likeliest = tuple(self._candidate(each, logprob) for each, _, logprob in token.likeliest)
        self._before = [*self._before[1 - BEFORE :], token.id]
        return Piece(chosen=chosen, offset=self._passed(chosen.data), likeliest=likeliest)

    def _candidate(self, token: int, logprob: float | None) -> Candidate:
        data = self._alphabet.bytes_of(token, before=self._before)
        name = data.decode("utf-8", "backslashreplace") or self._alphabet.symbol(token)
        return Candidate(name=name, data=data, logprob=logprob)

    def _passed(self, data: bytes) -> int:
        """Where the next bytes begin, in characters; what continues a character begins where that does."""
        self._characters += len(self._decoder.decode(data[:1]))
        pending = not data or bool(self._decoder.getstate()[0])
        offset = self._characters - (0 if pending else 1)
        self._characters += len(self._decoder.decode(data[1:]))
        return offset


class Alphabet:
    """How a tokenizer writes bytes in its tokens."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
        # By what its decoder makes of tokens, whatever that is composed of.
        self._letters = byte_letters() if self._read("a", "Ġ", "b") == "a b" else {}
        self._has_bytes = self._read("a", "<0x42>") == "aB"

    def symbol(self, token: int) -> str:
        """A token as the vocabulary writes it; empty beyond its end."""
        return self._tokenizer.convert_ids_to_tokens(token) or ""

    def bytes_of(self, token: int, *, before: Sequence[int]) -> bytes:
        """The bytes of a token behind others: its own, or in UTF-8 what it adds to their text."""
        symbol = self.symbol(token)
        if token in self._special:
            return b""
        if self._letters:
            spelt = [self._letters.get(letter) for letter in symbol]
            return symbol.encode() if None in spelt else bytes(byte for byte in spelt if byte is not None)
        if self._has_bytes and (byte := _BYTE.fullmatch(symbol)):
            return bytes.fromhex(byte[1])
        known, text = self._decoded(before), self._decoded([*before, token])
        return (text[len(known) :] if text.startswith(known) else self._decoded([token])).encode()

    def _decoded(self, tokens: Sequence[int]) -> str:
        read: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return read

    def _read(self, *symbols: str) -> str:
        read: str = self._tokenizer.convert_tokens_to_string(list(symbols))
        return read


@lru_cache(maxsize=2)
def alphabet_of(tokenizer: Any) -> Alphabet:  # noqa: ANN401
    """The alphabet of a tokenizer."""
    return Alphabet(tokenizer)


def byte_letters() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for (GPT-2's `bytes_to_unicode`).

    Printable bytes stand for themselves; the others are, in their order, the letters from U+0100 on.
    """
    letters = sorted(ByteLevel.alphabet())
    own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = sorted(set(range(256)) - set(own.values()))
    return own | dict(zip(letters[len(own) :], others, strict=True))
