"""The context in which modules are read and passes run: every dialect, weights and calibration data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin
from xdsl.dialects.func import Func
from xdsl.ir import Dialect

from mqc.calibration import Calibration
from mqc.ir.op import Mqc
from mqc.ir.weight_store import WeightStore


@cache
def dialects() -> dict[str, Callable[[], Dialect]]:
    """What loads each dialect, by name: mqc's own, and those of the entry-point group `mqc.dialects`."""
    own: dict[str, Callable[[], Dialect]] = {"llm": _llm, "quant": _quant, "int": _int, "htp": _htp}
    return own | {entry.name: entry.load for entry in entry_points(group="mqc.dialects")}


# Loaded when a module holds their ops: reading `int` needs no torch.
def _llm() -> Dialect:
    from mqc.dialects.llm import Llm

    return Llm


def _quant() -> Dialect:
    from mqc.dialects.quant import Quant

    return Quant


def _int() -> Dialect:
    from mqc.dialects.int_ops import Int

    return Int


def _htp() -> Dialect:
    from mqc.dialects.htp import Htp

    return Htp


class CompilerContext(Context):
    """An xDSL context that passes also take weights and calibration data from.

    `weights` holds every tensor the module names; `calibration` the token windows to observe,
    or None where none were given; `checkpoints` is the folder where passes that learn keep their state, or
    None to keep none; `progress` is called with a message and a share in [0, 1].
    """

    def __init__(self, weights: WeightStore | None = None, calibration: Calibration | None = None) -> None:
        super().__init__()
        self.weights = weights if weights is not None else WeightStore()
        self.calibration = calibration
        self.checkpoints: Path | None = None
        self.load_dialect(Builtin)
        self.load_dialect(Func)
        self.load_dialect(Mqc)
        for name, load in dialects().items():
            self.register_dialect(name, load)

    def progress(self, message: str, share: float) -> None:
        """Report that `share` of the work called `message` is done. Silent by default.

        What stands behind a colon is a remark: it changes while the work is the same.
        """
