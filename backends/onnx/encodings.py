"""AIMET encodings of a QDQ model, for Qualcomm's converters (`--quantization_overrides`).

Formats 1.0.0 and 2.0.0 as aimet-onnx 2.42 writes them. Converters quantize a tensor without an entry by
themselves, so every tensor that stands for real numbers has one: what QuantizeLinear gives and reads, what
DequantizeLinear reads and gives, weights, biases and graph inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from mqc.arrays import Array
from mqc.errors import TargetError
from mqc.files import write_text

#: dtypes that tensors of indices, shapes and masks have; they stand for no real numbers.
_PLAIN = {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}


@dataclass(frozen=True)
class Encoding:
    """How one tensor is quantized, in ONNX's terms: `real = scale · (stored − zero)`.

    dtype: `uint8`, `uint16`, `int8`, `int4` or `int32`. scale: one, or one per channel of `axis`.
    constant: whether the tensor is a weight or bias.
    """

    name: str
    dtype: str
    scale: tuple[float, ...]
    zero: int
    axis: int | None
    constant: bool

    @property
    def bits(self) -> int:
        return int(self.dtype.lstrip("uint"))

    def version_1(self) -> dict[str, Any]:
        """Entry of format 1.0.0, whose offset is minus the zero point of the unsigned grid."""
        signed = not self.dtype.startswith("u")
        offset = -float(self.zero) - (2 ** (self.bits - 1) if signed else 0)
        return {
            "bw": self.bits,
            "dtype": "INT",
            "enc_type": "PER_TENSOR" if self.axis is None else "PER_CHANNEL",
            "is_sym": signed,
            "name": self.name,
            "offset": [offset + 0.0] * len(self.scale),
            "scale": list(self.scale),
        }

    def version_2(self) -> dict[str, Any]:
        """Entry of format 2.0.0."""
        entry: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        entry |= {"name": self.name, "output_dtype": self.dtype}
        entry["y_scale"] = self.scale[0] if self.axis is None else list(self.scale)
        return entry | ({"y_zero_point": self.zero} if self.zero else {})


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


def document_1(entries: Iterable[Encoding]) -> dict[str, Any]:
    """A file of format 1.0.0."""
    every = list(entries)
    return {
        "activation_encodings": [e.version_1() for e in every if not e.constant],
        "excluded_layers": [],
        "param_encodings": [e.version_1() for e in every if e.constant],
        "producer": _producer(),
        "quantizer_args": {
            "activation_bitwidth": 16, "dtype": "int", "is_symmetric": True, "param_bitwidth": 8,
            "per_channel_quantization": True, "quant_scheme": "min_max",
        },
        "version": "1.0.0",
    }  # fmt: skip


def document_2(entries: Iterable[Encoding]) -> dict[str, Any]:
    """A file of format 2.0.0."""
    return {"encodings": [e.version_2() for e in entries], "producer": _producer(), "version": "2.0.0"}


def write(path: Path) -> list[Path]:
    """Write `NAME.1.0.0.encodings` and `NAME.2.0.0.encodings` beside a QDQ model."""
    entries = collect(path)
    written = []
    for document in (document_1(entries), document_2(entries)):
        target = path.with_suffix(f".{document['version']}.encodings")
        write_text(target, json.dumps(document, indent=1) + "\n")
        written.append(target)
    return written


def _producer() -> dict[str, str]:
    return {"package": "mqc", "version": version("mqc")}
