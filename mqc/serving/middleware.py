"""What stands around the application: a limit on what is sent, and counting."""

from __future__ import annotations

import json
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mqc.serving.metrics import Metrics
from mqc.serving.replies import failure

#: Largest body of a request.
BODY_BYTES = 8 << 20


class BodyLimit:
    """Refuses bodies of more than `BODY_BYTES` with status 413."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body, size, more = bytearray(), 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client is gone
                return None
            part = message.get("body", b"")
            more, size = message.get("more_body", False), size + len(part)
            if size <= BODY_BYTES:  # what is too much is read, so that the client reads the answer
                body += part
        if size > BODY_BYTES:
            return await _refuse(send)
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def received() -> Message:
            return whole.pop() if whole else await receive()

        return await self._app(scope, received, send)


class Counted:
    """Counts requests by path and status, and their seconds."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # Of paths that there are: a client cannot make new ones.
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.request(path, status, time.perf_counter() - began)


async def _refuse(send: Send) -> None:
    told = failure(f"the request has more than {BODY_BYTES >> 20} MiB", "invalid_request_error")
    body = json.dumps(told).encode()
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
