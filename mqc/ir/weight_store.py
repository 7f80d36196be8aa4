"""Constant tensors that the IR refers to, in memory and in safetensors files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from xdsl.dialects.builtin import Float32Type, IntegerType, Signedness, StringAttr, TensorType, f32
from xdsl.ir import Attribute

from mqc.arrays import Array, row_blocks
from mqc.errors import ArtifactError
from mqc.files import check_regular
from mqc.ir.op import WeightAttr, s8, s16, s32, u8, u16
from mqc.ir.spill import LEAST_BYTES, Spill

_ELEMENTS: dict[str, tuple[Attribute, str]] = {
    "float32": (f32, "F32"),
    "int8": (s8, "I8"),
    "uint8": (u8, "U8"),
    "int16": (s16, "I16"),
    "uint16": (u16, "U16"),
    "int32": (s32, "I32"),
}

#: Alignment in bytes of the data section and of each tensor of at least this size.
ALIGNMENT = 64


def numpy_dtype(element: Attribute) -> np.dtype[Any]:
    """NumPy dtype of an IR element type. Raises `ArtifactError` for types that no tensor has."""
    if isinstance(element, Float32Type):
        return np.dtype(np.float32)
    if isinstance(element, IntegerType) and element.width.data in (8, 16, 32):
        sign = "u" if element.signedness.data == Signedness.UNSIGNED else ""
        return np.dtype(f"{sign}int{element.width.data}")
    raise ArtifactError(f"no tensor has elements of type {element}")


def content_hash(array: Array) -> str:
    """First 16 hex digits of the SHA-256 of the array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()[:16]


class WeightStore:
    """Tensors by name and content.

    Large tensors are copied to temporary files and mapped (`mqc.ir.spill`). Small ones are held by reference;
    adding one copies it only if it is not contiguous or is read-only.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Array] = {}
        self._spill = Spill()

    @staticmethod
    def _key(ref: WeightAttr) -> str:
        return f"{ref.key.data}@{ref.hash.data}"

    def add(self, name: str, array: Array) -> WeightAttr:
        """Store `array` under `name` and return the attribute that refers to it."""
        if array.nbytes >= LEAST_BYTES:
            return self.build(name, array.shape, array.dtype, array.__getitem__)
        return self._named(name, np.require(array, requirements=["C", "W"]))  # torch shares no other memory

    def build(
        self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, rows: Callable[[slice], Array]
    ) -> WeightAttr:
        """Store a tensor that is computed a block of rows at a time, so that it is never whole in memory.

        Args:
            rows: the tensor's rows of a slice; they are cast to `dtype`.
        """
        kind = np.dtype(dtype)
        if math.prod(shape) * kind.itemsize >= LEAST_BYTES:
            return self._named(name, self._spill.write(shape, kind, map(rows, row_blocks(shape))))
        array = np.empty(shape, kind)
        for block in row_blocks(shape):
            array[block] = rows(block)
        return self._named(name, array)

    def _named(self, name: str, array: Array) -> WeightAttr:
        element, _ = _ELEMENTS[array.dtype.name]
        ref = WeightAttr(StringAttr(name), StringAttr(content_hash(array)), TensorType(element, array.shape))
        self._tensors[self._key(ref)] = array
        return ref

    def __contains__(self, ref: WeightAttr) -> bool:
        return self._key(ref) in self._tensors

    def __getitem__(self, ref: WeightAttr) -> Array:
        """The tensor, of the shape and dtype that `ref` states. Raises `ArtifactError` if absent."""
        array = self._tensors.get(self._key(ref))
        if array is None:
            raise ArtifactError(f"weight {ref.key.data} ({ref.hash.data}) is not in the weight file")
        want = numpy_dtype(ref.type.get_element_type())
        if array.shape != ref.shape or array.dtype != want:
            raise ArtifactError(
                f"weight {ref.key.data} is {array.dtype}{list(array.shape)}, "
                f"the IR says {want}{list(ref.shape)}"
            )
        return array

    def keep_only(self, refs: Iterable[WeightAttr]) -> None:
        """Drop every tensor that no attribute of `refs` names."""
        keys = {self._key(ref) for ref in refs}
        self._tensors = {k: v for k, v in self._tensors.items() if k in keys}

    def update(self, other: WeightStore) -> None:
        """Take over all tensors of another store."""
        self._tensors.update(other._tensors)

    def nbytes(self, refs: Iterable[WeightAttr]) -> int:
        """Bytes of the distinct tensors in `refs`."""
        return sum(self._tensors[k].nbytes for k in {self._key(ref) for ref in refs})

    def save(self, path: Path, refs: Iterable[WeightAttr]) -> dict[WeightAttr, int]:
        """Write the tensors of `refs` as one safetensors file that can be memory-mapped.

        The header is padded so that the data section starts at a multiple of `ALIGNMENT`, and
        large tensors come first, so that packed matrices keep their alignment. Returns where each begins
        in the file.
        """
        refs = set(refs)
        arrays = {self._key(ref): self[ref] for ref in refs}
        # Multiples of 64 bytes first, then wide elements before narrow ones: each stays aligned.
        order = sorted(
            arrays,
            key=lambda k: (arrays[k].nbytes % ALIGNMENT != 0, -arrays[k].itemsize, -arrays[k].nbytes, k),
        )
        header: dict[str, Any] = {}
        offset = 0
        for key in order:
            array = arrays[key]
            header[key] = {
                "dtype": _ELEMENTS[array.dtype.name][1],
                "shape": list(array.shape),
                "data_offsets": [offset, offset + array.nbytes],
            }
            offset += array.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for key in order:
                file.write(arrays[key].reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        return {ref: 8 + len(text) + header[self._key(ref)]["data_offsets"][0] for ref in refs}

    @classmethod
    def load(cls, path: Path) -> WeightStore:
        """Memory-map a safetensors file. Raises `ArtifactError` if it is truncated or malformed.

        Shapes, dtypes and offsets are checked here; contents against `WeightAttr.hash` by `check`.
        """
        check_regular(path, ArtifactError)
        try:
            with safe_open(path, framework="numpy") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: not a readable safetensors file: {error}") from error
        with open(path, "rb") as raw:
            size = struct.unpack("<Q", raw.read(8))[0]
            header = json.loads(raw.read(size))
        header.pop("__metadata__", None)
        dtypes = {code: np.dtype(name) for name, (_, code) in _ELEMENTS.items()}
        data = np.memmap(path, dtype=np.uint8, mode="c", offset=8 + size) if header else None
        store = cls()
        for key, entry in header.items():
            if entry["dtype"] not in dtypes:
                raise ArtifactError(f"{path}: tensor {key} has dtype {entry['dtype']}")
            begin, end = entry["data_offsets"]
            dtype = dtypes[entry["dtype"]]
            assert data is not None
            if end - begin != math.prod(entry["shape"]) * dtype.itemsize:
                raise ArtifactError(f"{path}: tensor {key} has the wrong size")
            store._tensors[key] = np.asarray(data[begin:end]).view(dtype).reshape(entry["shape"])
        return store

    def check(self, refs: Iterable[WeightAttr]) -> None:
        """Compare the content of each tensor with its hash. Raises `ArtifactError` on the first."""
        for ref in refs:
            if content_hash(self[ref]) != ref.hash.data:
                raise ArtifactError(f"weight {ref.key.data} was altered: its hash does not match")
