"""The CPU backend: C11, built with the system's compiler, bit-exact to the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from xdsl.dialects.builtin import ModuleOp

from mqc.backend import Backend, Ids, Kernel, Limits
from mqc.backends.cpu.engine import CpuEngine
from mqc.backends.cpu.limits import measure
from mqc.backends.cpu.select import select
from mqc.backends.cpu.values import values
from mqc.ir.op import MqcOp
from mqc.ir.weight_store import WeightStore


class CpuBackend(Backend):
    """C with AVX-512 VNNI or AVX2 intrinsics over portable C."""

    name: ClassVar[str] = "cpu"
    targets: ClassVar[Sequence[str]] = ("cpu-int8",)
    passes: ClassVar[Sequence[str]] = ("plan-memory",)
    options: ClassVar[Mapping[str, type]] = {"threads": int, "isa": str}

    def select(self, op: MqcOp) -> Kernel | None:
        return select(op)

    def engine(self, module: ModuleOp, weights: WeightStore, **options: Any) -> CpuEngine:
        """Options: `threads` (default: all cores), `isa` (`auto`, `avx512vnni`, `avx2`, `portable`)."""
        return CpuEngine(module, weights, **options)

    def values(self, module: ModuleOp, weights: WeightStore, ids: Ids, **options: Any) -> dict[str, Any]:
        return values(module, weights, ids, **options)

    def limits(self, **options: Any) -> Limits:
        return measure(**options)
