"""Random values for weights that IR text names and no file holds."""

from __future__ import annotations

import zlib

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from mqc.ir.module import mqc_ops
from mqc.ir.op import WeightAttr
from mqc.ir.weight_store import WeightStore, numpy_dtype


def fill_random(module: ModuleOp, weights: WeightStore) -> int:
    """Give every missing weight values that depend on its name alone; return how many there were.

    Floats are normal, integers in [1, 100). Their hashes in the module become those of the values.
    """
    filled = 0
    for op in mqc_ops(module):
        for name, ref in op.properties.items():
            if not isinstance(ref, WeightAttr) or ref in weights:
                continue
            rng = np.random.default_rng(zlib.crc32(ref.key.data.encode()))
            dtype = numpy_dtype(ref.type.get_element_type())
            values = rng.normal(size=ref.shape) if dtype.kind == "f" else rng.integers(1, 100, ref.shape)
            op.properties[name] = weights.add(ref.key.data, values.astype(dtype))
            filled += 1
    return filled
