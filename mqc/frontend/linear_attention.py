"""Linear attention with a state: functions of transformers, traced as one op.

Their models compute a sequence in chunks, which a traced graph of any length cannot have. The functions are
those of flash-linear-attention, by their names there; modules look them up in their file. While a model is
traced, what is here stands in for them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.fx import Node
from transformers import PreTrainedModel
from xdsl.dialects.builtin import f32
from xdsl.ir import SSAValue

from mqc.errors import UnsupportedOpError
from mqc.frontend.builder import Builder
from mqc.frontend.elementwise import composed
from mqc.frontend.lanes import Elementwise, Lanes
from mqc.frontend.source import module_path
from mqc.ir.op import channels, tensor

#: Of the square that keys and queries are normalized by, in all of these functions.
_EPSILON = 1e-6


@dataclass(frozen=True)
class Scaled:
    """A value times a vector, which no op is: the logarithm of a decay. vector: in the order of the value's
    channels."""

    value: Lanes | Elementwise
    vector: Any

    #: In errors.
    WHAT: ClassVar = "a product with a vector, but as a decay,"


@torch.library.custom_op("mqc::linear_attention", mutates_args=())
def linear_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor | None,
    skip: torch.Tensor | None, delta: bool, rate: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Placeholder for `llm.linear_attention` in the traced graph; never run.

    Shapes: q and k `[1, tokens, key_heads, key_dim]`, v and the result `[1, tokens, heads, value_dim]`,
    decay, the logarithm, `[1, tokens, heads]` or `[1, tokens, heads, key_dim]`, beta `[1, tokens, heads]`,
    skip `[heads]`. With a rate `[heads, key_dim]` the logarithm is −rate times what stands for decay.
    """
    raise NotImplementedError("mqc::linear_attention exists in traced graphs only")


@linear_attention.register_fake
def _(q, k, v, decay, beta, skip, delta, rate=None):  # type: ignore[no-untyped-def]
    return torch.empty_like(v)


def _delta_rule(  # type: ignore[no-untyped-def]
    query, key, value, g, beta, *, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, **kwargs,
):  # fmt: skip
    """The gated delta rule, of a decay of each head or of each key channel."""
    if initial_state is not None or output_final_state:
        raise UnsupportedOpError("the model", "a delta rule that goes on from a state", "has no llm form")
    width = key.shape[-1]
    if use_qk_l2norm_in_kernel:
        # x / sqrt(Σx² + eps) as an RMS norm with a gain
        key, query = (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + _EPSILON / width) * torch.full((width,), gain)
            for x, gain in ((key, width**-0.5), (query, 1 / width))
        )
    else:
        query = query * width**-0.5
    return linear_attention(query, key, value, g, beta, None, True), None


def _scan(  # type: ignore[no-untyped-def]
    hidden_states, dt, A, B, C, *, D=None, dt_bias=None, initial_states=None, dt_softplus=False,
    dt_limit=(0.0, float("inf")), return_final_states=False, z=None, **kwargs,
):  # fmt: skip
    """The scan of Mamba-2."""
    if initial_states is not None or return_final_states or z is not None:
        raise UnsupportedOpError(
            "the model", "a scan with a gate, or that goes on from a state", "has no llm form"
        )
    dt = dt if dt_bias is None else dt + dt_bias
    dt = torch.nn.functional.softplus(dt) if dt_softplus else dt
    low, high = dt_limit
    if not dt_softplus or low > 0 or high < float("inf"):
        dt = torch.clamp(dt, low, high if high < float("inf") else None)
    return linear_attention(C, B, hidden_states, A * dt, dt, D, False)


def _selective_scan(  # type: ignore[no-untyped-def]
    hidden_states, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False, **kwargs,
):  # fmt: skip
    """The scan of Mamba: each channel is a head of one value, with decays of its own. Channels come before
    tokens."""
    if return_last_state:
        raise UnsupportedOpError("the model", "a scan that gives its last state", "has no llm form")
    dt = dt if delta_bias is None else dt + delta_bias[:, None]
    dt = torch.nn.functional.softplus(dt) if delta_softplus else dt
    x, step = hidden_states.transpose(1, 2), dt.transpose(1, 2)
    q, k = (m.transpose(1, 2)[:, :, None] for m in (C, B))
    result = linear_attention(q, k, x[..., None], step, step, D, False, -A)[..., 0].transpose(1, 2)
    return result if z is None else result * torch.nn.functional.silu(z)


#: What stands in, by the name of a function in the file of a model.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch_chunk_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _scan,
    "mamba_selective_scan": _selective_scan,
}

_tracing: ContextVar[bool] = ContextVar("tracing", default=False)


@contextmanager
def as_one_op(model: PreTrainedModel) -> Iterator[None]:
    """The model's functions of linear attention are one op in the graph, for this thread alone.

    The switches stay in their files, and call the model's own: another thread may be tracing.
    """
    for name in {type(module).__module__ for module in model.modules()}:
        names = vars(sys.modules[name]) if name in sys.modules else {}
        for function, instead in _FUNCTIONS.items():
            own = names.get(function)
            if own is not None and not hasattr(own, "traced_as"):
                names[function] = _switch(own, instead)
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def _switch(own: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """A model's own function, but where a model is traced."""

    @functools.wraps(own)
    def switch(*args: Any, **kwargs: Any) -> Any:
        return (instead if _tracing.get() else own)(*args, **kwargs)

    switch.traced_as = instead  # type: ignore[attr-defined]
    return switch


def raised(build: Builder, node: Node, operands: Sequence[Any], emit: Callable[..., SSAValue]) -> SSAValue:
    """The op of a node of the graph.

    Args:
        operands: q, k, v, the logarithm of the decay, and beta or None, as symbolic values; skip, a constant
            or None, whether by the delta rule, and a rate, where the logarithm is one for each key channel.
        emit: makes an SSA value of one of them, given its `role`.
    """
    q, k, v, decay, beta, skip, delta, *rates = operands
    step: Any = decay
    if rates:
        rate = rates[0].reshape(-1).float().numpy()
    elif isinstance(decay, Scaled):
        step, rate = decay.value, -decay.vector
    elif isinstance(decay, Lanes | Elementwise):
        step = composed(node, decay, "neg")
        rate = np.ones(step.lanes.index.size, np.float32)
    else:
        raise ValueError("with a decay that does not depend on the tokens has no llm form")
    if (rate < 0).any():
        raise ValueError("whose state grows has no llm form")
    given = {"q": q, "k": k, "v": v, "step": step, "beta": beta}
    values = [emit(one, role=role) for role, one in given.items() if one is not None]
    key_heads, heads = (int(one.meta["val"].shape[2]) for one in node.args[1:3])  # type: ignore[union-attr]
    name = f"{module_path(node)}.linear_attention".lstrip(".")
    return build.op(
        "llm.linear_attention", values, tensor(f32, channels(values[2])), name,
        layer=build.layer("recurrent"), heads=heads, key_heads=key_heads, delta=int(delta),
        skip=None if skip is None else build.vector(skip, f"{name}.skip"),
        rate=build.weights.add(f"{name}.rate", np.ascontiguousarray(rate, np.float32)),
    )  # fmt: skip
