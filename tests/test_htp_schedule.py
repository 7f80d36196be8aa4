"""The verifier of level `htp`: planted faults are refused, and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp, f32
from xdsl.dialects.func import FuncOp

from mqc.analysis.htp_schedule import Buffer, buffers, check_schedule, lower_bound
from mqc.analysis.verification import verify_module
from mqc.compiler.pass_manager import Pipeline
from mqc.dialects.htp_attention import CacheWriteKeysOp, MaskedSoftmaxOp, MatMulValuesOp
from mqc.dialects.htp_compute import AddOp, FullyConnectedOp, GatherPositionsOp, RmsNormOp
from mqc.dialects.htp_core import DDR, VTCM, in_space, shape, static
from mqc.dialects.htp_memory import CacheOp, DmaLoadOp, DmaStoreOp, DmaWaitOp, EmptyOp
from mqc.errors import IRError
from mqc.ir.module import function_ops, static_functions
from mqc.ir.op import attr, s8, s16, u8, u16
from mqc.passes.allocate_vtcm import AllocateVtcm
from tests.compiled import lower_for_npu, quantized
from tests.models import tiny_model


@pytest.fixture(scope="module")
def whole() -> ModuleOp:
    ctx, module = quantized(tiny_model("llama"))
    lower_for_npu(ctx, module, tile=2048)
    return module


@pytest.fixture
def module(whole: ModuleOp) -> ModuleOp:
    verify_module(whole)
    return whole.clone()


def decode(module: ModuleOp) -> FuncOp:
    return static_functions(module)["decode"]


def ops(module: ModuleOp, kind: type[Any]) -> list[Any]:
    return [op for op in function_ops(decode(module)) if isinstance(op, kind)]


def overlap(module: ModuleOp) -> None:
    found = buffers(decode(module))
    one = next(b for b in found if b.last > b.first + 2)
    two = next(b for b in found if one.first < b.first <= one.last)
    two.op.attributes["offset"] = one.op.attributes["offset"]


def no_place(module: ModuleOp) -> None:
    del ops(module, AddOp)[0].attributes["offset"]


def outside(module: ModuleOp) -> None:
    ops(module, AddOp)[0].attributes["offset"] = attr((1 << 20) - 128)


def misaligned(module: ModuleOp) -> None:
    ops(module, AddOp)[0].attributes["offset"] = attr(64)


def misaligned_copy(module: ModuleOp) -> None:
    ops(module, DmaLoadOp)[0].attributes["offset"] = attr(64)


def misaligned_tile(module: ModuleOp) -> None:
    op = next(op for op in ops(module, FullyConnectedOp) if op.dest is not None and op.get("first"))
    op.properties["first"] = attr(op.get("first") - 16)


def read_before_the_end(module: ModuleOp) -> None:
    wait = next(op for op in ops(module, DmaWaitOp) if isinstance(op.transfer.owner, DmaLoadOp))
    wait.result.replace_all_uses_with(wait.transfer)


def no_wait(module: ModuleOp) -> None:
    store = ops(module, DmaStoreOp)[-1]
    (use,) = store.result.uses
    use.operation.results[0].replace_all_uses_with(store.dest)
    use.operation.detach()
    use.operation.erase()


def waited_for_twice(module: ModuleOp) -> None:
    load = ops(module, DmaLoadOp)[0]
    (use,) = load.result.uses
    again = use.operation.clone()
    decode(module).body.block.insert_op_after(again, use.operation)


def illegal_type(module: ModuleOp) -> None:
    ops(module, RmsNormOp)[0].result._type = static(s8, *shape(ops(module, RmsNormOp)[0].result), space=VTCM)


def wrong_memory(module: ModuleOp) -> None:
    op = ops(module, AddOp)[0]
    op.result._type = in_space(op.result.type, DDR)


def rows_that_are_not_there(module: ModuleOp) -> None:
    ops(module, DmaLoadOp)[0].properties["first"] = attr(1 << 20)


def rotary_rows_by_token(module: ModuleOp) -> None:
    ops(module, GatherPositionsOp)[0].operands[0] = decode(module).body.block.args[0]


def cache_read_twice(module: ModuleOp) -> None:
    op = ops(module, CacheOp)[0]
    decode(module).body.block.insert_op_after(op.clone(), op)


def cache_too_small(module: ModuleOp) -> None:
    op = ops(module, MaskedSoftmaxOp)[0]
    op.properties["capacity"] = attr(32)


def continued_twice(module: ModuleOp) -> None:
    op = ops(module, CacheWriteKeysOp)[0]
    again = op.clone()
    decode(module).body.block.insert_op_after(again, op)


def out_of_order(module: ModuleOp) -> None:
    op = ops(module, AddOp)[0]
    op.detach()
    block = decode(module).body.block
    block.insert_op_before(op, block.first_op)  # type: ignore[arg-type]


def other_cache(module: ModuleOp) -> None:
    one, two = ops(module, CacheWriteKeysOp)[:2]
    two.operands[1] = one.result


def column_left_out(module: ModuleOp) -> None:
    op = next(op for op in ops(module, FullyConnectedOp) if op.dest is not None and op.get("first"))
    op.properties["first"] = attr(0)


def more_rows_than_tokens(module: ModuleOp) -> None:
    op = ops(module, GatherPositionsOp)[0]
    op.result._type = static(s16, 2, shape(op.result)[1], space=VTCM)


def two_sizes_of_a_cache(module: ModuleOp) -> None:
    for op in function_ops(decode(module)):
        if isinstance(op, CacheOp):
            op.result._type = static(u8, shape(op.result)[0] + 1, shape(op.result)[1], space=DDR)


def tile_of_another_type(module: ModuleOp) -> None:
    op = ops(module, MatMulValuesOp)[-1]
    op.result._type = static(u16, *shape(op.result), space=VTCM)


def float_memory(module: ModuleOp) -> None:
    op = ops(module, EmptyOp)[0]
    op.result._type = static(f32, *shape(op.result), space=VTCM)


FAULTS: dict[Callable[[ModuleOp], None], str] = {
    overlap: r"@decode: %\S+ lies on %\S+, which is in use until op",
    no_place: r"has no place in VTCM of 1048576 bytes; run allocate-vtcm",
    outside: r"has no place in VTCM",
    misaligned: r"htp.element_wise_add %\S+: offset 64 must be a multiple of 128",
    misaligned_copy: r"htp.dma_load %\S+: offset must be a multiple of 128",
    misaligned_tile: r"first a multiple of 32 \(a tile begins with a record\) does not hold",
    read_before_the_end: r"!htp.transfer<.*> should be of base attribute tensor",
    no_wait: r"htp.empty %lm_head has columns from \d+ on that are not written",
    waited_for_twice: r"htp.dma_load %\S+ must be waited for by one htp.dma_wait",
    illegal_type: r"result tensor<1x\d+xsi8, \"vtcm\"> must have ui8 or ui16 elements",
    wrong_memory: r"must lie in vtcm",
    rows_that_are_not_there: r"has no such rows",
    rotary_rows_by_token: r"must take its rows by position",
    cache_read_twice: r"reads the state key.0 again",
    cache_too_small: r"heads rows for each token, as wide as capacity does not hold",
    continued_twice: r"in place, which another op uses too",
    out_of_order: r"before it is defined",
    other_cache: r"must write to an htp.cache",
    column_left_out: r"has columns from \d+ on that are not written, or twice",
    more_rows_than_tokens: r"a row for each index does not hold",
    two_sizes_of_a_cache: r"shaped like the result does not hold|has two sizes",
    tile_of_another_type: r"dest of the result's type does not hold",
    float_memory: r"is no static tensor of integers",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_faults_are_refused(module: ModuleOp, fault: Callable[[ModuleOp], None]) -> None:
    fault(module)
    with pytest.raises(IRError, match=FAULTS[fault]):
        verify_module(module)


def test_a_schedule_says_what_it_uses(module: ModuleOp) -> None:
    used = check_schedule(module)
    for name, function in static_functions(module).items():
        assert used[name] == function.attributes["vtcm_peak"].value.data  # type: ignore[attr-defined]
        assert lower_bound(buffers(function)) <= used[name] <= 1.1 * lower_bound(buffers(function))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.integers(1, 40)), min_size=1, max_size=25),
)
@settings(max_examples=60)
def test_allocation_never_overlaps_and_is_bounded(drawn: list[tuple[int, int, int]]) -> None:
    """Against a plain check of all pairs."""
    kind = static(u8, 1, 1, space=VTCM)
    found = [
        Buffer(EmptyOp.build_op([], kind), first, first + length, 128 * size) for first, length, size in drawn
    ]
    peak = AllocateVtcm(vtcm_bytes=1 << 30).place("f", found)
    for i, one in enumerate(found):
        assert one.offset is not None and one.offset % 128 == 0 and one.offset + one.size <= peak
        for two in found[:i]:
            apart = one.last < two.first or two.last < one.first
            assert two.offset is not None
            assert apart or one.offset + one.size <= two.offset or two.offset + two.size <= one.offset
    times = range(60)
    assert lower_bound(found) == max(sum(b.size for b in found if b.first <= t <= b.last) for t in times)


def test_level_htp_needs_its_functions(module: ModuleOp) -> None:
    function = decode(module)
    function.detach()
    with pytest.raises(IRError, match="needs @decode"):
        verify_module(module)


def test_an_unallocated_module_is_valid_and_not_runnable() -> None:
    ctx, module = quantized(tiny_model("llama"))
    Pipeline.parse('choose-kernels{backend="npu"},lower-to-htp,tile-htp').run(ctx, module)
    verify_module(module)
    with pytest.raises(IRError, match="run allocate-vtcm"):
        check_schedule(module)
