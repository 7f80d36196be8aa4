"""AIMET encodings of a QDQ model, for Qualcomm's converters (`--quantization_overrides`).

Converters quantize a tensor without an entry by themselves, so every tensor that stands for real numbers has
one: what QuantizeLinear gives and reads, what DequantizeLinear reads and gives, weights, biases and graph
inputs.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from mqc.analysis.aimet import Encoding, document_1, document_2
from mqc.arrays import Array
from mqc.errors import TargetError
from mqc.files import write_text

#: dtypes that tensors of indices, shapes and masks have; they stand for no real numbers.
_PLAIN = {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}


def collect(path: Path) -> list[Encoding]:
    """An encoding for every tensor of a QDQ model that stands for real numbers.

    Raises `TargetError` if a tensor has none, or two that differ.
    """
    graph = onnx.load(path, load_external_data=False).graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> Array:
        tensor = initializers[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor = TensorProto.FromString(tensor.SerializeToString())
            load_external_data_for_tensor(tensor, str(path.parent))
        return numpy_helper.to_array(tensor)

    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {name: tensor.data_type for name, tensor in initializers.items()}
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    found: dict[str, Encoding] = {}
    parameters: set[str] = set()

    def note(name: str, like: Encoding) -> None:
        entry = Encoding(name, like.dtype, like.scale, like.zero, like.axis, name in initializers)
        if found.setdefault(name, entry) != entry:
            raise TargetError(f"{path.name}: tensor {name} has two different encodings")

    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source, scales, *zeros = node.input
        parameters.update((scales, *zeros))
        stored = node.output[0] if node.op_type == "QuantizeLinear" else source
        scale = array(scales)
        zero = int(array(zeros[0]).reshape(-1)[0]) if zeros else 0
        axis = next((a.i for a in node.attribute if a.name == "axis"), None) if scale.ndim else None
        dtype = TensorProto.DataType.Name(types[stored]).lower()
        entry = Encoding("", dtype, tuple(map(float, scale.reshape(-1))), zero, axis, False)
        note(node.output[0], entry)
        # What a conversion (DequantizeLinear, QuantizeLinear) reads has the encoding of its source.
        if source not in dequantized:
            note(source, entry)
    wanted = {name for name, kind in types.items() if kind not in _PLAIN} - parameters
    missing = sorted(wanted - set(found))
    if missing:
        raise TargetError(f"{path.name}: {len(missing)} tensors have no encoding, e.g. {missing[0]}")
    return list(found.values())


def write(path: Path) -> list[Path]:
    """Write `NAME.1.0.0.encodings` and `NAME.2.0.0.encodings` beside a QDQ model."""
    entries = collect(path)
    written = []
    for document in (document_1(entries), document_2(entries)):
        target = path.with_suffix(f".{document['version']}.encodings")
        write_text(target, json.dumps(document, indent=1) + "\n")
        written.append(target)
    return written
