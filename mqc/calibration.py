"""Calibration data: the token windows that passes observe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mqc.errors import CalibrationError
from mqc.files import check_regular, replacing

Windows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """Token windows; passes take a part of them (`part`).

    windows: token ids `[count, length]`.
    bos: the tokenizer's token for the start of a text, if it has one.
    start: the tokens that it puts in front of every text.
    """

    windows: Windows
    bos: int | None = None
    start: tuple[int, ...] = ()

    @classmethod
    def from_ids(
        cls,
        ids: Sequence[int],
        vocabulary: int,
        length: int = 512,
        bos: int | None = None,
        start: tuple[int, ...] = (),
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
        return cls(array[: len(ids) // length * length].reshape(-1, length), bos, start)

    def save(self, path: Path) -> None:
        """Write the windows as a safetensors file. Raises `StorageError`."""
        data = {"windows": self.windows.astype(np.int32)}
        with replacing(path) as partial:
            bos = {} if self.bos is None else {"bos": str(self.bos)}
            save_file(data, partial, bos | {"start": " ".join(map(str, self.start))})

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote. Raises `CalibrationError`."""
        check_regular(path, CalibrationError)
        try:
            with safe_open(path, framework="numpy") as file:
                windows = file.get_tensor("windows")
                stated = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise CalibrationError(f"{path} holds no calibration windows: {error}") from error
        if windows.ndim != 2 or windows.dtype != np.int32 or not windows.size or windows.min() < 0:
            raise CalibrationError(f"{path}: windows must be token ids, i32 [count, length]")
        bos, start = stated.get("bos", ""), stated.get("start", "").split()
        if not all(text.isdecimal() for text in [*start, bos or "0"]):
            raise CalibrationError(f"{path}: bos and start must be token ids")
        return cls(windows.astype(np.int64), int(bos) if bos else None, tuple(map(int, start)))

    def part(self, count: int, length: int) -> Windows:
        """The first `length` tokens of `count` windows spread over all; all tokens, and all windows, where
        there are fewer."""
        return self.windows[self._spread(count), :length]

    def others(self, taken: int, count: int, length: int) -> Windows:
        """`part` of the windows that `part(taken, …)` leaves out; of all where it leaves none."""
        left = np.delete(self.windows, self._spread(taken), axis=0)
        return Calibration(left if len(left) else self.windows).part(count, length)

    def _spread(self, count: int) -> npt.NDArray[np.int64]:
        count = min(count, len(self.windows))
        return np.unique(np.linspace(0, len(self.windows) - 1, count).astype(np.int64))
