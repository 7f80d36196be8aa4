"""Calibration data, and running the float program over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from mqc.dialects.core import MqcOp
from mqc.dialects.llm import AttentionOp
from mqc.errors import CalibrationError
from mqc.evaluation import Evaluation, Observer
from mqc.files import replacing
from mqc.ir import CompilerContext, main_function, mqc_ops, returned_value

Windows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """Token windows; passes take a part of them (`part`).

    windows: token ids `[count, length]`.
    bos: the tokenizer's token for the start of a text, if it has one.
    """

    windows: Windows
    bos: int | None = None

    @classmethod
    def from_ids(
        cls,
        ids: Sequence[int],
        vocabulary: int,
        length: int = 512,
        bos: int | None = None,
    ) -> Calibration:
        """A tokenized text in windows of `length` tokens; what is left at its end is dropped.

        Raises `CalibrationError` if the text is empty, shorter than one window, or holds token
        ids outside the vocabulary.
        """
        if len(ids) < length:
            raise CalibrationError(
                f"calibration needs a text of at least {length} tokens, got {len(ids)}; "
                "give a longer one, from the domain that the model will see"
            )
        array = np.asarray(ids, np.int64)
        if array.min() < 0 or array.max() >= vocabulary:
            raise CalibrationError(
                f"calibration holds token ids outside [0, {vocabulary}); "
                "was it tokenized with the model's own tokenizer?"
            )
        return cls(array[: len(ids) // length * length].reshape(-1, length), bos)

    def save(self, path: Path) -> None:
        """Write the windows as a safetensors file. Raises `StorageError`."""
        data = {"windows": self.windows.astype(np.int32)}
        with replacing(path) as partial:
            save_file(data, partial, {} if self.bos is None else {"bos": str(self.bos)})

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote. Raises `CalibrationError`."""
        try:
            with safe_open(path, framework="numpy") as file:
                windows = file.get_tensor("windows")
                bos = (file.metadata() or {}).get("bos")
        except (OSError, SafetensorError) as error:
            raise CalibrationError(f"{path} holds no calibration windows: {error}") from error
        if windows.ndim != 2 or windows.dtype != np.int32 or not windows.size or windows.min() < 0:
            raise CalibrationError(f"{path}: windows must be token ids, i32 [count, length]")
        return cls(windows.astype(np.int64), int(bos) if bos is not None and bos.isdigit() else None)

    def part(self, count: int, length: int) -> Windows:
        """The first `length` tokens of `count` windows spread over all; all tokens, and all windows, where
        there are fewer."""
        picked = np.unique(np.linspace(0, len(self.windows) - 1, count).astype(int))
        return self.windows[picked, :length]


def prefix_rows(ctx: CompilerContext, module: ModuleOp) -> Iterator[tuple[MqcOp, torch.Tensor]]:
    """The prefix's keys and values `[prefix tokens, channels]`, each with the op whose later results share
    their cache and so their scale."""
    for op in mqc_ops(module):
        if isinstance(op, AttentionOp) and op.prefix_k is not None and op.prefix_v is not None:
            for value, ref in ((op.k, op.prefix_k), (op.v, op.prefix_v)):
                assert isinstance(value.owner, MqcOp)
                yield value.owner, torch.from_numpy(ctx.weights[ref])


def lockstep(
    ctx: CompilerContext, module: ModuleOp, windows: Windows
) -> Iterator[tuple[MqcOp, list[tuple[torch.Tensor, ...]]]]:
    """Evaluate a float module over all windows at once, op by op: each op with its operands in every
    window, before it is evaluated, so that it may be changed first.

    Each window follows the module's prefix. The last op is not evaluated: nothing reads the logits.
    Memory: the values that are alive between two ops, of all windows.
    """
    evaluations = [Evaluation(module, ctx.weights) for _ in windows]
    block = main_function(module).body.block
    values: list[dict[SSAValue, torch.Tensor]] = [
        dict(zip(block.args, (torch.from_numpy(window), e.position + torch.arange(len(window))), strict=True))
        for e, window in zip(evaluations, windows, strict=True)
    ]
    last_use = {operand: op for op in block.ops for operand in op.operands}
    returned = returned_value(module)
    with torch.no_grad():
        for op in mqc_ops(module):
            operands = [tuple(v[operand] for operand in op.operands) for v in values]
            yield op, operands
            if op.results[0] is returned:
                return
            for e, v, given in zip(evaluations, values, operands, strict=True):
                v[op.results[0]] = op.evaluate(e, *given)
                for operand in set(op.operands):
                    if last_use[operand] is op:
                        del v[operand]


def observe(
    ctx: CompilerContext,
    module: ModuleOp,
    windows: Windows,
    observer: Observer,
    title: str,
    before_window: Callable[[], None] = lambda: None,
) -> None:
    """Evaluate a float module over windows, calling `observer` with every op and its result.

    Each window follows the module's prefix. Time is that of a float forward pass over all tokens;
    memory that of one window.
    """
    evaluation = Evaluation(module, ctx.weights)
    with torch.no_grad():
        for i, window in enumerate(windows):
            evaluation.reset()
            before_window()
            start = evaluation.position
            positions = torch.arange(start, start + len(window))
            evaluation.run(torch.from_numpy(window), positions, observer)
            ctx.progress(title, (i + 1) / len(windows))
