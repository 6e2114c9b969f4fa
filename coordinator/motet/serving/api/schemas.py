"""What requests may contain: OpenAI's fields as far as they mean something here, and ours.

Guarantees: an unknown field is an error that names it, never ignored; of OpenAI's fields that nothing is done with,
only the value that changes nothing is taken.

    request = ChatRequest.model_validate({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]})
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    Tag,
    model_validator,
)

from motet.serving.api.neutral import (
    NeutralChatFields,
    NeutralCompletionFields,
    NeutralFields,
    NeutralMessageFields,
    NeutralStreamOptions,
)

MAX_SAMPLES = 128
MAX_PROMPTS = 64
MAX_IDS = 1 << 18
"""Token ids of one prompt; a model's context is what counts, and is looked at later."""
MAX_NAMES = 1024
"""Experts that are named in one list."""
MAX_NAME = 1 << 16
"""Characters of a model's name, with the experts that it switches."""
MAX_STOP = 256
"""Characters of a text that ends an answer."""


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("saw half of a surrogate pair, wanted text") from error
    return text


def _of_length(text: str) -> str:
    if not 1 <= len(text) <= MAX_STOP:
        raise ValueError(f"saw a text of {len(text):,} characters, wanted 1 to {MAX_STOP}")
    return text


def _form_of(value: object) -> str | None:
    """Which of `FORMS` a value has, so that faults of that one alone are told."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "<texts>" if isinstance(first, str) else "<lists>" if isinstance(first, list) else "<list>"


def _list_or_text(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


FORMS = frozenset({"<text>", "<texts>", "<list>", "<lists>"})
"""What pydantic puts into a fault's place, beside the fields, where a field takes several forms."""
Text = Annotated[str, AfterValidator(_encodable)]
Texts = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_PROMPTS)]
Stop = Annotated[Text, AfterValidator(_of_length), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_STOP})]
Stops = Annotated[
    Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(fail_fast=True, max_length=4), Tag("<list>")],
    Discriminator(
        _list_or_text,
        custom_error_type="stop",
        custom_error_message="saw neither a text nor a list, wanted a text or a list of up to 4",
    ),
]
TokenId = Annotated[StrictInt, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_IDS)]
Prompts = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Texts, Tag("<texts>")]
    | Annotated[TokenIds, Tag("<list>")]
    | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_PROMPTS), Tag("<lists>")],
    Discriminator(
        _form_of,
        custom_error_type="prompt",
        custom_error_message="saw neither a text nor a list, wanted a text, token ids, or a list of either",
    ),
]
Names = Annotated[list[str], Field(fail_fast=True, max_length=MAX_NAMES)]
Temperature = Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)]
Nucleus = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Experts(_Strict):
    """Which experts take part, by name; the anchor always does. One of the two must be given."""

    include: Names | None = Field(None, description="These alone, beside the anchor. None: all.")
    exclude: Names | None = Field(None, description="All but these. None: nobody is left out.")

    @model_validator(mode="after")
    def _some(self) -> "Experts":
        if self.include is None and self.exclude is None:
            raise ValueError("saw neither include nor exclude, wanted one; leave experts out for all of them")
        return self


class StreamOptions(_Strict, NeutralStreamOptions):
    """What a stream tells beside the answer."""

    include_usage: StrictBool | None = Field(None, description="A last chunk without choices that counts the tokens.")


class _Common(_Strict, NeutralFields):
    model: Text = Field(max_length=MAX_NAME, description="The model's name, or NAME:-law,-news, or NAME:+math.")
    max_tokens: StrictInt | None = Field(None, ge=1, description="Generated tokens at most.")
    temperature: Temperature | None = Field(None, description="0 takes the likeliest token. None: 1.")
    top_p: Nucleus | None = Field(None, description="None: 1.")
    n: StrictInt | None = Field(None, ge=1, le=MAX_SAMPLES, description="Answers to each prompt. None: 1.")
    stop: Stops | None = Field(None, description="Texts that end the answer.")
    seed: StrictInt | None = Field(None, ge=-(2**63), lt=2**63, description="Makes an answer repeatable. None: drawn.")
    stream: StrictBool | None = Field(None, description="Server-sent events instead of one answer.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    experts: Experts | None = Field(None, description="Which experts take part. None: as `model` says, else all.")
    attribution: StrictBool | None = Field(
        None, description="Tell the share of gate mass of each expert at each token."
    )

    @model_validator(mode="after")
    def _stream(self) -> "_Common":
        if self.stream_options is not None and not self.stream:
            raise ValueError("saw stream_options without stream, wanted stream: true beside it")
        return self

    @property
    def counts(self) -> bool:
        """Whether a stream ends with a chunk that counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(_Common, NeutralCompletionFields):
    """A body for /v1/completions."""

    prompt: Prompts = Field(description="Text, token ids, or several of either.")
    logprobs: StrictInt | None = Field(None, ge=0, le=5, description="Of how many likeliest tokens, beside the chosen.")


class TextPart(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _known(cls, part: Any) -> Any:  # noqa: ANN401 - as it came
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise ValueError(f"saw a part of type {kind[:40]!r}, wanted 'text': models read text alone")
        return part


class Message(_Strict, NeutralMessageFields):
    """What somebody said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("<list>")],
        Discriminator(
            _list_or_text,
            custom_error_type="content",
            custom_error_message="saw neither text nor a list of parts, wanted one of them",
        ),
    ]

    @property
    def text(self) -> str:
        """The whole of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Common, NeutralChatFields):
    """A body for /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: StrictInt | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: StrictBool | None = Field(None, description="Tell the log probability of each token.")
    top_logprobs: StrictInt | None = Field(
        None, ge=0, le=20, description="Of so many likeliest tokens; needs logprobs."
    )

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("saw top_logprobs without logprobs, wanted logprobs: true beside it")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("saw max_tokens and max_completion_tokens, wanted one of them; drop the other")
        return self
