"""Prompts that are too long are refused without being read whole, and none that fits is."""

import random
import re
import time
from dataclasses import fields, replace
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from motet.serving.api import prompts
from motet.serving.api.errors import Refusal
from motet.serving.api.limits import MOST_BYTES
from motet.serving.api.prompts import LONG_TEXT, conversation_ids, token_ids
from motet.serving.api.schemas import Message
from motet.serving.engine.loading import Composite

from .conftest import NAME, Running
from .test_refusals import answered

WORDS = re.findall(r"\S+", "the judge reads what a nurse has written of doses, and appeals; über naïve 東京 123 4567 𝄞")


class Noted:
    """A tokenizer that notes how many characters it is given to read."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.read = tokenizer, list[int]()

    def encode(self, text: str, **how: Any) -> list[int]:
        self.read.append(len(text))
        return self._tokenizer.encode(text, **how)

    def apply_chat_template(self, told: list, *, tokenize: bool, **how: Any) -> Any:
        if tokenize:
            self.read.append(sum(len(each["content"]) for each in told))
        return self._tokenizer.apply_chat_template(told, tokenize=tokenize, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def corpus() -> list[str]:
    drawn = random.Random(1)
    return [" ".join(drawn.choices(WORDS, k=30)) + " " * 40 + "\n" + "x" * 64 for _ in range(200)]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(corpus(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"]))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def texts() -> list[str]:
    drawn = random.Random(2)
    kinds = ["x", " ", "xy", "x ", "\n ", "𝄞", *WORDS]
    mixed = ["".join(drawn.choice(kinds) * drawn.choice((1, 3, 150)) for _ in range(200)) for _ in range(5)]
    words = " ".join(drawn.choices(WORDS, k=1500))
    return [words, *(kind * 4000 for kind in kinds[:6]), *mixed, ("x" * 90 + " ") * 50, ("x" * 110 + " ") * 50]


def of_context(composite: Composite, tokenizer: Any, context: int) -> Composite:
    kind = type("Fitting", (Composite,), {"context": context})
    return kind(**{each.name: getattr(composite, each.name) for each in fields(Composite)} | {"tokenizer": tokenizer})


@pytest.mark.parametrize("made", [byte_level, word_piece, unigram])
def test_a_prompt_that_just_fits_is_read_and_one_token_more_is_refused(
    composite: Composite, monkeypatch: pytest.MonkeyPatch, made: Any
) -> None:
    monkeypatch.setattr(prompts, "LONG_TEXT", 512)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made())
    early = 0
    for text in texts():
        whole = tokenizer.encode(text)
        noted = Noted(tokenizer)
        assert token_ids(of_context(composite, noted, len(whole) + 3), text, limit=3) == [whole]
        assert len(noted.read) > 1  # it was long enough to be looked at in pieces
        if not whole:  # spaces, to WordPiece
            continue
        with pytest.raises(Refusal, match=f"saw a prompt of {len(whole)} tokens and 4 to generate"):
            token_ids(of_context(composite, tokenizer, len(whole) + 3), text, limit=4)
        noted.read = []
        with pytest.raises(Refusal, match=r"saw a prompt of (at least )?\d+ tokens") as caught:
            token_ids(of_context(composite, noted, 1), text, limit=None)
        told = int(re.search(r"\d+", str(caught.value))[0])
        assert told <= len(whole)
        early += sum(noted.read) < len(text)
    assert early >= 3


def test_of_a_prompt_that_is_far_too_long_a_beginning_is_read(composite: Composite) -> None:
    def read(ask: Any) -> list[int]:
        noted = Noted(composite.tokenizer)
        with pytest.raises(Refusal, match="the model's context") as caught:
            ask(replace(composite, tokenizer=noted))
        assert caught.value.code == "context_length_exceeded"
        return noted.read

    long = "x" * (8 * LONG_TEXT)
    said = [Message(role="user", content="x" * 50_000)] * 40
    assert read(lambda to: token_ids(to, long, limit=1)) == [LONG_TEXT]
    assert read(lambda to: token_ids(to, ["x", long], limit=1)) == [1, LONG_TEXT]
    assert read(lambda to: token_ids(to, ["x" * 50_000] * 64, limit=1)) == [50_000]
    assert read(lambda to: conversation_ids(to, said, limit=None)) == [LONG_TEXT]


def test_a_body_full_of_one_text_is_refused_at_once(server: Running) -> None:
    began = time.monotonic()
    status, told = answered(server, {"model": NAME, "prompt": "x" * (MOST_BYTES - 100)})
    assert (status, told["code"], told["param"]) == (400, "context_length_exceeded", "prompt")
    assert time.monotonic() - began < 5  # 6 to 8 seconds where it was read whole
    assert httpx.get(f"{server.url}/healthz").status_code == 200
