"""AIMET's encodings beside a float model (`mqc.analysis.aimet`), which then is quantized as they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from mqc.analysis.aimet import Encoding, Named, read_encodings
from mqc.arrays import Array, row_blocks
from mqc.dialects.quant import UniformType
from mqc.errors import ModelError
from mqc.files import json_object, read_text
from mqc.frontend.checkpoint import NOTHING_SEEN, integer_matrix
from mqc.frontend.given import Given, MatrixGrid, ValueGrid
from mqc.frontend.mapped import widened
from mqc.ir.spill import Spill

#: Bits that values of a program may have, and integers of a matrix.
_VALUE_BITS, _MOST_MATRIX_BITS = (8, 16), 8


def apply_encodings(model: Any, path: Path) -> Given:
    """Round the matrices of a model to the grids of a file. They become f32, in a temporary file.

    Entries are matched by the names of parameters and modules, those of outputs by the names of values too.
    Returns what they say; its notes name those that have no place. Memory: one matrix.

    Raises `ModelError` for a file that is none, or of another model.
    """
    try:
        entries = read_encodings(json_object(read_text(path, ModelError)))
    except ValueError as error:
        raise ModelError(f"{path} holds no encodings of AIMET: {error}") from error
    matrices: dict[str, MatrixGrid] = {}
    values: dict[str, dict[str, ValueGrid]] = {"input": {}, "output": {}}
    notes: list[str] = []
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    modules, spill = dict(model.named_modules()), Spill()
    for entry in entries:
        why = _no_place(entry, modules, owners)
        if why or entry.encoding is None:
            notes.append(f"{entry.words}: {why}")
        elif entry.part == "param":
            matrices[entry.name] = _round(modules[entry.name.removesuffix(".weight")], entry.encoding, spill)
        else:
            values[entry.part][entry.name] = ValueGrid(_type(entry.encoding), entry.words)
    if not matrices and not values["input"] and not values["output"].keys() & modules.keys():
        named = f", such as {entries[0].name}" if entries else ""
        raise ModelError(
            f"{path} has {len(entries)} encodings{named}, and none of them is of a matrix or module of this "
            f"{type(model).__name__}, such as {next(name for name, m in modules.items() if _is_product(m))}: "
            "give the file that stands beside the model"
        )
    outputs = {name: grid for name, grid in values["output"].items() if _is_product(modules.get(name))}
    others = {name: grid for name, grid in values["output"].items() if name not in outputs}
    method = f"AIMET encodings, {path.name}"
    return Given(method, matrices, values["input"], outputs, others, tuple(notes))


def _is_product(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)


def _no_place(entry: Named, modules: dict[str, Any], owners: Counter[int]) -> str:
    """Why a program has no place for an entry; empty if it has."""
    found = entry.encoding
    if found is None:
        return entry.why
    if entry.part != "param":
        if found.bits not in _VALUE_BITS or len(found.scale) > 1:
            return "values of a program have 8 or 16 bits, and one scale"
        if found.scale[0] <= NOTHING_SEEN:
            return "nothing was observed: calibrated here"
        products = entry.part == "output" or _is_product(modules.get(entry.name))
        return "" if products else "it is the input of no matrix product"
    module = modules.get(entry.name.removesuffix(".weight"))
    if not entry.name.endswith(".weight") or not _is_product(module):
        return "it is of no matrix of a product: rounded here"
    if owners[id(module.weight)] > 1:  # type: ignore[union-attr]
        return "the matrix is a table too: rounded here"
    if found.bits > _MOST_MATRIX_BITS:
        return f"a matrix of {found.bits} bits: rounded here"
    if len(found.scale) not in (1, len(_rows(module))):
        return f"it has {len(found.scale)} scales for {len(_rows(module))} outputs: rounded here"
    return ""


def _rows(module: Any) -> torch.Tensor:
    """The weight of a module, `[outputs, inputs]`."""
    weight: torch.Tensor = module.weight
    return weight.T if isinstance(module, Conv1D) else weight


def _type(encoding: Encoding) -> UniformType:
    return UniformType.of(encoding.bits, encoding.scale[0], encoding.zero)


def _round(module: Any, encoding: Encoding, spill: Spill) -> MatrixGrid:
    """Round the weight of a module, and give it those values."""
    weight: Array = widened(_rows(module)).numpy()
    scale = np.broadcast_to(np.array(encoding.scale, np.float32)[:, None], (len(weight), 1))
    low, high = -encoding.zero, (1 << encoding.bits) - 1 - encoding.zero
    integers = np.empty(weight.shape, np.int16)
    for rows in row_blocks(weight.shape):
        integers[rows] = np.clip(np.rint(weight[rows] / scale[rows]), low, high)
    matrix = integer_matrix("", integers, scale, encoding.name)
    floats = spill.write(matrix.shape, np.dtype(np.float32), map(matrix.rows, row_blocks(matrix.shape)))
    rounded = torch.from_numpy(floats)
    if isinstance(module, Conv1D):
        rounded = rounded.T.contiguous()
    module.weight = torch.nn.Parameter(rounded, requires_grad=False)
    assert matrix.grid is not None
    return matrix.grid
