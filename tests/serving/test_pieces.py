"""What tokens say: bytes that join to the text, names that tell them apart, and where in the text each begins."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from motet.serving.api.pieces import Piece, Reading, byte_letters
from motet.serving.engine.job import Token
from motet.serving.engine.text import TextStream

from ..conftest import byte_tokenizer
from .conftest import NAME

BYTES = byte_tokenizer()


def sentencepiece() -> Any:
    """As Llama 2 and Mistral write: spaces as letters, unknown characters as bytes, none in front of a text."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁the", "the", "a", "b", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(
        vocab={word: number for number, word in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(spaces)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def whole_words() -> Any:
    """Without a decoder: words, with spaces between them."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


PIECES = sentencepiece()


def read(tokenizer: Any, prompt: list[int], tokens: list[int]) -> list[Piece]:
    reading = Reading(tokenizer, prompt)
    return [reading.take(Token(id=token, text="", shares=())) for token in tokens]


def joined(pieces: list[Piece]) -> bytes:
    return b"".join(piece.chosen.data for piece in pieces)


def streamed(tokenizer: Any, prompt: list[int], tokens: list[int]) -> str:
    stream = TextStream(tokenizer, prompt)
    return "".join([*(stream.push(token) for token in tokens), stream.rest()])


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "sentencepiece"])
@settings(deadline=None, max_examples=50)
@given(text=some.text(alphabet="ab €é🙂\N{REPLACEMENT CHARACTER}\n", max_size=12))
def test_bytes_join_to_the_text_and_offsets_are_where_characters_begin(tokenizer: Any, text: str) -> None:
    prompt = tokenizer.encode("ab")
    tokens = tokenizer.encode(text)
    pieces = read(tokenizer, prompt, tokens)
    assert joined(pieces).decode() == streamed(tokenizer, prompt, tokens) == text
    starts = [at for at, letter in enumerate(text) for _ in letter.encode()]  # the character of each byte
    passed = 0
    for piece in pieces:
        assert piece.offset == starts[passed]
        passed += len(piece.chosen.data)


@settings(deadline=None, max_examples=50)
@given(some.lists(some.integers(3, 258), max_size=12))
def test_of_bytes_that_are_no_text_it_is_the_text_with_marks(tokens: list[int]) -> None:
    pieces = read(BYTES, BYTES.encode("ab"), tokens)
    text = streamed(BYTES, BYTES.encode("ab"), tokens)
    assert joined(pieces).decode("utf-8", "replace") == text
    for piece in pieces:
        if not piece.chosen.partial:
            assert text[piece.offset :].startswith(piece.chosen.name)


def test_every_byte_has_its_letter() -> None:
    letters = byte_letters()
    assert sorted(letters.values()) == list(range(256))
    for byte in (0, 32, 65, 173, 255):
        written = BYTES.convert_ids_to_tokens(BYTES.encode(chr(byte)))
        assert bytes(letters[letter] for letter in written) == chr(byte).encode()


def test_a_space_in_front_of_a_word_is_there_as_it_is_in_the_text() -> None:
    words = PIECES.convert_tokens_to_ids(["▁the", "▁the", "the"])
    assert [piece.chosen.name for piece in read(PIECES, PIECES.encode("a"), words)] == [" the", " the", "the"]
    assert [piece.chosen.name for piece in read(PIECES, [1], words)] == ["the", " the", "the"]
    spoken = read(whole_words(), [1], [2, 1, 2])
    assert [piece.chosen.name for piece in spoken] == [" two", " one", " two"]
    assert [piece.offset for piece in spoken] == [0, 4, 8]


def test_special_tokens_have_a_name_and_no_bytes_and_those_beyond_the_vocabulary_neither() -> None:
    special, letter, beyond = read(BYTES, [], [BYTES.eos_token_id, *BYTES.encode("a"), 5000])
    assert (special.chosen.name, special.chosen.data, special.offset) == ("<eos>", b"", 0)
    assert (letter.chosen.name, letter.chosen.data, letter.offset) == ("a", b"a", 0)
    assert (beyond.chosen.name, beyond.chosen.data, beyond.offset) == ("", b"", 1)


def test_parts_of_characters_are_told_apart_and_join_to_the_answer(client: OpenAI) -> None:
    how = {"model": NAME, "max_tokens": 40, "temperature": 2.0, "seed": 3}
    asked = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 20} | how
    choice = client.chat.completions.create(**asked).choices[0]
    told = choice.logprobs.content
    data = b"".join(bytes(each.bytes) for each in told)
    assert data.decode("utf-8", "replace") == choice.message.content
    assert any(each.token.startswith("\\x") for each in told)
    shares = client.chat.completions.create(extra_body={"attribution": True}, **asked).choices[0].model_extra
    assert [each["token"] for each in shares["attribution"]["tokens"]] == [each.token for each in told]
    for each in told:
        assert len({one.token for one in each.top_logprobs}) == 20


def test_a_completions_tokens_are_among_their_likeliest_and_stand_where_they_are_said_to(client: OpenAI) -> None:
    how = {"model": NAME, "max_tokens": 40, "temperature": 2.0, "seed": 3, "prompt": "x", "logprobs": 2}
    whole = client.completions.create(**how).choices[0]
    told, missing = whole.logprobs, 0
    for token, logprob, top, offset in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset, strict=True
    ):
        assert top[token] == logprob
        assert len(top) in (2, 3)
        missing += len(top) == 3
        assert whole.text[offset:].startswith(token) or token.startswith("bytes:\\x") or token == "<eos>"
    assert missing
    pieces = [chunk.choices[0].logprobs for chunk in client.completions.create(stream=True, **how)]
    for name in ("tokens", "text_offset"):
        assert [each for piece in pieces if piece for each in getattr(piece, name)] == getattr(told, name)
