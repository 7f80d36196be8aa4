"""The application: paths, keys and errors of the OpenAI API."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as AnyHttpError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from mqc.errors import InputError, MqcError, choices
from mqc.runtime.program import Program
from mqc.serving import schema
from mqc.serving.middleware import BodyLimit, Counted
from mqc.serving.pool import Busy
from mqc.serving.replies import failure
from mqc.serving.service import Service

#: The page loads nothing from elsewhere.
_POLICY = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class Settings:
    """How a program is served.

    name: of the model, as requests state it. sessions: requests that are answered at once. queue: requests
    that may wait. hosts: names by which clients may call the server, `*` for any. api_key: what clients must
    send as bearer token; None for none.
    """

    name: str
    sessions: int = 1
    queue: int = 64
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    api_key: str | None = None


def create_app(program: Program, settings: Settings) -> FastAPI:
    """An ASGI application that answers by a program.

    Raises `InputError` for settings out of range.
    """
    service = Service(program, settings.sessions, settings.queue)
    # The pages that show the API would load scripts from elsewhere.
    app = FastAPI(title="mqc", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts))
    app.add_middleware(Counted, metrics=service.metrics)
    _answer_errors(app)
    stated = {
        "id": settings.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "mqc",
        "max_model_len": service.pool.room,
    }

    def key(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        wanted, sent = settings.api_key, given.credentials if given else ""
        if wanted is not None and not secrets.compare_digest(sent.encode(), wanted.encode()):
            raise HTTPException(401, "the API key is missing or wrong: send Authorization: Bearer KEY")

    def known(name: str) -> None:
        if name != settings.name:
            raise HTTPException(404, f"there is no model {name!r}; {choices(name, [settings.name])}")

    locked = [Depends(key)]

    @app.post("/v1/chat/completions", dependencies=locked)
    async def chat(request: schema.ChatRequest, http: Request) -> Response:
        known(request.model)
        return await service.chat(request, http)

    @app.post("/v1/completions", dependencies=locked)
    async def complete(request: schema.CompletionRequest, http: Request) -> Response:
        known(request.model)
        return await service.complete(request, http)

    @app.get("/v1/models", dependencies=locked)
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [stated]}

    @app.get("/v1/models/{name:path}", dependencies=locked)
    def model(name: str) -> dict[str, Any]:
        known(name)
        return stated

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    def metrics() -> Response:
        return PlainTextResponse(service.metrics.text())

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        text = files("mqc.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    return app


def _answer_errors(app: FastAPI) -> None:
    """Errors as the API writes them."""

    def told(status: int, message: str, param: str | None = None, **headers: str) -> Response:
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        return JSONResponse(failure(message, kind, None, param), status, headers)

    @app.exception_handler(AnyHttpError)
    async def http(_: Request, error: AnyHttpError) -> Response:
        return told(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "this server does not know this field"
        return told(400, f"{where}: {message}" if where else message, where or None)

    @app.exception_handler(MqcError)
    async def refused(_: Request, error: MqcError) -> Response:
        return told(400 if isinstance(error, InputError) else 500, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> Response:
        return told(429, "as many requests wait as may wait; try again later", **{"Retry-After": "1"})

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return told(500, "an error of the server; its output says more")
