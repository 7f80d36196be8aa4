"""Matrices of 8-bit floats with scales, which become floats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mqc.arrays import Array
from mqc.errors import ModelError
from mqc.frontend.checkpoint import Checkpoint, StoredMatrix

FLOAT8 = "F8_E4M3"


def block_size(stated: Any) -> tuple[int, int]:
    """Rows and columns of a block, as a config says them. Raises `ModelError` for what is none."""
    if not isinstance(stated, list) or len(stated) != 2 or not all(type(n) is int and n > 0 for n in stated):
        raise ModelError(f"a block is {stated!r}; its rows and columns were expected")
    return stated[0], stated[1]


def float8_matrix(
    checkpoint: Checkpoint, module: str, scale_name: str, block: tuple[int, int] | None = None
) -> StoredMatrix:
    """Weights times the scale of all, of their row, or of their block.

    Args:
        block: rows and columns of a block; None for as many as make the scales' number. Scales of rows stay
            that.
    """
    weight = checkpoint.take(f"{module}.weight", (FLOAT8,), (None, None))
    rows, columns = (int(n) for n in weight.shape)
    scale = checkpoint.scales(scale_name)
    scale = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    one = scale.size == 1
    high, wide = rows // max(len(scale), 1), columns // max(scale.shape[1], 1)
    if block is not None and scale.shape == (-(-rows // block[0]), -(-columns // block[1])):
        high, wide = block
    elif not one and (scale.ndim != 2 or scale.shape[0] * high != rows or scale.shape[1] * wide != columns):
        raise ModelError(
            f"tensor {scale_name} is {list(scale.shape)}: no scales of {rows} rows of {columns} weights"
        )

    def of_rows(some: slice) -> Array:
        found: Array = weight[some].float().numpy()
        if not np.isfinite(found).all():
            raise ModelError(f"{module}.weight holds NaN")
        if one:
            return found * scale.reshape(-1)[0]
        factors = scale[np.arange(rows)[some] // high]
        return found * np.repeat(factors, wide, 1)[:, :columns]

    return StoredMatrix(module, (rows, columns), of_rows)


class Float8:
    """Models with `quant_method` fp8 (as DeepSeek-V3 and transformers' FineGrainedFP8) and fbgemm_fp8."""

    words = "8-bit floats"

    def __init__(self, config: dict[str, Any]) -> None:
        block = config.get("weight_block_size")
        self._block = None if block is None else block_size(block)
        self.notes = ["weights are 8-bit floats in the files: they became floats, and are rounded here"]

    def matrices(self, checkpoint: Checkpoint) -> Iterator[StoredMatrix]:
        """The model's matrices. Raises `ModelError` for tensors that are not as the format says."""
        for ending, block in ((".weight_scale_inv", self._block), (".weight_scale", None)):
            for module in checkpoint.modules(ending):
                for other in ("input_scale", "activation_scale", "input_scale_ub"):
                    checkpoint.drop(f"{module}.{other}")
                yield float8_matrix(checkpoint, module, f"{module}{ending}", block)
