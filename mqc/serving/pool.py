"""Sessions that requests take turns with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mqc.errors import InputError
from mqc.runtime.program import Program
from mqc.runtime.session import Session


class Busy(Exception):
    """As many requests wait as may wait."""


class Pool:
    """Sessions of one program, each with an engine and a cache of its own, and the queue for them.

    Whoever came first is served first. Of the free sessions a request gets the one whose cache has most of
    its prompt.

    Args:
        sessions: requests that are answered at once.
        queue: requests that may wait.

    running, waiting: requests now. Memory: `sessions` times a cache of the whole context.
    """

    def __init__(self, program: Program, sessions: int, queue: int) -> None:
        if sessions < 1 or queue < 0:
            raise InputError(f"sessions must be 1 or more and queue 0 or more, got {sessions} and {queue}")
        self._free = [program.session() for _ in range(sessions)]
        self._turn = asyncio.Semaphore(sessions)
        self._queue = queue
        self.running = self.waiting = 0
        #: Tokens of a prompt and its answer together, at most.
        self.room = self._free[0].room

    @asynccontextmanager
    async def session(self, prompt: Sequence[int]) -> AsyncIterator[Session]:
        """A session for a prompt, once it is this request's turn. Raises `Busy`."""
        if self._turn.locked() and self.waiting >= self._queue:
            raise Busy
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
        # Of those that have none of it, the one that was free for longest.
        chosen = max(self._free, key=lambda session: session.shared(prompt))
        self._free.remove(chosen)
        self.running += 1
        try:
            yield chosen
        finally:
            self.running -= 1
            self._free.append(chosen)
            self._turn.release()
