"""Text as it becomes certain: whole characters, nothing of a stop text, and in the end all that the tokenizer reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from motet.serving.engine.text import TextStream

from ..conftest import byte_tokenizer

TOKENIZER = byte_tokenizer()


def told(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(TOKENIZER, TOKENIZER.encode("before"), stop=stop)
    pieces = []
    for token in TOKENIZER.encode(text):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.rest()], stream.stopped


def test_characters_of_several_tokens_are_told_when_they_are_complete() -> None:
    pieces, _ = told("a€é🙂b")
    assert [piece for piece in pieces if piece] == ["a", "€", "é", "🙂", "b"]


def test_half_a_character_at_the_end_is_told_as_the_tokenizer_reads_it() -> None:
    stream = TextStream(TOKENIZER, [], stop=())
    first, *_ = TOKENIZER.encode("€")
    assert stream.push(first) == ""
    assert stream.rest() == "\N{REPLACEMENT CHARACTER}"


@given(some.text(max_size=30))
def test_the_pieces_are_the_whole(text: str) -> None:
    pieces, _ = told(text)
    assert "".join(pieces) == TOKENIZER.decode(TOKENIZER.encode(text))


STOPS = some.lists(some.text(alphabet="ab€", min_size=1, max_size=4), max_size=3)


@given(some.text(alphabet="ab€", max_size=20), STOPS)
def test_nothing_of_a_stop_text_is_ever_told(text: str, stop: list[str]) -> None:
    pieces, stopped = told(text, tuple(stop))
    ends = [at for each in stop if (at := text.find(each)) >= 0]
    assert stopped == bool(ends)
    if not ends:
        assert "".join(pieces) == text
    else:  # where the first stop text to be complete begins
        complete = min(text.find(each) + len(each) for each in stop if each in text)
        wanted = min(text.find(each) for each in stop if each in text[:complete])
        assert "".join(pieces) == text[:wanted]


@pytest.mark.parametrize("stop", [("END",), ("ND", "END"), ("zzz", "E")])
def test_a_stop_text_over_several_tokens(stop: tuple[str, ...]) -> None:
    pieces, stopped = told("the END of it", stop)
    assert stopped
    assert "".join(pieces) == "the "


@pytest.mark.parametrize("stop", [("END",), ("END\N{REPLACEMENT CHARACTER}",)])
def test_a_stop_text_in_what_was_held_back_is_not_told(stop: tuple[str, ...]) -> None:
    """The last token reads the end of a stop text and half a character, so that both come up when nothing follows."""
    stream = TextStream(DoubleTokens(), [], stop=stop)
    assert stream.push(ord("x")) == "x"
    assert stream.push(1000) == ""
    assert stream.rest() == ""
    assert stream.stopped


class DoubleTokens:
    """A tokenizer with a token that is a word and half a character, as byte-level ones have."""

    def decode(self, tokens: list[int], **_: bool) -> str:
        return b"".join(b"END\xe2" if token == 1000 else bytes([token]) for token in tokens).decode(errors="replace")
