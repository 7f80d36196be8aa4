"""The softcap of logits (Gemma 2, arXiv 2408.00118), which is outside of the integer program."""

from __future__ import annotations

import numpy as np

from mqc.arrays import Array


def capped(logits: Array, scale: float, cap: float | None) -> Array:
    """`cap · tanh(logits / cap)` of real logits, whose steps are `scale` before and after; as they are if
    there is no cap. Greedy decoding needs none: the order stays."""
    return logits if cap is None else np.tanh(logits * (scale / cap)) * (cap / scale)
