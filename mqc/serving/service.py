"""From requests to responses: prompts, sessions, and answers whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.types import Receive, Scope, Send

from mqc.errors import InputError, MqcError
from mqc.ir.module import returned_value
from mqc.ir.op import channels
from mqc.runtime.constraint import Constraint, Constraints
from mqc.runtime.program import Program
from mqc.runtime.sampling import Sampling
from mqc.runtime.session import Session
from mqc.runtime.stop_texts import split_stops
from mqc.serving import schema
from mqc.serving.answers import Piece, Plan, answer
from mqc.serving.metrics import Metrics
from mqc.serving.pool import Pool
from mqc.serving.replies import Chat, Completion, event, failure

#: Most tokens of a completion by default, as the API has it. Answers of chats may fill the context.
_COMPLETION_TOKENS = 16
#: A status that nobody reads.
_CLIENT_GONE = 499


@dataclass
class _Usage:
    """Numbers of tokens."""

    prompt: int = 0
    cached: int = 0
    answers: int = 0

    def told(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answers,
            "total_tokens": self.prompt + self.answers,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Service:
    """A program with its sessions."""

    def __init__(self, program: Program, sessions: int, queue: int) -> None:
        self._program = program
        self.pool = Pool(program, sessions, queue)
        self.metrics = Metrics(self.pool)

    @cached_property
    def _constraints(self) -> Constraints:
        """Made when the first request asks for it: plain answers need none, whatever the tokenizer."""
        program = self._program
        return Constraints(program.tokenizer, channels(returned_value(program.module)))

    def _bytes_of(self, token: int) -> bytes:
        return self._constraints.bytes_of(token)

    async def chat(self, request: schema.ChatRequest, http: Request) -> Response:
        """The answers to a conversation."""
        plan = await run_in_threadpool(self._chat_plan, request)
        return await self._respond(request, http, [plan], Chat(request.model, self._bytes_of))

    async def complete(self, request: schema.CompletionRequest, http: Request) -> Response:
        """The texts that follow prompts."""
        plans = await run_in_threadpool(self._completion_plans, request)
        return await self._respond(request, http, plans, Completion(request.model, self._bytes_of))

    # ---- what is to be done

    def _chat_plan(self, request: schema.ChatRequest) -> Plan:
        options = request.chat_template_kwargs or {}
        if wrong := [name for name in options if not name.isidentifier()]:
            raise InputError(f"chat_template_kwargs: {wrong[0]!r} is no name of a variable")
        prompt = self._program.tokenizer.chat([m.plain() for m in request.messages], **options)
        most = request.max_completion_tokens or request.max_tokens or self._left(prompt)
        chances = (request.top_logprobs or 0) if request.logprobs else None
        return self._plan(request, prompt, most, chances)

    def _completion_plans(self, request: schema.CompletionRequest) -> list[Plan]:
        plans = []
        for given in request.prompts:
            ids = self._program.tokenizer.encode(given) if isinstance(given, str) else given
            most = request.max_tokens
            if most is None:
                most = min(_COMPLETION_TOKENS, self._left(ids))
            echo = None
            if request.echo:
                echo = given if isinstance(given, str) else self._program.tokenizer.decode(given)
            plan = self._plan(request, ids, most, request.logprobs)
            plans.append(replace(plan, continues=True, echo=echo))
        return plans

    def _left(self, prompt: list[int]) -> int:
        """Tokens that fit behind a prompt; what does not fit is told of later."""
        return max(self.pool.room - len(prompt) + 1, 1)

    def _plan(self, request: schema.Request, prompt: list[int], most: int, chances: int | None) -> Plan:
        sampling = Sampling.of_model(
            self._program.tokenizer.generation, temperature=request.temperature, top_k=request.top_k,
            top_p=request.top_p, min_p=request.min_p, repetition_penalty=request.repetition_penalty,
            seed=request.seed,
        )  # fmt: skip
        if chances is not None:
            self._bytes_of(0)  # before the answer: chances are told with the bytes of their tokens
        ids, texts = split_stops(self._program.tokenizer, request.stops)
        return Plan(prompt, most, sampling, ids, texts, self._constraint(request), chances)

    def _constraint(self, request: schema.Request) -> Constraint | None:
        form, outputs = request.response_format, request.structured_outputs
        if form is not None and form.type == "json_object":
            return self._constraints.json({"type": "object"})
        if form is not None and form.json_schema is not None:
            return self._constraints.json(form.json_schema.schema_)
        if outputs is None:
            return None
        if outputs.json_ is not None:
            return self._constraints.json(outputs.json_)
        if outputs.regex is not None:
            return self._constraints.regex(outputs.regex)
        return self._constraints.choice(outputs.choice or ())

    # ---- doing it

    async def _respond(
        self, request: schema.Request, http: Request, plans: list[Plan], reply: Chat | Completion
    ) -> Response:
        """All answers in one session, which keeps what their prompts share."""
        usage = _Usage(prompt=sum(len(plan.prompt) for plan in plans))
        async with AsyncExitStack() as held:
            session = await held.enter_async_context(self.pool.session(plans[0].prompt))
            pieces = await held.enter_async_context(
                aclosing(self._pieces(session, plans, request.n or 1, usage))
            )
            if not request.stream:
                answers: dict[int, list[Piece]] = {}
                async for index, piece in pieces:
                    answers.setdefault(index, []).append(piece)
                    if await http.is_disconnected():
                        return Response(status_code=_CLIENT_GONE)
                return JSONResponse(reply.whole([answers[n] for n in sorted(answers)], usage.told()))
            first = await anext(pieces)  # what is wrong with the request is known before the stream begins
            wants_usage = request.stream_options is not None and request.stream_options.include_usage
            events = _events(first, pieces, reply, usage if wants_usage else None)
            return _Stream(events, held.pop_all())

    async def _pieces(
        self, session: Session, plans: list[Plan], count: int, usage: _Usage
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces of `count` answers to each plan, by the number of the answer."""
        for index in range(len(plans) * count):
            plan, copy = plans[index // count], index % count
            if copy and plan.sampling.seed is not None:
                plan = replace(plan, sampling=replace(plan.sampling, seed=plan.sampling.seed + copy))
            try:
                async for piece in iterate_in_threadpool(answer(session, self._program, plan)):
                    yield index, piece
            finally:
                if plan.most:
                    self.metrics.turn(session.turn)
            usage.answers += session.turn.generated
            usage.cached += 0 if copy else session.turn.kept


class _Stream(StreamingResponse):
    """Events of a stream; what they hold is given back however it ends, also if it never began."""

    def __init__(self, events: AsyncIterator[str], held: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _events(
    first: tuple[int, Piece],
    others: AsyncIterator[tuple[int, Piece]],
    reply: Chat | Completion,
    usage: _Usage | None,
) -> AsyncIterator[str]:
    begun = -1
    item: tuple[int, Piece] | None = first
    while item is not None:
        index, piece = item
        if index != begun and (head := reply.first(index)) is not None:
            yield event(head)
        begun = index
        yield event(reply.piece(index, piece))
        try:
            item = await anext(others, None)
        except MqcError as error:
            yield event(failure(str(error), "server_error"))
            return
    if usage is not None:
        yield event(reply.last(usage.told()))
    yield "data: [DONE]\n\n"
