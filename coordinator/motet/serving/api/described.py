"""What answers look like, for the API's description: nothing that is sent is validated against it.

@router.get("/v1/models", response_model=None, responses=answers_with(ModelList))
describe_events(app)                                           # once, in the end
"""

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from motet.serving.engine.job import FinishReason

Responses = dict[int | str, dict[str, Any]]
_REFERENCE = "#/components/schemas/{model}"


class ErrorDetails(BaseModel):
    """What was seen, what was wanted, what to do next."""

    message: str
    type: str
    param: str | None = Field(description="The field that is wrong; null if it is no single one.")
    code: str | None = Field(description="A short stable word, such as model_not_found.")


class ErrorAnswer(BaseModel):
    """Every error."""

    error: ErrorDetails


class PromptTokensDetails(BaseModel):
    """Of a prompt's tokens."""

    cached_tokens: int = Field(description="That were known from earlier requests with the same expert set.")


class TokenUsage(BaseModel):
    """Tokens that were read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenAttribution(BaseModel):
    """Who took part in one token."""

    id: int
    token: str
    shares: dict[str, float] = Field(description="Of its gate mass, by expert; they sum to one.")


class Attribution(BaseModel):
    """Who took part: usage, not value."""

    mass: dict[str, float] = Field(description="Each expert's gate mass in generated tokens.")
    tokens: list[TokenAttribution]


class CompletionLogprobs(BaseModel):
    """Log probabilities, token by token."""

    tokens: list[str] = Field(description="Their texts; parts of characters as `bytes:\\\\xe2`.")
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] = Field(description="The likeliest tokens' and the token's own.")
    text_offset: list[int] = Field(description="Characters of the answer before each token.")


class Candidate(BaseModel):
    """A token that was or could have been taken."""

    token: str
    logprob: float
    bytes: list[int] = Field(description="Its own; those of an answer's tokens, joined, are its text in UTF-8.")


class TokenLogprob(Candidate):
    """A token of the answer."""

    top_logprobs: list[Candidate]


class ChatLogprobs(BaseModel):
    """Log probabilities, token by token."""

    content: list[TokenLogprob]
    refusal: None


class _Choice(BaseModel):
    index: int
    finish_reason: FinishReason | None = Field(description="Null in a stream until the last piece.")
    attribution: Attribution | None = Field(None, description="Where the request asks for it.")


class CompletionChoice(_Choice):
    """One continuation of one prompt."""

    text: str
    logprobs: CompletionLogprobs | None


class AssistantMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Choice):
    """One answer to a conversation."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class Delta(BaseModel):
    """What the model says next."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Choice):
    """A piece of one answer."""

    delta: Delta
    logprobs: ChatLogprobs | None


class _Answer(BaseModel):
    id: str
    created: int = Field(description="Seconds since the epoch.")
    model: str
    experts_used: list[str]
    expert_set: str = Field(description="The set's digest.")


class CompletionAnswer(_Answer):
    """Continuations; of a stream, each event."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: TokenUsage | None = Field(
        None, description="In a stream, of the last event if it was asked for; null in those before."
    )


class ChatAnswer(_Answer):
    """Answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatChunk(_Answer):
    """An event of a stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: TokenUsage | None = None


class Model(BaseModel):
    """What is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    composite: str = Field(description="The composite's digest.")
    context: int = Field(description="Tokens of prompt and answer together.")
    experts: list[str] = Field(description="All of them, by expert id.")


class NamedModel(Model):
    """A model as it was asked for, NAME or NAME:-law."""

    experts_used: list[str] = Field(description="Those that a request with this name and key has now.")
    expert_set: str


class ModelList(BaseModel):
    """The models."""

    object: Literal["list"]
    data: list[Model]


class Expert(BaseModel):
    """One expert."""

    id: str
    object: Literal["expert"]
    name: str
    kind: str
    rank: int | None
    parameters: int
    bytes: int
    contribution: str | None = Field(description="The digest of its owner's contribution; null of the anchor.")
    usable: bool = Field(description="With this key, now.")


class DefaultSet(BaseModel):
    """The set of a request that names none."""

    experts: list[str]
    expert_set: str


class ExpertList(BaseModel):
    """The experts, by expert id."""

    object: Literal["list"]
    composite: str
    anchor: str
    always: str
    data: list[Expert]
    default: DefaultSet


class ExpertUsage(BaseModel):
    """What of one expert was used."""

    name: str
    contribution: str
    owner: str | None = Field(description="The owner's public key; null of the anchor, and where it is not known.")
    answers: int
    generated_tokens: int = Field(description="Of these answers.")
    microtokens: int = Field(description="Its gate mass, in millionths of a generated token.")
    share: float = Field(description="Of the gate mass of all tokens that were generated in the period.")


class UsageAnswer(BaseModel):
    """What a key's tenant has used."""

    object: Literal["usage"]
    tenant: str | None = Field(description="Null where there are no accounts.")
    server: str = Field(description="The public key that signs this server's statements.")
    since: str = Field(description="ISO 8601, UTC.")
    until: str | None = Field(description="Null: until now.")
    answers: int
    prompt_tokens: int
    generated_tokens: int
    experts: list[ExpertUsage]
    notice: str


class Health(BaseModel):
    """How busy the server is."""

    status: Literal["ok", "stopping"]
    waiting: int
    running: int


ERRORS: Responses = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be used, or not with this key."},
    "429": {"model": ErrorAnswer, "description": "The queue is full; Retry-After says when to try again."},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot answer now."},
}


def answers_with(model: type[BaseModel], *, events: type[BaseModel] | None = None) -> Responses:
    """An endpoint's answer, and the events that it sends instead where a stream is asked for."""
    described: dict[str, Any] = {"model": model, "description": model.__doc__}
    if events is not None:
        described["content"] = {"text/event-stream": {"schema": {"$ref": _REFERENCE.format(model=events.__name__)}}}
    return {200: described}


def describe_events(app: FastAPI) -> None:
    """Let the application's description hold the events of streams, which FastAPI cannot be told of."""
    whole = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, known = models_json_schema([(ChatChunk, "serialization")], ref_template=_REFERENCE)
            document = whole()
            document["components"]["schemas"] = known["$defs"] | document["components"]["schemas"]
        return whole()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation does
