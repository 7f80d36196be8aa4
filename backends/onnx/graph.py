"""Building ONNX graphs: names from the module, large constants in one external-data file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mqc.arrays import Array
from mqc.ir.op import WeightAttr
from mqc.ir.weight_store import WeightStore

#: Name of the external-data file, beside the graphs that share it.
DATA_FILE = "weights.bin"
#: Bytes; offsets in the data file are multiples of it.
_ALIGNMENT = 64
#: Constants of fewer bytes stand in the graph itself.
_INLINE_BYTES = 1024

Shape = Sequence[int | str]


class DataFile:
    """Tensors of one or more graphs, each content once. Arrays are held by reference until `write`."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._places: dict[str, tuple[int, int]] = {}
        self.size = 0

    def place(self, array: Array, digest: str) -> tuple[int, int]:
        """Offset and length in bytes of a tensor's place in the file."""
        if digest not in self._places:
            self._places[digest] = (self.size, array.nbytes)
            self._arrays.append(array)
            self.size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return self._places[digest]

    def write(self, path: Path) -> str:
        """Write the file and return its SHA-256."""
        digest = hashlib.sha256()
        with open(path, "wb") as file:
            for array in self._arrays:
                padding = bytes(-array.nbytes % _ALIGNMENT)
                for part in (np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, padding):
                    digest.update(part)
                    file.write(part)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()


class Graph:
    """One ONNX graph under construction.

    Nodes are called after the value that they compute: `layers.0.mlp.up_proj/MatMul`.
    """

    def __init__(self, data: DataFile, weights: WeightStore, reserved: Iterable[str] = ()) -> None:
        """`reserved` are names that only `out=` gives."""
        self._data, self._weights = data, weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[Any, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._taken: dict[str, int] = dict.fromkeys(reserved, 0)
        self._scope = ""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes and constants made inside are called after `name`."""
        before, self._scope = self._scope, name
        try:
            yield
        finally:
            self._scope = before

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node with one output, called `out` or like the node, and return the output's name."""
        return self.ops(kind, inputs, [out], **attributes)[0]

    def ops(
        self, kind: str, inputs: Sequence[str], outs: Sequence[str | None], **attributes: Any
    ) -> list[str]:
        """Append a node with one output for each of `outs`."""
        name = self._unique(f"{self._scope}/{kind}")
        names = [out or (f"{name}:{i}" if i else name) for i, out in enumerate(outs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def rename(self, x: str, name: str) -> str:
        """Give the output of the last node another name."""
        assert self._nodes[-1].output[0] == x
        self._nodes[-1].output[0] = name
        return name

    def constant(self, value: Any, hint: str = "", dtype: Any = None, meaning: Any = None) -> str:
        """Name of an initializer. Equal constants are one if their meaning is; large ones stand in the
        data file.

        Args:
            hint: its name, if it is new and the name is free.
            meaning: e.g. a quantized type: QNN knows one for each initializer.
        """
        array = np.ascontiguousarray(value, dtype)
        array = array.reshape(np.shape(value))  # NumPy makes scalars one-dimensional
        digest = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return self._initializer(array, kind, array.shape, digest, hint, meaning)

    def weight(
        self,
        ref: WeightAttr,
        dtype: int | None = None,
        shape: Sequence[int] | None = None,
        meaning: Any = None,
    ) -> str:
        """Name of the initializer of a weight, or of its bytes seen as another ONNX type and shape."""
        array = self._weights[ref]
        kind = dtype or helper.np_dtype_to_tensor_dtype(array.dtype)
        return self._initializer(array, kind, shape or array.shape, ref.hash.data, ref.key.data, meaning)

    def packed(self, array: Array, dtype: int, shape: Sequence[int], hint: str, meaning: Any = None) -> str:
        """Name of an initializer from the bytes of an ONNX type that NumPy lacks."""
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return self._initializer(array, dtype, shape, digest, hint, meaning)

    def _initializer(
        self, array: Array, dtype: int, shape: Sequence[int], digest: str, hint: str, meaning: Any = None
    ) -> str:
        key = (digest, dtype, tuple(shape), meaning)
        if key not in self._constants:
            kind = TensorProto.DataType.Name(dtype).lower()
            plain = f"{kind}_{array.reshape(-1)[0]}" if array.size == 1 else f"{self._scope}/constant"
            proto = numpy_helper.from_array(array) if array.nbytes < _INLINE_BYTES else TensorProto()
            if array.nbytes >= _INLINE_BYTES:
                offset, length = self._data.place(array, digest)
                proto.data_location = TensorProto.EXTERNAL
                for name, text in (("location", DATA_FILE), ("offset", offset), ("length", length)):
                    proto.external_data.add(key=name, value=str(text))
            proto.data_type = dtype
            proto.dims[:] = shape
            proto.name = self._unique(hint or plain)
            self._constants[key] = proto
        return self._constants[key].name

    def input(self, name: str, dtype: Any, shape: Shape) -> str:
        self._inputs.append(_value_info(name, dtype, shape))
        self._taken[name] = 0
        return name

    def output(self, name: str, dtype: Any, shape: Shape, first: bool = False) -> None:
        self._outputs.insert(0 if first else len(self._outputs), _value_info(name, dtype, shape))

    def gives(self, name: str) -> bool:
        """Whether the graph has an output of that name."""
        return any(output.name == name for output in self._outputs)

    def model(self, name: str, opset: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The model, shapes not yet inferred."""
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._constants.values())
        )
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph,
            opset_imports=imports,
            producer_name="mqc",
            ir_version=helper.find_min_ir_version_for(imports, True),
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def _unique(self, name: str) -> str:
        count = self._taken.get(name)
        self._taken[name] = 0 if count is None else count + 1
        return name if count is None else self._unique(f"{name}.{count + 1}")


def _value_info(name: str, dtype: Any, shape: Shape) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)
