"""Requests of the OpenAI API as they are taken: what would change an answer and is not done is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: Limits of one request.
MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS, MOST_PROMPTS = 16, 16, 20, 256

_Stop = Annotated[list[str], Field(max_length=MOST_STOPS)]
_Prompts = Annotated[list[str] | list[list[int]], Field(min_length=1, max_length=MOST_PROMPTS)]


def _nothing(value: Any) -> Any:
    """Raises `ValueError` for what this server does not do, unless it would change nothing."""
    if value:
        raise ValueError("this is not supported: leave it out")
    return value


class _Strict(BaseModel):
    # Types as JSON has them: "3" is no number.
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """A piece of a message's content. Pieces of other types, such as images, are refused."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message; what it has besides a role and a content goes to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: str
    content: str | list[TextPart] | None = None

    def plain(self) -> dict[str, Any]:
        """The message as chat templates take it: the content as one text."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content, **(self.model_extra or {})}


class JsonSchema(_Strict):
    """A schema with a name, as `response_format` has it. Answers always keep it, `strict` or not."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(_Strict):
    """`response_format`: a text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given with the type json_schema, and only with it")
        return self


class StructuredOutputs(_Strict):
    """`structured_outputs`, vLLM's extension: a JSON schema, a regular expression or a choice of texts."""

    json_: dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        if sum(part is not None for part in (self.json_, self.regex, self.choice)) != 1:
            raise ValueError("give one of json, regex and choice")
        return self


class StreamOptions(_Strict):
    """`stream_options`: whether a last piece tells the numbers of tokens."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Request(_Strict):
    """What both kinds of requests have.

    Fields that this server has beyond the API: `top_k`, `min_p`, `repetition_penalty`, `structured_outputs`.
    What is None is what the model's `generation_config` states. Fields that no answer depends on are taken
    and not used: `user`, `metadata`, `store` and the like.
    """

    model: str
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | _Stop | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    _not_done = field_validator("presence_penalty", "frequency_penalty", "logit_bias")(_nothing)

    @model_validator(mode="after")
    def _has_one_form(self) -> Request:
        form = self.response_format
        if self.structured_outputs is not None and form is not None and form.type != "text":
            raise ValueError("give response_format or structured_outputs, not both")
        return self

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class ChatRequest(Request):
    """A request to `/v1/chat/completions`.

    `chat_template_kwargs` (vLLM's extension) are variables of the chat template.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    _not_done_here = field_validator("tools")(_nothing)

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        if self.max_tokens == 0:
            raise ValueError("max_tokens must be 1 or more")
        return self


class CompletionRequest(Request):
    """A request to `/v1/completions`: texts, or lists of token ids.

    `echo` gives the prompt in front of the answer, with `logprobs` the chances of its tokens too.
    """

    prompt: str | _Prompts | Annotated[list[int], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    _not_done_here = field_validator("suffix")(_nothing)

    @model_validator(mode="after")
    def _says_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0: only with echo there is something to answer")
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of is not supported: leave it out")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One prompt for each of the answers."""
        prompt: Any = self.prompt
        alone = isinstance(prompt, str) or all(isinstance(token, int) for token in prompt)
        return [prompt] if alone else prompt
