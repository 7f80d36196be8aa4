"""Everything for a pass, an op, a kernel and a backend of one's own, in one place.

Authors import from here and from `mqc`, and from nowhere else: what stands here is kept, what does not may
move. The pages *Writing a pass*, *Adding an op* and *Writing a backend* use these names and no others.

- **Modules**: `main_function`, `mqc_ops`, `ops_by_name`, `returned_value`, `context_length`, `prefix_tokens`,
  `states`, `level`, `weight_refs`, `parse_module`, `print_module`, `read_dump`.
- **Passes**: `Pass`, `CompilerContext` (`ctx.weights`, `ctx.calibration`), `WeightStore`, `Calibration`,
  `observe`, `Instrument`; `ModelSize` and `Work` say what a pass has to do.
- **Ops**: `MqcOp`, `WeightAttr`, `State`, `rows_by_position`, `EvaluationContext`, `tensor`, `channels`,
  `element_type`, element types `u8`, `s8`, `u16`, `s16`, `s32`; `Array` of NumPy; the ops themselves as
  `llm.SiluOp`, `int_ops.LinearOp`.
- **Ops of level `llm`**: `LlmOp`, `ActivationOp`, `BinaryOp`, equivariance (`Constraint`: `Fix`, `Tie`,
  `tie_all`), rotations (`RotationRule`: `Alike`), quantized types (`UniformType`, `uniform`, `affine_range`).
- **Ops of level `int`**: `IntOp`, `AccumulatorOp`, ports (`ACTIVATIONS`, `BYTES`, `ACCUMULATOR`, `INDEX`),
  limits (`Limit`, `within`, `zero_of`, `scales`, `constant`, `same_channels`), `bits`, `limits`,
  `arithmetic`.
- **Kernels**: `CKernel`, `register_kernel`.
- **Backends**: `Backend`, `Engine`, `Kernel`, `Limits`, `Modelled`, `ModelledRun`, `Span`, `Timeline`, `Ids`,
  `Logits`, `check_ids`, `check_rewind`, `check_state`, `thread_count`, `check_memory_plan`; `Evaluation`,
  `evaluate` and `OracleEngine` say what is right.
- **Debugging**: `compare` sets one `Side` beside another, value by value, and gives a `Comparison`.
- **Errors**: all of `mqc.errors`.

Names of level `llm` and of observation need torch, and are imported on first use. The others do without: a
backend runs programs where torch is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import Evaluation, evaluate
from mqc.analysis.ir_text import parse_module, print_module
from mqc.analysis.liveness import check_memory_plan
from mqc.arrays import Array
from mqc.backend import (
    Backend,
    Engine,
    Ids,
    Kernel,
    Limits,
    Logits,
    Modelled,
    ModelledRun,
    Span,
    Timeline,
    check_ids,
    check_rewind,
    check_state,
    thread_count,
)
from mqc.c_kernels import CKernel, register_kernel
from mqc.calibration import Calibration
from mqc.compiler.dump import read_dump
from mqc.compiler.instruments import Instrument
from mqc.costs import ModelSize, Work
from mqc.debugging.compare import compare
from mqc.debugging.value_report import Comparison
from mqc.debugging.value_trace import Side
from mqc.dialects import int_ops
from mqc.dialects.constraints import Limit, bits, limits, scales, within, zero_of
from mqc.dialects.int_core import (
    ACCUMULATOR,
    ACTIVATIONS,
    BYTES,
    INDEX,
    IntOp,
    constant,
    same_channels,
)
from mqc.dialects.int_ops import AccumulatorOp
from mqc.dialects.quant import UniformType, affine_range, uniform
from mqc.errors import (
    ArtifactError,
    CalibrationError,
    InputError,
    IRError,
    ModelError,
    MqcError,
    PassError,
    RecipeError,
    StorageError,
    TargetError,
    ToolchainError,
    UnsupportedOpError,
)
from mqc.ir.module import (
    context_length,
    level,
    main_function,
    mqc_ops,
    ops_by_name,
    prefix_tokens,
    returned_value,
    states,
    weight_refs,
)
from mqc.ir.op import (
    EvaluationContext,
    MqcOp,
    State,
    WeightAttr,
    channels,
    element_type,
    rows_by_position,
    s8,
    s16,
    s32,
    tensor,
    u8,
    u16,
)
from mqc.ir.weight_store import WeightStore
from mqc.numerics import arithmetic
from mqc.pass_base import Pass
from mqc.runtime.oracle import OracleEngine

if TYPE_CHECKING:
    from mqc.compiler.observation import observe
    from mqc.dialects import llm
    from mqc.dialects.equivariance import Constraint, Fix, Tie, tie_all
    from mqc.dialects.llm_core import LlmOp
    from mqc.dialects.llm_elementwise import ActivationOp, BinaryOp
    from mqc.dialects.rotations import Alike, RotationRule

#: Where the names stand that need torch; a module's own name stands for itself.
_WITH_TORCH = {
    "observe": "mqc.compiler.observation",
    "llm": "mqc.dialects",
    "Constraint": "mqc.dialects.equivariance",
    "Fix": "mqc.dialects.equivariance",
    "Tie": "mqc.dialects.equivariance",
    "tie_all": "mqc.dialects.equivariance",
    "LlmOp": "mqc.dialects.llm_core",
    "ActivationOp": "mqc.dialects.llm_elementwise",
    "BinaryOp": "mqc.dialects.llm_elementwise",
    "Alike": "mqc.dialects.rotations",
    "RotationRule": "mqc.dialects.rotations",
}

__all__ = [
    "ACCUMULATOR", "ACTIVATIONS", "BYTES", "INDEX", "AccumulatorOp", "ActivationOp", "Alike", "Array",
    "ArtifactError", "Backend", "BinaryOp", "CKernel", "Calibration", "CalibrationError",
    "Comparison", "CompilerContext", "Constraint", "Engine", "Evaluation", "EvaluationContext", "Fix",
    "IRError",
    "Ids", "InputError", "Instrument", "IntOp", "Kernel", "Limit", "Limits", "LlmOp", "Logits",
    "ModelError", "ModelSize", "Modelled", "ModelledRun", "MqcError", "MqcOp", "OracleEngine", "Pass",
    "PassError", "RecipeError", "RotationRule", "Side", "Span", "State", "StorageError", "TargetError", "Tie",
    "Timeline", "ToolchainError", "UniformType", "UnsupportedOpError", "WeightAttr", "WeightStore", "Work",
    "affine_range", "arithmetic", "bits", "channels", "check_ids", "check_memory_plan", "check_rewind",
    "check_state", "compare", "constant", "context_length", "element_type", "evaluate", "int_ops", "level",
    "limits", "llm", "main_function", "mqc_ops", "observe", "ops_by_name", "parse_module",
    "prefix_tokens", "print_module", "read_dump", "register_kernel", "returned_value",
    "rows_by_position", "s8", "s16", "s32", "same_channels", "scales", "states", "tensor",
    "thread_count", "tie_all", "u8", "u16", "uniform", "weight_refs", "within", "zero_of",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'mqc.plugin' has no attribute {name!r}")
    from importlib import import_module

    home = import_module(_WITH_TORCH[name])
    return getattr(home, name) if hasattr(home, name) else import_module(f"{home.__name__}.{name}")
