"""Records hold what they were packed from, and their bytes lie as the page says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqc.dialects.htp_core import factors, pack_scale
from mqc.numerics.htp_tiles import Records
from mqc.numerics.layouts import LAYOUTS, pack, records, unpack


@given(
    st.sampled_from([name for name in LAYOUTS if name.startswith("records")]),
    st.integers(1, 70), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=80)
def test_records_invert(layout: str, n: int, k: int, groups: int, seed: int) -> None:
    group = int(layout.partition(".g")[2] or 0)
    sizes = records(layout, n, groups * group or k)
    rng = np.random.default_rng(seed)
    low = -8 if sizes.bits == 4 else -128
    weight = rng.integers(low, -low, (n, sizes.inputs)).astype(np.int8)
    parameters = rng.integers(-(2**31), 2**31, (4, n))
    factor = rng.integers(1, 17, (n, groups)).astype(np.uint8) if group else None
    packed = sizes.pack(weight, parameters[:2], parameters[2], parameters[3], factor)
    assert packed.shape == sizes.shape
    assert (unpack(packed, layout, n, sizes.inputs) == weight).all()
    assert (sizes.parameters(packed) == parameters).all()
    assert factor is None or (sizes.factors(packed) == factor).all()
    # any run of records is the records of these outputs
    part = packed[1:2]
    if len(part):
        some = Records(min(32, n - 32), sizes.inputs, sizes.bits, sizes.group)
        assert (some.weights(part) == weight[32:64]).all()


def test_bytes_of_a_record() -> None:
    """Written out by hand: two outputs, five inputs."""
    weight = np.array([[1, 2, 3, 4, 5], [-1, -2, -3, -4, -5]], np.int8)
    zeros = np.zeros(2, np.int64)
    packed = Records(2, 5).pack(weight, np.array([[7, 8], [0, 0]]), zeros, np.array([-3, 4]))
    assert packed.shape == (1, 512 + 2 * 128)
    assert packed[0, :8].view(np.int32).tolist() == [7, 8]
    assert packed[0, 384:392].view(np.int32).tolist() == [-3, 4]
    assert packed[0, 512:520].view(np.int8).tolist() == [1, 2, 3, 4, -1, -2, -3, -4]
    assert packed[0, 640:648].view(np.int8).tolist() == [5, 0, 0, 0, -5, 0, 0, 0]
    four = Records(2, 5, bits=4).pack(weight, np.zeros((2, 2)), zeros, zeros)
    assert four.shape == (1, 512 + 128)
    assert four[0, 512:516].tolist() == [0x51, 0x02, 0x03, 0x04]


@given(st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_scales_invert(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, s = rng.integers(-(2**31), 2**31, count), rng.integers(-31, 32, count)
    got = factors(pack_scale(m, s), count)
    assert (got[0] == m).all() and (got[1] == s).all()


def test_records_are_not_packed_without_parameters() -> None:
    with pytest.raises(ValueError, match="holds more than weights"):
        pack(np.zeros((4, 4), np.int8), "records")
