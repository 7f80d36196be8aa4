"""Calibration data: the token windows that passes observe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mqc.errors import CalibrationError
from mqc.files import check_regular, replacing

Windows = npt.NDArray[np.int64]


def window_length(positions: int) -> int:
    """Tokens of a calibration window for a program of so many positions: 512, or what leaves room for a
    prefix."""
    return min(512, positions - 4)


@dataclass(frozen=True)
class Calibration:
    """Token windows; passes take a part of them (`part`).

    windows: token ids `[count, length]`.
    bos: the tokenizer's token for the start of a text, if it has one.
    start: the tokens that it puts in front of every text.
    sections: how many of the windows, in order, are of each kind of text; all of one if empty.
    """

    windows: Windows
    bos: int | None = None
    start: tuple[int, ...] = ()
    sections: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        kinds: Sequence[Windows],
        vocabulary: int,
        bos: int | None = None,
        start: tuple[int, ...] = (),
    ) -> Calibration:
        """Windows of several kinds of text. Raises `CalibrationError` for ids outside the vocabulary."""
        windows = np.concatenate(kinds)
        if windows.min() < 0 or windows.max() >= vocabulary:
            raise CalibrationError(
                f"calibration holds token ids outside [0, {vocabulary}); "
                "was it tokenized with the model's own tokenizer?"
            )
        return cls(windows, bos, start, tuple(map(len, kinds)))

    def save(self, path: Path) -> None:
        """Write the windows as a safetensors file. Raises `StorageError`."""
        data = {"windows": self.windows.astype(np.int32)}
        with replacing(path) as partial:
            bos = {} if self.bos is None else {"bos": str(self.bos)}
            lists = {"start": self.start, "sections": self.sections}
            save_file(data, partial, bos | {name: " ".join(map(str, ids)) for name, ids in lists.items()})

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
        bos, *lists = (stated.get(name, "").split() for name in ("bos", "start", "sections"))
        if len(bos) > 1 or not all(text.isdecimal() for found in (bos, *lists) for text in found):
            raise CalibrationError(f"{path}: bos and start must be token ids, and sections numbers")
        start, sections = (tuple(map(int, found)) for found in lists)
        if sections and sum(sections) != len(windows):
            raise CalibrationError(f"{path}: sections must be of {len(windows)} windows together")
        return cls(windows.astype(np.int64), int(bos[0]) if bos else None, start, sections)

    def part(self, count: int, length: int) -> Windows:
        """The first `length` tokens of `count` windows: half of them of the first kind of text and the others
        of the other kinds, spread over each. All tokens, and all windows, where there are fewer."""
        return self.windows[self._spread(count), :length]

    def others(self, taken: int, count: int, length: int) -> Windows:
        """`part` of the windows that `part(taken, …)` leaves out; of all where it leaves none."""
        left = np.ones(len(self.windows), np.bool_)
        left[self._spread(taken)] = False
        if not left.any():
            return self.part(count, length)
        sections = tuple(int(kind.sum()) for kind in np.split(left, np.cumsum(self.sections)[:-1]))
        return replace(self, windows=self.windows[left], sections=sections).part(count, length)

    def _spread(self, count: int) -> npt.NDArray[np.int64]:
        sizes = self.sections or (len(self.windows),)
        shares = _shares(sizes, min(count, len(self.windows)))
        firsts = np.cumsum([0, *sizes])
        chosen = [
            first + np.linspace(0, size - 1, share).astype(np.int64)
            for first, size, share in zip(firsts, sizes, shares, strict=False)
        ]
        return np.concatenate(chosen)


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many of each of several kinds make `count`: half of the first; of the others in turns, as long as
    there are some left."""
    shares = [min(sizes[0], max((count + 1) // 2, count - sum(sizes[1:]))), *(0 for _ in sizes[1:])]
    turns = cycle(range(1, len(sizes)))
    while sum(shares) < count:
        kind = next(turns)
        shares[kind] += shares[kind] < sizes[kind]
    return shares
