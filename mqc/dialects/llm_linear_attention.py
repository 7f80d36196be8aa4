"""Linear attention with a state in the `llm` dialect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from xdsl.dialects.builtin import IntegerAttr, TensorType, f32
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, result_def

from mqc.dialects.llm_core import LlmOp
from mqc.ir.op import EvaluationContext, State, WeightAttr, channels

#: Most tokens that are computed together. Memory and time grow with it by token.
_CHUNK = 64
#: Decays between pairs of tokens that are computed together, at most.
_DECAYS = 2**24


@irdl_op_definition
class LinearAttentionOp(LlmOp):
    """Linear attention: each head has a state S `[key_dim, value_dim]`, which forgets, takes up a token's key
    and value as far as `beta` `[tokens, heads]` says (1 if absent), and is read by its query. If `delta` is
    1, it takes up what it lacks of the value: the gated delta rule (Gated DeltaNet, arXiv 2412.06464). Else
    this is the scan of Mamba-2 (arXiv 2405.21060). `skip` `[heads]` of the value goes past the state.

    The state forgets by exp(−rate·step): `step` is `[tokens, heads]`, or `[tokens, heads·key_dim]` for a
    decay of each key channel (Kimi Linear, arXiv 2510.26692). `rate` has as many channels, or is
    `[heads·key_dim]`, each with the step of its head: with one value channel a head, this is the scan of
    Mamba (arXiv 2312.00752). Consecutive heads share queries and keys, of `key_heads`. `layer` numbers the
    states of a module; `initial` `[heads, key_dim, value_dim]` is the one behind the prefix.

    `S ← exp(−rate·step)·S; S ← S + k·(beta·(v − delta·Sᵀk))ᵀ; y = Sᵀq + skip·v`
    """

    name = "llm.linear_attention"
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = operand_def(TensorType)
    step = operand_def(TensorType)
    beta = opt_operand_def(TensorType)
    layer = prop_def(IntegerAttr)
    heads = prop_def(IntegerAttr)
    key_heads = prop_def(IntegerAttr)
    delta = prop_def(IntegerAttr)
    rate = prop_def(WeightAttr)
    skip = opt_prop_def(WeightAttr)
    initial = opt_prop_def(WeightAttr)
    result = result_def(TensorType)

    PREFIX: ClassVar[Mapping[str, str | None]] = {"initial": None}

    @property
    def key_dim(self) -> int:
        return channels(self.k) // int(self.get("key_heads"))

    @property
    def value_dim(self) -> int:
        return channels(self.v) // int(self.get("heads"))

    def check(self) -> None:
        heads, key_heads = self.get("heads"), self.get("key_heads")
        self.expect(0 < key_heads <= heads and heads % key_heads == 0, "key_heads must divide heads")
        self.expect(channels(self.k) % key_heads == 0, "key_heads must divide the channels of k")
        self.expect(channels(self.q) == channels(self.k), "q must have the channels of k")
        self.expect(channels(self.v) % heads == 0, "heads must divide the channels of v")
        self.expect(channels(self.result) == channels(self.v), "the result must have the channels of v")
        steps = channels(self.step)
        self.expect(steps in (heads, heads * self.key_dim), "step must be of heads, or of their key channels")
        self.expect(
            self.rate.shape in ((steps,), (heads * self.key_dim,)),
            "rate must have the channels of step, or be of key channels",
        )
        self.expect(self.beta is None or channels(self.beta) == heads, "beta must be of heads")
        self.expect(self.get("delta") in (0, 1), "delta must be 0 or 1")
        self.expect(self.skip is None or self.skip.shape == (heads,), "skip must be [heads]")
        shape = heads, self.key_dim, self.value_dim
        self.expect(self.initial is None or self.initial.shape == shape, f"initial must be {list(shape)}")

    def states(self) -> tuple[State, ...]:
        shape = self.get("heads"), self.key_dim, self.value_dim
        name = f"recurrent.{self.get('layer')}"
        return (State(name, shape, f32, grows=False, initial=self.initial, cleared=True, padding=False),)

    def compute(
        self,
        ctx: EvaluationContext,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        step: torch.Tensor,
        beta: torch.Tensor | None = None,
    ) -> torch.Tensor:
        heads, groups = self.get("heads"), self.get("heads") // self.get("key_heads")
        (kept,) = self.states()
        state = ctx.state.get(kept.name)
        if state is None:
            state = v.new_zeros(kept.shape) if self.initial is None else ctx.torch(self.initial)
        queries, keys = (
            x.view(len(x), -1, self.key_dim).repeat_interleave(groups, 1).transpose(0, 1) for x in (q, k)
        )
        values = v.view(len(v), heads, -1).transpose(0, 1)
        decay = -(step.view(len(v), heads, -1) * ctx.torch(self.rate).view(heads, -1)).transpose(0, 1)
        betas = v.new_ones(heads, len(v), 1) if beta is None else beta.T[..., None]
        results = []
        count = min(max(math.isqrt(_DECAYS // decay[:, 0].numel()), 1), _CHUNK)
        for first in range(0, len(v), count):
            part = slice(first, first + count)
            result, state = _chunk(
                queries[:, part], keys[:, part], values[:, part], decay[:, part], betas[:, part], state,
                bool(self.get("delta")),
            )  # fmt: skip
            results.append(result)
        ctx.state[kept.name] = state
        y = torch.cat(results, 1)
        if self.skip is not None:
            y = y + ctx.torch(self.skip)[:, None, None] * values
        return y.transpose(0, 1).reshape(len(v), -1)

    def macs(self) -> int:
        reads = 2 + int(self.get("delta"))
        return reads * channels(self.v) * self.key_dim


def _chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
    delta: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Results `[heads, tokens, value_dim]` of some tokens at once, and the state behind them.

    q, k `[heads, tokens, key_dim]`, v `[heads, tokens, value_dim]`, decay `[heads, tokens, 1 or key_dim]`,
    the logarithm, beta `[heads, tokens, 1]`, state `[heads, key_dim, value_dim]`.

    By the delta rule what a token writes depends on what those before it wrote, by a triangular system (arXiv
    2412.06464).
    """
    since = decay.cumsum(1)  # of the state in front
    later = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).triu(1)
    between = (since[:, :, None] - since[:, None]).masked_fill(later[..., None], -torch.inf).exp()
    written = beta * v
    if delta:
        system = torch.eye(q.shape[1], device=q.device) + (beta * _products(k, k, between)).tril(-1)
        missing = beta * (v - (k * since.exp()) @ state)
        written = torch.linalg.solve_triangular(system, missing, upper=False, unitriangular=True)
    result = (q * since.exp()) @ state + _products(q, k, between) @ written
    last = since[:, -1:]
    kept = last.exp().transpose(1, 2) * state
    return result, kept + (k * (last - since).exp()).transpose(1, 2) @ written


def _products(a: torch.Tensor, b: torch.Tensor, between: torch.Tensor) -> torch.Tensor:
    """`[heads, tokens, tokens]`: Σ a·between·b over key channels."""
    if between.shape[-1] == 1:
        return (a @ b.transpose(1, 2)) * between[..., 0]
    return (a[:, :, None] * between * b[:, None]).sum(-1)
