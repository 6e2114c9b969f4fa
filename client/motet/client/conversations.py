"""Conversations as an instruct model reads them: rendered by its chat template, the answers alone learnt and scored.

Guarantees: what is learnt is what the model would have to write. Where the template marks it ({% generation %}), the
mark decides; else an answer is what rendering with it adds to rendering up to it with the prompt for one. An earlier
answer that a template renders otherwise once the conversation goes on, and one that opens the conversation, so that
there is nothing to render it against, are read and not learnt; the last one always is learnt. A template that asks for
today's date is told `DAY`, so that the same conversations are the same text every day and on every machine.

    chat = Chat.of(anchor.tokenizer())
    found = chat.conversation([{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three."}])
    found.text[slice(*found.answers[0])]             # "Three.<|im_end|>"
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from motet.moe.spans import Spans
from motet.protocols.errors import DataError

ANSWERER = "assistant"
INSTRUCTORS = ("system", "developer")
_REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template raises, itself or by what it does with a conversation's values."""
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
DAY = datetime(2024, 7, 26)
"""The day that a template is told it is, midnight: the one that templates of Llama 3 take where they are told none."""
_ASKS_THE_DAY = "strftime_now"
_FORMATS = [f"%{letter}" for letter in "aAbBcdDeFHIjmMpSTuUwWxXyYzZ"] + [f"%-{letter}" for letter in "dHIjmMS"]

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A conversation as text, without the token that opens it, and where in it the answers are."""

    text: str
    answers: Spans
    told: str
    """What its speakers say, without the instructions that many conversations share and without the template."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """An instruct model's chat template. `marked` tells whether the template itself says what is generated."""

    tokenizer: Any
    template: str
    """The tokenizer's, told what day it is."""
    marked: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "Chat":  # noqa: ANN401 - transformers is untyped
        """The chat template of a tokenizer.

        Raises:
            DataError: it has none: its model is no instruct model; or several by name and no default.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                'saw format = "messages" under [data] and an anchor without a chat template, wanted an instruct '
                "anchor: frozen shared layers break the post-training of a base model (BAR, 2026), so that only a "
                "model that can answer learns conversations; join a federation with such an anchor, or give plain text"
            )
        try:
            template: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(
                f"saw the chat templates {', '.join(sorted(tokenizer.chat_template))} of the anchor's tokenizer, "
                "wanted one called default; have whoever prepared the anchor call the model's own so"
            ) from error
        return cls(tokenizer=tokenizer, template=_on_the_day(template), marked=bool(_MARK.search(template)))

    @classmethod
    def load(cls, anchor: Path) -> "Chat":
        """The chat template of the tokenizer in an anchor's folder; raises DataError when there is none."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(anchor, local_files_only=True)
        except (OSError, ValueError) as error:
            raise DataError(f"saw no tokenizer to render conversations with in {anchor}; fetch the anchor") from error
        return cls.of(tokenizer)

    def conversation(self, messages: object) -> Conversation:
        """One conversation up to its last answer, rendered.

        Raises:
            DataError: it is malformed, has no answer, or the template refuses it.
        """
        told = _up_to_the_last_answer(messages)
        try:
            text = self._rendered(told)
            spans = self._marked_spans(told) if self.marked else self._added_spans(told, text)
        except _REFUSALS as error:
            raise DataError(f"the chat template refuses it: {error}") from error
        answers = tuple(_trimmed(text, spans))
        if not answers:
            raise DataError("the chat template renders its answers nowhere, wanted something to learn")
        opening = self.tokenizer.bos_token
        cut = len(opening) if opening and text.startswith(opening) else 0  # whoever tokenizes it puts one there
        said = [message["content"] for message in told if message["role"] not in INSTRUCTORS]
        return Conversation(
            text=text[cut:],
            answers=tuple((start - cut, end - cut) for start, end in answers),
            told="\n".join(said),
        )

    def _rendered(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=prompt
        )
        return text

    def _marked_spans(self, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """What the template marks, run after run of tokens."""
        found = self.tokenizer.apply_chat_template(
            list(messages),
            chat_template=self.template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        spans: list[tuple[int, int]] = []
        inside = False
        for (start, end), mark in zip(found["offset_mapping"], found["assistant_masks"], strict=True):
            if mark and inside:
                spans[-1] = (spans[-1][0], end)
            elif mark:
                spans.append((start, end))
            inside = bool(mark)
        return spans

    def _added_spans(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """What each answer adds to what comes before it, if anything does, and the prompt for it."""
        if len(messages) == 1:
            raise DataError(
                "saw an answer that nothing comes before, wanted the message that it answers, since the chat template "
                "does not mark what is generated"
            )
        spans = []
        for number, message in enumerate(messages):
            if number and message["role"] == ANSWERER:  # without messages nothing is rendered
                before = self._rendered(messages[:number], prompt=True)
                last = number + 1 == len(messages)
                after = text if last else self._rendered(messages[: number + 1])
                if after.startswith(before) and text.startswith(after):
                    spans.append((len(before), len(after)))
                elif last:
                    raise DataError(
                        "the chat template renders a prompt for an answer other than the answer's beginning"
                    )
        return spans


def _on_the_day(template: str) -> str:
    """A template whose `strftime_now` tells `DAY`.

    A macro of that name goes before the environment's function, and nothing that is given to render a template would.
    The line end after it is not rendered, and lets the template begin as it did.
    """
    if _ASKS_THE_DAY not in template:
        return template
    told = "".join(f".replace({form!r}, {DAY.strftime(form)!r})" for form in _FORMATS)
    return f"{{% macro {_ASKS_THE_DAY}(format) %}}{{{{ format{told} }}}}{{% endmacro %}}\n{template}"


def _up_to_the_last_answer(messages: object) -> list[Message]:
    """Messages checked, without what follows the last answer and without keys that are null."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"saw {type(messages).__name__}, wanted a list of objects with role and content")
    told = [{key: value for key, value in message.items() if value is not None} for message in messages]
    for message in told:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise DataError(
                f"saw a message with {', '.join(sorted(message)) or 'nothing'}, wanted role and content as text"
            )
    answers = [number for number, message in enumerate(told) if message["role"] == ANSWERER]
    if not answers:
        raise DataError(f"saw no message of the role {ANSWERER!r}, wanted an answer to learn")
    if not all(told[number]["content"].strip() for number in answers):
        raise DataError("saw an empty answer, wanted text")
    return told[: answers[-1] + 1]


def _trimmed(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without the white space at their ends, which follows the token that ends an answer."""
    trimmed = ((start, start + len(text[start:end].rstrip())) for start, end in spans)
    return [(start, end) for start, end in trimmed if start < end]
