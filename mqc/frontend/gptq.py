"""Models as GPTQ's and AWQ's tools save them (AutoGPTQ, GPTQModel; AutoAWQ's `gemm`): matrices with groups
of inputs, packed with the inputs in front."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from mqc.arrays import Array
from mqc.errors import ModelError
from mqc.frontend.checkpoint import Checkpoint, StoredMatrix, integer_matrix, less_zeros
from mqc.numerics.packed import unpacked

_BITS = (2, 4, 8)
#: Where AWQ's `gemm` has each of eight outputs among the eight of a word.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


class Gptq:
    """What the config says. Raises `ModelError` for forms that are not read."""

    words = "GPTQ"
    notes: ClassVar[list[str]] = []

    def __init__(self, config: dict[str, Any]) -> None:
        self._bits: Any = config.get("bits")
        form = config.get("checkpoint_format") or config.get("format") or "gptq"
        if self._bits not in _BITS or form not in ("gptq", "gptq_v2"):
            raise ModelError(
                f"GPTQ with {self._bits} bits in form {form} is not read: 2, 4 and 8 bits in gptq and "
                "gptq_v2 are"
            )
        if config.get("dynamic"):
            raise ModelError("GPTQ with `dynamic`, other bits for some modules, is not read")
        #: The first form stores zero points less 1.
        self._less = int(form == "gptq")

    def matrices(self, checkpoint: Checkpoint) -> Iterator[StoredMatrix]:
        """The model's matrices. Raises `ModelError` for tensors that are not as the format says."""
        bits = int(self._bits)
        for module in checkpoint.modules(".qweight"):
            words = checkpoint.take(f"{module}.qweight", ("I32",), (None, None)).numpy()
            inputs, outputs = words.shape[0] * 32 // bits, words.shape[1]
            scale = checkpoint.scales(f"{module}.scales", (None, outputs)).T
            groups = scale.shape[1]
            packed = checkpoint.take(f"{module}.qzeros", ("I32",), (groups, -(-outputs * bits // 32))).numpy()
            zeros = unpacked(packed, bits, outputs).T.astype(np.int16) + self._less
            index, group_of = f"{module}.g_idx", np.arange(inputs) // max(inputs // groups, 1)
            if index in checkpoint:
                group_of = checkpoint.take(index, ("I32", "I64"), (inputs,)).numpy()
            if group_of.min() < 0 or group_of.max() >= groups:
                raise ModelError(f"{index} names groups that {module}.scales does not have")
            integers = unpacked(words.T, bits, inputs)
            less = integers.astype(np.int16) - zeros[:, group_of]
            yield integer_matrix(module, less, scale, f"{module}.scales", group_of)


class Awq:
    """What the config says. Raises `ModelError` for forms that are not read."""

    words = "AWQ"
    notes: ClassVar[list[str]] = []

    def __init__(self, config: dict[str, Any]) -> None:
        form = str(config.get("version") or config.get("format") or "gemm").lower()
        if config.get("bits", 4) != 4 or form != "gemm":
            raise ModelError(
                f"AWQ with {config.get('bits')} bits in form {form} is not read: 4 bits in gemm are"
            )

    def matrices(self, checkpoint: Checkpoint) -> Iterator[StoredMatrix]:
        """The model's matrices. Raises `ModelError` for tensors that are not as the format says."""
        for module in checkpoint.modules(".qweight"):
            words = checkpoint.take(f"{module}.qweight", ("I32",), (None, None)).numpy()
            inputs, outputs = words.shape[0], words.shape[1] * 8
            scale = checkpoint.scales(f"{module}.scales", (None, outputs)).T
            groups = scale.shape[1]
            if inputs % groups:
                raise ModelError(f"{module}.scales has {groups} groups, which do not divide {inputs} inputs")
            zeros = np.full((outputs, groups), 8, np.uint8)
            if f"{module}.qzeros" in checkpoint:
                packed = checkpoint.take(f"{module}.qzeros", ("I32",), (groups, words.shape[1])).numpy()
                zeros = _in_order(packed).T
            yield integer_matrix(module, less_zeros(_in_order(words).T, zeros), scale, f"{module}.scales")


def _in_order(words: Array) -> Array:
    """u8 `[rows, 8 · words]` of AWQ's words `[rows, words]`."""
    found = unpacked(words, 4, words.shape[1] * 8).reshape(len(words), -1, 8)
    ordered: Array = found[:, :, _AWQ_PLACES].reshape(len(words), -1)
    return ordered
