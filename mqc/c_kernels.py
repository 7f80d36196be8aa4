"""C kernels for `int` ops that mqc does not know: what the CPU backend takes from plug-ins."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mqc.errors import TargetError
from mqc.ir.op import MqcOp


@dataclass(frozen=True)
class CKernel:
    """A C function that carries out an op whose operands and result are u8 or u16.

    op: the op class. name: the function; source: its definition,
    `static void name(Run *r, int channels, const void *x…, void *y, const void *w…, s64 s…)`, with
    one pointer per operand, then the result, the op's weights, and the properties `scalars`.
    Rows follow one another: token t, channel c is element `t * channels + c`.
    accepts: whether the function takes an op with these types.

    It stands behind `#include "kernels.h"`. Every thread calls it. It takes its share of the elements
    by `share_elements` and ends in `barrier(r)`; see `backends/cpu/kernels/elementwise.c`. No
    floating point: a test of the CPU backend disassembles.
    """

    op: type[MqcOp]
    name: str
    source: str
    weights: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    accepts: Callable[[MqcOp], bool] = lambda op: True


_registered: dict[type[MqcOp], CKernel] = {}


def register_kernel(kernel: CKernel) -> None:
    """Make the CPU backend take an op. Raises `TargetError` for a name that is no C identifier."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", kernel.name):
        raise TargetError(f"cpu: {kernel.name!r} cannot name a C function")
    _registered[kernel.op] = kernel


def registered_kernel(op: MqcOp) -> CKernel | None:
    """The kernel registered for an op, if it takes it."""
    found = _registered.get(type(op))
    return found if found is not None and found.accepts(op) else None
