"""From tokens to text, as it becomes certain: whole characters, and nothing of a text that ends the answer.

Guarantees: the texts of all steps, one after the other, are what the tokenizer reads in the whole answer, up to the
first stop text; a character of several tokens is told when it is complete.

    text = TextStream(tokenizer, prompt, stop=("END",))
    text.push(token)                                    # what is certain now; `text.stopped` when a stop text was seen
    text.rest()                                         # at the end: what was held back
"""

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
BEFORE = 8
"""Tokens of the prompt that the answer is read behind: whether a space stands between may depend on them."""


class TextStream:
    """One sequence's text."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], *, stop: Sequence[str] = ()) -> None:  # noqa: ANN401
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens = list(prompt[-BEFORE:])
        self._begin, self._read = 0, len(self._tokens)  # read with those from begin on, told up to read
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that is certain by now."""
        self._tokens.append(token)
        self._held += self._more()
        return self._release()

    def rest(self) -> str:
        """What was held back, at the end of the answer, up to a stop text in it; nothing after one."""
        if self.stopped:
            return ""
        self._held += self._more(whole=False)
        said, self._held = self._release() + self._held, ""
        return said

    def _more(self, *, whole: bool = True) -> str:
        """Text of the tokens that are not yet read; empty while it ends within a character, if it must be `whole`."""
        before = self._decode(self._tokens[self._begin : self._read])
        after = self._decode(self._tokens[self._begin :])
        if whole and (after.endswith(UNFINISHED) or len(after) <= len(before)):
            return ""
        self._begin, self._read = self._read, len(self._tokens)
        return after[len(before) :]

    def _release(self) -> str:
        ends = [at for each in self._stop if (at := self._held.find(each)) >= 0]
        if ends:
            self.stopped = True
            said, self._held = self._held[: min(ends)], ""
            return said
        kept = max((_overlap(self._held, each) for each in self._stop), default=0)
        said, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return said

    def _decode(self, tokens: list[int]) -> str:
        read: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return read


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
