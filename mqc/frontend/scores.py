"""Attention that a model computes itself, by products of queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mqc.frontend.lanes import Lanes, Rotary, Table
from mqc.frontend.nodes import number_of

#: Scores that are less are never seen; what softmax makes of them is 0.
NEVER = -1e4
#: Largest difference of what a bias adds to a key's score for two queries.
_SAME = 1e-4


@dataclass(frozen=True)
class Scores:
    """`scale · q · kᵀ + bias` `[…, tokens, tokens]` of each head, in which a token sees itself and those
    before it, at most `window` in all; `shares` once softmax was taken. q, k: `[…, tokens, head_dim]`; bias:
    `[heads, positions]`, of each key by its position."""

    q: Lanes | Rotary
    k: Lanes | Rotary
    scale: float = 1.0
    window: int | None = None
    shares: bool = False
    bias: torch.Tensor | None = None

    @property
    def heads(self) -> tuple[int, int]:
        """Heads of q, and of k."""
        return self.q.index.size // self.q.index.shape[-1], self.k.index.size // self.k.index.shape[-1]

    def times(self, mask: torch.Tensor) -> Scores:
        """With a mask of ones and zeros, behind which the zeros get what is far below 0.

        Raises `ValueError` for one that is something else.
        """
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("of attention scores and a table has no llm form")
        return self.masked(mask.bool())

    def masked(self, visible: torch.Tensor) -> Scores:
        """Those that a boolean `[…, tokens, tokens]` lets be seen.

        Raises `ValueError` for a mask that is not causal, with a window or without.
        """
        seen = visible.reshape(-1, *visible.shape[-2:])
        count, tokens = int(seen[0, -1].sum()), seen.shape[-1]
        band = torch.ones(tokens, tokens, dtype=torch.bool).tril_().triu_(1 - count)
        if not all(torch.equal(part, band) for part in seen):
            raise ValueError("with a mask that is neither causal nor a window has no llm form")
        limits = [w for w in (self.window, count if count < tokens else None) if w is not None]
        return replace(self, window=min(limits, default=None))

    def plus(self, mask: torch.Tensor) -> Scores:
        """With a mask that is far below 0 where a token is not seen. Elsewhere it is 0, or a bias of each key
        by its position (ALiBi, arXiv 2108.12409).

        Raises `ValueError` for one that is something else.
        """
        visible = mask > NEVER
        added = self if not mask[visible].any() else self.biased(mask, visible)
        return added if mask.shape[-2] == 1 and visible.all() else added.masked(visible)

    def biased(self, added: torch.Tensor, visible: torch.Tensor) -> Scores:
        """With what is added to visible scores. Softmax does not see what it adds to all scores of a query.

        Raises `ValueError` unless a key's part is the same for all queries that see it, but for that.
        """
        heads, wanted = int(np.prod(added.shape[:-2])), self.heads[0]
        if heads not in (1, wanted) or not visible[..., -1, :].all():
            raise ValueError("of attention scores and a bias has no llm form")
        rows, seen = (x.reshape(heads, *added.shape[-2:]) for x in (added.float(), visible))
        row = rows[:, -1:] - rows[:, -1:, :1]
        if not torch.allclose((rows - rows[..., :1])[seen], row.expand_as(rows)[seen], atol=_SAME):
            raise ValueError("of attention scores and a bias of queries and keys has no llm form")
        bias = row[:, 0].expand(wanted, -1)
        return replace(self, bias=bias if self.bias is None else self.bias + bias)

    def scaled(self, factor: float) -> Scores:
        bias = None if self.bias is None else self.bias * factor
        return replace(self, scale=self.scale * factor, bias=bias)


def product(a: Any, b: Any) -> Scores:
    """Raises `ValueError` unless a and b are queries and keys, the latter with tokens as columns."""
    if not (isinstance(a, Lanes | Rotary) and isinstance(b, Lanes | Rotary)):
        raise ValueError("of anything but queries and keys has no llm form")
    if a.axis != a.index.ndim - 2 or b.axis != b.index.ndim - 1 or a.index.shape[-1] != b.index.shape[-2]:
        raise ValueError("of two computed values has no llm form but as attention scores")
    return Scores(a, b.map(lambda i: i.swapaxes(-1, -2), b.axis - 1))


def added_to(scores: Any, mask: Any, alpha: float = 1, beta: float = 1) -> Scores:
    """`alpha · scores + beta · mask`. Raises `ValueError` where these are no scores."""
    if not isinstance(scores, Scores):
        raise ValueError("has no llm form")
    scaled = scores.scaled(alpha)
    return scaled.plus(mask_of(mask) * beta) if beta and mask_of(mask).any() else scaled


def shares_of(q: Any, k: Any, mask: Any, causal: bool, scale: float | None) -> Scores:
    """Those of `scaled_dot_product_attention`. Raises `ValueError` for other operands, and another mask."""
    operands = all(isinstance(x, Lanes | Rotary) and x.axis == x.index.ndim - 2 for x in (q, k))
    if not operands or (mask is None and not causal):
        raise ValueError("of anything but queries and keys, or without a mask, has no llm form")
    found = Scores(q, k, q.index.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        added = mask_of(mask)
        found = found.masked(added) if added.dtype == torch.bool else found.plus(added)
    return replace(found, shares=True)


def changed(name: str, args: list[Any]) -> Scores:
    """What an aten op makes of scores, which are among its arguments.

    Raises `ValueError` for what has no form as attention.
    """
    if name == "where":
        args = [args[1], args[0], args[2]]
    scores, *others = args if isinstance(args[0], Scores) else (args[1], args[0])
    other = others[0] if others else None
    given = number_of(other)
    match name:
        case "view" | "reshape" | "unsqueeze" | "squeeze":
            return scores
        case "softmax" if other in (-1, scores.q.index.ndim - 1):
            return replace(scores, shares=True)
        case _ if scores.shares:
            pass
        case "mul" | "div" if given is not None:
            return scores.scaled(given if name == "mul" else 1 / given)
        case "mul":
            return scores.times(mask_of(other))
        case "add":
            return scores.plus(mask_of(other))
        case "where" | "masked_fill" if (number_of(others[1]) or 0) <= NEVER:
            mask = mask_of(other).bool()
            return scores.masked(mask if name == "where" else ~mask)
        case "maximum" if given is not None and given <= NEVER:
            return scores
    raise ValueError("of attention scores has no llm form")


def mask_of(value: Any) -> torch.Tensor:
    """A mask as the graph computes it from positions alone. Raises `ValueError` for anything else."""
    found = value.value if isinstance(value, Table) else value
    if not isinstance(found, torch.Tensor) or found.ndim < 2:
        raise ValueError("of attention scores and this has no llm form")
    return found
