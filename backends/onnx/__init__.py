"""The ONNX backend: QDQ models that every runtime takes, and a strict form equal to the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from xdsl.dialects.builtin import ModuleOp

from mqc.backend import Backend, Engine, Ids, Kernel, Limits
from mqc.backends.onnx.select import refuses, select
from mqc.errors import InputError, TargetError
from mqc.ir.op import MqcOp
from mqc.ir.weight_store import WeightStore
from mqc.registry import backend


class OnnxBackend(Backend):
    """ONNX graphs, run by ONNX Runtime."""

    name: ClassVar[str] = "onnx"
    targets: ClassVar[Sequence[str]] = ("onnx-int8",)
    options: ClassVar[Mapping[str, type]] = {
        "style": str,
        "runtime": str,
        "tokens": tuple,
        "context": int,
        "provider": str,
        "threads": int,
    }
    export_options: ClassVar[Mapping[str, type]] = {
        "style": str,
        "runtime": str,
        "tokens": tuple,
        "context": int,
        "blocked": bool,
        "htp_binary": bool,
    }

    def select(self, op: MqcOp) -> Kernel | None:
        return select(op)

    def refuses(self, op: MqcOp) -> str | None:
        return refuses(op)

    def engine(self, module: ModuleOp, weights: WeightStore, **options: Any) -> Engine:
        """Options: those of `mqc.backends.onnx.engine.OnnxEngine`."""
        _check_packages()
        from mqc.backends.onnx.engine import OnnxEngine

        return OnnxEngine(module, weights, **options)

    def export(
        self,
        module: ModuleOp,
        weights: WeightStore,
        folder: Path,
        metadata: Mapping[str, str],
        **options: Any,
    ) -> None:
        """Graphs, weights, the initial cache and host programs; for NPUs also AIMET encodings.

        Options: those of `mqc.backends.onnx.files.write`; `htp_binary` to compile the graphs for HTP.
        """
        _check_packages()
        from mqc.backends.onnx import encodings, host
        from mqc.backends.onnx.files import write
        from mqc.backends.onnx.session import write_context

        htp_binary = options.pop("htp_binary", False)
        if htp_binary and options.get("runtime") != "npu":
            raise InputError('htp_binary needs runtime "npu"')
        for path in write(module, weights, folder, metadata=metadata, **options):
            if options.get("runtime") == "npu":
                encodings.write(path)
            if htp_binary:
                write_context(path)
        if options.get("runtime") == "npu":
            host.write(folder, host.NPU)
        elif not options.get("tokens"):
            host.write(folder, host.CPU)

    def values(self, module: ModuleOp, weights: WeightStore, ids: Ids, **options: Any) -> dict[str, Any]:
        _check_packages()
        from mqc.backends.onnx.values import values

        return values(module, weights, ids, **options)

    def checks(self) -> Mapping[str, Callable[[], str]]:
        return {"execution providers": _providers}

    def limits(self, **options: Any) -> Limits:
        return backend("cpu").limits(threads=options.get("threads"))


def _check_packages() -> None:
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise TargetError(f"target onnx-int8 needs the package {package}: pip install 'mqc[onnx]'")


def _providers() -> str:
    _check_packages()
    import onnxruntime

    return ", ".join(onnxruntime.get_available_providers())
