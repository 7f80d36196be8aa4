"""Figures of a value against a reference: what a comparison reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mqc.arrays import Array
from mqc.dialects.quant import UniformType
from mqc.ir.op import MqcOp, element_type, plain


@dataclass
class ValueReport:
    """What a value looks like in the test, against the reference.

    sqnr_db: of the value as the whole test program computes it (cumulative).
    local_db: of the op alone, its inputs taken from the reference and brought to the test's types;
        the reference op gets the same inputs.
    cosine: of the angle between the two, cumulative. max_error: largest absolute difference.
    clipped: share of reference values beyond what the test's type holds; None for float values.
    used: share of the type's steps between the smallest and the largest stored; None likewise.
    low, high: smallest and largest reference value.
    kl: divergence of the reference's logits when only this value is as the test's op makes it, in
        nats per token; None if it was not measured.
    loc: source line.
    """

    name: str
    op: str
    type: str
    loc: str
    sqnr_db: float
    local_db: float
    cosine: float
    max_error: float
    clipped: float | None
    used: float | None
    low: float
    high: float
    kl: float | None = None


@dataclass
class Comparison:
    """values: in program order. kl: of the test's logits against the reference's, nats per token.
    unaligned: names of the test's values that the reference does not have. windows: token ids, and the KL of
    the logits behind each of them, one pair for each window.
    """

    reference: str
    test: str
    tokens: int
    values: list[ValueReport]
    kl: float
    unaligned: list[str] = field(default_factory=list)
    windows: list[tuple[list[int], list[float]]] = field(default_factory=list)

    def first_bad(self, threshold_db: float) -> ValueReport | None:
        """The first value whose own op is below the threshold."""
        return next((v for v in self.values if v.local_db < threshold_db), None)

    def first_below(self, threshold_db: float) -> ValueReport | None:
        """The first value that, with the errors of all before it, is below the threshold."""
        return next((v for v in self.values if v.sqnr_db < threshold_db), None)

    def worst(self) -> ValueReport | None:
        """The value whose op has the largest local error."""
        return min(self.values, key=lambda v: v.local_db, default=None)


class Sums:
    """Sums over windows from which a report is made."""

    def __init__(self) -> None:
        self.signal = self.noise = self.local_signal = self.local_noise = 0.0
        self.product = self.power = self.max_error = 0.0
        self.count = self.clipped = 0
        self.low, self.high = math.inf, -math.inf
        self.stored_low, self.stored_high = math.inf, -math.inf

    def add(self, wanted: Array, computed: Array, kind: UniformType | None) -> None:
        error = computed - wanted
        self.signal += float((wanted * wanted).sum())
        self.noise += float((error * error).sum())
        self.product += float((wanted * computed).sum())
        self.power += float((computed * computed).sum())
        self.max_error = max(self.max_error, float(np.abs(error).max()))
        self.low, self.high = min(self.low, float(wanted.min())), max(self.high, float(wanted.max()))
        self.count += wanted.size
        if kind is not None:
            low = (kind.low - kind.zero - 0.5) * kind.real_scale
            high = (kind.high - kind.zero + 0.5) * kind.real_scale
            self.clipped += int(((wanted < low) | (wanted > high)).sum())
            steps = computed / kind.real_scale
            self.stored_low = min(self.stored_low, float(steps.min()))
            self.stored_high = max(self.stored_high, float(steps.max()))

    def add_local(self, wanted: Array, computed: Array) -> None:
        self.local_signal += float((wanted * wanted).sum())
        self.local_noise += float(((computed - wanted) ** 2).sum())

    def report(self, name: str, op: MqcOp, kind: UniformType | None) -> ValueReport:
        element = kind if kind is not None else element_type(op.results[0])
        return ValueReport(
            name=name, op=op.name, type=str(element), loc=str(plain(op.attributes.get("loc")) or ""),
            sqnr_db=_decibels(self.signal, self.noise),
            local_db=_decibels(self.local_signal, self.local_noise),
            cosine=self.product / max(math.sqrt(self.signal * self.power), 1e-300),
            max_error=self.max_error,
            clipped=self.clipped / self.count if kind is not None else None,
            used=(self.stored_high - self.stored_low) / (kind.high - kind.low) if kind is not None else None,
            low=self.low, high=self.high,
        )  # fmt: skip


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


class Divergence:
    """KL(wanted ‖ computed) of each token, from logits `[tokens, vocabulary]`, in nats."""

    def __init__(self, wanted: Array) -> None:
        shifted = wanted - wanted.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        self._p = np.exp(log_p)
        self._negative_entropy = (self._p * log_p).sum(-1)

    def of(self, computed: Array) -> Array:
        """`[tokens]`. Σ p·log p − Σ p·x + log Σ exp x, for logits x."""
        x = computed - computed.max(-1, keepdims=True)
        total = np.exp(x.astype(np.float32)).sum(-1, dtype=np.float64)
        result: Array = self._negative_entropy - np.einsum("tv,tv->t", self._p, x) + np.log(total)
        return np.maximum(result, 0.0)


def finite(data: Any) -> Any:
    """The data for JSON, which has no infinity: infinite decibels (no error at all) become None."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
