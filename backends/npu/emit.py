"""The op list of an `htp` module: commands with addresses, in the order of the ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from mqc.analysis.htp_schedule import MAX_TRANSFERS, homes, state_layout, vtcm_bytes
from mqc.analysis.verification import verify_module
from mqc.backends.npu.commands import Command
from mqc.backends.npu.op_list import CommandList, OpList
from mqc.dialects import htp_attention, htp_compute, htp_memory
from mqc.dialects.constraints import bits
from mqc.dialects.htp_core import TransferType, shape, tensor_bytes
from mqc.errors import TargetError
from mqc.ir.module import function_ops, returned_value, static_functions
from mqc.ir.op import MqcOp, WeightAttr, channels, plain

#: Blocks of a scale operand are this far apart (`htp_core.SCALE`).
_SCALE_STEP = 256

#: Ops that no command stands for: they say what memory is.
SILENT = (htp_memory.ConstantOp, htp_memory.CacheOp, htp_memory.EmptyOp)
#: Addresses in the cache and in VTCM are s32.
_MOST_BYTES = 2**31 - 1

WeightOffset = Callable[[WeightAttr], int]


def emit(module: ModuleOp, offset: WeightOffset) -> OpList:
    """The op list of a module that went through `allocate-vtcm`: a list for each function, in order.

    Args:
        offset: where a constant begins in the weights file, in bytes.

    Raises `IRError` for a schedule that does not hold, `TargetError` for one that was not allocated.
    """
    verify_module(module)
    capacity = vtcm_bytes(module)
    if capacity is None:
        raise TargetError("npu: the module has no places in VTCM; run allocate-vtcm")
    places, size = state_layout(module)
    if max(capacity, size) > _MOST_BYTES:
        raise TargetError(
            f"npu: a KV cache of {size} bytes and VTCM of {capacity} bytes do not both have "
            "31-bit addresses; compile with a smaller context"
        )
    lists = [_Emitter(function, offset, places).run() for function in static_functions(module).values()]
    return OpList(capacity, size, channels(returned_value(module)), lists)


class _Emitter:
    def __init__(self, function: FuncOp, offset: WeightOffset, places: dict[str, int]) -> None:
        self.function, self.offset, self.places = function, offset, places
        self.home = homes(function)
        self.commands: list[Command] = []
        self.slots: dict[SSAValue, int] = {}
        self.rules: dict[type[MqcOp], Callable[[Any], None]] = {
            htp_memory.DmaLoadOp: self.load,
            htp_memory.DmaStoreOp: self.store,
            htp_memory.DmaWaitOp: self.wait,
            htp_compute.GatherTokensOp: self.gather_tokens,
            htp_compute.GatherPositionsOp: self.gather_positions,
            htp_compute.FullyConnectedOp: self.fully_connected,
            htp_compute.RmsNormOp: self.norm,
            htp_compute.LayerNormOp: self.norm,
            htp_compute.RotaryEmbeddingOp: self.rotary_embedding,
            htp_compute.MultiplyOp: self.multiply,
            htp_compute.AddOp: self.add,
            htp_compute.NeuronOp: self.table_lookup,
            htp_attention.CacheWriteKeysOp: self.write_keys,
            htp_attention.CacheWriteValuesOp: self.write_values,
            htp_attention.MatMulKeysOp: self.scores,
            htp_attention.MaskedSoftmaxOp: self.softmax,
            htp_attention.MatMulValuesOp: self.weighted_values,
        }

    def run(self) -> CommandList:
        for op in function_ops(self.function):
            if not isinstance(op, SILENT):
                if type(op) not in self.rules:
                    raise TargetError(f"npu: there is no command for {op.name} %{op.value_name}")
                self.rules[type(op)](op)
        return CommandList(shape(self.function.body.block.args[0])[0], self.commands)

    # ---- pieces

    def command(self, kind: str, op: MqcOp, out: int = 0, **fields: int) -> None:
        self.commands.append(Command(kind, out, fields, op.value_name))

    def place(self, value: SSAValue) -> int:
        """Address in VTCM."""
        return int(plain(self.home[value].attributes["offset"]))

    def constant(self, value: SSAValue) -> int:
        """Address in the weights file."""
        op = value.owner
        assert isinstance(op, htp_memory.ConstantOp)
        return self.offset(op.value)

    def cache(self, value: SSAValue) -> int:
        """Address in the KV cache."""
        op = self.home[value]
        assert isinstance(op, htp_memory.CacheOp)
        return self.places[op.state]

    def scale(self, value: SSAValue) -> dict[str, int]:
        return {"scale": self.place(value), "scale_step": _SCALE_STEP if shape(value)[0] > 1 else 0}

    def result(self, op: Any) -> dict[str, int]:
        return {"zero": op.get("zero_point"), "out_bits": bits(op.result)}

    # ---- memory

    def load(self, op: htp_memory.DmaLoadOp) -> None:
        kind = op.result.type
        assert isinstance(kind, TransferType)
        slot = min(set(range(MAX_TRANSFERS)) - set(self.slots.values()))
        self.slots[op.result] = slot
        size = tensor_bytes(kind.tensor)
        first = op.get("first") * size // kind.tensor.get_shape()[0]
        out = int(plain(op.attributes["offset"]))
        if isinstance(self.home[op.x], htp_memory.CacheOp):
            self.command("load_cache", op, out, transfer=slot, bytes=size, cache=self.cache(op.x) + first)
        else:
            self.command(
                "load_weights", op, out, transfer=slot, bytes=size, source=self.constant(op.x) + first
            )

    def store(self, op: htp_memory.DmaStoreOp) -> None:
        slot = min(set(range(MAX_TRANSFERS)) - set(self.slots.values()))
        self.slots[op.result] = slot
        self.command(
            "store_logits", op, transfer=slot, a=self.place(op.x), rows=shape(op.x)[0],
            row_bytes=4 * channels(op.x), column=4 * op.get("first"),
            logits_row_bytes=4 * channels(op.dest),
        )  # fmt: skip

    def wait(self, op: htp_memory.DmaWaitOp) -> None:
        self.command("wait", op, transfer=self.slots.pop(op.transfer))

    # ---- compute

    def gather_tokens(self, op: htp_compute.GatherTokensOp) -> None:
        self.command(
            "gather_tokens", op, self.place(op.result), tokens=op.tokens,
            by_position=int(op.indices is self.function.body.block.args[1]), width=channels(op.result),
            table=self.constant(op.table), multiplier_table=self.constant(op.multiplier),
            shift_table=self.constant(op.shift), **self.result(op),
        )  # fmt: skip

    def gather_positions(self, op: htp_compute.GatherPositionsOp) -> None:
        self.command(
            "gather_positions", op, self.place(op.result), tokens=op.tokens,
            row_bytes=tensor_bytes(op.result.type) // op.tokens, table=self.constant(op.table),
        )  # fmt: skip

    def fully_connected(self, op: htp_compute.FullyConnectedOp) -> None:
        width = bits(op.result) // 8
        self.command(
            "fully_connected", op, self.place(op.result) + op.get("first") * width,
            a=self.place(op.x), tokens=op.tokens, inputs=channels(op.x), outputs=op.get("outputs"),
            a_bits=bits(op.x), weight=self.place(op.weight), record_bytes=shape(op.weight)[1],
            weight_bits=op.get("weight_bits"), group=op.get("group"), acc_shift=op.get("acc_shift"),
            **self.result(op), out_row_bytes=channels(op.result) * width,
        )  # fmt: skip

    def norm(self, op: htp_compute.NormOp) -> None:
        self.command(
            "norm", op, self.place(op.result), a=self.place(op.x), tokens=op.tokens,
            channels=channels(op.x), groups=op.get("groups"),
            centered=int(isinstance(op, htp_compute.LayerNormOp)), a_bits=bits(op.x),
            a_zero=op.get("x_zero"), epsilon=op.get("epsilon"), **self.scale(op.scale),
            **self.result(op),
        )  # fmt: skip

    def rotary_embedding(self, op: htp_compute.RotaryEmbeddingOp) -> None:
        self.command(
            "rotary_embedding", op, self.place(op.result), a=self.place(op.x), cos=self.place(op.cos),
            sin=self.place(op.sin), tokens=op.tokens, channels=channels(op.x),
            head_dim=op.get("head_dim"), half=channels(op.cos), interleaved=op.get("interleaved"),
            a_bits=bits(op.x), a_zero=op.get("x_zero"), **self.scale(op.scale), **self.result(op),
        )  # fmt: skip

    def multiply(self, op: htp_compute.MultiplyOp) -> None:
        self.command(
            "multiply", op, self.place(op.result), a=self.place(op.a), b=self.place(op.b),
            tokens=op.tokens, channels=channels(op.result), a_bits=bits(op.a), b_bits=bits(op.b),
            a_zero=op.get("a_zero"), b_zero=op.get("b_zero"), acc_shift=op.get("acc_shift"),
            **self.scale(op.scale), **self.result(op),
        )  # fmt: skip

    def add(self, op: htp_compute.AddOp) -> None:
        self.command(
            "add", op, self.place(op.result), a=self.place(op.a), b=self.place(op.b),
            count=op.tokens * channels(op.result), a_bits=bits(op.a), b_bits=bits(op.b),
            **{f"{v}_{key}": op.get(f"{v}_{key}") for v in "ab" for key in ("zero", "multiplier", "shift")},
            **self.result(op),
        )  # fmt: skip

    def table_lookup(self, op: htp_compute.NeuronOp) -> None:
        self.command(
            "table_lookup", op, self.place(op.result), a=self.place(op.x),
            table_at=self.place(op.table), count=op.tokens * channels(op.x), a_bits=bits(op.x),
            segment_bits=op.get("segment_bits") or 0, out_bits=bits(op.result),
        )  # fmt: skip

    # ---- attention

    def written(self, op: htp_attention.CacheWriteOp) -> dict[str, int]:
        return {
            "a": self.place(op.x), "tokens": shape(op.x)[0], "heads": shape(op.result)[0],
            "head_dim": op.get("head_dim"), "cache": self.cache(op.result),
            "head_bytes": shape(op.result)[1],
        }  # fmt: skip

    def write_keys(self, op: htp_attention.CacheWriteKeysOp) -> None:
        self.command("write_keys", op, **self.written(op), q_zero=op.get("q_zero"))

    def write_values(self, op: htp_attention.CacheWriteValuesOp) -> None:
        self.command("write_values", op, **self.written(op), capacity=op.get("capacity"))

    def scores(self, op: htp_attention.MatMulKeysOp) -> None:
        self.command(
            "scores", op, self.place(op.result), a=self.place(op.q) + op.get("head") * op.get("head_dim"),
            keys=self.place(op.keys), tokens=shape(op.q)[0], heads=op.get("heads"),
            a_row_bytes=channels(op.q), head_dim=op.get("head_dim"), capacity=op.get("capacity"),
            window=op.get("window") or 0,
        )  # fmt: skip

    def softmax(self, op: htp_attention.MaskedSoftmaxOp) -> None:
        self.command(
            "softmax", op, self.place(op.result), a=self.place(op.x),
            exponentials=self.place(op.exponentials), tokens=shape(op.x)[0] // op.get("heads"),
            heads=op.get("heads"), capacity=op.get("capacity"), window=op.get("window") or 0,
            multiplier=op.get("multiplier"), shift=op.get("shift"),
        )  # fmt: skip

    def weighted_values(self, op: htp_attention.MatMulValuesOp) -> None:
        width = bits(op.result) // 8
        self.command(
            "weighted_values", op,
            self.place(op.result) + op.get("head") * op.get("head_dim") * width,
            a=self.place(op.p), values=self.place(op.values), tokens=op.tokens, heads=op.get("heads"),
            head_dim=op.get("head_dim"), capacity=op.get("capacity"), window=op.get("window") or 0,
            v_zero=op.get("v_zero"), multiplier=op.get("multiplier"), shift=op.get("shift"),
            **self.result(op), out_row_bytes=channels(op.result) * width,
        )  # fmt: skip
