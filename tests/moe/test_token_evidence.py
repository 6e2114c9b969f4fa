"""Evidence by token: a ratio of two unigram models, and how little it says of the text behind it."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.moe.token_evidence import LEAST_DOCUMENTS, PSEUDO_TOKENS, TokenCounts, token_evidence
from motet.protocols.errors import StatisticsError
from motet.protocols.expert_files import EVIDENCE_LIMIT as LIMIT
from motet.protocols.expert_files import EVIDENCE_STEP as STEP

from ..conftest import byte_tokenizer

VOCABULARY = 12


def counts_of(*documents: Sequence[int]) -> TokenCounts:
    counts = TokenCounts()
    for document in documents:
        counts.tokens.update(document)
        counts.documents.update(set(document))
    return counts


PUBLIC = counts_of([0, 1, 2, 3] * 40, [0, 1] * 20, [4])


def test_an_example_by_hand() -> None:
    own, public = counts_of(*[[0, 0, 1, 5]] * 4), counts_of([0, 1], [1, 2])
    found = token_evidence(own, public, 6)
    # Public: 0.5 added to counts 1, 2, 1, 0, 0, 0 of 6 ids makes 7 in all. Own: 8, 4, 0, 0, 0, 4 of 16 tokens.
    p_public = [1.5 / 7, 2.5 / 7, 1.5 / 7, 0.5 / 7, 0.5 / 7, 0.5 / 7]
    p_own = [(n + PSEUDO_TOKENS * p) / (16 + PSEUDO_TOKENS) for n, p in zip([8, 4, 0, 0, 0, 4], p_public, strict=True)]
    exact = [math.log(p / q) for p, q in zip(p_own, p_public, strict=True)]
    wanted = [round(exact[token] / STEP) * STEP for token in (0, 1, 2)]
    assert found.tolist() == [*wanted, 0.0, 0.0, round(exact[5] / STEP) * STEP]  # ids 3 and 4 are in neither text
    assert found[0] > 0 > found[2]
    assert (found.dtype, found.shape) == (torch.float32, (6,))


def test_tokens_of_few_documents_look_like_absent_ones() -> None:
    usual = [[0, 5, 5, 6]] * 10
    without = token_evidence(counts_of(*usual), PUBLIC, VOCABULARY)
    few = [[7] * 1000] * (LEAST_DOCUMENTS - 1)
    rare = [[4, 3] * 50] * (LEAST_DOCUMENTS - 1)  # public knows these two
    assert torch.equal(token_evidence(counts_of(*usual, *few, *rare), PUBLIC, VOCABULARY), without)
    enough = [[7] * 1000] * LEAST_DOCUMENTS
    assert token_evidence(counts_of(*usual, *enough), PUBLIC, VOCABULARY)[7] > without[7] == 0.0


texts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=40), min_size=1, max_size=12).filter(any)


@given(texts, texts, st.sampled_from([1, 100, 100_000]))
def test_limits_steps_and_bfloat16(own: list[list[int]], public: list[list[int]], times: int) -> None:
    counts = counts_of(*own)
    for token in counts.tokens:
        counts.tokens[token] *= times
    found = token_evidence(counts, counts_of(*public), VOCABULARY)
    assert found.abs().max() <= LIMIT
    assert torch.equal(found / STEP, (found / STEP).round())
    assert torch.equal(found.bfloat16().float(), found)


def test_what_is_common_here_and_rare_there_reaches_the_limits() -> None:
    own = counts_of(*[[9] * 100_000] * 3)
    public = counts_of([0] * 1_000_000)
    found = token_evidence(own, public, VOCABULARY)
    assert (found[9].item(), found[0].item()) == (LIMIT, -LIMIT)


def test_text_like_the_public_says_almost_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    documents = torch.randint(0, VOCABULARY, (80, 200), generator=draw).tolist()
    found = token_evidence(counts_of(*documents[:40]), counts_of(*documents[40:]), VOCABULARY)
    assert found.abs().max() <= 2 * STEP
    assert token_evidence(counts_of(*documents), counts_of(*documents), VOCABULARY).abs().max() <= STEP


def test_little_text_is_believed_little() -> None:
    little = token_evidence(counts_of(*[[5]] * 3), PUBLIC, VOCABULARY)
    much = token_evidence(counts_of(*[[5] * 100] * 3), PUBLIC, VOCABULARY)
    assert 0 < little[5] < much[5]
    assert much[0] < little[0] <= 0


@pytest.mark.parametrize("empty", ["own", "public"])
def test_a_text_without_tokens_is_refused(empty: str) -> None:
    own, public = (TokenCounts() if empty == side else PUBLIC for side in ("own", "public"))
    with pytest.raises(StatisticsError, match=r"saw a text without tokens, .* give more text"):
        token_evidence(own, public, VOCABULARY)


def test_counting_knows_documents_and_no_special_tokens() -> None:
    tokenizer = byte_tokenizer()
    counts = TokenCounts.of(tokenizer, iter(["aab", "b", ""]))
    a, b = tokenizer.encode("ab", add_special_tokens=False)
    assert (counts.tokens[a], counts.tokens[b]) == (2, 2)
    assert (counts.documents[a], counts.documents[b]) == (1, 2)
    assert set(counts.tokens) == {a, b}
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    written = TokenCounts.of(tokenizer, [f"{bos}aab", f"b{eos}", bos])  # as rendered conversations have them
    assert written.tokens == counts.tokens | {tokenizer.eos_token_id: 1}
    assert written.documents == counts.documents | {tokenizer.eos_token_id: 1}
    tokenizer.bos_token = None  # then eos opens
    assert set(TokenCounts.of(tokenizer, [f"ab{eos}"]).tokens) == {a, b}
    tokenizer.bos_token = bos
    opened = token_evidence(counts_of(*[[a]] * 3), counts, len(tokenizer))
    assert opened[tokenizer.bos_token_id] == 0.0
