"""Speed of a program, and the limits that bound it."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from mqc.dialects.int_ops import LinearOp
from mqc.errors import InputError
from mqc.ir.module import mqc_ops, room
from mqc.registry import backend_for
from mqc.runtime.program import Program

_RUNS = 3


def modelled(program: Program, prompt_tokens: int = 512, new_tokens: int = 64) -> dict[str, Any] | None:
    """The figures of the target's cost model by chip, None if its programs are measured.

    Raises `InputError` if the tokens do not fit the context.
    """
    _check(program, prompt_tokens, new_tokens)
    found = backend_for(program.target).modelled(program.module, prompt_tokens, new_tokens)
    if found is None:
        return None
    chips = [asdict(entry) for entry in found]
    return {"modelled": chips, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}


def _check(program: Program, prompt_tokens: int, new_tokens: int) -> None:
    if prompt_tokens < 1 or new_tokens < 1:
        raise InputError("bench needs at least one prompt token and one new token")
    if prompt_tokens + new_tokens > room(program.module):
        raise InputError(
            f"{prompt_tokens} + {new_tokens} tokens do not fit the context, which has room for "
            f"{room(program.module)}; lower --prompt-tokens or --new-tokens"
        )


def measure(
    program: Program,
    prompt_tokens: int = 512,
    new_tokens: int = 64,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Prefill and decode rates (median of three runs), peak memory, and the machine's limits.

    `prefill_limit_tok_s` is the measured multiply-accumulate peak over the products' MACs per token
    (a 16-bit operand counts twice, the logits once per prompt); `decode_limit_tok_s` the measured
    read bandwidth over the bytes of weights that every token reads.
    Raises `InputError` if the tokens do not fit the context.
    """
    _check(program, prompt_tokens, new_tokens)
    engine = program.engine()
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, engine.vocabulary, prompt_tokens).astype(np.int32)
    engine.reset()
    engine.forward(prompt[:1], rows=1)
    prefill, decode = [], []
    for i in range(_RUNS):
        engine.reset()
        start = time.perf_counter()
        logits = engine.forward(prompt, rows=1)
        middle = time.perf_counter()
        for _ in range(new_tokens):
            logits = engine.forward(np.array([logits[-1].argmax()], np.int32), rows=1)
        end = time.perf_counter()
        prefill.append(prompt_tokens / (middle - start))
        decode.append(new_tokens / (end - middle))
        progress((i + 1) / (_RUNS + 1))
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limits = backend_for(program.target).limits(**program.options)
    progress(1.0)
    macs, read = _work(program, prompt_tokens)
    return {
        "prefill_tok_s": statistics.median(prefill),
        "decode_tok_s": statistics.median(decode),
        "peak_rss_bytes": peak_rss,
        "read_bandwidth_bytes_s": limits.read_bandwidth_bytes_s,
        "int8_peak_mac_s": limits.int8_peak_mac_s,
        "threads": limits.threads,
        "prefill_limit_tok_s": limits.int8_peak_mac_s / macs,
        "decode_limit_tok_s": limits.read_bandwidth_bytes_s / read,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
    }


def _work(program: Program, prompt_tokens: int) -> tuple[float, int]:
    """8-bit MACs per prompt token, and bytes of product weights read per decoded token: of experts those that
    a token takes."""
    from mqc.dialects.constraints import bits

    linears = [op for op in mqc_ops(program.module) if isinstance(op, LinearOp)]
    macs: float = 0
    for op in linears:
        tokens = 1 / prompt_tokens if op is linears[-1] else 1
        macs += op.macs() * bits(op.x) / 8 * tokens
    read = {op.weight: program.weights.nbytes([op.weight]) * op.experts[1] // op.experts[0] for op in linears}
    return macs, sum(read.values())
