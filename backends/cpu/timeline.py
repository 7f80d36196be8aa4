"""When each op of a C program runs, measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.backend import Span, Timeline
from mqc.backends.cpu.engine import CHUNK, CpuEngine
from mqc.dialects.int_ops import RequantOp
from mqc.errors import InputError
from mqc.ir.op import MqcOp, plain
from mqc.ir.weight_store import WeightStore


def measured(
    module: ModuleOp, weights: WeightStore, prompt_tokens: int, new_tokens: int, **options: Any
) -> Timeline:
    """A prompt of random tokens, in parts of at most 128, and greedy tokens behind it.

    The program is that of the engine, and reads the clock after each op. An op ends when all threads have
    ended it. Raises `InputError` if the tokens do not fit the context.
    """
    with CpuEngine(module, weights, timed=True, **options) as engine:
        room = engine.context - engine.prefix_length
        if prompt_tokens + new_tokens > room:
            raise InputError(f"{prompt_tokens} + {new_tokens} tokens do not fit {room} positions")
        prompt = np.random.default_rng(0).integers(0, engine.vocabulary, prompt_tokens).astype(np.int32)
        parts = [prompt[start : start + CHUNK] for start in range(0, prompt_tokens, CHUNK)]
        for part in parts:  # pages of weights and cache are there after the first run
            engine.forward(part, rows=0)
        engine.reset()
        unit, title = "ops", f"{engine.threads} threads, {engine.isa}"
        spans: list[Span] = []
        prefills, first = len(parts), None
        for number in range(prefills + new_tokens):
            name = f"prefill_{len(parts[number])}" if number < prefills else "decode"
            ends = number + 1 >= prefills  # of the other parts of a prompt nobody wants logits
            logits = engine.forward(parts[number], rows=int(ends))
            if ends:
                parts.append(np.array([logits[-1].argmax()], np.int32))
            marks = engine.marks()
            first = marks[0] if first is None else first
            times = (marks - first).astype(np.float64) * 1e-9
            facts = {"positions": engine.position, "tokens": len(parts[number])}
            spans.append(Span("calls", name, "call", times[0], times[-1] - times[0], facts))
            for op, begin, end in zip(engine.ops, times, times[1:], strict=False):
                spans.append(Span(unit, op.value_name, _kind(op), begin, end - begin, _facts(op)))
    return Timeline(title, True, spans)


def _kind(op: MqcOp) -> str:
    """The name of the op that the requantization is fused with."""
    fused = op.accumulator if isinstance(op, RequantOp) else None
    return (fused or op).name


def _facts(op: MqcOp) -> dict[str, Any]:
    return {name: plain(op.attributes[name]) for name in ("kernel", "loc") if name in op.attributes}
