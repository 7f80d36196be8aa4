"""`quantize-weights`: round weights to 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np
from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp

from mqc.dialects.core import WeightAttr, attr
from mqc.dialects.llm import EmbeddingOp, LinearOp
from mqc.dialects.quant import uniform
from mqc.errors import RecipeError
from mqc.ir import CompilerContext, mqc_ops
from mqc.pass_base import Pass
from mqc.weight_store import Array, WeightStore

GROUPS = (0, 32, 64, 128)
#: Largest integer factor of a group: 4-bit weight · factor then fits in s8.
MAX_GROUP_FACTOR = 16


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Symmetric integers with a scale per output channel, for linears and embedding tables.

    1. 8 bits: `round(w / s)` in [−127, 127], `s = max|w| / 127`.
    2. 4 bits: the same in [−8, 7], `s` the one of a grid of clippings with least squared error.
    3. 4 bits in groups: each group of input channels has an integer factor f in 1…16 (the
       `group_scale`), `w ≈ round(w / (s·f)) · s·f`: the blockwise form that QNN calls LPBQ.

    A matrix shared by two ops is quantized once. Embeddings, and linears that give the logits,
    keep 8 bits.

    Options:
        bits: 8 or 4.
        group: input channels per group, 0 for none; 32, 64 or 128 with 4 bits.
        keep8: globs of value names whose weights keep 8 bits.
    """

    name = "quantize-weights"
    requires: ClassVar[str] = "quant"
    ensures: ClassVar[str] = "quant"
    bits: int = 8
    group: int = 0
    keep8: tuple[str, ...] = ()

    def run(self, ctx: CompilerContext, module: ModuleOp) -> None:
        if self.bits not in (4, 8) or self.group not in GROUPS or (self.group and self.bits == 8):
            raise RecipeError(
                "quantize-weights: bits must be 8 or 4, group one of 0, 32, 64, 128 (with 4 bits)"
            )
        done: dict[WeightAttr, tuple[WeightAttr, WeightAttr]] = {}
        linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp)]
        for i, op in enumerate(linears):
            ctx.progress(self.name, (i + 1) / len(linears))
            if self.bits == 4 and not self._keeps8(op):
                self._quantize4(ctx.weights, op)
            else:
                floor = _bias_floor(ctx.weights, op)
                if op.weight not in done:
                    done[op.weight] = _quantize8(ctx.weights, op.weight, floor)
                op.properties["weight"], op.properties["weight_scale"] = done[op.weight]
                op.properties["weight_bits"] = attr(8)
        for table in mqc_ops(module):
            if isinstance(table, EmbeddingOp):
                if table.table not in done:
                    done[table.table] = _quantize8(ctx.weights, table.table, None)
                table.properties["table"], table.properties["table_scale"] = done[table.table]

    def _keeps8(self, op: LinearOp) -> bool:
        gives_logits = any(isinstance(use.operation, func.ReturnOp) for use in op.result.uses)
        return gives_logits or any(fnmatchcase(op.value_name, glob) for glob in self.keep8)

    def _quantize4(self, weights: WeightStore, op: LinearOp) -> None:
        weight = weights[op.weight]
        n, k = weight.shape
        size = self.group or k
        if k % size:
            raise RecipeError(
                f"quantize-weights: %{op.value_name} has {k} input channels, which groups of {size} "
                "do not divide"
            )
        blocks = weight.reshape(n, k // size, size)
        step = _best_step4(blocks)
        if self.group:
            scale = step.max(1, keepdims=True) / MAX_GROUP_FACTOR
            factor = np.clip(np.rint(step / scale), 1, MAX_GROUP_FACTOR)
        else:
            scale, factor = step, np.ones_like(step)
        floor = _bias_floor(weights, op)
        if floor is not None:
            scale = np.maximum(scale, floor[:, None])
        rounded = np.clip(np.rint(blocks / (scale * factor)[..., None]), -8, 7).astype(np.int8)
        name = op.weight.key.data
        op.properties["weight"] = weights.add(name, rounded.reshape(n, k))
        op.properties["weight_scale"] = weights.add(
            f"{name}.scale", np.ascontiguousarray(scale[:, 0], np.float32)
        )
        op.properties["weight_bits"] = attr(4)
        if self.group:
            op.properties["group_scale"] = weights.add(f"{name}.group_scale", factor.astype(np.uint8))


def _bias_floor(weights: WeightStore, op: LinearOp) -> Array | None:
    """Least scale per output channel that keeps the bias, in units of s_x·s_w, within 2^29."""
    x = uniform(op.x)
    if op.bias is None or x is None:
        return None
    floor: Array = np.abs(weights[op.bias]) / (x.real_scale * 2.0**29)
    return floor


def _quantize8(weights: WeightStore, ref: WeightAttr, floor: Array | None) -> tuple[WeightAttr, WeightAttr]:
    weight = weights[ref]
    scale = np.maximum(np.abs(weight).max(1) / 127, 1e-12).astype(np.float32)
    if floor is not None:
        scale = np.maximum(scale, floor.astype(np.float32))
    rounded = np.rint(weight / scale[:, None]).astype(np.int8)
    return weights.add(ref.key.data, rounded), weights.add(f"{ref.key.data}.scale", scale)


def _best_step4(blocks: Array) -> Array:
    """Step `[n, groups]` of a 4-bit grid with the least squared error over each block's values."""
    peak = np.maximum(np.abs(blocks).max(-1), 1e-12)
    best, best_error = peak / 7, np.full(peak.shape, np.inf, np.float32)
    for shrink in np.linspace(1.0, 0.6, 17, dtype=np.float32):
        step = peak * shrink / 7.5
        q = np.clip(np.rint(blocks / step[..., None]), -8, 7)
        error = ((q * step[..., None] - blocks) ** 2).sum(-1)
        best = np.where(error < best_error, step, best)
        best_error = np.minimum(error, best_error)
    return best
