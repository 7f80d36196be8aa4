"""Every value that the C program computes, for debugging."""

from __future__ import annotations

from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.liveness import live_ranges
from mqc.arrays import Array
from mqc.backend import Ids
from mqc.backends.cpu.engine import CHUNK, CpuEngine
from mqc.ir.module import ops_by_name, returned_value
from mqc.ir.op import MqcOp, attr, channels, element_type, plain
from mqc.ir.weight_store import WeightStore, numpy_dtype


def values(module: ModuleOp, weights: WeightStore, ids: Ids, **options: Any) -> dict[str, Array]:
    """Values by name `[tokens, channels]`, as stored in the arena, and the logits.

    The same kernels run, but no two values share memory: the arena has the size of all of them,
    for 128 tokens.
    """
    apart = module.clone()
    ranges = list(live_ranges(apart))
    arena = 0
    for value in ranges:
        value.op.attributes["offset"] = attr(arena)
        arena += value.size
    apart.attributes["mqc.arena"] = attr(arena)
    names = {op: name for name, op in ops_by_name(apart).items()}
    parts: dict[str, list[Array]] = {names[value.op]: [] for value in ranges}
    last = returned_value(apart).owner
    assert isinstance(last, MqcOp)
    parts[names[last]] = []
    with CpuEngine(apart, weights, **options) as engine:
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            parts[names[last]].append(engine.forward(chunk))
            memory = engine.arena(arena * CHUNK)
            for value in ranges:
                result = value.op.results[0]
                dtype, width = numpy_dtype(element_type(result)), channels(result)
                begin = plain(value.op.attributes["offset"]) * CHUNK
                rows = memory[begin : begin + len(chunk) * width * dtype.itemsize]
                parts[names[value.op]].append(rows.view(dtype).reshape(len(chunk), width).copy())
    return {name: np.concatenate(rows) for name, rows in parts.items()}
