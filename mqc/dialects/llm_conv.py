"""Short convolutions over the last tokens in the `llm` dialect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from xdsl.dialects.builtin import IntegerAttr, TensorType, f32
from xdsl.irdl import irdl_op_definition, operand_def, opt_prop_def, prop_def, result_def

from mqc.dialects.equivariance import Constraint, tie_all
from mqc.dialects.int_conv import MOST_TAPS
from mqc.dialects.llm_core import LlmOp, Scale
from mqc.ir.op import EvaluationContext, State, WeightAttr, channels, grown, rows_by_position
from mqc.ir.weight_store import WeightStore


@irdl_op_definition
class CausalConvOp(LlmOp):
    """Causal convolution of each channel by itself (depthwise) with `weight` `[channels, taps]`, whose last
    column meets the token itself and the others those right before it. What lies before the first token is 0.

    `layer` numbers the convolutions of a module. `prefix_x` `[prefix tokens, channels]` are the first rows of
    x, if there is a prefix. All rows stay, so that a sequence can go back to any position.

    `y[t] = bias + Σ weight[:, i] · x[t − taps + 1 + i]`
    """

    name = "llm.causal_conv"
    x = operand_def(TensorType)
    layer = prop_def(IntegerAttr)
    weight = prop_def(WeightAttr)
    bias = opt_prop_def(WeightAttr)
    prefix_x = opt_prop_def(WeightAttr)
    result = result_def(TensorType)

    PREFIX: ClassVar = {"prefix_x": "x"}

    def check(self) -> None:
        count = channels(self.x)
        self.expect(channels(self.result) == count, "channels must not change")
        shape = self.weight.shape
        self.expect(len(shape) == 2 and shape[0] == count, "weight must be [channels, taps]")
        self.expect(0 < shape[-1] <= MOST_TAPS, f"1 to {MOST_TAPS} taps")
        self.expect(self.bias is None or self.bias.shape == (count,), "bias must be [channels]")

    def states(self) -> tuple[State, ...]:
        name = f"conv.{self.get('layer')}"
        return (rows_by_position(name, (channels(self.x),), f32, self.prefix_x),)

    def compute(self, ctx: EvaluationContext, x: torch.Tensor) -> torch.Tensor:
        (state,) = self.states()
        rows = grown(ctx, state, x, lambda ref: ctx.rounded(self.x, ctx.torch(ref)), torch.cat)
        weight, new = ctx.torch(self.weight), len(x)
        seen = rows[-(new + weight.shape[1] - 1) :]
        seen = F.pad(seen, (0, 0, new + weight.shape[1] - 1 - len(seen), 0))
        y = F.conv1d(seen.T[None], weight[:, None], groups=len(weight))[0].T
        return y if self.bias is None else y + ctx.torch(self.bias)

    def macs(self) -> int:
        return channels(self.x) * int(self.weight.shape[1])

    def equivariance(self) -> list[Constraint]:
        return [tie_all(self.x, self.result, channels(self.x))]

    def absorb(self, weights: WeightStore, inputs: Sequence[Scale], output: Scale) -> None:
        for name, scale in (("bias", output), ("prefix_x", inputs[0])):
            ref = self.ref(name)
            if ref is not None and scale is not None:
                self.replace_weight(weights, name, weights[ref] / scale)
