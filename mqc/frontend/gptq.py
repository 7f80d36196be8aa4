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
        self._size: Any = config.get("group_size", 128)
        if type(self._size) is not int or not (self._size == -1 or self._size > 0):
            raise ModelError(f"group_size is {self._size!r}; inputs of a group, or -1 for all, were expected")
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
            size = inputs if self._size == -1 else self._size
            if groups != -(-inputs // size):
                raise ModelError(
                    f"{module}.scales has {groups} groups; {inputs} inputs in {size} were expected"
                )
            packed = checkpoint.take(f"{module}.qzeros", ("I32",), (groups, -(-outputs * bits // 32))).numpy()
            # A zero point of 0 less 1 is stored as all ones.
            zeros = (unpacked(packed, bits, outputs).T.astype(np.int16) + self._less) & ((1 << bits) - 1)
            group_of = checkpoint.group_index(f"{module}.g_idx", inputs, groups)
            if group_of is None:
                group_of = np.arange(inputs) // size
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
        self._has_zeros = config.get("zero_point", True)

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
            if self._has_zeros or f"{module}.qzeros" in checkpoint:
                packed = checkpoint.take(f"{module}.qzeros", ("I32",), (groups, words.shape[1])).numpy()
                zeros = _in_order(packed).T
            yield integer_matrix(module, less_zeros(_in_order(words).T, zeros), scale, f"{module}.scales")


def _in_order(words: Array) -> Array:
    """u8 `[rows, 8 · words]` of AWQ's words `[rows, words]`."""
    found = unpacked(words, 4, words.shape[1] * 8).reshape(len(words), -1, 8)
    ordered: Array = found[:, :, _AWQ_PLACES].reshape(len(words), -1)
    return ordered
