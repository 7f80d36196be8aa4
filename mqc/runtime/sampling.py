"""Choosing the next token. Sampling is outside the integer program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mqc.errors import InputError
from mqc.numerics.softcap import capped


class Steering(Protocol):
    """What limits the choice of tokens, and watches it."""

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        """Which tokens may follow, `[vocabulary]`, at least one of them; None for all."""

    def chosen(self, token: int, logits: npt.NDArray[np.int32]) -> None:
        """Called with each token, also one that ends the text, and the s32 logits `[vocabulary]` behind
        which it was chosen."""


@dataclass(frozen=True)
class Sampling:
    """How to choose: greedy at temperature 0, else from the softmax.

    temperature: ≥ 0. top_k: keep the k most likely. top_p: keep the smallest set of most likely
    tokens whose probability reaches p. min_p: keep those at least that share of the likeliest one's
    probability. repetition_penalty: logits of tokens that the text has are divided by it, negative ones
    multiplied (CTRL, arXiv 1909.05858), greedy or not. seed: two runs with one seed give the same tokens.

    Raises `InputError` for values out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf")):
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be 1 or more, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"min_p must be in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")

    @classmethod
    def of_model(cls, generation: Mapping[str, Any], **given: Any) -> Sampling:
        """What is given and not None; for the rest a model's `generation_config`: its repetition penalty, and
        how it samples if it does. Raises `InputError` for values out of range."""
        names, stated = ["repetition_penalty"], {}
        if generation.get("do_sample") is True:
            names += ["temperature", "top_k", "top_p", "min_p"]
            stated["temperature"] = 1.0
        stated |= {name: generation[name] for name in names if generation.get(name)}
        if any(type(value) not in (int, float) for value in stated.values()):
            raise InputError(f"generation_config.json states {stated}, which are no numbers")
        return cls(**stated | {name: value for name, value in given.items() if value is not None})

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def choose(
        self,
        logits: npt.NDArray[np.int32],
        scale: float,
        generator: np.random.Generator,
        text: Iterable[int] = (),
        cap: float | None = None,
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Next token from s32 logits `[vocabulary]`, whose steps are `scale`, behind the tokens of a text.

        Greedy compares integers, unless there is a repetition penalty; ties go to the smaller id. Otherwise
        logits are taken after the softcap `cap`, if there is one. Tokens that are not `allowed` have no
        chance.
        """
        if allowed is not None:
            ids = np.flatnonzero(allowed)
            text = np.flatnonzero(np.isin(ids, np.fromiter(text, np.int64)))
            return int(ids[self.choose(logits[ids], scale, generator, text, cap)])
        if self.repetition_penalty == 1 and self.temperature == 0:
            return int(logits.argmax())
        real = capped(logits.astype(np.float64), scale, cap)
        if self.repetition_penalty != 1:
            seen = np.unique(np.fromiter(text, np.int64))
            real[seen] *= np.where(real[seen] < 0, self.repetition_penalty, 1 / self.repetition_penalty)
        if self.temperature == 0:
            return int(real.argmax())
        # Dividing last keeps 0 / temperature at 0, however small the temperature is.
        with np.errstate(over="ignore"):
            x = (real - real.max()) * scale / self.temperature
        order = np.argsort(-x, kind="stable")
        if self.top_k is not None:
            order = order[: self.top_k]
        p = np.exp(x[order] - x[order[0]])
        p /= p.sum()
        if self.top_p is not None:
            keep = int(np.searchsorted(np.cumsum(p), self.top_p)) + 1
            order, p = order[:keep], p[:keep] / p[:keep].sum()
        if self.min_p is not None:
            keep = int((p >= self.min_p * p[0]).sum())
            order, p = order[:keep], p[:keep] / p[:keep].sum()
        return int(generator.choice(order, p=p))


def log_probabilities(
    logits: npt.NDArray[np.int32], scale: float, cap: float | None = None
) -> npt.NDArray[np.float64]:
    """Logarithms of the softmax of s32 logits `[…, vocabulary]` in steps of `scale`, after a softcap `cap` if
    there is one."""
    x = capped(logits.astype(np.float64), scale, cap)
    x = (x - x.max(-1, keepdims=True)) * scale
    found: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return found
