"""Values of constants: what types and hashes do not say, checked where weights are read."""

from __future__ import annotations

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.proofs import check_accumulators
from mqc.dialects.constraints import ConstrainedOp
from mqc.errors import IRError
from mqc.ir.module import main_level, mqc_ops, static_functions
from mqc.ir.op import WeightAttr
from mqc.ir.weight_store import WeightStore


def check_values(module: ModuleOp, weights: WeightStore) -> None:
    """Check what ops say of the values of their constants, that no accumulator overflows, and that static
    functions compute what @main says.

    After it backends and the oracle compute the same from the module, whatever file it came from. Reads the
    constants that are small, and of matrices those whose accumulators could overflow by their sizes alone.
    Raises `IRError` naming op, constant and value; `ArtifactError` if a weight is not there.
    """
    for op in mqc_ops(module):
        if not isinstance(op, ConstrainedOp):
            continue
        for values in op.VALUES:
            ref = op.properties.get(values.name)
            if isinstance(ref, WeightAttr) and (text := values.violation(op, weights[ref])) is not None:
                raise IRError(f"{op.name} %{op.value_name}: {text}")
    if main_level(module) == "int":
        check_accumulators(module, weights)
    if static_functions(module):
        # Programs of other targets load no `htp` ops.
        from mqc.analysis.htp_equivalence import check_static_functions

        check_static_functions(module, weights)
