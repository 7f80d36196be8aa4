"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mqc.runtime.session import Turn
from mqc.serving.pool import Pool

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counts of one server, in a registry of their own."""

    def __init__(self, pool: Pool) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "mqc_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "mqc_request_seconds", "Seconds of a request, waiting included.", ["path"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "mqc_tokens",
            "Tokens of prompts that were computed (prefilled) or cached (kept), and of answers (generated).",
            ["kind"],
            registry=registry,
        )
        self._work = Counter(
            "mqc_work_seconds",
            "Seconds of computing, for prompts and for answers.",
            ["kind"],
            registry=registry,
        )
        running = Gauge("mqc_running_requests", "Requests that have a session.", registry=registry)
        running.set_function(lambda: pool.running)
        waiting = Gauge("mqc_waiting_requests", "Requests in the queue.", registry=registry)
        waiting.set_function(lambda: pool.waiting)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def turn(self, turn: Turn) -> None:
        """Count what an answer took."""
        for kind in ("kept", "prefilled", "generated"):
            self._tokens.labels(kind).inc(getattr(turn, kind))
        self._work.labels("prefill").inc(turn.prefill_seconds)
        self._work.labels("decode").inc(turn.decode_seconds)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
