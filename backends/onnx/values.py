"""Every value that an ONNX graph stores, for debugging."""

from __future__ import annotations

from typing import Any

from xdsl.dialects.builtin import ModuleOp

from mqc.arrays import Array
from mqc.backend import Ids
from mqc.backends.onnx.engine import OnnxEngine
from mqc.ir.module import ops_by_name, returned_value
from mqc.ir.weight_store import WeightStore


def values(module: ModuleOp, weights: WeightStore, ids: Ids, **options: Any) -> dict[str, Array]:
    """Values by name `[tokens, channels]` as stored, and the logits in the module's unit.

    The QDQ form for CPUs stores 8-bit values only. Options as for the engine; where lengths are fixed,
    one graph takes all tokens.
    """
    if options.get("tokens") or options.get("runtime") == "npu":
        options["tokens"] = (len(ids),)
    engine = OnnxEngine(module, weights, every_value=True, **options)
    logits = engine.forward(ids)
    last = returned_value(module).owner
    return {
        name: logits if op is last else engine.stored[name]
        for name, op in ops_by_name(module).items()
        if op is last or name in engine.stored
    }
