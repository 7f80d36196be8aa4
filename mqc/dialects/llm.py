"""The `llm` dialect: a decoder in the field's own terms, on `tensor<?xchannels>` values.

Evaluated by torch and differentiable. The batch is one sequence; the KV cache, causality and
windows belong to `llm.attention`. Where a result has a quantized type (level `quant`), its value
is rounded to that type's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from xdsl.dialects.builtin import FloatAttr, IntegerAttr, ModuleOp, StringAttr, TensorType, f32
from xdsl.ir import Dialect, SSAValue
from xdsl.irdl import irdl_op_definition, operand_def, opt_operand_def, opt_prop_def, prop_def, result_def

from mqc.arrays import Array
from mqc.dialects.equivariance import Constraint, Fix, Tie, tie_all
from mqc.dialects.llm_conv import CausalConvOp
from mqc.dialects.llm_core import LlmOp, Scale
from mqc.dialects.llm_elementwise import (
    ACTIVATIONS,
    ActivationOp,
    AddOp,
    BinaryOp,
    ElementwiseOp,
    GeluOp,
    GeluTanhOp,
    JoinOp,
    MulOp,
    QuickGeluOp,
    ReluOp,
    ScaleOp,
    SigmoidOp,
    SiluOp,
    TanhOp,
)
from mqc.dialects.llm_linear_attention import LinearAttentionOp
from mqc.dialects.llm_routing import GateOp, RouteOp, check_gates, routed_product
from mqc.dialects.rotations import Alike, Rotation, RotationRule
from mqc.ir.module import mqc_ops
from mqc.ir.op import INDICES, EvaluationContext, State, WeightAttr, channels, grown, rows_by_position
from mqc.ir.weight_store import WeightStore
from mqc.numerics.rotary import rope_pairs


@irdl_op_definition
class EmbeddingOp(LlmOp):
    """Row of a table for each index: token ids, or positions for learned position embeddings. `reference` is
    the float table that a quantized one came from. `factor` is 1 if absent.

    `y[t] = factor · table[index[t]]`
    """

    name = "llm.embedding"
    indices = operand_def(TensorType)
    table = prop_def(WeightAttr)
    table_scale = opt_prop_def(WeightAttr)
    factor = opt_prop_def(FloatAttr)
    reference = opt_prop_def(WeightAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        self.expect(self.table.shape[1:] == (channels(self.result),), "table must be [rows, channels]")
        self.expect(self.indices.type == INDICES, f"{self.indices.type} must be {INDICES}")

    def lookups(self) -> list[tuple[SSAValue, int]]:
        return [(self.indices, self.table.shape[0])]

    def compute(self, ctx: EvaluationContext, indices: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(indices, ctx.torch(self.table))
        if self.table_scale is not None:
            rows = rows.float() * ctx.torch(self.table_scale)[indices, None]
        return rows if self.factor is None else rows * self.get("factor")

    def equivariance(self) -> list[Constraint]:
        return []

    def absorb(self, weights: WeightStore, inputs: Sequence[Scale], output: Scale) -> None:
        if output is not None:
            self.replace_rows(weights, "table", lambda rows, _: rows / output)

    def rotations(self) -> list[RotationRule]:
        return []

    def turn(self, weights: WeightStore, inputs: Sequence[Rotation | None], output: Rotation | None) -> None:
        if output is not None:
            self.replace_rows(weights, "table", lambda rows, _: output.turn(rows))


@irdl_op_definition
class LinearOp(LlmOp):
    """Matrix product with a constant. Quantized weights are int8 with a scale per output channel,
    and per block of input channels an integer factor (`group_scale`, 1…16) for 4-bit groups; `reference` are
    the float weights they came from. `weight_step` are learned steps `[outputs, groups]` to quantize with.
    With `step_source`, where they are from, they are the model's own: its weights are multiples of them and
    stay what they are (`fixed`).

    With `gates` `[tokens, experts]`, the weight has a block for each expert: of rows if `expert_axis` is 0,
    and the result's block is 0 where the gate is; of columns if it is 1, and the input's block is not read.

    `y = x · weightᵀ + bias`
    """

    name = "llm.linear"
    x = operand_def(TensorType)
    gates = opt_operand_def(TensorType)
    weight = prop_def(WeightAttr)
    bias = opt_prop_def(WeightAttr)
    weight_scale = opt_prop_def(WeightAttr)
    group_scale = opt_prop_def(WeightAttr)
    weight_bits = opt_prop_def(IntegerAttr)
    weight_step = opt_prop_def(WeightAttr)
    step_source = opt_prop_def(StringAttr)
    reference = opt_prop_def(WeightAttr)
    expert_axis = opt_prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        expected = (channels(self.result), channels(self.x))
        self.expect(self.weight.shape == expected, f"weight must be {list(expected)}")
        check_gates(self, self.gates, self.get("expert_axis"), expected)
        if self.bias is not None:
            self.expect(self.bias.shape == expected[:1], "bias must be [output channels]")
        stated = self.weight_bits is not None and self.weight_step is not None
        self.expect(stated or not self.fixed, "step_source needs weight_bits and weight_step")

    @property
    def fixed(self) -> bool:
        """Whether the matrix came with its integers, and no pass may change it."""
        return self.step_source is not None

    @property
    def experts(self) -> tuple[int, int]:
        """How many experts there are, and how many of them a token takes at most; 1 and 1 without gates."""
        if self.gates is None:
            return 1, 1
        count, route = channels(self.gates), self.gates.owner
        return count, int(route.get("top_k")) if isinstance(route, RouteOp) else count

    @property
    def column_blocks(self) -> tuple[int, int]:
        """In how many blocks the columns are, and how many of them a token takes at most."""
        return self.experts if self.get("expert_axis") == 1 else (1, 1)

    def compute(
        self, ctx: EvaluationContext, x: torch.Tensor, gates: torch.Tensor | None = None
    ) -> torch.Tensor:
        weight, scale = ctx.torch(self.weight), self.weight_scale
        if scale is not None:
            weight = ctx.latest(
                (self.weight, scale, self.group_scale),
                lambda: self.times_group_scale(ctx, weight.float()) * ctx.torch(scale)[:, None],
            )
        bias = ctx.torch(self.bias) if self.bias is not None else None
        if gates is None:
            return F.linear(x, weight, bias)
        axis = self.get("expert_axis")
        inner = bias if axis == 0 else None

        def of_expert(x: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
            return F.linear(x, weight[rows, columns], None if inner is None else inner[rows])

        y = routed_product(x, gates, axis, len(weight), of_expert)
        return y if bias is None or bias is inner else y + bias

    def spread(self, gates: torch.Tensor) -> torch.Tensor:
        """What holds of each expert `[tokens, experts]`, for the channels of its block: of the result if
        `expert_axis` is 0, of x if it is 1."""
        blocked = (self.result, self.x)[self.get("expert_axis")]
        return gates.repeat_interleave(channels(blocked) // gates.shape[1], 1)

    def times_group_scale(self, ctx: EvaluationContext, weight: torch.Tensor) -> torch.Tensor:
        """The integer matrix `[outputs, inputs]` with each group's factor multiplied in."""
        if self.group_scale is None:
            return weight
        factor = ctx.torch(self.group_scale).float()
        return weight * factor.repeat_interleave(weight.shape[1] // factor.shape[1], 1)

    def equivariance(self) -> list[Constraint]:
        return [Fix(self.x), Fix(self.result)] if self.fixed else []

    def absorb(self, weights: WeightStore, inputs: Sequence[Scale], output: Scale) -> None:
        def absorbed(rows: Array, block: slice) -> Array:
            if inputs[0] is not None:
                rows = rows * inputs[0]
            return rows if output is None else rows / output[block, None]

        self.replace_rows(weights, "weight", absorbed)
        if output is not None and self.bias is not None:
            self.replace_weight(weights, "bias", weights[self.bias] / output)

    def rotations(self) -> list[RotationRule]:
        if self.fixed:
            return [Fix(self.x), Fix(self.result)]
        # A rotation would mix blocks of experts.
        return [] if self.gates is None else [Fix((self.result, self.x)[self.get("expert_axis")])]

    def turn(self, weights: WeightStore, inputs: Sequence[Rotation | None], output: Rotation | None) -> None:
        given = inputs[0]
        if output is None:
            if given is not None:
                self.replace_rows(weights, "weight", lambda rows, _: given.turn(rows))
            return
        weight = weights[self.weight] if given is None else given.turn(weights[self.weight])
        self.replace_weight(weights, "weight", output.turn(weight.T).T)
        if self.bias is not None:
            self.replace_weight(weights, "bias", output.turn(weights[self.bias][None])[0])

    def macs(self) -> int:
        experts, chosen = self.experts
        return channels(self.x) * channels(self.result) * chosen // experts


class NormOp(LlmOp):
    """What the two norms share: they act on each of `groups` equal blocks of channels alone."""

    x = operand_def(TensorType)
    gain = opt_prop_def(WeightAttr)
    eps = prop_def(FloatAttr)
    groups = prop_def(IntegerAttr)
    result = result_def(TensorType)

    def check(self) -> None:
        count, groups = channels(self.x), self.get("groups")
        self.expect(count == channels(self.result), "input and result must have the same channels")
        self.expect(groups > 0 and count % groups == 0, f"{groups} groups must divide {count} channels")
        if self.gain is not None:
            self.expect(self.gain.shape == (count,), "gain must be [channels]")

    def equivariance(self) -> list[Constraint]:
        return [Fix(self.x)]

    def absorb(self, weights: WeightStore, inputs: Sequence[Scale], output: Scale) -> None:
        if output is None:
            return
        if self.gain is None:
            gain = weights.add(f"{self.value_name}.gain", (1 / output).astype(np.float32))
            self.properties["gain"] = gain
        else:
            self.replace_weight(weights, "gain", weights[self.gain] / output)


@irdl_op_definition
class RmsNormOp(NormOp):
    """Root-mean-square norm over each group of channels.

    `y = gain · x / sqrt(mean(x²) + eps)`
    """

    name = "llm.rms_norm"

    def compute(self, ctx: EvaluationContext, x: torch.Tensor) -> torch.Tensor:
        blocks = x.view(x.shape[0], self.get("groups"), -1)
        scale = torch.rsqrt(blocks.pow(2).mean(-1, keepdim=True) + self.get("eps"))
        y = (blocks * scale).view_as(x)
        return y * ctx.torch(self.gain) if self.gain is not None else y

    def rotations(self) -> list[RotationRule]:
        if self.gain is not None:
            return super().rotations()
        return [Alike(self.x, self.result, channels(self.x) // self.get("groups"))]


@irdl_op_definition
class LayerNormOp(NormOp):
    """Layer norm over each group of channels.

    `y = gain · (x − mean(x)) / sqrt(var(x) + eps) + bias`
    """

    name = "llm.layer_norm"
    bias = opt_prop_def(WeightAttr)

    def compute(self, ctx: EvaluationContext, x: torch.Tensor) -> torch.Tensor:
        blocks = x.view(x.shape[0], self.get("groups"), -1)
        y = F.layer_norm(blocks, blocks.shape[-1:], eps=self.get("eps")).view_as(x)
        if self.gain is not None:
            y = y * ctx.torch(self.gain)
        return y + ctx.torch(self.bias) if self.bias is not None else y

    def absorb(self, weights: WeightStore, inputs: Sequence[Scale], output: Scale) -> None:
        super().absorb(weights, inputs, output)
        if output is not None and self.bias is not None:
            self.replace_weight(weights, "bias", weights[self.bias] / output)


@irdl_op_definition
class RopeOp(LlmOp):
    """Rotary position embedding (RoFormer, arXiv 2104.09864) of each head, in the half-rotation or
    interleaved form; channels past the width of the tables pass through (partial rotary).

    `(y₁, y₂) = (x₁·cos p − x₂·sin p, x₂·cos p + x₁·sin p) per rotated pair`
    """

    name = "llm.rope"
    x = operand_def(TensorType)
    positions = operand_def(TensorType)
    cos = prop_def(WeightAttr)
    sin = prop_def(WeightAttr)
    head_dim = prop_def(IntegerAttr)
    interleaved = prop_def(IntegerAttr)
    result = result_def(TensorType)

    @property
    def pairs(self) -> tuple[Array, Array]:
        """First and second channel of every rotated pair, over all heads."""
        head_dim = self.get("head_dim")
        first, second = rope_pairs(head_dim, 2 * self.cos.shape[1], bool(self.get("interleaved")))
        heads = np.arange(channels(self.x) // head_dim)[:, None] * head_dim
        return (heads + first).reshape(-1), (heads + second).reshape(-1)

    def check(self) -> None:
        head_dim = self.get("head_dim")
        self.expect(channels(self.x) % head_dim == 0, "head_dim must divide the channels")
        self.expect(self.cos.shape == self.sin.shape, "cos and sin must have the same shape")
        self.expect(2 * self.cos.shape[1] <= head_dim, "tables must be at most head_dim / 2 wide")
        self.expect(self.positions.type == INDICES, f"{self.positions.type} must be {INDICES}")

    def lookups(self) -> list[tuple[SSAValue, int]]:
        return [(self.positions, self.cos.shape[0])]

    def compute(self, ctx: EvaluationContext, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = (ctx.torch(table)[positions][:, None] for table in (self.cos, self.sin))
        heads = x.view(len(x), -1, self.get("head_dim"))
        rotated = heads[..., : 2 * cos.shape[-1]]
        pairs = (-1, 2) if self.get("interleaved") else (2, -1)
        axis = pairs.index(2) - 2
        first, second = rotated.view(*rotated.shape[:-1], *pairs).unbind(axis)
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), axis)
        return torch.cat((turned.flatten(-2), heads[..., rotated.shape[-1] :]), -1).view_as(x)

    def equivariance(self) -> list[Constraint]:
        first, second = self.pairs
        return [tie_all(self.x, self.result, channels(self.x)), Tie(self.x, first, self.x, second)]


@irdl_op_definition
class AttentionOp(LlmOp):
    """Causal attention over the cache of `layer` and the new tokens, grouped-query heads included.

    `prefix_k`, `prefix_v` `[prefix tokens, kv_heads * head_dim]` are the cache's first rows.
    A `window` of w lets a token see itself and the w − 1 before it. With a `chunk` of c positions are in
    chunks of c, and it sees those of its own (Llama 4). `sinks` `[heads]` are one more score of each head,
    which has no value. `key_bias` `[heads, positions]` is added to the scores of a key by its
    position: softmax does not see what all scores of a query have in common, so that the linear bias of ALiBi
    (arXiv 2108.12409), slope · (key's position − query's), is one of the key.

    `y = softmax(scale · q·kᵀ + key_bias + mask) · v per head`
    """

    name = "llm.attention"
    q = operand_def(TensorType)
    k = operand_def(TensorType)
    v = operand_def(TensorType)
    layer = prop_def(IntegerAttr)
    heads = prop_def(IntegerAttr)
    kv_heads = prop_def(IntegerAttr)
    scale = prop_def(FloatAttr)
    window = opt_prop_def(IntegerAttr)
    chunk = opt_prop_def(IntegerAttr)
    softcap = opt_prop_def(FloatAttr)
    sinks = opt_prop_def(WeightAttr)
    key_bias = opt_prop_def(WeightAttr)
    prefix_k = opt_prop_def(WeightAttr)
    prefix_v = opt_prop_def(WeightAttr)
    result = result_def(TensorType)

    PREFIX: ClassVar = {"prefix_k": "k", "prefix_v": "v"}

    def check(self) -> None:
        heads, kv_heads = self.get("heads"), self.get("kv_heads")
        self.expect(heads % kv_heads == 0, f"{kv_heads} kv_heads must divide {heads} heads")
        self.expect(
            channels(self.q) * kv_heads == channels(self.k) * heads
            and channels(self.v) * heads == channels(self.result) * kv_heads,
            "q, k, v and the result must have heads * head_dim channels",
        )
        self.expect(self.sinks is None or self.sinks.shape == (heads,), "sinks must be [heads]")
        self.expect(self.chunk is None or self.get("chunk") > 0, "chunk must be positive")
        if self.key_bias is not None:
            self.expect(
                len(self.key_bias.shape) == 2 and self.key_bias.shape[0] == heads,
                "key_bias must be [heads, positions]",
            )
            self.expect(self.sinks is None and self.softcap is None, "key_bias, or sinks or a softcap")

    def position_limit(self) -> int | None:
        return None if self.key_bias is None else int(self.key_bias.shape[1])

    def states(self) -> tuple[State, ...]:
        layer, shape = self.get("layer"), (channels(self.k),)
        return (
            rows_by_position(f"key.{layer}", shape, f32, self.prefix_k),
            rows_by_position(f"value.{layer}", shape, f32, self.prefix_v),
        )

    def compute(
        self, ctx: EvaluationContext, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        heads, kv_heads = self.get("heads"), self.get("kv_heads")
        keys_state, values_state = self.states()
        k = grown(ctx, keys_state, k, lambda ref: ctx.rounded(self.k, ctx.torch(ref)), torch.cat)
        v = grown(ctx, values_state, v, lambda ref: ctx.rounded(self.v, ctx.torch(ref)), torch.cat)
        new, seen = q.shape[0], k.shape[0]
        positions = torch.arange(seen, device=q.device)
        age = positions[seen - new :, None] - positions
        visible = age >= 0
        if self.window is not None:
            visible &= age < self.get("window")
        if self.chunk is not None:
            chunks = positions // self.get("chunk")
            visible &= chunks == chunks[seen - new :, None]
        if self.softcap is None and self.sinks is None:
            queries, keys, values = (
                x.view(1, len(x), n, -1).transpose(1, 2)
                for x, n in ((q, heads), (k, kv_heads), (v, kv_heads))
            )
            mask = visible
            if self.key_bias is not None:
                bias = ctx.torch(self.key_bias)[:, None, :seen]
                mask = torch.where(visible, bias, -torch.inf)[None]
            y = F.scaled_dot_product_attention(
                queries, keys, values, mask, scale=self.get("scale"), enable_gqa=heads != kv_heads
            )
            return y.transpose(1, 2).reshape(new, -1)
        queries = q.view(new, kv_heads, heads // kv_heads, -1).permute(1, 2, 0, 3)
        keys = k.view(seen, kv_heads, 1, -1).permute(1, 2, 3, 0)
        values = v.view(seen, kv_heads, 1, -1).permute(1, 2, 0, 3)
        scores, cap = queries @ keys * self.get("scale"), self.get("softcap")
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        scores = scores.masked_fill(~visible, -torch.inf)
        if self.sinks is not None:
            column = ctx.torch(self.sinks).view(kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, column), -1)
        probabilities = torch.softmax(scores, -1)[..., :seen]
        return (probabilities @ values).permute(2, 0, 1, 3).reshape(new, -1)

    def equivariance(self) -> list[Constraint]:
        heads, kv_heads = self.get("heads"), self.get("kv_heads")

        def shared(width: int) -> Array:
            """kv channel that serves each channel of the query heads."""
            head = np.arange(heads)[:, None] // (heads // kv_heads)
            return (head * width + np.arange(width)).reshape(-1)

        q_channels, v_channels = channels(self.q), channels(self.result)
        rules: list[Constraint] = [
            Tie(self.result, np.arange(v_channels), self.v, shared(v_channels // heads)),
            Tie(self.q, np.arange(q_channels), self.k, shared(q_channels // heads), sign=-1),
        ]
        return rules

    def absorb(self, weights: WeightStore, inputs: Sequence[Scale], output: Scale) -> None:
        for name, scale in (("prefix_k", inputs[1]), ("prefix_v", inputs[2])):
            rows = self.ref(name)
            if rows is not None and scale is not None:
                self.replace_weight(weights, name, weights[rows] / scale)

    def rotations(self) -> list[RotationRule]:
        return [
            Fix(self.q),
            Fix(self.k),
            Alike(self.v, self.result, channels(self.v) // self.get("kv_heads")),
        ]

    def turn(self, weights: WeightStore, inputs: Sequence[Rotation | None], output: Rotation | None) -> None:
        if self.prefix_v is not None and inputs[2] is not None:
            self.replace_weight(weights, "prefix_v", inputs[2].turn(weights[self.prefix_v]))


def shared_tables(module: ModuleOp) -> Iterator[tuple[EmbeddingOp, LinearOp]]:
    """Embeddings whose table is also the matrix of a linear: tied logits."""
    ops = list(mqc_ops(module))
    embeddings = [op for op in ops if isinstance(op, EmbeddingOp)]
    for op in ops:
        if isinstance(op, LinearOp):
            yield from ((embedding, op) for embedding in embeddings if embedding.table == op.weight)


Llm = Dialect(
    "llm",
    [
        EmbeddingOp, LinearOp, RmsNormOp, LayerNormOp, RopeOp, AttentionOp,
        *ACTIVATIONS, ElementwiseOp, ScaleOp, AddOp, MulOp, JoinOp, RouteOp, GateOp, CausalConvOp,
        LinearAttentionOp,
    ],
)  # fmt: skip

__all__ = [
    "ACTIVATIONS", "ActivationOp", "AddOp", "AttentionOp", "BinaryOp", "CausalConvOp", "ElementwiseOp",
    "EmbeddingOp", "GateOp", "GeluOp", "GeluTanhOp", "JoinOp", "LayerNormOp", "LinearAttentionOp", "LinearOp",
    "Llm", "LlmOp", "MulOp", "NormOp", "QuickGeluOp", "ReluOp", "RmsNormOp", "RopeOp", "RouteOp", "ScaleOp",
    "SigmoidOp", "SiluOp", "TanhOp", "shared_tables",
]  # fmt: skip
