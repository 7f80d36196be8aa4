"""Damaged programs with all hashes repaired are refused, or compute what the oracle does (`mutations`)."""

from __future__ import annotations

from pathlib import Path

import pytest

import mqc
from mqc.errors import ArtifactError
from mqc.ir.module import mqc_ops
from mqc.runtime.program import Program
from tests.runtime.mutations import KINDS, try_mutations


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_damaged_is_wrong(saved: Path, kind: str) -> None:
    found, faults = try_mutations(saved, kind, range(25))
    assert not faults and found["refused"] > 0


@pytest.mark.parametrize(
    ("op", "constant", "value", "match"),
    [
        ("embed_tokens", "shift", 127, r"shift must be in \[-31, 31\], and there is 127"),
        ("layers.1.mlp.mul", "shift", -32, "shift must be in"),
        ("layers.1.mlp.mul", "multiplier", 2**30 - 1, "multiplier must be 0 or of a magnitude"),
        ("layers.1.mlp.mul", "multiplier", -(2**31), "multiplier must be 0 or of a magnitude"),
        ("layers.0.mlp.up_proj", "bias", 2**31 - 1, "the accumulator of channel 0 can reach"),
    ],
)
def test_values_out_of_range_are_named(
    program: Program, tmp_path: Path, op: str, constant: str, value: int, match: str
) -> None:
    """A file that states the right hashes of them is refused when it is loaded."""
    module = program.module.clone()
    changed = next(o for o in mqc_ops(module) if o.value_name.startswith(op) and constant in o.properties)
    array = program.weights[changed.properties[constant]].copy()
    array[0] = value
    changed.properties[constant] = program.weights.add("changed", array)
    mqc.Program(module, program.weights, program.tokenizer, program.manifest).save(tmp_path / "x.mqc")
    with pytest.raises(ArtifactError, match=f"{op}.*{match}"):
        mqc.load(tmp_path / "x.mqc")
