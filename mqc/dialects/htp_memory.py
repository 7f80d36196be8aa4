"""Constants, the KV cache and copies between memories, of the `htp` dialect."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from xdsl.dialects.builtin import IntegerAttr, StringAttr, TensorType
from xdsl.ir import SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.constraints import Limit
from mqc.dialects.htp_core import DDR, VTCM, HtpOp, Tile, TransferType, shape, space
from mqc.ir.op import EvaluationContext, MqcOp, WeightAttr, channels, element_type, u8
from mqc.ir.weight_store import numpy_dtype
from mqc.numerics.htp_tiles import VECTOR_BYTES


@irdl_op_definition
class ConstantOp(HtpOp):
    """A tensor of the weights file.

    `y = value`
    """

    name = "htp.constant"
    value = prop_def(WeightAttr)
    result = result_def(TensorType)
    LIMITS: ClassVar = (
        Limit("the result has the shape and elements of value", lambda op: _like(op.value.type, op.result)),
        Limit("the result lies in ddr", lambda op: space(op.result.type) in (None, DDR)),
    )

    def evaluate(self, ctx: EvaluationContext) -> Array:
        return ctx.array(self.value)


def _like(kind: TensorType, value: SSAValue) -> bool:
    return tuple(kind.get_shape()) == shape(value) and kind.get_element_type() == element_type(value)


@irdl_op_definition
class CacheOp(HtpOp):
    """Keys or values of a layer's KV cache, as an earlier run left them; zeros at first.

    `y = cache[layer, part]`
    """

    name = "htp.cache"
    QNN: ClassVar = "graph input"
    layer = prop_def(IntegerAttr)
    part = prop_def(StringAttr)
    result = result_def(TensorType)
    PORTS: ClassVar = {"result": Tile((u8,), 2, DDR)}
    LIMITS: ClassVar = (Limit("part is key or value", lambda op: op.part.data in ("key", "value")),)

    def evaluate(self, ctx: EvaluationContext) -> Array:
        found: Array = ctx.state.setdefault(self.state, np.zeros(shape(self.result), np.uint8))
        return found

    @property
    def state(self) -> str:
        """The name of the state in @main that it holds."""
        return f"{self.part.data}.{self.get('layer')}"


@irdl_op_definition
class StridedSliceOp(HtpOp):
    """Rows `[first, first + count)` along the first dimension of a tensor in DDR.

    `y = x[first : first + count]`
    """

    name = "htp.strided_slice"
    QNN: ClassVar = "StridedSlice"
    x = operand_def(TensorType)
    first = prop_def(IntegerAttr)
    result = result_def(TensorType)
    LIMITS: ClassVar = (
        Limit(
            "first and the result's rows are rows of x",
            lambda op: 0 <= op.get("first") <= shape(op.x)[0] - shape(op.result)[0],
        ),
        Limit(
            "the result's rows are shaped like those of x",
            lambda op: (
                shape(op.x)[1:] == shape(op.result)[1:] and element_type(op.x) == element_type(op.result)
            ),
        ),
    )

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        return x[self.get("first") : self.get("first") + shape(self.result)[0]]


@irdl_op_definition
class DmaLoadOp(MqcOp):
    """Begin to copy rows `[first, first + rows of the result)` of a tensor in DDR to VTCM.

    `y = x[first : first + count]`
    """

    name = "htp.dma_load"
    LEVELS: ClassVar[tuple[str, ...]] = ("htp",)
    x = operand_def(TensorType)
    first = prop_def(IntegerAttr)
    result = result_def(TransferType)

    def verify_(self) -> None:
        kind = self.result.type
        assert isinstance(kind, TransferType)
        rows, count = shape(self.x), kind.tensor.get_shape()
        self.expect(space(self.x.type) == DDR, f"{self.x.type} must lie in ddr")
        self.expect(space(kind.tensor) == VTCM, f"{kind.tensor} must lie in vtcm")
        self.expect(min(count) > 0, f"{kind.tensor} must have a row")
        self.expect(
            kind.tensor.get_element_type() == element_type(self.x) and tuple(count[1:]) == rows[1:],
            f"the rows of {kind.tensor} must be those of {self.x.type}",
        )
        self.expect(0 <= self.get("first") <= rows[0] - count[0], f"{self.x.type} has no such rows")
        offset = self.attributes.get("offset")
        self.expect(
            not isinstance(offset, IntegerAttr) or offset.value.data % VECTOR_BYTES == 0,
            f"offset must be a multiple of {VECTOR_BYTES}",
        )

    def evaluate(self, ctx: EvaluationContext, x: Array) -> Array:
        kind = self.result.type
        assert isinstance(kind, TransferType)
        return x[self.get("first") : self.get("first") + kind.tensor.get_shape()[0]]


@irdl_op_definition
class DmaStoreOp(MqcOp):
    """Begin to copy a tile of logits from VTCM to columns `[first, first + channels of x)` in DDR.

    `y = dest with y[:, first : first + channels] = x`
    """

    name = "htp.dma_store"
    LEVELS: ClassVar[tuple[str, ...]] = ("htp",)
    x = operand_def(TensorType)
    dest = operand_def(TensorType)
    first = prop_def(IntegerAttr)
    result = result_def(TransferType)

    def verify_(self) -> None:
        kind = self.result.type
        assert isinstance(kind, TransferType)
        self.expect(space(self.x.type) == VTCM, f"{self.x.type} must lie in vtcm")
        self.expect(space(self.dest.type) == DDR, f"{self.dest.type} must lie in ddr")
        self.expect(kind.tensor == self.dest.type, f"the result must be {self.dest.type}")
        fits = 0 <= self.get("first") <= channels(self.dest) - channels(self.x)
        same = element_type(self.x) == element_type(self.dest) and shape(self.x)[0] == shape(self.dest)[0]
        self.expect(fits and same, f"{self.x.type} is no columns of {self.dest.type}")

    def evaluate(self, ctx: EvaluationContext, x: Array, dest: Array) -> Array:
        dest[:, self.get("first") : self.get("first") + x.shape[1]] = x
        return dest


@irdl_op_definition
class DmaWaitOp(MqcOp):
    """Wait until a copy has ended.

    `y = x`
    """

    name = "htp.dma_wait"
    LEVELS: ClassVar[tuple[str, ...]] = ("htp",)
    transfer = operand_def(TransferType)
    result = result_def(TensorType)

    def verify_(self) -> None:
        kind = self.transfer.type
        assert isinstance(kind, TransferType)
        self.expect(kind.tensor == self.result.type, f"the result must be {kind.tensor}")

    def evaluate(self, ctx: EvaluationContext, transfer: Array) -> Array:
        return transfer


@irdl_op_definition
class EmptyOp(HtpOp):
    """Memory that is to be written: a value that is made in tiles, or in DDR the logits.

    `y = undefined`
    """

    name = "htp.empty"
    result = result_def(TensorType)
    PORTS: ClassVar = {}

    def evaluate(self, ctx: EvaluationContext) -> Array:
        return np.zeros(shape(self.result), numpy_dtype(element_type(self.result)))
