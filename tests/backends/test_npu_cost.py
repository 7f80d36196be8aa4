"""The NPU's cost model: against sums done by hand, against counted packets, and against itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp, TensorType, i64
from xdsl.utils.test_value import create_ssa_value

from mqc.backends.npu.chips import CHIPS, UNITS, Chip, chips
from mqc.backends.npu.cost import cost
from mqc.backends.npu.modelled import modelled, pieces
from mqc.backends.npu.packets import packets
from mqc.backends.npu.timeline import FunctionCost, function_cost
from mqc.cli.programs import _show_modelled
from mqc.dialects import htp_attention, htp_compute, htp_memory
from mqc.dialects.htp_core import DDR, VTCM, TransferType, static
from mqc.errors import InputError, IRError
from mqc.ir.op import attr, s8, s16, s32, u8, u16
from mqc.numerics.htp_tiles import LANES, Records
from mqc.runtime import benchmark


def script(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


headline = script(Path(__file__).parents[2] / "benchmarks" / "npu_headline.py")
PACKETS = Path(__file__).with_name("npu_packets.json")
#: Easy to compute with: a packet, a MAC tile row and a byte of DDR take whole microseconds.
CHIP = Chip(
    "easy", hvx_vector_bytes=128, hvx_contexts=1, hvx_cycles_per_packet=1, clock_hz=1e6, vtcm_bytes=1 << 20,
    vtcm_bytes_per_s=1e18, matrix_tile=64, matrix_macs_8=4096, matrix_macs_8_by_4=8192, matrix_macs_16=2048,
    ddr_peak_bytes_per_s=1e7, ddr_bytes_per_s=1e6, dma_setup_s=1e-3, pj_per_ddr_byte=5, pj_per_vtcm_byte=0.5,
    pj_per_mac_8=0.25, pj_per_mac_16=0.75, pj_per_packet=10, static_w=0.125,
)  # fmt: skip


class Function:
    """A tiled function, op by op."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        index = TensorType(i64, [tokens])
        self.function = func.FuncOp("decode", ([index, index], []))

    def emit(self, kind: Any, operands: list[Any], result: Any, **properties: Any) -> Any:
        op = kind.build_op(operands, result, "v", **properties)
        self.function.body.block.add_op(op)
        return op.results[0]

    def activation(self, width: int, element: Any = u8) -> Any:
        """Memory that takes no time."""
        return self.emit(htp_memory.EmptyOp, [], static(element, self.tokens, width, space=VTCM))

    def load(self, outputs: int, inputs: int, bits: int = 8) -> Any:
        kind = static(u8, *Records(outputs, inputs, bits).shape, space=VTCM)
        source = self.emit(htp_memory.EmptyOp, [], static(u8, *kind.get_shape(), space=DDR))
        return self.emit(htp_memory.DmaLoadOp, [source], TransferType(kind), first=0)

    def wait(self, transfer: Any) -> Any:
        return self.emit(htp_memory.DmaWaitOp, [transfer], transfer.type.tensor)

    def product(self, x: Any, weight: Any, outputs: int, bits: int = 8) -> Any:
        kind = static(u8, self.tokens, outputs, space=VTCM)
        return self.emit(
            htp_compute.FullyConnectedOp, [x, weight], kind, outputs=outputs, first=0, weight_bits=bits,
            group=0, acc_shift=0, zero_point=0,
        )  # fmt: skip

    def cost(self, chip: Chip = CHIP) -> FunctionCost:
        return function_cost(self.function, chip)


def one_product(tokens: int = 64, bits: int = 8, element: Any = u8) -> Function:
    """A copy of 64 x 64 weights, the wait, and the product."""
    f = Function(tokens)
    x = f.activation(64, element)
    f.product(x, f.wait(f.load(64, 64, bits)), 64, bits)
    return f


def test_one_product_by_hand() -> None:
    total = one_product().cost()
    copied = 2 * (512 + 32 * 64)  # two records
    transfer, matrix = 1e-3 + copied * 1e-6, 64**3 / 4096 * 1e-6
    load, wait, product = total.rows
    assert total.seconds == pytest.approx(transfer + matrix)
    assert (load.seconds, wait.stalled, product.seconds) == pytest.approx((0, transfer, matrix))
    assert (wait.bound, product.bound) == ("ddr", "matrix")
    assert total.ddr_bytes == copied and total.macs == 64**3
    # in VTCM: the copy is written; activations, weights and result are touched once
    picojoules = 5 * copied + 0.5 * (copied + 3 * 64 * 64) + 0.25 * 64**3
    assert total.joules == pytest.approx(1e-12 * picojoules + 0.125 * total.seconds)
    assert total.per_token["seconds"] == pytest.approx(total.seconds / 64)
    assert total.per_token["ddr_bytes"] == copied / 64
    assert sum(total.bounds.values()) == pytest.approx(total.seconds)
    assert {k: v.seconds for k, v in total.kinds.items()} == pytest.approx(
        {"htp.fully_connected": total.seconds}
    )


def test_a_copy_hides_behind_a_product() -> None:
    """The second copy runs while the first product does; only what is left of it stalls."""
    f = Function(64)
    x, weight = f.activation(64), f.wait(f.load(64, 64))
    second = f.load(64, 64)
    f.product(x, weight, 64)
    f.product(x, f.wait(second), 64)
    transfer, matrix = 1e-3 + 5120e-6, 64e-6
    total = f.cost()
    assert total.seconds == pytest.approx(2 * transfer + matrix)
    assert [r.stalled for r in total.rows if r.op == "htp.dma_wait"] == pytest.approx(
        [transfer, transfer - matrix]
    )
    slow = replace(CHIP, matrix_macs_8=4.096, hvx_cycles_per_packet=1e6)  # a product takes 64 ms
    total = f.cost(slow)
    assert total.seconds == pytest.approx(transfer + 2 * 64e-3)
    assert total.rows[-2].stalled == 0
    assert total.rows[-2].begin == pytest.approx(transfer + 64e-3)


def test_copies_share_one_queue() -> None:
    f = Function(64)
    first, second = f.load(64, 64), f.load(64, 64)
    f.wait(second)
    f.wait(first)
    total = f.cost()
    assert [r.stalled for r in total.rows[2:]] == pytest.approx([2 * (1e-3 + 5120e-6), 0])


def test_a_copy_into_ddr_is_waited_for() -> None:
    f = Function(64)
    dest = f.emit(htp_memory.EmptyOp, [], static(s32, 64, 64, space=DDR))
    kind = TransferType(dest.type)
    x = f.activation(32, s32)
    f.wait(f.emit(htp_memory.DmaStoreOp, [x, dest], kind, first=0))
    total = f.cost()
    assert total.seconds == pytest.approx(1e-3 + 64 * 32 * 4e-6)
    assert total.kinds["htp.empty"].ddr_bytes == 64 * 32 * 4


def wait_bound(chip: Chip) -> str:
    return one_product().cost(chip).rows[1].bound


def product_bound(chip: Chip) -> str:
    return one_product().cost(chip).rows[2].bound


@pytest.mark.parametrize(
    ("bound", "of", "change"),
    [
        ("dma set-up", wait_bound, {"dma_setup_s": 1.0}),
        ("ddr", wait_bound, {"ddr_bytes_per_s": 1.0}),
        ("hvx", product_bound, {"matrix_macs_8": 1e-3}),
        ("vtcm", product_bound, {"vtcm_bytes_per_s": 1.0}),
        ("matrix", product_bound, {"hvx_contexts": 1e-3}),
    ],
)
def test_bounds_change_with_the_chip(bound: str, of: Callable[[Chip], str], change: dict[str, float]) -> None:
    assert of(replace(CHIP, **change)) == bound


def test_a_function_must_be_tiled() -> None:
    f = Function(1)
    f.emit(htp_memory.EmptyOp, [], static(u8, 1, 64))
    with pytest.raises(IRError, match="@decode is not tiled"):
        f.cost()


@pytest.mark.parametrize("chip", [CHIP, *chips().values()], ids=lambda chip: chip.name)
def test_more_work_costs_more(chip: Chip) -> None:
    for element in (u8, u16):
        costs = [one_product(tokens, 8, element).cost(chip) for tokens in (1, 2, 8, 64, 65, 300)]
        assert sorted(costs, key=lambda c: c.seconds) == costs
        assert sorted(costs, key=lambda c: c.joules) == costs
    for tokens in (1, 100):
        four, eight = (one_product(tokens, bits).cost(chip) for bits in (4, 8))
        assert four.seconds < eight.seconds and four.ddr_bytes < eight.ddr_bytes
        narrow, wide = (one_product(tokens, 8, element).cost(chip) for element in (u8, u16))
        assert narrow.seconds < wide.seconds and narrow.joules < wide.joules


def test_part_of_a_tile_costs_a_tile() -> None:
    f = Function(1)
    f.product(f.activation(256), f.activation(256), 64)
    op = list(f.function.body.block.ops)[-1]
    chip = replace(CHIP, hvx_contexts=1e-6)
    assert cost(op, chip).matrix_cycles == 64 * 64 * 256 / 4096
    assert cost(op, chip).macs_8 == 64 * 256
    assert cost(op, replace(CHIP, matrix_macs_8=1e-6)).packets == packets(op)


def test_attention_costs_what_is_filled() -> None:
    for op in (scores(8, 4, 64, 1024), softmax(8, 4, 1024), weighted(8, 4, 64, 1024)):
        costs = [cost(op, CHIP, filled) for filled in (32, 512, 1024, None)]
        times = [max(c.seconds(CHIP).values()) for c in costs]
        assert times == sorted(times) and times[0] < times[1] < times[2]
    assert cost(scores(8, 4, 64, 1024), CHIP, 512).macs == 8 * 4 * 64 * 512
    wide = cost(weighted(8, 4, 64, 1024, u16), CHIP)
    assert wide.macs_16 == 2 * cost(weighted(8, 4, 64, 1024), CHIP).macs_16  # 16 by 16 bits


# ---- packets


def value(element: Any, *shape: int, space: str = VTCM) -> Any:
    return create_ssa_value(static(element, *shape, space=space))


def build(kind: Any, operands: list[Any], element: Any, *shape: int, **properties: Any) -> Any:
    return kind.build_op(operands, static(element, *shape, space=VTCM), "v", **properties)


def linear(tokens: int, inputs: int, outputs: int, element: Any, bits: int = 8, group: int = 0) -> Any:
    weight = value(u8, *Records(outputs, inputs, bits, group).shape)
    return build(
        htp_compute.FullyConnectedOp, [value(element, tokens, inputs), weight], element, tokens, outputs,
        outputs=outputs, first=0, weight_bits=bits, group=group, acc_shift=0, zero_point=0,
    )  # fmt: skip


def simple(kind: Any, element: Any, tokens: int, channels: int, *operands: Any, **properties: Any) -> Any:
    return build(kind, [value(element, tokens, channels), *operands], u8, tokens, channels, **properties)


def scores(tokens: int, heads: int, dim: int, capacity: int) -> Any:
    keys = value(u8, 1, htp_attention.key_bytes(capacity, dim))
    return build(
        htp_attention.MatMulKeysOp, [value(u8, tokens, heads * dim), keys], s32, tokens * heads, capacity,
        heads=heads, capacity=capacity, head=0, head_dim=dim,
    )  # fmt: skip


def softmax(tokens: int, heads: int, capacity: int) -> Any:
    operands = [value(s32, tokens * heads, capacity), value(s32, 2048)]
    return build(
        htp_attention.MaskedSoftmaxOp, operands, u16, tokens * heads, capacity, heads=heads,
        capacity=capacity, multiplier=0, shift=0,
    )  # fmt: skip


def weighted(tokens: int, heads: int, dim: int, capacity: int, element: Any = u8) -> Any:
    operands = [
        value(u16, tokens * heads, capacity),
        value(element, 1, htp_attention.value_bytes(capacity, dim)),
        value(u8, tokens, heads * dim),
    ]
    return build(
        htp_attention.MatMulValuesOp, operands, u8, tokens, heads * dim, heads=heads, capacity=capacity,
        head=0, head_dim=dim, v_zero=0, multiplier=0, shift=0, zero_point=0,
    )  # fmt: skip


def scale() -> Any:
    return value(s32, 1, 2, LANES)


def rotary(element: Any, channels: int, dim: int) -> Any:
    tables = [value(s16, 2, dim // 2) for _ in range(2)]
    return simple(htp_compute.RotaryEmbeddingOp, element, 2, channels, *tables, scale(), head_dim=dim)


#: The ops whose kernels' packets are recorded.
COUNTED: dict[str, Callable[[], Any]] = {
    "fully_connected u8, 4 tokens": lambda: linear(4, 256, 64, u8),
    "fully_connected u16, 1 token": lambda: linear(1, 256, 64, u16),
    "fully_connected 4-bit in groups": lambda: linear(4, 256, 64, u8, 4, 64),
    "norm": lambda: simple(htp_compute.RmsNormOp, u16, 2, 256, scale(), groups=1),
    "layer norm": lambda: simple(htp_compute.LayerNormOp, u16, 2, 256, scale(), groups=1),
    "rotary_embedding": lambda: rotary(u8, 128, 64),
    "rotary_embedding u16": lambda: rotary(u16, 128, 64),
    "rotary_embedding u16, 128 channels": lambda: rotary(u16, 256, 128),
    "multiply": lambda: simple(htp_compute.MultiplyOp, u16, 2, 256, value(u8, 2, 256), scale()),
    "add": lambda: simple(htp_compute.AddOp, u16, 1, 512, value(u8, 1, 512)),
    "table_lookup of 256": lambda: simple(htp_compute.NeuronOp, u8, 1, 512, value(u8, 256)),
    "table_lookup of knots": lambda: simple(htp_compute.NeuronOp, u16, 1, 512, value(s32, 1025)),
    "gather_tokens": lambda: build(
        htp_compute.GatherTokensOp,
        [create_ssa_value(TensorType(i64, [2])), value(s8, 7, 256, space=DDR)],
        u16, 2, 256,
    ),
    "scores": lambda: scores(2, 3, 64, 128),
    "softmax": lambda: softmax(2, 3, 128),
    "weighted_values": lambda: weighted(2, 3, 64, 128),
}  # fmt: skip
#: Positions in the cache after the recorded runs: two tokens from position 100 on.
FILLED = 102


@pytest.mark.parametrize("name", json.loads(PACKETS.read_text())["packets"])
def test_packets_are_those_counted(name: str) -> None:
    counted = json.loads(PACKETS.read_text())["packets"][name]
    assert packets(COUNTED[name](), FILLED) == pytest.approx(counted, rel=0.1)


# ---- chips


def test_every_parameter_matters() -> None:
    """Twice a parameter is another time or energy, but for what only checks."""
    functions = [one_product(64), one_product(64, 4), one_product(1), one_product(64, 8, u16)]
    slow_matrix = replace(CHIP, matrix_macs_8=1e-3)

    def figures(chip: Chip) -> list[float]:
        return [figure for f in functions for figure in (f.cost(chip).seconds, f.cost(chip).joules)]

    for name in set(UNITS) - {"vtcm_bytes", "ddr_peak_bytes_per_s"}:
        chips_ = CHIP, slow_matrix, replace(CHIP, vtcm_bytes_per_s=1.0)
        assert any(figures(replace(c, **{name: 2 * getattr(c, name)})) != figures(c) for c in chips_), name


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = CHIPS.read_text()
    assert old in text
    path = tmp_path / "chips.toml"
    path.write_text(text.replace(old, new, 1))
    return path


CLOCK = r"snapdragon-8-gen-3\.clock_hz"
ENTRY = '[snapdragon-8-gen-3.clock_hz]\nvalue = 1.47e9\nunit = "Hz"\nkind = "estimate"'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("8-gen-3.clock_hz]", "8-gen-3.clock]", r"snapdragon-8-gen-3\.clock is unknown; known: .*clock_hz"),
        (ENTRY, ENTRY.replace("1.47e9", '"fast"'), CLOCK + r"\.value must be .* number, got 'fast'"),
        (ENTRY, ENTRY.replace("1.47e9", "true"), CLOCK + r"\.value .* got True"),
        (ENTRY, ENTRY.replace("1.47e9", "-1"), CLOCK + r"\.value .* got -1"),
        (ENTRY, ENTRY.replace("1.47e9", "inf"), CLOCK + r"\.value .* got inf"),
        (ENTRY, ENTRY.replace('"Hz"', '"GHz"'), CLOCK + r"\.unit must be 'Hz', got 'GHz'"),
        (ENTRY, ENTRY.replace('"estimate"', '"guess"'), CLOCK + r"\.kind must be one of .*'guess'"),
        (ENTRY, ENTRY.replace('\nunit = "Hz"', ""), CLOCK + " must state value, unit"),
        (ENTRY, f"[snapdragon-8-gen-3]\ncores = 4\n{ENTRY}", r"snapdragon-8-gen-3\.cores is unknown"),
        ("[common.static_w]", "[snapdragon-8-gen-3.static_w]", "snapdragon-8-gen-2 has no static_w"),
        (ENTRY, ENTRY.replace("clock_hz", "static_w").replace("Hz", "W"), r"static_w is in \[common\] too"),
        ("value = 43e9", "value = 430e9", r"gen-3\.ddr_bytes_per_s is more than the peak"),
        ("# What", "name = 1\n# What", "name must be a table"),
        ("[common.static_w]", "[[common.static_w", "cannot read"),
    ],
)  # fmt: skip
def test_chips_are_checked(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chips(changed(tmp_path, old, new))


def test_both_chips_are_there() -> None:
    assert list(chips()) == ["snapdragon-8-gen-3", "snapdragon-8-gen-2"]
    three, two = chips().values()
    assert three.vtcm_bytes == two.vtcm_bytes == 8 << 20
    assert three.ddr_bytes_per_s > two.ddr_bytes_per_s
    with pytest.raises(InputError, match="cannot read"):
        chips(Path("/nowhere.toml"))


# ---- whole functions, without weights

SMALL = replace(headline.TINYLLAMA, layers=2)
W8A16, PLAN8, _, ALL8, W4A16, PLAN4, _, _ = headline.PLANS


@cache
def decode(plan: Any, capacity: int = 1024) -> func.FuncOp:
    return headline.tiled(SMALL, plan, 1, capacity)


@pytest.mark.parametrize("chip", chips().values(), ids=lambda chip: chip.name)
def test_decode_is_bounded_by_ddr(chip: Chip) -> None:
    total = function_cost(decode(PLAN8), chip)
    m = SMALL
    layer = 2 * m.hidden * (m.hidden + m.kv_heads * m.head_dim) + 3 * m.hidden * m.intermediate
    weights = m.layers * layer + m.hidden * m.vocabulary
    cached = m.layers * 2 * 1024 * m.kv_heads * m.head_dim
    assert weights + cached < total.ddr_bytes < 1.05 * (weights + cached)
    assert next(iter(total.busy)) == next(iter(total.bounds)) == "ddr"
    floor = total.ddr_bytes / chip.ddr_bytes_per_s
    assert floor < total.seconds < 1.15 * floor
    assert total.vtcm_peak < chip.vtcm_bytes
    faster = function_cost(decode(PLAN8), replace(chip, ddr_bytes_per_s=chip.ddr_peak_bytes_per_s))
    assert faster.seconds < total.seconds


def test_decode_orders_plans() -> None:
    chip = chips()["snapdragon-8-gen-3"]
    times = {p.name: function_cost(decode(p), chip) for p in (W8A16, PLAN8, ALL8, W4A16, PLAN4)}
    names = [W8A16.name, PLAN8.name, W4A16.name, PLAN4.name]
    assert sorted(names, key=lambda n: -times[n].seconds) == names
    assert sorted(names, key=lambda n: -times[n].joules) == names
    assert times[ALL8.name].seconds <= times[PLAN8.name].seconds
    longer = function_cost(decode(PLAN8, 2048), chip)
    assert longer.seconds > times[PLAN8.name].seconds


def test_energy_adds_up() -> None:
    chip = chips()["snapdragon-8-gen-3"]
    total = function_cost(decode(PLAN8), chip)
    parts = [row.cost for row in total.rows]
    picojoules = (
        chip.pj_per_ddr_byte * sum(c.ddr_bytes for c in parts)
        + chip.pj_per_vtcm_byte * sum(c.vtcm_bytes for c in parts)
        + chip.pj_per_mac_8 * sum(c.macs_8 for c in parts)
        + chip.pj_per_mac_16 * sum(c.macs_16 for c in parts)
        + chip.pj_per_packet * sum(c.packets for c in parts)
    )
    assert total.joules == pytest.approx(picojoules * 1e-12 + chip.static_w * total.seconds)
    assert total.seconds == pytest.approx(sum(row.seconds for row in total.rows))
    assert total.seconds == pytest.approx(sum(kind.seconds for kind in total.kinds.values()))
    assert max(total.busy.values()) <= total.seconds


@cache
def program() -> ModuleOp:
    functions = [headline.tiled(SMALL, PLAN8, tokens, 1024) for tokens in (128, 1)]
    for function in functions:
        function.detach()
    module = ModuleOp(functions)
    module.attributes["mqc.context"] = attr(1024)
    return module


def test_a_prompt_runs_in_pieces() -> None:
    functions = {f.sym_name.data: f for f in program().ops if isinstance(f, func.FuncOp)}
    assert list(pieces(functions, 2, 300, 1024)) == [
        ("prefill_128", 130), ("prefill_128", 258), ("prefill_128", 302),
    ]  # fmt: skip
    assert list(pieces(functions, 0, 130, 1024)) == [("prefill_128", 128), ("decode", 129), ("decode", 130)]
    assert list(pieces(functions, 0, 40, 100))[-1] == ("decode", 40)


def test_figures_of_a_program() -> None:
    found = {m.chip: m for m in modelled(program(), 256, 64)}
    assert list(found) == list(chips())
    three, two = found.values()
    for m in found.values():
        assert m.prefill.tokens_per_s > m.decode.tokens_per_s
        assert m.decode.bound == "ddr"
        total = function_cost(decode(PLAN8), chips()[m.chip], 256 + 32)
        assert m.decode.tokens_per_s == pytest.approx(1 / total.seconds)
        assert sum(m.decode.seconds_by_op.values()) == pytest.approx(total.seconds)
        assert m.prefill.memory_bytes_per_token < m.decode.memory_bytes_per_token / 100
    assert three.decode.tokens_per_s > two.decode.tokens_per_s
    with pytest.raises(InputError, match="1000 \\+ 64 tokens do not fit 1024"):
        modelled(program(), 1000, 64)


def test_bench_says_that_figures_are_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    data = benchmark.modelled(SimpleNamespace(target="npu-int8", module=program()), 256, 64)  # type: ignore[arg-type]
    assert data is not None and json.loads(json.dumps(data)) == data
    assert [entry["chip"] for entry in data["modelled"]] == list(chips())
    _show_modelled(data, True)
    assert json.loads(capsys.readouterr().out) == data
    _show_modelled(data, False)
    printed = capsys.readouterr().out
    for text in ("modelled", "prefill", "decode", "mJ", "ddr", "htp.masked_softmax", *chips()):
        assert text in printed
