"""Models that are quantized already: what their files say is kept, and their weights are f32 in temporary
files."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.pytorch_utils import Conv1D

from mqc.arrays import Array, row_blocks
from mqc.errors import ModelError, choices
from mqc.frontend.checkpoint import Checkpoint, StoredMatrix, Values
from mqc.frontend.compressed_tensors import CompressedTensors
from mqc.frontend.float8 import Float8
from mqc.frontend.given import Given, MatrixGrid, ValueGrid
from mqc.frontend.gptq import Awq, Gptq
from mqc.ir.spill import LEAST_BYTES, Spill


class Reader(Protocol):
    """words: the method, for people. notes: what is to be known of the files, once all matrices are read."""

    words: str
    notes: list[str]

    def matrices(self, checkpoint: Checkpoint) -> Iterator[StoredMatrix]: ...


#: Of a matrix: the name of its module in the files, its steps, and types of values.
Said = tuple[str, MatrixGrid | None, Values]

IN_GROUPS = (
    "the steps of groups are the nearest that a program has, 1 to 16 times one of each channel; integers are "
    "the files' where these differ by an eighth or less, and the nearest to what the files say elsewhere"
)

_READERS: dict[str, Any] = {
    "awq": Awq, "compressed-tensors": CompressedTensors, "fbgemm_fp8": Float8, "fp8": Float8, "gptq": Gptq,
}  # fmt: skip


def reader_of(name: str, config: Any) -> Reader | None:
    """What reads the files of a model, by its config; None if they are floats.

    Raises `ModelError` for a method that is not read. No weight is touched.
    """
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return None
    stated = stated if isinstance(stated, dict) else stated.to_dict()
    method = str(getattr(stated.get("quant_method"), "value", stated.get("quant_method")))
    if method not in _READERS:
        raise ModelError(
            f"{name} is quantized by {method!r}, which is not read; {choices(method, _READERS)}. Dequantize "
            "it where it was made, save it with save_pretrained, and give that folder"
        )
    try:
        made: Reader = _READERS[method](stated)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    return made


def load_quantized(
    name: str, paths: Sequence[str], config: Any, reader: Reader
) -> tuple[Any, dict[str, Any], Given]:
    """The float model that the files stand for; what its tensors and the files' have not in common, as
    transformers' `output_loading_info` tells it; and what the files say of integers and of types of values.

    Memory: that of one matrix. Raises `ModelError` for tensors that are not as the format says.
    """
    config = copy.deepcopy(config)
    del config.quantization_config
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    checkpoint, spill = Checkpoint(paths), Spill()
    tensors: dict[str, torch.Tensor] = {}
    read: dict[int, Said] = {}
    for matrix in reader.matrices(checkpoint):
        key = f"{matrix.module}.weight"
        tensors[key] = value = _floats(spill, matrix, turned=_is_turned(empty, matrix.module))
        read[value.data_ptr()] = matrix.module, matrix.grid, matrix.values
    for key, tensor in checkpoint.left():
        tensors[key] = _plain(spill, tensor)
    loaded: Any = type(empty).from_pretrained(
        None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    model, found = loaded
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(name)
    return model, found, _given(model, reader.words, [*reader.notes, *checkpoint.notes], read)


def _is_turned(model: Any, name: str) -> bool:
    """Whether a module's parameter is `[inputs, outputs]`. A model may give its modules other names than
    its files."""
    try:
        return isinstance(model.get_submodule(name), Conv1D)
    except AttributeError:
        return False


def _floats(spill: Spill, matrix: StoredMatrix, turned: bool) -> torch.Tensor:
    """The weights of a matrix, f32, in a temporary file."""
    blocks: Iterable[Array] = map(matrix.rows, row_blocks(matrix.shape))
    if not turned:
        return torch.from_numpy(spill.write(matrix.shape, np.dtype(np.float32), blocks))
    whole = np.concatenate([*blocks]).T
    return torch.from_numpy(spill.write(whole.shape, np.dtype(np.float32), [whole]))


def _plain(spill: Spill, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is not quantized: f32 if it is of floats; in a temporary file if it is large."""
    if not tensor.is_floating_point():
        return tensor
    if tensor.numel() * 4 < LEAST_BYTES:
        return tensor.float()
    shape = tuple(tensor.shape)
    blocks = (tensor[rows].float().numpy() for rows in row_blocks(shape))
    return torch.from_numpy(spill.write(shape, np.dtype(np.float32), blocks))


def _given(model: Any, words: str, told: list[str], read: dict[int, Said]) -> Given:
    """What was read, by the address of a matrix, by the names that the model has for it."""
    matrices: dict[str, MatrixGrid] = {}
    inputs: dict[str, ValueGrid] = {}
    outputs: dict[str, ValueGrid] = {}
    kept: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept[parameter.data_ptr()].append(name)
    for address, (file_name, grid, values) in read.items():
        # A part of a stack has no name in the model; that of its file names no op.
        for name in kept.get(address, [f"{file_name}.weight"]):
            if grid is not None:
                matrices[name] = grid
            for place, value in zip((inputs, outputs), values, strict=True):
                if value is not None:
                    place[name.removesuffix(".weight")] = value
    notes = list(dict.fromkeys(told))
    if any(grid.scale is not None and grid.scale.shape[1] > 1 for grid in matrices.values()):
        notes.append(IN_GROUPS)
    return Given(words, matrices, inputs, outputs, notes=tuple(notes))
