"""`fold-norm`: move the gain and bias of norms into the matrix products that follow."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.pattern_rewriter import PatternRewriter, PatternRewriteWalker, RewritePattern

from mqc.analysis.context import CompilerContext
from mqc.arrays import Array
from mqc.dialects.llm import LayerNormOp, LinearOp, NormOp
from mqc.ir.weight_store import WeightStore
from mqc.pass_base import Pass


@dataclass
class _FoldGain(RewritePattern):
    weights: WeightStore

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
        if not isinstance(op, NormOp):
            return
        users = [use.operation for use in op.result.uses]
        linears = [user for user in users if isinstance(user, LinearOp)]
        if not users or len(linears) < len(users):
            return
        bias = op.ref("bias") if isinstance(op, LayerNormOp) else None
        if bias is not None:
            for user in linears:
                _add_bias(self.weights, user, bias_input=self.weights[bias])
            del op.properties["bias"]
            rewriter.notify_op_modified(op)
        if op.gain is not None:
            for user in linears:
                user.absorb(self.weights, [self.weights[op.gain]], None)
            del op.properties["gain"]
            rewriter.notify_op_modified(op)


def _add_bias(weights: WeightStore, op: LinearOp, bias_input: Array) -> None:
    """Move a constant addend of the input into the bias: W·(x + c) + b = W·x + (W·c + b)."""
    shift = weights[op.weight] @ bias_input
    if op.bias is not None:
        op.replace_weight(weights, "bias", weights[op.bias] + shift)
    else:
        op.properties["bias"] = weights.add(f"{op.value_name}.bias", shift)


class FoldNorm(Pass):
    """Move gains and biases of norms into the linears that use them.

    1. `linear(layer_norm(x, g, c), W, b)` → `linear(layer_norm(x, g), W, b + W·c)`
    2. `linear(norm(x, g), W, b)` → `linear(norm(x), W·diag(g), b)`

    for all users at once. A norm with any other user (a residual add, rope, the output) keeps both.
    """

    name = "fold-norm"

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        walker = PatternRewriteWalker(_FoldGain(ctx.weights), apply_recursively=False)
        return walker.rewrite_module(module)
