"""Modelled NPU figures at the sizes of MobileQuant's paper, beside what the paper measured on a phone.

Builds the tiled `htp` functions of TinyLlama-1.1B and Gemma-2B from their sizes, without any weights, and
runs the cost model of docs/npu-cost.md for each chip. Prints tables in Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xdsl.dialects import func
from xdsl.dialects.builtin import IntegerType, ModuleOp, StringAttr, TensorType, i64
from xdsl.ir import SSAValue

from mqc.analysis.context import CompilerContext
from mqc.backends.npu.chips import Chip, chips
from mqc.backends.npu.timeline import FunctionCost, function_cost
from mqc.dialects import htp_attention as attention
from mqc.dialects import htp_compute as compute
from mqc.dialects import htp_memory as memory
from mqc.dialects.htp_core import static
from mqc.errors import TargetError
from mqc.ir.module import set_level
from mqc.ir.op import WeightAttr, attr, channels, element_type, s8, s16, s32, u8, u16
from mqc.numerics.htp_tiles import LANES, Records
from mqc.passes.allocate_vtcm import AllocateVtcm
from mqc.passes.tile_htp import TileHtp

PROMPT, CONTEXTS = 256, (1024, 2048)
#: Most bytes of one tile of attention scores, as in lower-to-htp.
SCORE_BYTES = 1 << 20


@dataclass(frozen=True)
class Model:
    """Sizes of a decoder with gated feed-forward layers."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


@dataclass(frozen=True)
class Plan:
    """Bits of weights, and types of activations.

    residual: outputs of o_proj and down_proj and what norms read. down: input of down_proj. head: input
    of the last product. inner: all others, queries, keys and values with their cache included.
    """

    name: str
    weight_bits: int
    inner: IntegerType
    residual: IntegerType
    down: IntegerType
    head: IntegerType


TINYLLAMA = Model("TinyLlama-1.1B", 22, 2048, 5632, 32, 4, 64, 32000)
GEMMA = Model("Gemma-2B", 18, 2048, 16384, 8, 1, 256, 256000)
PLANS = [
    Plan(f"W{bits}A{name}", bits, *types)
    for bits in (8, 4)
    for name, types in (
        ("16", (u16, u16, u16, u16)),
        ("8, MobileQuant's plan", (u8, u16, u8, u8)),
        ("8, the plan on its phone", (u8, u16, u16, u16)),
        ("8 everywhere", (u8, u8, u8, u8)),
    )
]
#: MobileQuant, arXiv 2408.13933, tables 6 and 8: Galaxy S24, Snapdragon 8 Gen 3. By model and kind of
#: plan: milliseconds for a prompt of 256, and for a token at contexts of 1024 and 2048; millijoules.
Measured = dict[tuple[str, str], tuple[float | None, ...]]
PAPER_MS: Measured = {
    ("TinyLlama-1.1B", "W8A16"): (510, 54, 119),
    ("TinyLlama-1.1B", "W8A8, the plan on its phone"): (276, 46, 95),
    ("TinyLlama-1.1B", "W8A8 everywhere"): (89, 42, 94),
    ("TinyLlama-1.1B", "W4A16"): (320, 50, None),
    ("TinyLlama-1.1B", "W4A8, the plan on its phone"): (239, 38, None),
    ("TinyLlama-1.1B", "W4A8 everywhere"): (89, 40, None),
    ("Gemma-2B", "W8A16"): (1191, 78, None),
    ("Gemma-2B", "W8A8, the plan on its phone"): (752, 60, None),
    ("Gemma-2B", "W8A8 everywhere"): (311, 59, None),
    ("Gemma-2B", "W4A16"): (617, 56, None),
    ("Gemma-2B", "W4A8, the plan on its phone"): (460, 40, None),
    ("Gemma-2B", "W4A8 everywhere"): (98, 40, None),
}
PAPER_MJ: Measured = {
    ("TinyLlama-1.1B", "W8A16"): (1000, 69, 165),
    ("TinyLlama-1.1B", "W8A8, the plan on its phone"): (490, 61, 110),
    ("TinyLlama-1.1B", "W8A8 everywhere"): (183, 61, 106),
}


class Builder:
    """One function of a model: `tokens` rows against a cache of `capacity` positions."""

    def __init__(self, model: Model, plan: Plan, tokens: int, capacity: int) -> None:
        self.model, self.plan, self.tokens, self.capacity = model, plan, tokens, capacity
        index = TensorType(i64, [tokens])
        self.function = func.FuncOp("main", ([index, index], []))
        self.block = self.function.body.block
        self.ids, self.positions = self.block.args
        self.scales: dict[str, SSAValue] = {}

    def emit(self, kind: Any, operands: list[SSAValue], result: TensorType, **properties: Any) -> Any:
        op = kind.build_op(operands, result, kind.name.removeprefix("htp."), **properties)
        self.block.add_op(op)
        return op.results[0]

    def rows(self, element: IntegerType, width: int) -> TensorType:
        return static(element, self.tokens, width)

    def constant(self, element: IntegerType, *shape: int) -> SSAValue:
        kind = static(element, *shape)
        value = WeightAttr(StringAttr("none"), StringAttr("0" * 16), kind)
        return self.emit(memory.ConstantOp, [], kind, value=value)

    def scale(self) -> SSAValue:
        return self.constant(s32, 1, 2, LANES)

    def linear(self, x: SSAValue, outputs: int, result: IntegerType) -> SSAValue:
        records = Records(outputs, channels(x), self.plan.weight_bits)
        return self.emit(
            compute.FullyConnectedOp, [x, self.constant(u8, *records.shape)], self.rows(result, outputs),
            outputs=outputs, first=0, weight_bits=self.plan.weight_bits, group=0, acc_shift=0, zero_point=0,
        )  # fmt: skip

    def norm(self, x: SSAValue, result: IntegerType) -> SSAValue:
        gain = self.constant(s32, -(-channels(x) // LANES), 2, LANES)
        return self.emit(
            compute.RmsNormOp, [x, gain], self.rows(result, channels(x)), x_zero=0, epsilon=1, groups=1,
            zero_point=0,
        )  # fmt: skip

    def add(self, a: SSAValue, b: SSAValue) -> SSAValue:
        fields = (f"{side}_{field}" for side in "ab" for field in ("zero", "multiplier", "shift"))
        kind = self.rows(self.plan.residual, channels(a))
        return self.emit(compute.AddOp, [a, b], kind, zero_point=0, **dict.fromkeys(fields, 0))

    def rotate(self, x: SSAValue, tables: list[SSAValue]) -> SSAValue:
        return self.emit(
            compute.RotaryEmbeddingOp, [x, *tables, self.scale()], self.rows(self.plan.inner, channels(x)),
            head_dim=self.model.head_dim, interleaved=0, x_zero=0, zero_point=0,
        )  # fmt: skip

    def cache(self, layer: int, part: str, x: SSAValue) -> SSAValue:
        keys, dim = part == "key", self.model.head_dim
        size = (attention.key_bytes if keys else attention.value_bytes)(self.capacity, dim)
        kind = static(self.plan.inner, self.model.kv_heads, size)
        before = self.emit(memory.CacheOp, [], kind, layer=layer, part=part)
        op = attention.CacheWriteKeysOp if keys else attention.CacheWriteValuesOp
        extra = {"q_zero": 0} if keys else {}
        return self.emit(op, [x, before], kind, head_dim=dim, capacity=self.capacity, **extra)

    def attend(self, q: SSAValue, keys: SSAValue, values: SSAValue, table: SSAValue) -> SSAValue:
        """As lower-to-htp has it: heads that share a key head go together as far as scores fit."""
        group, dim = self.model.heads // self.model.kv_heads, self.model.head_dim
        result = self.rows(self.plan.inner, channels(q))
        y = self.emit(memory.EmptyOp, [], result)
        together = max(1, min(group, SCORE_BYTES // (4 * self.tokens * self.capacity)))
        for begin in range(0, self.model.heads, together):
            count = min(together, group - begin % group)
            key, value = (
                self.emit(
                    memory.StridedSliceOp, [cache], static(element_type(cache), 1, channels(cache)),
                    first=begin // group,
                )
                for cache in (keys, values)
            )  # fmt: skip
            shared = {"heads": count, "capacity": self.capacity}
            square = self.tokens * count, self.capacity
            scores = self.emit(
                attention.MatMulKeysOp, [q, key], static(s32, *square), head=begin, head_dim=dim, **shared
            )
            p = self.emit(
                attention.MaskedSoftmaxOp, [scores, table], static(u16, *square), multiplier=0, shift=0,
                **shared,
            )  # fmt: skip
            y = self.emit(
                attention.MatMulValuesOp, [p, value, y], result, head=begin, head_dim=dim, v_zero=0,
                multiplier=0, shift=0, zero_point=0, **shared,
            )  # fmt: skip
        return y

    def build(self) -> func.FuncOp:
        m, plan = self.model, self.plan
        sizes = (m.vocabulary, m.hidden), (m.vocabulary,), (m.vocabulary,)
        tables = [self.constant(kind, *size) for kind, size in zip((s8, s32, s8), sizes, strict=True)]
        kind = self.rows(plan.residual, m.hidden)
        x = self.emit(compute.GatherTokensOp, [self.ids, *tables], kind, zero_point=0)
        rotary = [
            self.emit(
                compute.GatherPositionsOp,
                [self.positions, self.constant(s16, self.capacity, m.head_dim // 2)],
                self.rows(s16, m.head_dim // 2),
            )
            for _ in range(2)
        ]
        exponentials = self.constant(s32, 2048)
        for layer in range(m.layers):
            normed = self.norm(x, plan.inner)
            q, k, v = (
                self.linear(normed, heads * m.head_dim, plan.inner)
                for heads in (m.heads, m.kv_heads, m.kv_heads)
            )
            keys = self.cache(layer, "key", self.rotate(k, rotary))
            values = self.cache(layer, "value", v)
            mixed = self.attend(self.rotate(q, rotary), keys, values, exponentials)
            x = self.add(x, self.linear(mixed, m.hidden, plan.residual))
            normed = self.norm(x, plan.inner)
            gate, up = (self.linear(normed, m.intermediate, plan.inner) for _ in range(2))
            table = self.constant(u8, 256) if plan.inner == u8 else self.constant(s32, 1025)
            bits = {"segment_bits": 6} if plan.inner == u16 else {}
            inner = self.rows(plan.inner, m.intermediate)
            active = self.emit(compute.NeuronOp, [gate, table], inner, **bits)
            product = self.emit(
                compute.MultiplyOp, [active, up, self.scale()], self.rows(plan.down, m.intermediate),
                a_zero=0, b_zero=0, acc_shift=0, zero_point=0,
            )  # fmt: skip
            x = self.add(x, self.linear(product, m.hidden, plan.residual))
        logits = self.linear(self.norm(x, plan.head), m.vocabulary, s32)
        self.block.add_op(func.ReturnOp(logits))
        name = "decode" if self.tokens == 1 else f"prefill_{self.tokens}"
        self.function.properties["sym_name"] = attr(name)
        return self.function


def tiled(model: Model, plan: Plan, tokens: int, capacity: int) -> func.FuncOp:
    """The function with its copies and places in VTCM. Raises `TargetError` if it does not fit."""
    function = Builder(model, plan, tokens, capacity).build()
    module, ctx = ModuleOp([function]), CompilerContext()
    set_level(module, "htp")
    TileHtp().run(ctx, module)
    AllocateVtcm().run(ctx, module)
    return function


def widest(model: Model, plan: Plan) -> func.FuncOp:
    """The prefill with as many rows as VTCM has room for."""
    for tokens in (256, 128, 64, 32):
        try:
            return tiled(model, plan, tokens, CONTEXTS[0])
        except TargetError:
            continue
    raise TargetError(f"{model.name} {plan.name}: not even 32 rows fit")


@dataclass(frozen=True)
class Figures:
    """Of a prompt, and of a token at each of `CONTEXTS`."""

    rows: int
    prompt: list[FunctionCost]
    decode: list[FunctionCost]

    def milliseconds(self) -> list[float]:
        return [1e3 * sum(c.seconds for c in self.prompt), *(1e3 * c.seconds for c in self.decode)]

    def millijoules(self) -> list[float]:
        return [1e3 * sum(c.joules for c in self.prompt), *(1e3 * c.joules for c in self.decode)]


def figures(prefill: func.FuncOp, decodes: list[func.FuncOp], chip: Chip) -> Figures:
    argument = prefill.body.block.args[0].type
    assert isinstance(argument, TensorType)
    rows = argument.get_shape()[0]
    prompt = [function_cost(prefill, chip, end) for end in range(rows, PROMPT + 1, rows)]
    return Figures(rows, prompt, [function_cost(f, chip) for f in decodes])


def cell(ours: float, paper: float | None) -> str:
    return f"{ours:.0f}" if paper is None else f"{ours:.0f} / {paper:.0f}"


def ratio(ours: float, base: float, paper: float | None, paper_base: float | None) -> str:
    text = f"{ours / base:.2f}"
    return text if paper is None or paper_base is None else f"{text} / {paper / paper_base:.2f}"


def table(title: str, ours: dict[tuple[str, str], list[float]], paper: Measured) -> None:
    none = (None, None, None)
    what = "modelled / phone" if paper else "modelled"
    print(f"\n{title}, {what}; in brackets the ratio to 16-bit activations, likewise:\n")
    print("| model | plan | prompt of 256 | token at 1024 | token at 2048 |\n|---|---|---|---|---|")
    for (model, plan), values in ours.items():
        base = model, plan[:2] + "A16"
        pairs = zip(values, ours[base], paper.get((model, plan), none), paper.get(base, none), strict=True)
        cells = [f"{cell(v, p)} ({ratio(v, b, p, pb)})" for v, b, p, pb in pairs]
        print(f"| {model} | {plan} | {' | '.join(cells)} |")


def where(found: dict[tuple[str, str], Figures]) -> None:
    """What limits prompt and token: how long each unit works, all of them at the same time."""
    heads = (
        "model",
        "plan",
        "rows",
        "VTCM, MiB",
        "DDR MB, prompt; token",
        "prompt: ms of work",
        "token at 1024",
    )
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for (model, plan), f in found.items():
        traffic = "; ".join(
            f"{sum(c.ddr_bytes for c in costs) / 1e6:.0f}" for costs in (f.prompt, f.decode[:1])
        )
        peak = max(c.vtcm_peak for c in f.prompt) / 2**20
        work = []
        for costs in (f.prompt, f.decode[:1]):
            sums = {b: sum(c.busy[b] for c in costs) * 1e3 for b in costs[0].busy}
            work.append(", ".join(f"{b} {v:.0f}" for b, v in sums.items() if v >= 0.5))
        print(f"| {model} | {plan} | {f.rows} | {peak:.1f} | {traffic} | {' | '.join(work)} |")


def sensitivity(functions: dict[tuple[str, str], tuple[func.FuncOp, list[func.FuncOp]]], chip: Chip) -> None:
    """Milliseconds of the prompt, and of a token at 1024, with one parameter changed."""
    rates = ("matrix_macs_8", "matrix_macs_8_by_4", "matrix_macs_16")
    slower = {rate: getattr(chip, rate) * 34 / 48 for rate in rates}
    changed = {
        "as above": chip,
        "HVX kernels of a quarter of the packets": replace(chip, hvx_contexts=4 * chip.hvx_contexts),
        "16-bit activations at a quarter of the 8-bit rate": replace(
            chip, matrix_macs_16=chip.matrix_macs_8 / 4
        ),
        "matrix unit of 34 TOPS": replace(chip, **slower),
        "60 GB/s of DDR": replace(chip, ddr_bytes_per_s=60e9),
        "25 GB/s of DDR": replace(chip, ddr_bytes_per_s=25e9),
    }
    names = [f"{model} {plan}" for model, plan in functions]
    print(f"\n| {chip.name} | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for text, other in changed.items():
        cells = []
        for prefill, decodes in functions.values():
            prompt, token, *_ = figures(prefill, decodes[:1], other).milliseconds()
            cells.append(f"{prompt:.0f}; {token:.1f}")
        print(f"| {text} | {' | '.join(cells)} |")


def differences(found: dict[tuple[str, str], Figures]) -> None:
    """Where the phone is elsewhere than the model of 8 Gen 3, in figures."""
    for model, plan in (("TinyLlama-1.1B", "W8A8 everywhere"), ("Gemma-2B", "W8A8 everywhere")):
        read, measured = found[model, plan].decode[0].ddr_bytes, PAPER_MS[model, plan][1]
        assert measured is not None
        print(
            f"\nDecode of {model}, {plan}: {read / 1e6:.0f} MB a token. In the phone's "
            f"{measured:.0f} ms that is {read / measured / 1e6:.0f} GB/s, if it moves no more."
        )
    f, (_, at_1024, at_2048) = (
        found["TinyLlama-1.1B", "W8A8 everywhere"],
        PAPER_MS["TinyLlama-1.1B", "W8A8 everywhere"],
    )
    assert at_1024 is not None and at_2048 is not None
    more = f.decode[1].ddr_bytes - f.decode[0].ddr_bytes
    print(
        f"\nFrom a context of 1024 to 2048 the phone takes {at_2048 - at_1024:.0f} ms more, the model "
        f"{(f.decode[1].seconds - f.decode[0].seconds) * 1e3:.1f}, for {more / 1e6:.0f} MB of cache."
    )
    for model in ("TinyLlama-1.1B", "Gemma-2B"):
        wide, plan8 = found[model, "W8A16"], found[model, "W8A8, MobileQuant's plan"]
        hvx = [sum(c.busy["hvx"] for c in f.prompt) * 1e3 for f in (wide, plan8)]
        bytes_ = [sum(c.ddr_bytes for c in f.prompt) / 1e9 for f in (wide, plan8)]
        print(
            f"\nPrompt of {model}, 16-bit activations against MobileQuant's plan: {wide.rows} against "
            f"{plan8.rows} rows fit VTCM, so weights are read {PROMPT // wide.rows} against "
            f"{PROMPT // plan8.rows} times, {bytes_[0]:.1f} against {bytes_[1]:.1f} GB; HVX works "
            f"{hvx[0]:.0f} against {hvx[1]:.0f} ms."
        )


def main() -> None:
    found: dict[str, dict[tuple[str, str], Figures]] = {name: {} for name in chips()}
    kept = {}
    for model in (TINYLLAMA, GEMMA):
        for plan in PLANS:
            prefill = widest(model, plan)
            decodes = [tiled(model, plan, 1, context) for context in CONTEXTS]
            if (model, plan.name) in ((TINYLLAMA, "W8A16"), (TINYLLAMA, "W8A8, MobileQuant's plan")):
                kept[model.name, plan.name] = prefill, decodes
            for name, chip in chips().items():
                found[name][model.name, plan.name] = figures(prefill, decodes, chip)
    for name, results in found.items():
        phone = name == "snapdragon-8-gen-3"
        print(f"\n### {name}")
        table("Milliseconds", {k: f.milliseconds() for k, f in results.items()}, PAPER_MS if phone else {})
        table("Millijoules", {k: f.millijoules() for k, f in results.items()}, PAPER_MJ if phone else {})
        where(results)
    print("\n### Where model and phone differ, and what the model depends on")
    differences(found["snapdragon-8-gen-3"])
    sensitivity(kept, chips()["snapdragon-8-gen-3"])


if __name__ == "__main__":
    main()
