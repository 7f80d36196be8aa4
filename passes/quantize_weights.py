"""`quantize-weights`: round weights to 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.arrays import Array, row_blocks
from mqc.compiler.observation import ROWS, Operands, observe
from mqc.compiler.precision_rules import check_groups, group_size, grouped, matrix_bits
from mqc.costs import ModelSize, Work, walk
from mqc.dialects.llm import EmbeddingOp, LinearOp
from mqc.dialects.quant import uniform
from mqc.errors import PassError, RecipeError
from mqc.ir.module import gives_logits, mqc_ops
from mqc.ir.op import MqcOp, WeightAttr, attr
from mqc.ir.weight_store import WeightStore
from mqc.numerics.products import GROUPS, per_input
from mqc.numerics.weight_rounding import (
    Hessian,
    best_steps,
    common_scales,
    in_other_steps,
    least_scale,
    round_nearest,
    round_with_feedback,
    whole_steps,
)
from mqc.pass_base import Pass

#: Largest integer factor of a group: 4-bit weight · factor then fits in s8.
MAX_GROUP_FACTOR = 16

#: Float matrices with their learned steps, if any: the integers and scales that they became.
Done = dict[tuple[WeightAttr, WeightAttr | None], tuple[WeightAttr, WeightAttr]]


class Feedback:
    """The inputs `[tokens, inputs]` of matrices on calibration data, and the products of their channels: of
    all with all; or in blocks, if they are of experts, whose channels meet others' in no product."""

    def __init__(self, inputs: Sequence[torch.Tensor], blocks: int) -> None:
        self.blocks = blocks
        #: All products, or the inputs: the products of all blocks at once would be too many.
        self._whole = Hessian.of(inputs) if blocks == 1 else None
        self._inputs = () if blocks == 1 else inputs

    def columns(self) -> list[slice]:
        """Those of each block."""
        size = self._inputs[0].shape[1] // self.blocks
        return [slice(i * size, (i + 1) * size) for i in range(self.blocks)]

    def hessian(self, block: int) -> Hessian:
        """Of a block's columns. Where no token chose the expert it is 0: columns make up for nothing then."""
        return self._whole or Hessian.of([x[:, self.columns()[block]] for x in self._inputs])

    @property
    def mean_squares(self) -> Array:
        """Of each input channel, `[inputs]`."""
        if self._whole is not None:
            return self._whole.mean_squares
        squares = torch.stack([x.square().sum(0) for x in self._inputs]).sum(0)
        return np.asarray((squares / sum(map(len, self._inputs))).numpy())


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Symmetric integers with a scale per output channel, for linears and embedding tables.

    1. 8 bits: `round(w / s)` in [−127, 127], `s = max|w| / 127`.
    2. 4 bits: the same in [−8, 7], `s` the one of a grid of clippings with least squared error.
    3. 4 bits in groups: each group of input channels has an integer factor f in 1…16 (the
       `group_scale`), `w ≈ round(w / (s·f)) · s·f`: the blockwise form that QNN calls LPBQ.

    A matrix that came with integers (`step_source`) keeps them, in 8 or 4 bits. Of groups, whose steps may be
    any numbers, each has the factor in 1…16 that comes nearest, and the channel the scale that fits them
    best.

    A matrix shared by two ops is quantized to 8 bits once, unless one has learned steps: a table that gives
    the logits too, as the logits want it. Embeddings, and linears that give the logits, keep 8 bits.

    With `rounding=feedback` the errors of the input channels make up for one another on calibration data
    (GPTQ, arXiv 2210.17323), op by op in the order of evaluation, behind what is quantized already; steps
    weigh each input channel by its mean square. It costs a float forward pass, and for each matrix
    outputs · inputs² operations.

    Options:
        bits: 8 or 4.
        group: input channels per group, 0 for none; 32, 64 or 128 with 4 bits.
        keep8: globs of value names whose weights keep 8 bits.
        rounding: `nearest`, or `feedback`.
        windows: calibration windows for `feedback`.
        keep_reference: keep the float tensors beside the integers, for `learn-ranges` to learn from.
    """

    name = "quantize-weights"
    requires: ClassVar[str] = "quant"
    ensures: ClassVar[str] = "quant"
    bits: int = 8
    group: int = 0
    keep8: tuple[str, ...] = ()
    rounding: str = "nearest"
    windows: int = 16
    keep_reference: bool = False

    def __post_init__(self) -> None:
        self.expect_one_of("bits", (4, 8))
        self.expect_one_of("group", GROUPS)
        self.expect(not (self.group and self.bits == 8), "groups need bits=4")
        self.expect_one_of("rounding", ("nearest", "feedback"))
        self.expect(self.windows >= 1, f"windows must be 1 or more, got {self.windows}")

    def check(self, module: ModuleOp, before: Sequence[Pass]) -> None:
        check_groups(grouped(module, self.bits, self.keep8, before), self.group)

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        return self.rounding == "feedback"

    def work(self, size: ModelSize, length: int) -> Work:
        tables = Work(written=size.weights + size.logits, elements=4 * (size.weights + size.logits))
        if self.rounding == "nearest":
            return tables
        tokens = self.windows * length
        # An input of k channels: its products, 5/8 of a square, and each weight's with those before it.
        inputs = sum(k * k for _, k in size.matrices) / 2
        products = Work(products=tokens * 5 / 8 * inputs)
        feedback = Work(
            products=3 * sum(n * k * k / 2 for n, k in size.matrices),  # in f32
            elements=8 * size.weights + tokens / ROWS * 1.5 * size.weights + tokens * 4 * size.outputs,
            calls=8 * sum(k for _, k in size.matrices),
        )
        return tables + walk(size, tokens) + products + feedback

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        done: Done = {}
        feedback: dict[tuple[SSAValue, int], Feedback] = {}

        def quantize(op: MqcOp, operands: Sequence[Operands]) -> None:
            if not isinstance(op, LinearOp):
                return
            if op.fixed:
                self._keep(ctx.weights, op, done)
                return
            blocks = op.column_blocks[0]
            if operands and (op.x, blocks) not in feedback:
                feedback.clear()  # ops with the same input stand together
                feedback[op.x, blocks] = Feedback([x for x, *_ in operands], blocks)
            self._quantize(ctx.weights, op, feedback.get((op.x, blocks)), done)
            if blocks > 1:
                feedback.clear()  # it holds the inputs

        if self.rounding == "feedback":
            assert ctx.calibration is not None
            windows = ctx.calibration.part(self.windows, ctx.calibration.windows.shape[1])
            observe(ctx, module, windows, before=quantize, report=partial(ctx.progress, self.name))
        else:
            linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp)]
            for i, op in enumerate(linears, 1):
                quantize(op, ())
                ctx.progress(self.name, i / len(linears))
        for table in mqc_ops(module):
            if isinstance(table, EmbeddingOp):
                if self.keep_reference:
                    table.properties["reference"] = table.table
                matrix = table.table, None
                if matrix not in done:
                    done[matrix] = _quantize8(ctx.weights, table.table)
                table.properties["table"], table.properties["table_scale"] = done[matrix]
        return True

    def _quantize(self, weights: WeightStore, op: LinearOp, feedback: Feedback | None, done: Done) -> None:
        if self.keep_reference:
            op.properties["reference"] = op.weight
        learned = op.weight_step
        op.properties.pop("weight_step", None)
        step = None if learned is None else weights[learned]
        if matrix_bits(op, self.bits, self.keep8) == 4:
            self._quantize4(weights, op, step, feedback)
            return
        matrix = op.weight, learned
        if matrix not in done:
            done[matrix] = _quantize8(weights, op.weight, _bias_floor(weights, op), step, feedback)
        op.properties["weight"], op.properties["weight_scale"] = done[matrix]
        op.properties["weight_bits"] = attr(8)

    def _keep(self, weights: WeightStore, op: LinearOp, done: Done) -> None:
        """The integers that a matrix came with; of groups, in steps of a program (`in_other_steps`)."""
        assert op.weight_step is not None
        weight, step, ref = weights[op.weight], weights[op.weight_step], op.weight
        name, half = ref.key.data, 1 << (int(op.get("weight_bits")) - 1)
        floor = _bias_floor(weights, op)

        def integers(rows: slice) -> Array:
            whole = whole_steps(weight[rows], step[rows])
            if whole is None or whole.min() < -half or whole.max() >= half:
                raise PassError(
                    f"quantize-weights: a pass before it changed the matrix of %{op.value_name}, which has "
                    "integers of its own (step_source): it must leave such a matrix as it is"
                )
            return whole

        scale, factor = (step[:, 0].copy(), None) if step.shape[1] == 1 else common_scales(step)
        steps = step if factor is None else factor * scale[:, None]

        def nearest(rows: slice) -> Array:
            return in_other_steps(integers(rows), step[rows], steps[rows], int(op.get("weight_bits")))

        if floor is not None:  # rows of zeros have any scale
            scale = np.where(weight.any(1), scale, np.maximum(scale, floor)).astype(np.float32)
        if self.keep_reference:
            op.properties["reference"] = ref
        made = integers if factor is None else nearest
        kept = weights.build(name, weight.shape, np.int8, made), weights.add(f"{name}.scale", scale)
        op.properties["weight"], op.properties["weight_scale"] = kept
        if factor is not None:
            op.properties["group_scale"] = weights.add(f"{name}.group_scale", factor)
        elif gives_logits(op):
            done[ref, None] = kept  # a table, maybe
            op.properties["weight_bits"] = attr(8)
        del op.properties["weight_step"], op.properties["step_source"]

    def _quantize4(
        self, weights: WeightStore, op: LinearOp, step: Array | None, feedback: Feedback | None
    ) -> None:
        weight = weights[op.weight]
        size = group_size(op, self.group)
        groups = weight.shape[1] // size
        importance = None if feedback is None else feedback.mean_squares
        if step is None:
            step = np.concatenate(
                [best_steps(weight[rows], size, 4, importance) for rows in row_blocks(weight.shape)]
            )
        elif step.shape[1] != groups:
            raise RecipeError(
                f"quantize-weights: %{op.value_name} has learned steps for {step.shape[1]} groups, not "
                f"{groups}; give learn-ranges and quantize-weights the same group"
            )
        if self.group:
            scale = step.max(1, keepdims=True) / MAX_GROUP_FACTOR
            factor = np.clip(np.rint(step / scale), 1, MAX_GROUP_FACTOR)
        else:
            scale, factor = step, np.ones_like(step)
        floor = _bias_floor(weights, op)
        if floor is not None:
            scale = np.maximum(scale, floor[:, None])
        name = op.weight.key.data
        op.properties["weight"] = _rounded(weights, op.weight, scale * factor, 4, feedback)
        op.properties["weight_scale"] = weights.add(
            f"{name}.scale", np.ascontiguousarray(scale[:, 0], np.float32)
        )
        op.properties["weight_bits"] = attr(4)
        if self.group:
            op.properties["group_scale"] = weights.add(f"{name}.group_scale", factor.astype(np.uint8))


def _bias_floor(weights: WeightStore, op: LinearOp) -> Array | None:
    x = uniform(op.x)
    return None if op.bias is None or x is None else least_scale(weights[op.bias], x.real_scale)


def _quantize8(
    weights: WeightStore,
    ref: WeightAttr,
    floor: Array | None = None,
    step: Array | None = None,
    feedback: Feedback | None = None,
) -> tuple[WeightAttr, WeightAttr]:
    weight = weights[ref]
    scale = np.maximum(weight.max(1), -weight.min(1)) / 127 if step is None else step[:, 0]
    scale = np.maximum(scale, 1e-12).astype(np.float32)
    if floor is not None:
        scale = np.maximum(scale, floor.astype(np.float32))
    rounded = _rounded(weights, ref, scale[:, None], 8, feedback)
    return rounded, weights.add(f"{ref.key.data}.scale", scale)


def _rounded(
    weights: WeightStore, ref: WeightAttr, steps: Array, bits: int, feedback: Feedback | None
) -> WeightAttr:
    """The integers of a matrix `[outputs, inputs]`, given its steps `[outputs, groups]`."""
    weight = weights[ref]

    def step(rows: slice, columns: slice) -> Array:
        return per_input(steps[rows], weight.shape[1])[:, columns] if steps.shape[1] > 1 else steps[rows]

    def nearest(rows: slice) -> Array:
        return round_nearest(weight[rows], step(rows, slice(None)), bits)

    if feedback is None:
        return weights.build(ref.key.data, weight.shape, np.int8, nearest)
    if feedback.blocks == 1:
        whole = feedback.hessian(0)
        return weights.build(
            ref.key.data, weight.shape, np.int8,
            lambda rows: round_with_feedback(weight[rows], step(rows, slice(None)), bits, whole),
        )  # fmt: skip
    # An expert's columns, whatever their rows, need its products: one expert after the other.
    integers = np.empty(weight.shape, np.int8)
    for block, columns in enumerate(feedback.columns()):
        hessian = feedback.hessian(block)
        for rows in row_blocks((len(weight), columns.stop - columns.start)):
            part, grid = weight[rows, columns], step(rows, columns)
            integers[rows, columns] = round_with_feedback(part, grid, bits, hessian)
    return weights.add(ref.key.data, integers)
