"""Histograms that grow with their data, and the range that quantizes them best."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from mqc.dialects.quant import affine_grid

Floats = npt.NDArray[np.float64]

#: Bins over [-limit, limit].
BINS = 4096
#: Values that are counted at once, few enough that the work space stays in the cache.
_AT_ONCE = 1 << 18


class Histogram:
    """Counts of values in `BINS` equal bins over [-limit, limit], `limit` a power of two.

    Wider data doubles `limit` and merges bins in pairs, so counts stay exact. `low` and `high` are
    the true extremes.
    """

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.float64] = np.zeros(BINS)
        self.limit = 0.0
        self.low, self.high = math.inf, -math.inf

    def reach(self, x: torch.Tensor) -> tuple[float, float]:
        """Take the extremes of a tensor into account, without counting its elements."""
        low, high = (float(v) for v in torch.aminmax(x))
        self.low, self.high = min(self.low, low), max(self.high, high)
        return low, high

    def add(self, x: torch.Tensor) -> None:
        """Count all elements of a tensor."""
        low, high = self.reach(x)
        need = 2.0 ** math.ceil(math.log2(max(abs(low), abs(high), 1e-30) * (1 + 1e-7)))
        if self.limit == 0:
            self.limit = need
        while self.limit < need:
            quarter = BINS // 4
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS)
            self.counts[quarter : 3 * quarter] = merged
            self.limit *= 2
        parts = torch.split(x.reshape(-1), _AT_ONCE)
        scaled, binned = torch.empty(len(parts[0])), torch.empty(len(parts[0]), dtype=torch.int32)
        middle = torch.tensor(BINS / 2)
        for part in parts:
            # Faster than torch.histc. The factor is a power of two; the largest value may round up.
            to = slice(len(part))
            torch.add(middle, part, alpha=BINS / (2 * self.limit), out=scaled[to])
            counts = torch.bincount(binned[to].copy_(scaled[to]), minlength=BINS + 1).numpy()
            self.counts += counts[:BINS]
            self.counts[-1] += counts[BINS]

    @property
    def centers(self) -> Floats:
        width = 2 * self.limit / BINS
        return np.asarray(-self.limit + width * (np.arange(BINS) + 0.5), np.float64)

    def percentile(self, share: float) -> tuple[float, float]:
        """Range that leaves out `share` of the values in all, half at each end."""
        total = np.cumsum(self.counts) / self.counts.sum()
        first = int(np.searchsorted(total, share / 2))
        last = int(np.searchsorted(total, 1 - share / 2))
        edges = np.linspace(-self.limit, self.limit, BINS + 1)
        return max(self.low, float(edges[first])), min(self.high, float(edges[last + 1]))

    def least_squares(self, bits: int, steps: int = 40) -> tuple[float, float]:
        """Range whose `bits`-bit affine grid has the least mean squared error on the histogram.

        Shrinks both ends together, then each alone, from the extremes.
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        seen = self.counts > 0
        x, n = self.centers[seen], self.counts[seen]

        def error(lo: float, hi: float) -> float:
            scale, zero = affine_grid(lo, hi, bits)
            q = np.clip(np.rint(x / scale), -zero, (1 << bits) - 1 - zero)
            return float((n * (q * scale - x) ** 2).sum())

        shares = np.linspace(1.0, 0.1, steps)
        best = min((error(low * s, high * s), s) for s in shares)[1]
        low_share = min((error(low * s, high * best), s) for s in shares)[1]
        high_share = min((error(low * low_share, high * s), s) for s in shares)[1]
        return low * low_share, high * high_share
