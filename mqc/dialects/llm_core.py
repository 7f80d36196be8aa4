"""The base class of the ops of levels `llm` and `quant`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from xdsl.ir import SSAValue

from mqc.arrays import Array
from mqc.dialects.equivariance import Constraint, Fix
from mqc.dialects.quant import UniformType
from mqc.dialects.rotations import Rotation, RotationRule
from mqc.errors import UnsupportedOpError
from mqc.ir.op import EvaluationContext, MqcOp, WeightAttr
from mqc.ir.weight_store import WeightStore

Scale = Array | None


class LlmOp(MqcOp):
    """An op of the `llm` and `quant` levels: `compute` is its float function."""

    LEVELS: ClassVar[tuple[str, ...]] = ("llm", "quant")
    #: The properties that hold what a prefix leaves in each of the op's states, with the operand whose rows
    #: they are; None for a state that has none.
    PREFIX: ClassVar[Mapping[str, str | None]] = {}

    @property
    def given(self) -> UniformType | None:
        """The quantized type that the model came with for the result. Then no pass may scale or turn it."""
        stated = self.attributes.get("given")
        return stated if isinstance(stated, UniformType) else None

    def evaluate(self, ctx: EvaluationContext, *operands: torch.Tensor) -> torch.Tensor:
        return ctx.rounded(self.results[0], self.compute(ctx, *operands))

    def compute(self, ctx: EvaluationContext, *operands: Any) -> torch.Tensor:
        raise NotImplementedError

    def equivariance(self) -> list[Constraint]:
        """Constraints on per-channel scales (`mqc.dialects.equivariance`). Default: nothing may be scaled."""
        return [Fix(value) for value in (*self.operands, *self.results)]

    def absorb(self, weights: WeightStore, inputs: Sequence[Scale], output: Scale) -> None:
        """Change the weights so that the op takes `x / input` and gives `y / output`."""

    def rotations(self) -> list[RotationRule]:
        """Rules for rotations of channels (`mqc.dialects.rotations`). Default: nothing may turn."""
        return [Fix(value) for value in (*self.operands, *self.results)]

    def turn(self, weights: WeightStore, inputs: Sequence[Rotation | None], output: Rotation | None) -> None:
        """Change the weights so that the op takes `x · input` and gives `y · output`, block by block."""

    def lower(self, lowering: Any) -> SSAValue:
        """The integer form of an op that `lower-to-int` has no rule for.

        Args:
            lowering: `mqc.passes.lower_to_int.Lowering`, whose `emit`, `requant`, `out` and `scalar`
                make `int` ops, and whose `quantization` tells the type of an operand.

        Returns the integer value of the result. Raises `UnsupportedOpError` by default.
        """
        raise UnsupportedOpError(
            f"%{self.value_name}", self.name, "has no integer form", known=lowering.known()
        )

    def replace_weight(self, weights: WeightStore, name: str, array: Array) -> None:
        """Store `array` as the new value of property `name`."""
        old = self.properties[name]
        assert isinstance(old, WeightAttr)
        self.properties[name] = weights.add(old.key.data, array.astype(np.float32, copy=False))

    def replace_rows(self, weights: WeightStore, name: str, rows: Callable[[Array, slice], Array]) -> None:
        """Store the new value of property `name`, computed block by block.

        Args:
            rows: makes new rows of old ones, `[rows, columns]`, and of the slice that they are.
        """
        old = self.properties[name]
        assert isinstance(old, WeightAttr)
        array = weights[old]
        self.properties[name] = weights.build(
            old.key.data, array.shape, np.float32, lambda block: rows(array[block], block)
        )

    def ref(self, name: str) -> WeightAttr | None:
        ref = self.properties.get(name)
        return ref if isinstance(ref, WeightAttr) else None
