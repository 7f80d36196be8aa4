"""`fold-constants`: move multiplications by a number into weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)

from mqc.analysis.context import CompilerContext
from mqc.costs import ModelSize, Work
from mqc.dialects.llm import EmbeddingOp, LinearOp, NormOp, ScaleOp, shared_tables
from mqc.ir.op import WeightAttr, attr, channels
from mqc.ir.weight_store import WeightStore
from mqc.pass_base import Pass


@dataclass
class _FoldScale(RewritePattern):
    weights: WeightStore
    #: Matrices that are tables too, and keep their values.
    tables: frozenset[WeightAttr]

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: ScaleOp, rewriter: PatternRewriter) -> None:
        producer = op.x.owner
        touched = [producer, *(use.operation for use in op.result.uses)]
        if any(isinstance(other, LinearOp) and other.fixed for other in touched):
            return
        shrink = np.full(channels(op.x), 1.0 / op.get("factor"), np.float32)
        if isinstance(producer, EmbeddingOp) and op.x.has_one_use():
            given = 1.0 if producer.factor is None else producer.get("factor")
            producer.properties["factor"] = attr(given * op.get("factor"))
        elif isinstance(producer, LinearOp | NormOp) and op.x.has_one_use():
            target = self._norm_in_front(producer) or producer
            target.absorb(self.weights, [None], np.full(channels(target.results[0]), shrink[0]))
        elif all(isinstance(use.operation, LinearOp) for use in op.result.uses):
            for use in list(op.result.uses):
                assert isinstance(use.operation, LinearOp)
                use.operation.absorb(self.weights, [1 / shrink], None)
        else:
            return
        rewriter.replace(op, [], [op.x])

    def _norm_in_front(self, op: LinearOp | NormOp) -> NormOp | None:
        """What can be scaled in place of a matrix that is a table too."""
        if not isinstance(op, LinearOp) or op.weight not in self.tables or op.bias is not None:
            return None
        norm = op.x.owner
        return norm if isinstance(norm, NormOp) and op.x.has_one_use() else None


class FoldConstants(Pass):
    """Move `llm.scale` into weights.

    1. `scale(f, linear(x, W, b))` → `linear(x, f·W, f·b)`, if the product has no other user;
       the same for the gain of a norm. Where W is an embedding's table too, the gain of the norm in front
       takes f, if there is one.
    2. `scale(f, embedding(i, T))` → `embedding(i, T, f)`, if it has no other user: the table may give the
       logits too, and stays what it is.
    3. `linear(scale(f, x), W, b)` → `linear(x, f·W, b)`, if all users of the scale are linears.

    Any other scale is left alone, and what stands beside a matrix with integers of its own.
    """

    name = "fold-constants"

    def work(self, size: ModelSize, length: int) -> Work:
        return Work()

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        tables = frozenset(linear.weight for _, linear in shared_tables(module))
        return PatternRewriteWalker(_FoldScale(ctx.weights, tables)).rewrite_module(module)
