"""The NPU backend: programs for a Hexagon-style NPU, run here in NumPy or as HVX code under QEMU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from xdsl.dialects.builtin import ModuleOp

from mqc.backend import Backend, Ids, Kernel, Limits, Modelled, Timeline
from mqc.backends.npu import device_files, toolchain
from mqc.backends.npu.engine import NpuEngine, values
from mqc.backends.npu.modelled import modelled, timelines
from mqc.backends.npu.select import select
from mqc.errors import TargetError
from mqc.ir.module import weight_refs
from mqc.ir.op import MqcOp, WeightAttr
from mqc.ir.weight_store import WeightStore


class NpuBackend(Backend):
    """Tiled `htp` programs for VTCM and HVX."""

    name: ClassVar[str] = "npu"
    targets: ClassVar[Sequence[str]] = ("npu-int8",)
    passes: ClassVar[Sequence[str]] = ("lower-to-htp", "tile-htp", "allocate-vtcm")
    options: ClassVar[Mapping[str, type]] = {"simulator": str}
    export_options: ClassVar[Mapping[str, type]] = {"htp_binary": bool}
    save_options: ClassVar[Mapping[str, type]] = {"htp_binary": bool}

    def select(self, op: MqcOp) -> Kernel | None:
        return select(op)

    def engine(self, module: ModuleOp, weights: WeightStore, **options: Any) -> NpuEngine:
        """Options: `simulator`, `numpy` (default) for the semantics of the ops or `qemu` for HVX code."""
        return NpuEngine(module, weights, **options)

    def values(self, module: ModuleOp, weights: WeightStore, ids: Ids, **options: Any) -> dict[str, Any]:
        return values(module, weights, ids, **options)

    def accompany(
        self,
        module: ModuleOp,
        weights: WeightStore,
        offsets: Mapping[WeightAttr, int],
        folder: Path,
        metadata: Mapping[str, str],
        **options: Any,
    ) -> None:
        """Options: `htp_binary` (default true), to compile the ONNX graphs for HTP."""
        device_files.write(module, weights, offsets, folder, metadata, **options)

    def export(
        self,
        module: ModuleOp,
        weights: WeightStore,
        folder: Path,
        metadata: Mapping[str, str],
        **options: Any,
    ) -> None:
        """The files of `accompany`, and the weights. Options: `htp_binary` (default true)."""
        offsets = weights.save(folder / "weights.safetensors", weight_refs(module))
        device_files.write(module, weights, offsets, folder, metadata, **options)

    def modelled(self, module: ModuleOp, prompt_tokens: int, new_tokens: int) -> list[Modelled]:
        return modelled(module, prompt_tokens, new_tokens)

    def timelines(
        self, module: ModuleOp, weights: WeightStore, prompt_tokens: int, new_tokens: int, **options: Any
    ) -> list[Timeline]:
        """Modelled, for each chip."""
        return timelines(module, prompt_tokens, new_tokens)

    def checks(self) -> Mapping[str, Callable[[], str]]:
        return {
            "clang for Hexagon": lambda: f"{toolchain.clang()} {toolchain.clang_version()}",
            "linker": toolchain.linker,
            "simulator": lambda: toolchain.qemu()[0],
        }

    def limits(self, **options: Any) -> Limits:
        raise TargetError("npu: nothing here is measured on a chip; mqc bench gives modelled figures")
