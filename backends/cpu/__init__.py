"""The CPU backend: C11, built with the system's compiler, bit-exact to the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from xdsl.dialects.builtin import ModuleOp

from mqc.backend import Backend, Ids, Kernel, Limits, Timeline
from mqc.backends.cpu.build import cache_folder, choose_isa, compiler_version
from mqc.backends.cpu.engine import CpuEngine
from mqc.backends.cpu.export import write
from mqc.backends.cpu.limits import measure
from mqc.backends.cpu.select import select
from mqc.backends.cpu.timeline import measured
from mqc.backends.cpu.values import values
from mqc.ir.op import MqcOp
from mqc.ir.weight_store import WeightStore


class CpuBackend(Backend):
    """C with intrinsics of the CPU's instruction set, or portable."""

    name: ClassVar[str] = "cpu"
    targets: ClassVar[Sequence[str]] = ("cpu-int8",)
    passes: ClassVar[Sequence[str]] = ("plan-memory",)
    options: ClassVar[Mapping[str, type]] = {"threads": int, "isa": str}
    export_options: ClassVar[Mapping[str, type]] = {"tokenizer": bool}

    def select(self, op: MqcOp) -> Kernel | None:
        return select(op)

    def engine(self, module: ModuleOp, weights: WeightStore, **options: Any) -> CpuEngine:
        """Options: `threads` (default: all cores), `isa`: `auto`, `portable`, on x86 `avx512vnni` or `avx2`,
        on Arm `i8mm`, `dotprod` or `neon`."""
        return CpuEngine(module, weights, **options)

    def export(
        self,
        module: ModuleOp,
        weights: WeightStore,
        folder: Path,
        metadata: Mapping[str, str],
        **options: Any,
    ) -> None:
        """A C project that needs neither mqc nor Python. Options: `tokenizer`, False to leave it out."""
        write(module, weights, folder, **options)

    def values(self, module: ModuleOp, weights: WeightStore, ids: Ids, **options: Any) -> dict[str, Any]:
        return values(module, weights, ids, **options)

    def timelines(
        self, module: ModuleOp, weights: WeightStore, prompt_tokens: int, new_tokens: int, **options: Any
    ) -> list[Timeline]:
        """Measured, between the barriers that ops end in."""
        return [measured(module, weights, prompt_tokens, new_tokens, **options)]

    def checks(self) -> Mapping[str, Callable[[], str]]:
        return {
            "instruction set": lambda: choose_isa("auto"),
            "C compiler": compiler_version,
            "cache of builds": lambda: str(cache_folder()),
        }

    def limits(self, **options: Any) -> Limits:
        return measure(**options)
