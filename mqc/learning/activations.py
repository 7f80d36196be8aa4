"""Activations of many windows, in memory or, where they exceed a bound, in a file."""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from mqc.arrays import Array


class Activations:
    """One tensor `[tokens, channels]` f32 for each of `windows` windows.

    Beyond `bound` bytes they live in a memory-mapped file in the temporary folder (`TMPDIR`), which has no
    name and goes with the process however it ends.
    """

    def __init__(self, windows: int, tokens: int, channels: int, bound: int) -> None:
        shape = windows, tokens, channels
        if 4 * windows * tokens * channels > bound:
            with tempfile.TemporaryFile(prefix="mqc-") as file:
                self._data: Array = np.memmap(file, np.float32, "w+", shape=shape)
        else:
            self._data = np.empty(shape, np.float32)
        self._known: set[int] = set()

    @property
    def mapped(self) -> bool:
        """Whether they are in a file."""
        return isinstance(self._data, np.memmap)

    def __contains__(self, window: int) -> bool:
        return window in self._known

    def __setitem__(self, window: int, value: torch.Tensor) -> None:
        self._data[window] = value.detach().cpu().numpy()
        self._known.add(window)

    def get(self, window: int, device: torch.device) -> torch.Tensor:
        """The window's tensor on a device."""
        return torch.from_numpy(self._data[window]).to(device)
