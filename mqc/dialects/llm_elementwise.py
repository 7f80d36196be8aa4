"""Elementwise ops of the `llm` dialect: activation functions, sums and products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from xdsl.dialects.builtin import FloatAttr, StringAttr, TensorType
from xdsl.irdl import irdl_op_definition, operand_def, prop_def, result_def

from mqc.dialects.equivariance import Constraint, Fix, tie_all
from mqc.dialects.expressions import evaluate, parse
from mqc.dialects.llm_core import LlmOp
from mqc.dialects.rotations import Alike, RotationRule
from mqc.ir.op import EvaluationContext, WeightAttr, channels


class ActivationOp(LlmOp):
    """Elementwise function of one value."""

    x = operand_def(TensorType)
    result = result_def(TensorType)

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        """The float function, elementwise."""
        raise NotImplementedError

    def check(self) -> None:
        self.expect(channels(self.x) == channels(self.result), "channels must not change")

    def compute(self, ctx: EvaluationContext, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@irdl_op_definition
class SiluOp(ActivationOp):
    """Sigmoid linear unit.

    `y = x / (1 + exp(−x))`
    """

    name = "llm.silu"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return F.silu(x)


@irdl_op_definition
class GeluOp(ActivationOp):
    """Gaussian error linear unit, exact form.

    `y = x · Φ(x)`
    """

    name = "llm.gelu"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return F.gelu(x)


@irdl_op_definition
class GeluTanhOp(ActivationOp):
    """Gaussian error linear unit in its tanh approximation.

    `y = x/2 · (1 + tanh(sqrt(2/π)·(x + 0.044715·x³)))`
    """

    name = "llm.gelu_tanh"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")


@irdl_op_definition
class QuickGeluOp(ActivationOp):
    """Gaussian error linear unit in its sigmoid approximation.

    `y = x / (1 + exp(−1.702·x))`
    """

    name = "llm.quick_gelu"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


@irdl_op_definition
class ReluOp(ActivationOp):
    """Rectified linear unit.

    `y = max(x, 0)`
    """

    name = "llm.relu"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return F.relu(x)

    def equivariance(self) -> list[Constraint]:
        return [tie_all(self.x, self.result, channels(self.x))]


@irdl_op_definition
class ReluSquaredOp(ActivationOp):
    """Squared rectified linear unit (Primer, arXiv 2109.08668).

    `y = max(x, 0)²`
    """

    name = "llm.relu_squared"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return F.relu(x).square()


@irdl_op_definition
class TanhOp(ActivationOp):
    """Hyperbolic tangent.

    `y = tanh(x)`
    """

    name = "llm.tanh"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return torch.tanh(x)


@irdl_op_definition
class SigmoidOp(ActivationOp):
    """Logistic function.

    `y = 1 / (1 + exp(−x))`
    """

    name = "llm.sigmoid"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return torch.sigmoid(x)


@irdl_op_definition
class SoftplusOp(ActivationOp):
    """Smooth form of max(x, 0): of the steps of a recurrence, for the most part.

    `y = log(1 + exp(x))`
    """

    name = "llm.softplus"

    @staticmethod
    def function(x: torch.Tensor, /) -> torch.Tensor:
        return F.softplus(x)


@irdl_op_definition
class ScaleOp(LlmOp):
    """Product with one number; `fold-constants` moves it into weights.

    `y = factor · x`
    """

    name = "llm.scale"
    x = operand_def(TensorType)
    factor = prop_def(FloatAttr)
    result = result_def(TensorType)

    def compute(self, ctx: EvaluationContext, x: torch.Tensor) -> torch.Tensor:
        return x * self.get("factor")

    def equivariance(self) -> list[Constraint]:
        return [tie_all(self.x, self.result, channels(self.x))]


@irdl_op_definition
class ElementwiseOp(ActivationOp):
    """An elementwise function that has no op of its own, as an expression
    (`mqc.dialects.expressions`), e.g. `where(gt(x, 0.0), x, mul(0.1, x))`.

    `y = expression(x)`
    """

    name = "llm.elementwise"
    expression = prop_def(StringAttr)

    def check(self) -> None:
        super().check()
        try:
            y = self.function(torch.ones(1))
        except (ValueError, RuntimeError) as error:
            self.expect(False, f"expression: {error}")
        self.expect(y.shape == (1,) and y.is_floating_point(), "expression must give a number")

    def function(self, x: torch.Tensor, /) -> torch.Tensor:  # type: ignore[override]  # the op's own
        return evaluate(parse(self.get("expression")), x)


class BinaryOp(LlmOp):
    """Elementwise function of two values of the same shape."""

    a = operand_def(TensorType)
    b = operand_def(TensorType)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect(channels(self.a) == channels(self.b) == channels(self.result), "channels must be equal")


@irdl_op_definition
class AddOp(BinaryOp):
    """Sum: of the residual stream, for the most part.

    `y = a + b`
    """

    name = "llm.add"

    def compute(self, ctx: EvaluationContext, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b

    def equivariance(self) -> list[Constraint]:
        count = channels(self.result)
        return [tie_all(self.a, self.result, count), tie_all(self.b, self.result, count)]

    def rotations(self) -> list[RotationRule]:
        count = channels(self.result)
        return [Alike(self.a, self.result, count), Alike(self.b, self.result, count)]


@irdl_op_definition
class MulOp(BinaryOp):
    """Product: of a gate and what it gates. A scale passes on the side that is no activation's.

    `y = a · b`
    """

    name = "llm.mul"

    def compute(self, ctx: EvaluationContext, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * b

    def equivariance(self) -> list[Constraint]:
        fixed, free = (self.a, self.b) if isinstance(self.a.owner, ActivationOp) else (self.b, self.a)
        return [Fix(fixed), tie_all(free, self.result, channels(self.result))]


@irdl_op_definition
class JoinOp(LlmOp):
    """Channels of two values as one: the result's channel i is channel `index[i]` of a and b side by side.
    Keys of latent attention have a part that each head has for itself, and one that all heads share.

    `y[i] = (a, b)[index[i]]`
    """

    name = "llm.join"
    a = operand_def(TensorType)
    b = operand_def(TensorType)
    index = prop_def(WeightAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect(self.index.shape == (channels(self.result),), "index must be [channels]")

    def compute(self, ctx: EvaluationContext, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat((a, b), -1)[:, ctx.torch(self.index).long()]


ACTIVATIONS: tuple[type[ActivationOp], ...] = (
    SiluOp,
    GeluOp,
    GeluTanhOp,
    QuickGeluOp,
    ReluOp,
    ReluSquaredOp,
    TanhOp,
    SigmoidOp,
    SoftplusOp,
)
