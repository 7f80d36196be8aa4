"""Values that a program computed elsewhere, on a device say, read from a folder of tensor files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.arrays import Array
from mqc.debugging.value_trace import Side, Trace
from mqc.errors import InputError
from mqc.files import check_regular
from mqc.ir.op import MqcOp, channels, element_type
from mqc.ir.weight_store import WeightStore, numpy_dtype

#: What a file's name may end in: NumPy's, QNN's raw tensors, ONNX TensorProto as ONNX Runtime dumps it.
SUFFIXES = (".npy", ".raw", ".tensorproto", ".pb")
#: The file of the token ids.
IDS = "input_ids"


@dataclass(frozen=True)
class Recorded:
    """Values by name `[tokens, channels]`, as the program stores them, for one sequence of token ids.

    unknown: names of files that are no value's.
    """

    ids: Array
    stored: Mapping[str, Array]
    unknown: tuple[str, ...]

    def values(self, module: ModuleOp, weights: WeightStore, ids: Array, **options: Any) -> dict[str, Array]:
        """As `Backend.values`. Raises `InputError` for other ids than those that were recorded."""
        if not np.array_equal(ids, self.ids):
            raise InputError("the dumped values are of other token ids")
        return dict(self.stored)


def is_tensor_folder(path: Path) -> bool:
    """Whether a path is a folder with files of tensors, and with no IR."""
    if not path.is_dir() or any(path.glob("*.mlir")):
        return False
    return any(file.suffix in SUFFIXES for file in path.iterdir())


def read_tensors(folder: Path, side: Side, ids: Array | None = None) -> Recorded:
    """The files of a folder that are called as values of an `int` program.

    Signs that are no letters or digits, which file systems and QNN replace, do not count in names. Neither
    does `_native` at the end.

    - Integers are what the program stores. Real numbers are rounded to the value's type.
    - `.raw` files have no type: `NAME_native.raw` has the value's, others are f32, as QNN's tools write them.
    - Rows behind those of the token ids are padding.

    Args:
        ids: token ids `[tokens]`; by default those of the file `input_ids` (`.raw`: s32).

    Raises `InputError` if there are no ids, for a file of another shape or with numbers that the value cannot
    hold, and if no file is a value's. Memory: all tensors.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    running = Trace(side)
    known = {plain_name(name): name for name in running.ops}
    if len(known) < len(running.ops):
        raise InputError(
            f"{side.label} has values whose names differ in signs only: files cannot tell them apart"
        )
    given = [path for path in files if plain_name(path.stem) == IDS]
    if ids is None:
        if not given:
            raise InputError(f"{folder} has no {IDS}.npy with the token ids of the run; give them by --ids")
        ids = _ids(given[0])
    stored: dict[str, Array] = {}
    unknown = []
    for path in files:
        name = known.get(plain_name(path.stem))
        if name in stored:
            raise InputError(f"{folder} has two files of %{name}; remove {path.name} or the other one")
        if name is not None:
            stored[name] = _stored(path, running, running.ops[name], len(ids))
        elif path not in given:
            unknown.append(path.name)
    if not stored:
        raise InputError(
            f"no file in {folder} is called as a value of {side.label}, such as {next(iter(known))}.npy"
        )
    return Recorded(ids, stored, tuple(unknown))


def plain_name(name: str) -> str:
    """A name as file systems and QNN may write it."""
    return re.sub(r"[^0-9A-Za-z]+", "_", name.removesuffix("_native")).strip("_")


def _ids(path: Path) -> Array:
    found = _raw(path, np.dtype(np.int32)) if path.suffix == ".raw" else _array(path)
    if found.dtype.kind not in "iu" or not found.size:
        raise InputError(f"{path} must hold token ids, got {found.dtype}{list(found.shape)}")
    return found.reshape(-1).astype(np.int64)


def _stored(path: Path, running: Trace, op: MqcOp, tokens: int) -> Array:
    """The value `[tokens, channels]` as the program stores it."""
    result = op.results[0]
    width, dtype = channels(result), numpy_dtype(element_type(result))
    native = path.suffix == ".raw" and path.stem.endswith("_native")
    array = _raw(path, dtype if native else np.dtype(np.float32)) if path.suffix == ".raw" else _array(path)
    if array.size % width or array.size < tokens * width or not _are_rows(array.shape, width):
        raise InputError(
            f"{path} has the shape {list(array.shape)}, and %{op.value_name} is {[tokens, width]}"
        )
    rows = array.reshape(-1, width)[:tokens]
    if rows.dtype.kind == "f":
        if not np.isfinite(rows).all():
            raise InputError(f"{path} holds numbers that are not finite")
        stored: Array = running.from_real(result, rows.astype(np.float64))
        return stored
    limits = np.iinfo(dtype)
    if rows.dtype.kind not in "iu" or rows.min() < limits.min or rows.max() > limits.max:
        raise InputError(f"{path} holds {rows.dtype} that %{op.value_name} cannot hold, which is {dtype}")
    return rows.astype(dtype)


def _are_rows(shape: tuple[int, ...], width: int) -> bool:
    """Whether the last axes are the channels: a value of other axes, heads first say, is in another order."""
    sizes = np.cumprod([size for size in reversed(shape) if size != 1] or [1])
    return len(shape) == 1 or width == 1 or width in sizes


def _raw(path: Path, dtype: np.dtype[Any]) -> Array:
    check_regular(path, InputError)
    try:
        return np.fromfile(path, dtype)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _array(path: Path) -> Array:
    check_regular(path, InputError)
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        from onnx import TensorProto, numpy_helper

        return numpy_helper.to_array(TensorProto.FromString(path.read_bytes()))
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} is read by onnx, which is not installed: pip install 'mqc[onnx]'"
        ) from error
    except Exception as error:
        # A file from outside must not end in a crash, whatever its reader trips over.
        raise InputError(f"cannot read {path}: {type(error).__name__}: {error}") from error
