"""`fold-norm`: move the gain and bias of norms into the matrix products that follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from xdsl.dialects.builtin import ModuleOp, f32
from xdsl.ir import Operation, SSAValue
from xdsl.pattern_rewriter import PatternRewriter, PatternRewriteWalker, RewritePattern
from xdsl.rewriter import InsertPoint

from mqc.analysis.context import CompilerContext
from mqc.arrays import Array
from mqc.costs import ModelSize, Work
from mqc.dialects.llm import LayerNormOp, LinearOp, NormOp, RmsNormOp, shared_tables
from mqc.ir.op import WeightAttr, channels, tensor
from mqc.ir.weight_store import WeightStore
from mqc.pass_base import Pass


@dataclass
class _FoldGain(RewritePattern):
    weights: WeightStore
    #: Matrices that are tables too, and keep their values.
    tables: frozenset[WeightAttr]

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
        if not isinstance(op, NormOp):
            return
        bias = op.ref("bias") if isinstance(op, LayerNormOp) else None
        users = [use.operation for use in op.result.uses]
        linears = [user for user in users if isinstance(user, LinearOp)]
        if not users or len(linears) < len(users) or op.given is not None:
            return
        if bias is not None:
            for user in linears:
                _add_bias(self.weights, user, bias_input=self.weights[bias])
            del op.properties["bias"]
            rewriter.notify_op_modified(op)
        if op.gain is None or any(user.fixed for user in linears):
            return
        gain = self.weights[op.gain]
        del op.properties["gain"]
        rewriter.notify_op_modified(op)
        if any(user.weight in self.tables for user in linears):
            self._fold_in_front(op, gain, rewriter)
        else:
            for user in linears:
                user.absorb(self.weights, [gain], None)

    def _fold_in_front(self, op: NormOp, gain: Array, rewriter: PatternRewriter) -> None:
        """Into a matrix between the norm and its users, and a second one that takes up their rotation."""
        gained = self._linear(op.result, f"{op.value_name}.gain", np.diag(gain))
        made = [gained]
        if isinstance(op, RmsNormOp):  # the mean of a layer norm keeps its values from turning
            made.append(self._linear(gained.result, f"{op.value_name}.basis", np.eye(len(gain))))
        rewriter.insert_op(made, InsertPoint.after(op))
        op.result.replace_uses_with_if(made[-1].result, lambda use: use.operation is not gained)

    def _linear(self, x: SSAValue, name: str, matrix: Array) -> LinearOp:
        weight = self.weights.add(f"{name}.weight", matrix.astype(np.float32))
        made: LinearOp = LinearOp.build_op([x], tensor(f32, channels(x)), name, weight=weight, weight_bits=8)
        return made


def _add_bias(weights: WeightStore, op: LinearOp, bias_input: Array) -> None:
    """Move a constant addend of the input into the bias: W·(x + c) + b = W·x + (W·c + b)."""
    shift = weights[op.weight] @ bias_input
    if op.bias is not None:
        op.replace_weight(weights, "bias", weights[op.bias] + shift)
    else:
        op.properties["bias"] = weights.add(f"{op.value_name}.bias", shift)


@dataclass(frozen=True)
class FoldNorm(Pass):
    """Move gains and biases of norms into the linears that use them.

    1. `linear(layer_norm(x, g, c), W, b)` → `linear(layer_norm(x, g), W, b + W·c)`
    2. `linear(norm(x, g), W, b)` → `linear(norm(x), W·diag(g), b)`

    for all users at once. A norm with any other user (a residual add, rope, the output) keeps both. So does
    one whose result has a type of the model's own; one that a matrix with integers of its own reads keeps its
    gain.

    3. `linear(rms_norm(x, g), T)` → `linear(linear(linear(rms_norm(x), diag(g)), I), T)`, where T is an
       embedding's table too: tied logits. `rotate-channels` turns the input of the first new matrix and the
       result of the second, by Hadamard matrices that 8 bits hold exactly if the width has one, and the table
       and T stay one. A layer norm, which does not turn, needs the first only.

    Options:
        share_tables: whether rule 3 applies; without it rule 2 makes a second table.
    """

    name = "fold-norm"
    share_tables: bool = True

    def work(self, size: ModelSize, length: int) -> Work:
        return Work(written=size.weights + size.logits)

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        shared = shared_tables(module) if self.share_tables else ()
        pattern = _FoldGain(ctx.weights, frozenset(linear.weight for _, linear in shared))
        return PatternRewriteWalker(pattern, apply_recursively=False).rewrite_module(module)
