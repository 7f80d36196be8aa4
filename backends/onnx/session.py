"""ONNX Runtime sessions on any execution provider, Qualcomm's plug-in among them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnxruntime as ort

from mqc.backend import thread_count
from mqc.backends.cpu.build import cpu_flags
from mqc.errors import TargetError

CPU, QNN = "CPUExecutionProvider", "QNNExecutionProvider"
#: Linux' names of what multiplies u8 × s8 into s32.
_VNNI = {"avx512_vnni", "avx_vnni"}
#: HTP architecture that programs are made for: the oldest with 16-bit × 16-bit products.
HTP_ARCH = "73"


def exact_products(provider: str = CPU) -> dict[str, str]:
    """Session entries with which products of 8-bit integers do not saturate on this CPU.

    On x86 without VNNI ONNX Runtime adds pairs of u8 × s8 products in 16 bits, and what does not fit is
    clipped in silence. With the option it makes the weights u8, whose products it adds in 32 bits.
    """
    if provider != CPU or platform.machine() not in ("x86_64", "AMD64") or cpu_flags() & _VNNI:
        return {}
    return {"session.x64quantprecision": "1"}


def open_session(
    path: Path,
    provider: str = CPU,
    threads: int | None = None,
    entries: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A session of an execution provider; on QNN no node may fall back to the CPU.

    Args:
        threads: of the CPU provider; all cores by default.
        entries: session configuration.

    Raises `TargetError` if the provider is not there or refuses the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.log_severity_level = 4
    for name, value in (entries or {}).items():
        options.add_session_config_entry(name, value)
    arguments: dict[str, Any] = {}
    if provider == QNN:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_provider_for_devices(*_qnn())
    elif provider in ort.get_available_providers():
        arguments["providers"] = [provider]
    else:
        known = ", ".join(ort.get_available_providers())
        raise TargetError(f"onnxruntime has no {provider}; available: {known}; {QNN} with mqc[qnn]")
    try:
        return ort.InferenceSession(path, options, **arguments)
    except Exception as error:  # onnxruntime's errors share no base class
        raise TargetError(f"{provider} cannot load {path.name}: {error}") from error


@cache
def _qnn() -> tuple[list[Any], dict[str, str]]:
    """The devices of Qualcomm's plug-in, and its options for HTP (on x86 a simulation)."""
    if find_spec("onnxruntime_qnn") is None:
        raise TargetError(f"{QNN} needs the package onnxruntime-qnn: pip install 'mqc[qnn]'")
    import onnxruntime_qnn

    ort.register_execution_provider_library(QNN, onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == QNN][:1]
    if not devices:
        raise TargetError(f"{QNN} finds no device on this machine")
    return devices, {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "htp_arch": HTP_ARCH}


def write_context(path: Path) -> Path:
    """Compile a model for HTP and write what a phone loads: `NAME_ctx.onnx` and the binary beside it.

    Raises `TargetError` if a node cannot run on HTP.
    """
    target = path.with_name(f"{path.stem}_ctx.onnx")
    entries = {"ep.context_enable": "1", "ep.context_file_path": str(target), "ep.context_embed_mode": "0"}
    open_session(path, QNN, entries=entries)
    return target
