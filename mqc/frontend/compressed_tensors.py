"""Models as llm-compressor and others save them with compressed-tensors
(https://github.com/vllm-project/compressed-tensors, format of version 0.20)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mqc.arrays import Array
from mqc.errors import ModelError
from mqc.frontend.checkpoint import Checkpoint, StoredMatrix, Values, integer_matrix, less_zeros
from mqc.frontend.float8 import FLOAT8, block_size, float8_matrix
from mqc.frontend.given import ValueGrid
from mqc.numerics.packed import unpacked

FORMATS = ("int-quantized", "pack-quantized", "naive-quantized", "float-quantized")
#: Bits that static activations may have.
_VALUE_BITS = (8, 16)
#: Scales of the cache's keys and values, and of queries.
_CACHE = tuple(f".{part}_{kind}" for part in "qkv" for kind in ("scale", "zero_point"))


class CompressedTensors:
    """What the config says. Raises `ModelError` for formats that are not read."""

    def __init__(self, config: dict[str, Any]) -> None:
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
            raise ModelError("quantization_config of compressed-tensors has no config_groups, which say how")
        own = config.get("format")
        formats = {group.get("format") or own for group in groups.values()} or {own}
        if unread := sorted(str(name) for name in formats - set(FORMATS)):
            raise ModelError(
                f"format {unread[0]} of compressed-tensors is not read, {', '.join(FORMATS)} are: save the "
                "model in one of these, or decompressed"
            )
        for part in ("transform_config", "sparsity_config"):
            if _says_something(config.get(part)):
                raise ModelError(f"{part} of compressed-tensors is not read: save the model without it")
        self.words = f"compressed-tensors, {', '.join(sorted(map(str, formats)))}"
        self.notes: list[str] = []
        weights = [group["weights"] for group in groups.values() if isinstance(group.get("weights"), dict)]
        self._weight_bits = {stated.get("num_bits") for stated in weights if stated.get("type") != "float"}
        blocks = [
            block_size(stated["block_structure"]) for stated in weights if stated.get("block_structure")
        ]
        if len(set(blocks)) > 1:
            raise ModelError(
                f"block_structure of {' and '.join(map(str, set(blocks)))} in one model is not read"
            )
        self._block = next(iter(blocks), None)
        self._input_bits = self._bits(groups, "input_activations")
        self._output_bits = self._bits(groups, "output_activations")

    def _bits(self, groups: dict[str, Any], part: str) -> int | None:
        """Bits of static activations; None if there are none."""
        found = set()
        for stated in (group.get(part) for group in groups.values()):
            if not isinstance(stated, dict):
                continue
            if stated.get("dynamic") or stated.get("type") == "float":
                kind = "dynamic" if stated.get("dynamic") else "float"
                self.notes.append(f"{part} are {kind} in the files: calibrated here, static")
            elif stated.get("strategy") not in (None, "tensor") or stated.get("num_bits") not in _VALUE_BITS:
                raise ModelError(
                    f"{part} with strategy {stated.get('strategy')} and {stated.get('num_bits')} bits are "
                    "not read: a static scale for the whole tensor and 8 or 16 bits are"
                )
            else:
                found.add(int(stated["num_bits"]))
        if len(found) > 1:
            raise ModelError(
                f"{part} of {' and '.join(map(str, sorted(found)))} bits in one model are not read"
            )
        return next(iter(found), None)

    def matrices(self, checkpoint: Checkpoint) -> Iterator[StoredMatrix]:
        """The model's matrices. Raises `ModelError` for tensors that are not as the format says."""
        for ending in _CACHE:
            for module in checkpoint.modules(ending):
                checkpoint.drop(f"{module}{ending}")
                self.notes.append("the files have scales of the cache: calibrated here")
        for module in checkpoint.modules(".weight_packed"):
            yield _packed(checkpoint, module, self._weight_bits, self._values(checkpoint, module))
        for module in checkpoint.modules(".weight_scale"):
            values = self._values(checkpoint, module)
            if checkpoint.type_of(f"{module}.weight") == FLOAT8:
                yield float8_matrix(checkpoint, module, f"{module}.weight_scale", self._block)
            else:
                yield _integers(checkpoint, module, values)

    def _values(self, checkpoint: Checkpoint, module: str) -> Values:
        found: list[ValueGrid | None] = []
        for part, bits in (("input", self._input_bits), ("output", self._output_bits)):
            scale, zero = f"{module}.{part}_scale", f"{module}.{part}_zero_point"
            if bits is None:
                checkpoint.drop(scale)
                checkpoint.drop(zero)
                found.append(None)
            else:
                found.append(checkpoint.value_grid(scale, zero, bits))
        return found[0], found[1]


def _says_something(part: Any) -> bool:
    """Whether a part of the config, if there, asks for anything."""
    if not isinstance(part, dict):
        return bool(part)
    return bool(part.get("config_groups", True)) and part.get("format") != "dense" and bool(part)


def _packed(checkpoint: Checkpoint, module: str, stated: set[Any], values: Values) -> StoredMatrix:
    """stated: the bits that matrices may have by the config."""
    rows, columns = checkpoint.take(f"{module}.weight_shape", ("I64", "I32"), (2,)).tolist()
    words = checkpoint.take(f"{module}.weight_packed", ("I32",), (rows, None)).numpy()
    # One of 1 to 8 bits takes so many words, but for fewer than 32 columns.
    bits = [b for b in range(1, 9) if -(-columns * b // 32) == words.shape[1]]
    # Older writers leave bits of a word unused where they do not divide 32.
    if columns < 32 or not bits or bits[0] not in stated:
        raise ModelError(
            f"{module}.weight_packed has {words.shape[1]} words a row: too few or many for {columns} weights "
            f"of {' or '.join(map(str, stated))} bits, packed without gaps"
        )
    half, name = 1 << (bits[0] - 1), f"{module}.weight_scale"
    scale = checkpoint.matrix_scales(name, rows, columns)
    group_of = checkpoint.group_index(f"{module}.weight_g_idx", columns, scale.shape[1])
    integers: Array = unpacked(words, bits[0], columns).astype(np.int16) - half
    if (zero := f"{module}.weight_zero_point") in checkpoint:
        groups = scale.shape[1]
        if checkpoint.type_of(zero) == "I32":
            packed = checkpoint.take(zero, ("I32",), (-(-rows * bits[0] // 32), groups)).numpy()
            zeros = unpacked(packed.T, bits[0], rows).T.astype(np.int16) - half
        else:
            zeros = checkpoint.take(zero, ("I8",), (rows, groups)).numpy()
        integers = less_zeros(integers, zeros, group_of)
    return integer_matrix(module, integers, scale, name, group_of, values)


def _integers(checkpoint: Checkpoint, module: str, values: Values) -> StoredMatrix:
    integers = checkpoint.take(f"{module}.weight", ("I8",), (None, None)).numpy()
    rows, columns = integers.shape
    name, zero = f"{module}.weight_scale", f"{module}.weight_zero_point"
    scale = checkpoint.matrix_scales(name, rows, columns)
    group_of = checkpoint.group_index(f"{module}.weight_g_idx", columns, scale.shape[1])
    if zero in checkpoint:
        zeros = checkpoint.take(zero, ("I8",)).numpy()
        if zeros.size not in (1, scale.size):
            raise ModelError(f"tensor {zero} has {zeros.size} zero points for {scale.size} scales")
        zeros = zeros.reshape(scale.shape) if zeros.size > 1 else np.full(scale.shape, zeros.reshape(-1)[0])
        integers = less_zeros(integers, zeros, group_of)
    return integer_matrix(module, integers, scale, name, group_of, values)
