"""`rotate-channels`: spread outlier channels over all, by rotations that the weights absorb."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.costs import ModelSize, Work
from mqc.dialects.equivariance import Fix
from mqc.dialects.llm import LlmOp, shared_tables
from mqc.dialects.rotations import Alike, Rotatable, Rotation, RotationRule, random_hadamard, rotatable
from mqc.ir.module import mqc_ops, returned_value
from mqc.ir.op import channels
from mqc.pass_base import Pass


@dataclass(frozen=True)
class RotateChannels(Pass):
    """Multiply values by orthogonal matrices that the surrounding weights absorb; the float function is kept
    and the program costs nothing more (QuaRot, arXiv 2404.00456; SpinQuant, arXiv 2405.16406: R₁ and R₂).

    Which values may turn is found, not listed: every op states how rotations move through it, and what is
    free is turned, each by its own random Hadamard matrix. In a decoder with RMS norms whose gains are
    folded that is the residual stream with the norms' results, and the values of each attention, head by
    head. A layer norm, a norm that keeps its gain, and a matrix or value with a grid of the model's own keep
    what they touch from turning.

    Options:
        seed: of the matrices.
    """

    name = "rotate-channels"
    seed: int = 0

    def work(self, size: ModelSize, length: int) -> Work:
        return Work(written=size.weights + size.logits, elements=10 * (size.weights + size.logits))

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        matrices: dict[SSAValue, Rotation] = {}
        for i, free in enumerate(find_rotatable(module)):
            matrix = random_hadamard(free.width, self.seed + i)
            matrices |= dict.fromkeys(free.values, matrix)
        ops = list(mqc_ops(module))
        for i, op in enumerate(ops):
            assert isinstance(op, LlmOp)
            inputs = [matrices.get(value) for value in op.operands]
            output = matrices.get(op.results[0])
            if output is not None or any(matrix is not None for matrix in inputs):
                op.turn(ctx.weights, inputs, output)
            ctx.progress(self.name, (i + 1) / len(ops))
        return bool(matrices)


def find_rotatable(module: ModuleOp) -> list[Rotatable]:
    """Every free rotation of a module of level `llm`."""
    rules: list[RotationRule] = []
    for op in mqc_ops(module):
        assert isinstance(op, LlmOp)
        rules += op.rotations()
        if op.given is not None:
            rules.append(Fix(op.results[0]))
    # What reads a table as the matrix of the logits must turn as what it gives, or it would be two tables.
    for embedding, linear in shared_tables(module):
        rules.append(Alike(embedding.result, linear.x, channels(linear.x)))
    return rotatable([*rules, Fix(returned_value(module))])
