"""The cost model's figures for a whole program: a prompt, then tokens one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp

from mqc.backend import Modelled, ModelledRun, Span, Timeline
from mqc.backends.npu.chips import chips
from mqc.backends.npu.timeline import FunctionCost, function_cost
from mqc.dialects.htp_core import shape
from mqc.errors import InputError
from mqc.ir.module import context_length, prefix_tokens, static_functions


def modelled(module: ModuleOp, prompt_tokens: int, new_tokens: int) -> list[Modelled]:
    """Figures for each chip of `chips.toml`: of the prompt's tokens, and of a token halfway through the
    new ones. Raises `InputError` if they do not fit the context."""
    functions, plan = _plan(module, prompt_tokens, new_tokens)
    begin = len(prefix_tokens(module))
    middle = begin + prompt_tokens + (new_tokens + 1) // 2
    found = []
    for chip in chips().values():
        runs = [function_cost(functions[name], chip, end) for name, end in plan]
        decode = function_cost(functions["decode"], chip, middle)
        found.append(Modelled(chip.name, _summary(runs, prompt_tokens), _summary([decode], 1)))
    return found


def timelines(module: ModuleOp, prompt_tokens: int, new_tokens: int) -> list[Timeline]:
    """The prompt's functions and one for each new token, one after another, for each chip of `chips.toml`.

    Raises `InputError` if they do not fit the context.
    """
    functions, plan = _plan(module, prompt_tokens, new_tokens)
    behind = len(prefix_tokens(module)) + prompt_tokens
    plan += [("decode", behind + i + 1) for i in range(new_tokens)]
    found = []
    for chip in chips().values():
        spans: list[Span] = []
        now = 0.0
        for name, end in plan:
            run = function_cost(functions[name], chip, end)
            facts = {"positions": end, "tokens": run.tokens}
            spans.append(Span("functions", name, "function", now, run.seconds, facts))
            at_work = (row.span for row in run.rows if row.span.seconds)
            spans += (replace(span, begin=now + span.begin) for span in at_work)
            now += run.seconds
        found.append(Timeline(chip.name, False, spans))
    return found


def _plan(
    module: ModuleOp, prompt_tokens: int, new_tokens: int
) -> tuple[dict[str, FuncOp], list[tuple[str, int]]]:
    """The functions by name, and those that a prompt runs, as `pieces` gives them."""
    begin, context = len(prefix_tokens(module)), context_length(module)
    if begin + prompt_tokens + new_tokens > context:
        raise InputError(f"{prompt_tokens} + {new_tokens} tokens do not fit {context - begin} positions")
    functions = {n: f for n, f in static_functions(module).items() if n != "initialize"}
    return functions, list(pieces(functions, begin, prompt_tokens, context))


def pieces(
    functions: dict[str, FuncOp], begin: int, prompt_tokens: int, context: int
) -> Iterator[tuple[str, int]]:
    """The functions that a prompt runs, as `NpuEngine` chooses them, and the positions filled after each."""
    lengths = sorted(((shape(f.body.block.args[0])[0], n) for n, f in functions.items()), reverse=True)
    end = begin + prompt_tokens
    while begin < end:
        left = end - begin
        tokens, name = next(
            (t, n) for t, n in lengths if t == 1 or (begin + t <= context and 8 * left >= t and left > 1)
        )
        begin += min(tokens, left)
        yield name, begin


def _summary(runs: list[FunctionCost], tokens: int) -> ModelledRun:
    busy: dict[str, float] = {}
    kinds: dict[str, float] = {}
    for run in runs:
        for unit, seconds in run.busy.items():
            busy[unit] = busy.get(unit, 0.0) + seconds
        for kind, total in run.kinds.items():
            kinds[kind] = kinds.get(kind, 0.0) + total.seconds / tokens
    return ModelledRun(
        tokens_per_s=tokens / sum(run.seconds for run in runs),
        joules_per_token=sum(run.joules for run in runs) / tokens,
        memory_bytes_per_token=sum(run.ddr_bytes for run in runs) / tokens,
        bound=max(busy, key=lambda unit: busy[unit]),
        on_chip_bytes=max(run.vtcm_peak for run in runs),
        seconds_by_op=kinds,
    )
