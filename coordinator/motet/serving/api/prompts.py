"""A request's prompts as token ids, refused before all of a text has been read that cannot fit.

Guarantees: a prompt that fits is read whole, as the tokenizer reads it. Of a longer one no more is read than shows that
it does not fit, since a tokenizer takes seconds and hundreds of megabytes for the longest text that a body holds.

    prompts = token_ids(composite, body.prompt, limit=16)                    # Refusal: context_length_exceeded
    ids = conversation_ids(composite, body.messages, limit=None)
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from motet.serving.api.errors import Refusal
from motet.serving.api.schemas import Message
from motet.serving.engine.loading import Composite

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]

LONG_TEXT = 1 << 16
"""Characters; longer texts are looked at in pieces of this length first."""
_LONGEST_WORD = 128
"""Characters; WordPiece calls longer words unknown as a whole (from 100 on)."""


def characters(prompt: Prompt) -> int:
    """How much text there is to read."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    return sum(len(each) for each in texts if isinstance(each, str))


def token_ids(composite: Composite, prompt: Prompt, *, limit: int | None) -> list[list[int]]:
    """The token ids of every prompt, with `limit` to be generated. Raises Refusal for a text that is too long."""
    if isinstance(prompt, str):
        return [_encoded(composite, prompt, limit)]
    if all(isinstance(each, int) for each in prompt):
        return [[int(each) for each in prompt if isinstance(each, int)]]
    return [
        _encoded(composite, each, limit) if isinstance(each, str) else list(each)
        for each in prompt
        if not isinstance(each, int)
    ]


def conversation_ids(composite: Composite, messages: Sequence[Message], *, limit: int | None) -> list[int]:
    """The token ids of a conversation, by the tokenizer's own template.

    Raises Refusal where it has none, refuses the messages, or makes a text of them that is too long.
    """
    tokenizer = composite.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise Refusal(
            "saw a conversation for a model without a chat template, wanted a prompt; use /v1/completions, or a "
            "composite of an instruct anchor",
            code="no_chat_template",
            param="messages",
        )
    told: list[Mapping[str, str]] = [
        {"role": "system" if each.role == "developer" else each.role, "content": each.text} for each in messages
    ]
    try:
        if sum(len(each["content"]) for each in told) > LONG_TEXT:
            text = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
            _require_fitting(composite, text, limit)
        ids = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=True, return_dict=False)
    except TemplateError as error:
        raise Refusal(f"saw messages that the chat template refuses: {error}", param="messages") from error
    return list(ids)


def require_room(tokens: int, *, limit: int | None, context: int, at_least: bool = False) -> None:
    """Refuse a prompt of so many tokens, or of `at_least` so many, behind which `limit` (None: one) have no room."""
    if tokens + (limit or 1) > context:
        raise Refusal(
            f"saw a prompt of {'at least ' if at_least else ''}{tokens} tokens and {limit or 1} to generate, wanted "
            f"{context} together at most, the model's context; shorten the prompt or ask for fewer tokens",
            code="context_length_exceeded",
            param="prompt",
        )


def _encoded(composite: Composite, text: str, limit: int | None) -> list[int]:
    tokenizer = composite.tokenizer
    _require_fitting(composite, text, limit)
    ids: list[int] = tokenizer.encode(text, verbose=False)
    require_room(len(ids), limit=limit, context=composite.context)  # now: the next prompt of many is as long
    begin = tokenizer.bos_token_id
    return ids if ids or begin is None else [begin]


def _require_fitting(composite: Composite, text: str, limit: int | None) -> None:
    """Refuse a long text of which a beginning has too many tokens already.

    What is far enough from where a text was cut has the same tokens as in the whole: byte-level BPE, WordPiece and
    Unigram all join what stands together. So each piece counts without as many tokens as may differ, the characters of
    the longest one behind either cut. What this does not hold for is a text that a token swallows however long it is,
    as some vocabularies' <mask> does with the spaces beside it: more than `LONG_TEXT` of those are refused.
    """
    if len(text) <= LONG_TEXT:
        return
    differing, seen = 2 * _longest_token(composite.tokenizer), 0
    for begin in range(0, len(text), LONG_TEXT):
        piece = text[begin : begin + LONG_TEXT]
        read = composite.tokenizer.encode(piece, add_special_tokens=False, verbose=False)
        seen += max(0, len(read) - differing)
        require_room(seen, limit=limit, context=composite.context, at_least=True)


@lru_cache(maxsize=1)
def _longest_token(tokenizer: Any) -> int:  # noqa: ANN401
    """Characters."""
    return max(_LONGEST_WORD, *map(len, tokenizer.get_vocab()))
