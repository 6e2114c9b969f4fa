"""Texts of which only parts are learnt and scored: the answers in a conversation, of which the rest is read alone.

A token that is read and neither learnt nor scored is muted: written as -1 - id, so that it takes no second tensor.

    answers = {text: ((57, 80),)}                    # characters, start to end, by the text they are in
    tokens = muted_tokens(tokenizer, [text], answers)
    ids, labels = heard(torch.tensor(tokens))        # labels are IGNORED where a token is muted
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from motet.protocols.errors import DataError

IGNORED = -100
"""The label of a position that is not learnt or scored."""

Spans = tuple[tuple[int, int], ...]
"""Parts of a text, each from a character to the one after its last; in order, without overlap."""


def muted(token: int) -> int:
    """A token that is read alone; muted again, it is what it was."""
    return -1 - token


def muted_tokens(
    tokenizer: Any,  # noqa: ANN401 - transformers is untyped
    documents: Sequence[str],
    answers: Mapping[str, Spans],
) -> list[list[int]]:
    """The tokens of documents, muted outside the spans of those that have any; a token belongs where it begins.

    Raises:
        DataError: the tokenizer does not tell where its tokens are.
    """
    if not answers:
        plain: list[list[int]] = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
        return plain
    if not tokenizer.is_fast:
        raise DataError(
            f"saw the tokenizer {type(tokenizer).__name__}, wanted a fast one, which tells where in a text its tokens "
            "are; convert it to tokenizer.json"
        )
    found = tokenizer(list(documents), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        _muted_outside(tokens, offsets, answers[text]) if text in answers else tokens
        for text, tokens, offsets in zip(documents, found["input_ids"], found["offset_mapping"], strict=True)
    ]


def heard(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids, and labels that are `IGNORED` where a token is muted; both of the shape of `tokens`."""
    mute = tokens < 0
    return torch.where(mute, muted_tensor(tokens), tokens), tokens.masked_fill(mute, IGNORED)


def muted_tensor(tokens: Tensor) -> Tensor:
    """`muted`, for all of a tensor."""
    return -1 - tokens


def spanned_bytes(text: str, spans: Spans) -> int:
    """The length of a text's spans in UTF-8."""
    return sum(len(text[start:end].encode()) for start, end in spans)


def _muted_outside(tokens: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Spans) -> list[int]:
    marked, ahead = [], list(spans)
    for token, (start, _) in zip(tokens, offsets, strict=True):
        while ahead and ahead[0][1] <= start:
            ahead.pop(0)
        marked.append(token if ahead and ahead[0][0] <= start else muted(token))
    return marked
