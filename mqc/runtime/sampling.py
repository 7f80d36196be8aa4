"""Choosing the next token. Sampling is outside the integer program."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mqc.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How to choose: greedy at temperature 0, else from the softmax.

    temperature: ≥ 0. top_k: keep the k most likely. top_p: keep the smallest set of most likely
    tokens whose probability reaches p. seed: two runs with one seed give the same tokens.

    Raises `InputError` for values out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf")):
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be 1 or more, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")

    @classmethod
    def of_model(cls, generation: Mapping[str, Any], **given: Any) -> Sampling:
        """What is given and not None; for the rest a model's `generation_config`, if it samples.

        Warns of a repetition penalty: it is not applied. Raises `InputError` for values out of range.
        """
        stated = {}
        if generation.get("repetition_penalty", 1.0) not in (None, 1, 1.0):
            warnings.warn("the model's repetition_penalty is not applied: mqc has none", stacklevel=3)
        if generation.get("do_sample") is True:
            stated = {"temperature": 1.0} | {
                name: generation[name] for name in ("temperature", "top_k", "top_p") if generation.get(name)
            }
        if any(type(value) not in (int, float) for value in stated.values()):
            raise InputError(f"generation_config.json states {stated}, which are no numbers")
        return cls(**stated | {name: value for name, value in given.items() if value is not None})

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def choose(self, logits: npt.NDArray[np.int32], scale: float, generator: np.random.Generator) -> int:
        """Next token from s32 logits `[vocabulary]`. Greedy compares integers; ties go to the
        smaller id."""
        if self.temperature == 0:
            return int(logits.argmax())
        # Dividing last keeps 0 / temperature at 0, however small the temperature is.
        with np.errstate(over="ignore"):
            x = (logits.astype(np.float64) - int(logits.max())) * scale / self.temperature
        order = np.argsort(-x, kind="stable")
        if self.top_k is not None:
            order = order[: self.top_k]
        p = np.exp(x[order] - x[order[0]])
        p /= p.sum()
        if self.top_p is not None:
            keep = int(np.searchsorted(np.cumsum(p), self.top_p)) + 1
            order, p = order[:keep], p[:keep] / p[:keep].sum()
        return int(generator.choice(order, p=p))
