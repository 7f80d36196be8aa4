"""The files for the person who takes a program to a phone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.backends.npu import toolchain
from mqc.backends.npu.emit import emit
from mqc.backends.npu.readme import HVX, ONNX, OP_LIST, OP_TEXT, readme
from mqc.compiler.pass_manager import Pipeline
from mqc.dialects.htp_core import shape
from mqc.errors import MqcError, TargetError
from mqc.ir.module import set_level, static_functions
from mqc.ir.op import WeightAttr
from mqc.ir.weight_store import WeightStore
from mqc.registry import backend


def write(
    module: ModuleOp,
    weights: WeightStore,
    offsets: Mapping[WeightAttr, int],
    folder: Path,
    metadata: Mapping[str, str],
    htp_binary: bool = True,
) -> None:
    """Op list (binary and text), HVX sources and objects, QDQ ONNX with encodings and a host, and a README.

    What needs a tool that is not installed is left out, and the README says so: objects without clang,
    ONNX files without the package `onnx`, context binaries without `onnxruntime-qnn`. So are ONNX files of
    programs that QNN has no form for, such as 4-bit weights in groups.

    Args:
        offsets: where each constant begins in the weights file.
        htp_binary: compile the ONNX graphs for HTP, which takes a minute for a model of 135M parameters.
    """
    ops = emit(module, offsets.__getitem__)
    ops.write(folder / OP_LIST)
    (folder / OP_TEXT).write_text(str(ops), encoding="utf-8")
    missing = []
    try:
        toolchain.objects(folder / HVX)
    except MqcError as error:
        missing.append(f"objects of the HVX sources: {error}")
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        missing.append("ONNX graphs and encodings: they need the packages onnx and onnxruntime (mqc[onnx])")
    else:
        qnn = find_spec("onnxruntime_qnn") is not None
        if not qnn:
            missing.append("context binaries: they need the package onnxruntime-qnn (mqc[qnn])")
        elif not htp_binary:
            missing.append("context binaries: not asked for")
        try:
            _write_onnx(module, weights, folder / ONNX, metadata, htp_binary and qnn)
        except TargetError as error:
            shutil.rmtree(folder / ONNX)
            missing = [*missing, f"ONNX graphs and encodings: {error}"]
    (folder / "README.md").write_text(readme(module, ops, metadata, folder, missing), encoding="utf-8")


def _write_onnx(
    module: ModuleOp, weights: WeightStore, folder: Path, metadata: Mapping[str, str], htp_binary: bool
) -> None:
    """The static QDQ graphs of the lengths that the module was lowered for."""
    tokens = [
        shape(function.body.block.args[0])[0]
        for name, function in static_functions(module).items()
        if name != "initialize"
    ]
    program, store = integer_program(module, weights)
    folder.mkdir()
    backend("onnx").export(
        program, store, folder, metadata, runtime="npu", tokens=tuple(tokens), htp_binary=htp_binary
    )


def integer_program(module: ModuleOp, weights: WeightStore) -> tuple[ModuleOp, WeightStore]:
    """@main by itself, with kernels for ONNX: matrices go from records to ONNX's layout one by one."""
    program = module.clone()
    for function in static_functions(program).values():
        function.detach()
        function.erase(safe_erase=False)
    set_level(program, "int")
    program.attributes.pop("mqc.vtcm", None)
    store = WeightStore()
    store.update(weights)
    Pipeline.parse('choose-kernels{backend="onnx"}').run(CompilerContext(store), program)
    return program, store
