"""OpenAI's fields that nothing is done with here: each is taken at the values that ask for nothing, else refused.

Guarantees: a client that sends its defaults along is answered; what would have changed the answer is never ignored,
and the refusal says why it cannot be had.

    class Body(NeutralChatFields): ...                 # Body.model_validate({"tools": [], "store": False})
"""

from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Annotated, Any

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """Makes a field take null and these values, which ask for nothing; others are refused `because` of something."""

    values: tuple[object, ...] = ()
    because: str

    def check(self, value: object) -> None:
        """Returns nothing for a value that asks for nothing. Raises ValueError for another."""
        if value is not None and not any(_alike(value, each) for each in self.values):
            wanted = " or ".join(repr(each) for each in self.values) or "none"
            raise ValueError(f"saw {shortened(value)}, wanted {wanted}: {self.because}")

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.values], "description": f"For clients that send it along: {self.because}."}


def _alike(one: object, other: object) -> bool:
    """Equal as JSON is: false is not 0."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


_NO_TOOLS = "tools are not called here"
_NOT_STORED = "answers are not stored here"
_TEXT = "answers are text alone"
_NO_REASONING = "no reasoning goes before an answer"
_NO_BIAS = "probabilities are the model's own"
_UNTOLD_NAME = "chat templates tell a model roles, not names; write it into the content"


Label = Annotated[str | None, Field(description="Taken: whom or what it is for changes no answer. It is not kept.")]


class NeutralFields(BaseModel):
    """Of both kinds of requests."""

    frequency_penalty: Annotated[Any, Only(values=(0,), because=_NO_BIAS)] = None
    presence_penalty: Annotated[Any, Only(values=(0,), because=_NO_BIAS)] = None
    logit_bias: Annotated[Any, Only(values=({},), because=_NO_BIAS)] = None
    user: Label = None


class NeutralCompletionFields(NeutralFields):
    """Of /v1/completions."""

    echo: Annotated[Any, Only(values=(False,), because="the prompt is not repeated")] = None
    best_of: Annotated[Any, Only(values=(1,), because="nothing is drawn beside the answers; n asks for several")] = None
    suffix: Annotated[Any, Only(values=("",), because="text is continued, not filled in")] = None


class NeutralChatFields(NeutralFields):
    """Of /v1/chat/completions."""

    tools: Annotated[Any, Only(values=([],), because=_NO_TOOLS)] = None
    tool_choice: Annotated[Any, Only(values=("none", "auto"), because=_NO_TOOLS)] = None
    parallel_tool_calls: Annotated[Any, Only(values=(True, False), because=_NO_TOOLS)] = None
    functions: Annotated[Any, Only(values=([],), because=_NO_TOOLS)] = None
    function_call: Annotated[Any, Only(values=("none", "auto"), because=_NO_TOOLS)] = None
    web_search_options: Annotated[Any, Only(because=_NO_TOOLS)] = None
    response_format: Annotated[Any, Only(values=({"type": "text"},), because="no form is forced on an answer")] = None
    modalities: Annotated[Any, Only(values=(["text"],), because=_TEXT)] = None
    audio: Annotated[Any, Only(because=_TEXT)] = None
    prediction: Annotated[Any, Only(because="answers are not guessed beforehand")] = None
    store: Annotated[Any, Only(values=(False,), because=_NOT_STORED)] = None
    metadata: Annotated[Any, Only(values=({},), because=_NOT_STORED)] = None
    service_tier: Annotated[Any, Only(values=("auto", "default"), because="all requests are served alike")] = None
    reasoning_effort: Annotated[Any, Only(values=("none",), because=_NO_REASONING)] = None
    safety_identifier: Label = None
    prompt_cache_key: Label = None
    verbosity: Annotated[Any, Only(because="how long an answer is, max_completion_tokens says")] = None


class NeutralMessageFields(BaseModel):
    """Of a message: what OpenAI's client sends back of an earlier answer."""

    name: Annotated[Any, Only(because=_UNTOLD_NAME)] = None
    refusal: Annotated[Any, Only(because="models read text alone")] = None
    tool_calls: Annotated[Any, Only(values=([],), because=_NO_TOOLS)] = None
    function_call: Annotated[Any, Only(because=_NO_TOOLS)] = None
    audio: Annotated[Any, Only(because="models read text alone")] = None
    annotations: Annotated[Any, Only(values=([],), because="models read text alone")] = None


class NeutralStreamOptions(BaseModel):
    """Of a stream's options."""

    include_obfuscation: Annotated[Any, Only(values=(False,), because="streams are not padded")] = None
