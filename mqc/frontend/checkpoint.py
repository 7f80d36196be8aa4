"""Tensors of safetensors files, taken one by one, their types, shapes and values checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from mqc.arrays import Array, row_blocks
from mqc.dialects.quant import UniformType
from mqc.errors import ModelError
from mqc.frontend.given import MatrixGrid, ValueGrid
from mqc.numerics.products import GROUPS, per_input

FLOATS = ("F64", "F32", "F16", "BF16")
#: Types of tensors that are what they say: numbers, positions and masks.
_PLAIN = (*FLOATS, "I64", "BOOL")
#: Bounds of scales; the first is that of a channel of zeros.
_LEAST, _MOST = 1e-30, 1e30
#: Observers give no value a smaller scale, and this one if they saw nothing (compressed-tensors).
NOTHING_SEEN = float(np.finfo(np.float32).eps)

#: The types of a product's operand and of its result, where files say.
Values = tuple[ValueGrid | None, ValueGrid | None]


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix of a quantized model.

    module: the name of its module. shape: `[outputs, inputs]`. rows: its weights, f32, of some rows.
    grid: its steps; None for floats. values: the types of the product's operand and result.
    """

    module: str
    shape: tuple[int, int]
    rows: Callable[[slice], Array]
    grid: MatrixGrid | None = None
    values: Values = (None, None)


class Checkpoint:
    """The tensors of some files by name, mapped. A reader takes those that it knows; what is `left` is plain.
    notes: what is to be known of those that were taken.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        self.notes: list[str] = []
        self._where: dict[str, Any] = {}
        for path, file in zip(paths, files, strict=True):
            for key in file.keys():  # noqa: SIM118
                if key in self._where:
                    raise ModelError(f"{path} has tensor {key}, and another file has it too: leave one out")
                self._where[key] = file

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def modules(self, ending: str) -> list[str]:
        """Names of modules that have a tensor with such an ending."""
        return [name.removesuffix(ending) for name in sorted(self._where) if name.endswith(ending)]

    def type_of(self, name: str) -> str:
        return str(self._where[name].get_slice(name).get_dtype()) if name in self else "missing"

    def take(
        self, name: str, types: Sequence[str], shape: tuple[int | None, ...] | None = None
    ) -> torch.Tensor:
        """A tensor of one of some types, and of a shape; None in it for any size.

        Raises `ModelError` for what is missing or another.
        """
        kind = self.type_of(name)
        if kind not in types:
            raise ModelError(f"tensor {name} is {kind}; {' or '.join(types)} was expected")
        tensor: torch.Tensor = self._where.pop(name).get_tensor(name)
        fits = shape is None or (
            len(shape) == tensor.ndim
            and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
        )
        if not fits:
            raise ModelError(f"tensor {name} is {list(tensor.shape)}; {list(shape or ())} was expected")
        return tensor

    def drop(self, name: str) -> bool:
        """Leave a tensor out. Whether there is one."""
        return self._where.pop(name, None) is not None

    def scales(self, name: str, shape: tuple[int | None, ...] | None = None) -> Array:
        """f32 numbers from 0 to 1e30; 1e-30 where they are less. Raises `ModelError`."""
        found: Array = self.take(name, FLOATS, shape).float().numpy()
        if not (found >= 0).all() or (found > _MOST).any():
            raise ModelError(f"tensor {name} has scales that are negative, above {_MOST:g} or no numbers")
        return np.maximum(found, np.float32(_LEAST))

    def matrix_scales(self, name: str, rows: int, columns: int) -> Array:
        """f32 `[rows, groups]`: one for all, one a row, or groups of consecutive columns. Raises
        `ModelError`."""
        found = self.scales(name)
        if found.size == 1:
            return np.full((rows, 1), found.reshape(-1)[0], np.float32)
        found = found.reshape(-1, 1) if found.ndim == 1 else found
        if found.ndim != 2 or len(found) != rows or columns % found.shape[1]:
            raise ModelError(
                f"tensor {name} is {list(found.shape)}: no scales of {rows} rows of {columns} weights"
            )
        return found

    def group_index(self, name: str, inputs: int, groups: int) -> Array | None:
        """The group of each input, if a tensor says it. -1 for all says nothing. Raises `ModelError`."""
        if name not in self:
            return None
        found: Array = self.take(name, ("I32", "I64"), (inputs,)).numpy()
        if (found == -1).all():
            return None
        if found.min() < 0 or found.max() >= groups:
            raise ModelError(f"{name} names groups from {found.min()} to {found.max()}; there are {groups}")
        return found

    def value_grid(self, scale: str, zero: str, bits: int) -> ValueGrid | None:
        """The type of a value by the tensors of its scale and of its zero point, which may be missing.

        None if the scale is missing, or no more than an observer has that saw nothing: that is noted.
        """
        if scale not in self:
            self.drop(zero)
            return None
        found = self.scales(scale).reshape(-1)
        if len(found) != 1:
            raise ModelError(f"tensor {scale} has {len(found)} scales; one for the whole value was expected")
        offset = 0
        if zero in self:
            given = self.take(zero, ("I8", "I16", "I32", "I64")).reshape(-1).tolist()
            if len(given) != 1 or not -(half := 1 << (bits - 1)) <= given[0] < half:
                raise ModelError(f"tensor {zero} is no zero point of {bits} bits")
            (offset,) = given
        if found[0] <= NOTHING_SEEN:
            self.notes.append(f"{scale} is {found[0]:.1e}, so nothing was observed: calibrated here")
            return None
        return ValueGrid(UniformType.of(bits, float(found[0]), offset + (1 << (bits - 1))), scale)

    def left(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that nobody took, mapped. Raises `ModelError` for one that lacks a scale."""
        for name, file in self._where.items():
            if (kind := self.type_of(name)) not in _PLAIN:
                raise ModelError(f"tensor {name} is {kind}, and the files have no scale of it")
            yield name, file.get_tensor(name)


def integer_matrix(
    module: str,
    integers: Array,
    scale: Array,
    source: str,
    group_of: Array | None = None,
    values: Values = (None, None),
) -> StoredMatrix:
    """A matrix of integers times scales.

    Args:
        integers: less the zero points, `[outputs, inputs]`.
        scale: f32 `[outputs, groups]`, groups of consecutive inputs, or as `group_of` says of each input.
        source: the name of the scales' tensor.
    """
    inputs = integers.shape[1]
    in_order = np.arange(inputs) // max(inputs // scale.shape[1], 1)
    if group_of is not None and np.array_equal(group_of, in_order):
        group_of = None

    def rows(some: slice) -> Array:
        steps = per_input(scale[some], inputs) if group_of is None else scale[some][:, group_of]
        return integers[some].astype(np.float32) * steps

    grid = _grid(integers, scale, source, group_of is not None)
    return StoredMatrix(module, (len(integers), inputs), rows, grid, values)


def _grid(integers: Array, scale: Array, source: str, scattered: bool) -> MatrixGrid:
    least, most = int(integers.min()), int(integers.max())
    of_four, of_eight = least >= -8 and most <= 7, least >= -128 and most <= 127
    groups = scale.shape[1]
    why = ""
    if scattered:
        why = "its groups are scattered (desc_act)"
    elif groups == 1 and not of_eight:
        why = "its integers less their zero points need more than 8 bits"
    elif groups > 1 and not of_four:
        why = "its integers less their zero points need more than 4 bits, and have groups"
    elif groups > 1 and integers.shape[1] // groups not in GROUPS:
        why = f"groups of {integers.shape[1] // groups} inputs are none of {', '.join(map(str, GROUPS[1:]))}"
    if why:
        return MatrixGrid(None, 8, source, f"{why}: rounded again")
    sums = integers.sum(1, dtype=np.int64)
    return MatrixGrid(np.ascontiguousarray(scale), 4 if of_four else 8, source, sums=sums)


def less_zeros(integers: Array, zeros: Array, group_of: Array | None = None) -> Array:
    """s16: unsigned or signed integers `[rows, columns]` less the zero points `[rows, groups]` of their
    groups, which are consecutive, or as `group_of` says."""
    found = np.empty(integers.shape, np.int16)
    for rows in row_blocks(integers.shape):
        some = zeros[rows].astype(np.int16)
        spread = per_input(some, integers.shape[1]) if group_of is None else some[:, group_of]
        found[rows] = integers[rows].astype(np.int16) - spread
    return found
