"""The commands of an op list: one table, from which the binary form, the text form and the C structs
of the runtime derive.

A command is a row of little-endian 32-bit words: the three of `HEADER`, then its fields. Unless a field's
name says otherwise, addresses are byte offsets in VTCM, and multiples of 128. Rows of a value follow one
another without padding; behind each value are 128 bytes of slack, because kernels read and write whole
vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: `out`: address of the first element that is written; 0 where the command writes none to VTCM.
HEADER = ("opcode", "words", "out")
#: Fields that take two words, low one first.
WIDE = frozenset(("source", "table", "multiplier_table", "shift_table", "epsilon"))
#: Fields of a rescaling: s32 multiplier and shift, negative ones to the left.
_SCALE = ("multiplier", "shift")

#: Fields of each command. A `transfer` numbers a DMA that is under way, 0 to 15.
FIELDS: dict[str, tuple[str, ...]] = {
    # DMA. `source` counts in the weights file, `cache` in the KV cache, both in bytes.
    "load_weights": ("transfer", "bytes", "source"),
    "load_cache": ("transfer", "bytes", "cache"),
    # rows of VTCM to columns of the logits: `row_bytes` each, to `column` bytes behind a row's begin
    "store_logits": ("transfer", "a", "rows", "row_bytes", "column", "logits_row_bytes"),
    "wait": ("transfer",),
    # rows of tables in the weights file, one for each token by its id or position
    "gather_tokens": (
        "tokens", "by_position", "width", "table", "multiplier_table", "shift_table", "zero", "out_bits",
    ),
    "gather_positions": ("tokens", "row_bytes", "table"),
    # `weight`: the tile's records (mqc/numerics/htp_tiles.py); `out_row_bytes`: from one row of the result on
    "fully_connected": (
        "a", "tokens", "inputs", "outputs", "a_bits", "weight", "record_bytes", "weight_bits",
        "group", "acc_shift", "zero", "out_bits", "out_row_bytes",
    ),
    # `scale`: per 32 channels s32 multiplier[32], shift[32]; `scale_step`: 256, or 0 to reuse the first
    "norm": (
        "a", "tokens", "channels", "groups", "centered", "a_bits", "a_zero", "epsilon", "scale",
        "scale_step", "zero", "out_bits",
    ),
    "rotary_embedding": (
        "a", "cos", "sin", "tokens", "channels", "head_dim", "half", "interleaved", "a_bits", "a_zero",
        "scale", "scale_step", "zero", "out_bits",
    ),
    "multiply": (
        "a", "b", "tokens", "channels", "a_bits", "b_bits", "a_zero", "b_zero", "acc_shift",
        "scale", "scale_step", "zero", "out_bits",
    ),
    "add": (
        "a", "b", "count", "a_bits", "b_bits", "a_zero", "a_multiplier", "a_shift", "b_zero",
        "b_multiplier", "b_shift", "zero", "out_bits",
    ),
    "table_lookup": ("a", "table_at", "count", "a_bits", "segment_bits", "out_bits"),
    # new rows into a layer's cache, from the run's position on
    "write_keys": ("a", "tokens", "heads", "head_dim", "cache", "head_bytes", "q_zero"),
    "write_values": ("a", "tokens", "heads", "head_dim", "cache", "head_bytes", "capacity"),
    # row (t, i) is `heads` query heads of token t, from `a + t * a_row_bytes + i * head_dim` on
    "scores": ("a", "keys", "tokens", "heads", "a_row_bytes", "head_dim", "capacity", "window"),
    "softmax": ("a", "exponentials", "tokens", "heads", "capacity", "window", *_SCALE),
    "weighted_values": (
        "a", "values", "tokens", "heads", "head_dim", "capacity", "window", "v_zero", *_SCALE,
        "zero", "out_bits", "out_row_bytes",
    ),
}  # fmt: skip
OPCODES = {name: number for number, name in enumerate(FIELDS, 1)}
#: Commands that the interpreter runs itself; each of the others is a kernel of its name.
TRANSFERS = frozenset(("load_weights", "load_cache", "store_logits", "wait"))


@dataclass(frozen=True)
class Command:
    """One row of an op list. value: name of what it computes, for people."""

    kind: str
    out: int
    fields: dict[str, int]
    value: str = ""

    def words(self) -> Iterator[int]:
        names = FIELDS[self.kind]
        assert tuple(self.fields) == names, f"{self.kind} takes {names}, got {tuple(self.fields)}"
        count = len(HEADER) + sum(2 if name in WIDE else 1 for name in names)
        yield from (OPCODES[self.kind], count, self.out)
        for name in names:
            value = self.fields[name]
            yield value & 0xFFFFFFFF
            if name in WIDE:
                yield value >> 32 & 0xFFFFFFFF

    def __str__(self) -> str:
        fields = " ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{self.kind} out={self.out} {fields}" + (f"  # %{self.value}" if self.value else "")


def binary(commands: Iterable[Command]) -> npt.NDArray[np.uint32]:
    """The words of a list of commands, in order."""
    return np.fromiter((word for c in commands for word in c.words()), np.uint32)


def header() -> str:
    """`commands.h`: a struct for each command, its opcode, and `KERNELS(X)`: `X(UPPER, name)` for each."""
    lines = ["/* Commands of an op list; generated from backends/npu/commands.py. */"]
    for name, opcode in OPCODES.items():
        fields: list[Any] = [f"u32 {', '.join(HEADER)};"]
        for field in FIELDS[name]:
            fields.append(f"u32 {field}, {field}_high;" if field in WIDE else f"s32 {field};")
        lines.append(f"enum {{ OP_{name.upper()} = {opcode} }};")
        lines.append(f"typedef struct {{ {' '.join(fields)} }} Op_{name};")
    kernels = (f"X({name.upper()}, {name})" for name in OPCODES if name not in TRANSFERS)
    lines.append("#define KERNELS(X) " + " ".join(kernels))
    return "\n".join(lines) + "\n"
