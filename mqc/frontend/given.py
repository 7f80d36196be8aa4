"""What the files of a model say of how it is quantized: the integers of matrices, and the types of values."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.arrays import Array, row_blocks
from mqc.dialects import int_ops
from mqc.dialects.llm import LinearOp, LlmOp
from mqc.dialects.quant import UniformType
from mqc.frontend.source import without_base
from mqc.ir.module import gives_logits, mqc_ops
from mqc.ir.op import MqcOp
from mqc.ir.weight_store import WeightStore
from mqc.numerics.weight_rounding import whole_steps


@dataclass(frozen=True)
class MatrixGrid:
    """The steps that the weights of a matrix are whole numbers of.

    scale: f32 `[outputs, groups of consecutive inputs]`; None if a program does not hold such integers, for
        the reason in `why`.
    bits: 4 or 8, what the integers need; 8 if there are none.
    source: the name of the tensor, or of the entry, that the scales are.
    sums: of the integers of each output, s64 `[outputs]`.
    """

    scale: Array | None
    bits: int
    source: str
    why: str = ""
    sums: Array | None = None

    def holds(self, weight: Array, rows: Any) -> bool:
        """Whether rows of the matrix are a weight: the front end may have put a factor into them."""
        if self.scale is None:
            return False
        assert self.sums is not None
        scale, sums = self.scale[rows], self.sums[rows]
        for some in row_blocks(weight.shape):
            whole = whole_steps(weight[some], scale[some])
            if whole is None or not np.array_equal(whole.sum(1, dtype=np.int64), sums[some]):
                return False
        return True


@dataclass(frozen=True)
class ValueGrid:
    """The type of a value, and the name of the tensor, or of the entry, that it is from."""

    kind: UniformType
    source: str

    @property
    def width(self) -> float:
        return self.kind.real_scale * (self.kind.high - self.kind.low)


@dataclass(frozen=True)
class Given:
    """All that files say.

    method: how they say it, for people.
    matrices: by the names of the model's parameters. inputs, outputs: by the names of its modules, matrix
    products. results: by the names of any modules.
    notes: what else is to be known of the files.
    """

    method: str
    matrices: Mapping[str, MatrixGrid] = field(default_factory=dict)
    inputs: Mapping[str, ValueGrid] = field(default_factory=dict)
    outputs: Mapping[str, ValueGrid] = field(default_factory=dict)
    results: Mapping[str, ValueGrid] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def properties(
        self, weights: WeightStore, parameter: str, key: str, weight: Array, rows: Any
    ) -> dict[str, Any]:
        """Those of the op that multiplies with rows of a parameter, which are `weight` and stored as
        `key`."""
        grid = self.matrices.get(parameter)
        if grid is None:
            return {}
        if grid.scale is None or not grid.holds(weight, rows):
            return {"weight_bits": 8}
        step = weights.add(f"{key}.step", grid.scale[rows])
        return {"weight_bits": grid.bits, "weight_step": step, "step_source": grid.source}

    def state_types(self, module: ModuleOp) -> Stated:
        """Let the values of a module of level `llm` state the types that they come with.

        A type of an input is that of a value if nothing but products reads it. Of several types for one value
        the widest holds. Logits have none, nor has a product that the front end multiplied with a vector.
        """
        claims: dict[MqcOp, list[ValueGrid]] = defaultdict(list)
        named = {without_base(name): grid for name, grid in self.results.items()}
        for op in mqc_ops(module):
            if isinstance(op, LinearOp):
                producer, alone = op.x.owner, all(isinstance(use.operation, LinearOp) for use in op.x.uses)
                if (grid := self.inputs.get(_module(op))) and isinstance(producer, LlmOp) and alone:
                    claims[producer].append(grid)
                matrix = self.matrices.get(f"{_module(op)}.weight")
                factored = matrix is not None and matrix.scale is not None and not op.fixed
                if (grid := self.outputs.get(_module(op))) and not factored:
                    claims[op].append(grid)
            if grid := named.get(op.value_name):
                claims[op].append(grid)
        values = {}
        for op, grids in claims.items():
            if not gives_logits(op):
                op.attributes["given"] = kind = max(grids, key=lambda grid: grid.width).kind
                sources = dict.fromkeys(grid.source for grid in grids if grid.kind == kind)
                values[op.value_name] = kind, tuple(sources)
        linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp) and op.fixed]
        return Stated({op.value_name: op.get("step_source") for op in linears}, values)

    def report(self, stated: Stated, module: ModuleOp) -> dict[str, Any]:
        """Which scale came from where, of a module of level `int` that was made of the one that said
        `stated`.

        Returns `method`, `notes`, and lists: `given`, matrices and values as the files say; `calibrated`, the
        other ones; `left`, what the files say and the program does not have.
        """
        values = {
            op.value_name: op.attributes["represents"]
            for op in mqc_ops(module)
            if "represents" in op.attributes
        }
        given = [f"%{name} weight: {source}" for name, source in stated.matrices.items()]
        taken = {name for name, (kind, _) in stated.values.items() if values.get(name) == kind}
        given += [f"%{name}: {', '.join(stated.values[name][1])}" for name in values if name in taken]
        products = (
            op.value_name.removesuffix(".acc") for op in mqc_ops(module) if isinstance(op, int_ops.LinearOp)
        )
        calibrated = [f"%{name} weight" for name in products if name not in stated.matrices]
        calibrated += [f"%{name}" for name in values if name not in taken]
        used = {*stated.matrices.values(), *(source for name in taken for source in stated.values[name][1])}
        grids: tuple[MatrixGrid | ValueGrid, ...] = (
            *self.matrices.values(),
            *self.inputs.values(),
            *self.outputs.values(),
            *self.results.values(),
        )
        left = {
            grid.source: f"{grid.source}: {grid.why}"
            if isinstance(grid, MatrixGrid) and grid.why
            else grid.source
            for grid in grids
            if grid.source not in used
        }
        return {
            "method": self.method, "notes": list(self.notes), "given": given, "calibrated": calibrated,
            "left": list(left.values()),
        }  # fmt: skip


@dataclass(frozen=True)
class Stated:
    """What a module of level `llm` states, by the names of ops: where matrices' steps are from, and values'
    types and where they are from."""

    matrices: dict[str, str]
    values: dict[str, tuple[UniformType, tuple[str, ...]]]


def _module(op: LinearOp) -> str:
    """The name of the module whose matrix, or rows of it, an op multiplies with."""
    return re.sub(r"\.weight(\.\d+)?$", "", op.weight.key.data)
