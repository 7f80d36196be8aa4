"""Mixtures of experts in traced graphs: what transformers calls an experts function, in three ops.

transformers keeps the matrices of all experts in stacks, `[experts, outputs, inputs]`, and takes a registered
function to compute with them. Here all experts stand side by side: the channels of a value are one block per
expert, and blocks of experts that a token did not choose are 0.
"""

from __future__ import annotations

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from mqc.errors import UnsupportedOpError

#: Name under which the function is registered with transformers.
EXPERTS = "mqc"


@torch.library.custom_op("mqc::gates", mutates_args=())
def gates(index: torch.Tensor, weight: torch.Tensor, experts: int) -> torch.Tensor:
    """Placeholder for the weight of every expert `[tokens, experts]`, 0 where it was not chosen; never run.

    index, weight: of the chosen ones `[tokens, chosen]`.
    """
    raise NotImplementedError("mqc::gates exists in traced graphs only")


@gates.register_fake
def _(index, weight, experts):  # type: ignore[no-untyped-def]
    return weight.new_empty(weight.shape[0], experts)


@torch.library.custom_op("mqc::experts_in", mutates_args=())
def experts_in(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Placeholder for the first matrices of chosen experts; never run.

    Shapes: x `[tokens, inputs]`, gate `[tokens, experts]`, weight `[experts, outputs, inputs]`, bias
    `[experts, outputs]`, result `[tokens, experts, outputs]`.
    """
    raise NotImplementedError("mqc::experts_in exists in traced graphs only")


@experts_in.register_fake
def _(x, gate, weight, bias):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0], weight.shape[1])


@torch.library.custom_op("mqc::experts_out", mutates_args=())
def experts_out(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Placeholder for the sum over chosen experts of their last matrices' results times their weights; never
    run.

    Shapes: x `[tokens, experts, inputs]`, gate `[tokens, experts]`, weight `[experts, outputs, inputs]`,
    result `[tokens, outputs]`.
    """
    raise NotImplementedError("mqc::experts_out exists in traced graphs only")


@experts_out.register_fake
def _(x, gate, weight):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[1])


def _experts_function(  # type: ignore[no-untyped-def]
    self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    if self.has_post_expert_norm:
        raise UnsupportedOpError(type(self).__name__, "a norm behind each expert", "has no llm form")
    stacks = [self.gate_up_proj if self.has_gate else self.up_proj, self.down_proj]
    first, last = (stack.transpose(1, 2) if self.is_transposed else stack for stack in stacks)
    bias = None
    if self.has_bias:
        bias = self.gate_up_proj_bias if self.has_gate else self.up_proj_bias
    gate = gates(top_k_index, top_k_weights, len(first))
    hidden = experts_in(hidden_states, gate, first, bias)
    hidden = self._apply_gate(hidden) if self.has_gate else self.act_fn(hidden)
    result = experts_out(hidden, gate, last)
    return result + gate @ self.down_proj_bias if self.has_bias else result


ALL_EXPERTS_FUNCTIONS.register(EXPERTS, _experts_function)
