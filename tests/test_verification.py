"""What a module may not state, and what an altered program may not do."""

from __future__ import annotations

import multiprocessing
import random
import re

import numpy as np
import pytest

from mqc.analysis.ir_text import parse_module, print_module
from mqc.analysis.liveness import check_memory_plan
from mqc.analysis.verification import verify_fully
from mqc.compiler.recipe import Recipe
from mqc.errors import ArtifactError, IRError, MqcError
from mqc.ir.weight_store import WeightStore
from mqc.registry import backend
from mqc.runtime.oracle import OracleEngine
from tests.compiled import lower_for_cpu, quantized
from tests.models import tiny_model


def compile_for_cpu(architecture: str) -> tuple[str, WeightStore]:
    ctx, module = quantized(tiny_model(architecture), Recipe(prefix=(9,)))
    lower_for_cpu(ctx, module)
    return print_module(module), ctx.weights


@pytest.fixture(scope="module")
def compiled() -> tuple[str, WeightStore]:
    return compile_for_cpu("llama")


def change(text: str, pattern: str, replacement: str) -> str:
    changed, count = re.subn(pattern, replacement, text, count=1, flags=re.S)
    assert count == 1 and changed != text
    return changed


ALTERATIONS = [
    (r"mqc\.context = \d+", "mqc.context = 0", "mqc.context must be"),
    (r"mqc\.context = \d+", "mqc.context = 65", "tables of 64 rows"),
    (r"mqc\.context = \d+", f"mqc.context = {2**40}", "mqc.context must be"),
    (r"mqc\.prefix = array<i64: \d+", "mqc.prefix = array<i64: 64", "mqc.prefix must be"),
    (r"mqc\.prefix = array<i64: (\d+)", r"mqc.prefix = array<i64: \1, 1", "prefix rows"),
    (r"layer = 1 : i64", "layer = 0 : i64", "keeps state key.0, as"),
    (r"heads = 4 : i64", "heads = 0 : i64", "kv_heads divides heads"),
    (r"kv_heads = \d+", "kv_heads = 0", "kv_heads divides heads"),
    (r"epsilon = \d+", "epsilon = 0", r"epsilon in \[1, 2\^62 - 1\]"),
    (r"groups = 1", "groups = 0", "groups of at most"),
    (r"head_dim = \d+", "head_dim = 7", "head_dim divides the channels"),
    (r'layout = "n16k4"', 'layout = "n16k5"', "layout of table one of"),
    (r'layout = "n16k4"', 'layout = "n16k4.s4"', "and of its bits does not hold"),
    (r"tensor<4x\d+x16x4xsi8>", "tensor<4x1x16x4xsi8>", "must be"),
    (r"(cos = [^>]*tensor<64x\d+x)si16", r"\1si32", "and must be si16"),
    (r"score_multiplier = (\d+)", r"score_multiplier = -\1", "score_multiplier not negative"),
    (r"func\.return %\S+ :", "func.return %ids :", "expected|type|logits"),
    (r"%ids: tensor<\?xi64>", "%ids: tensor<?xi32>", "must take token ids|type"),
]


@pytest.mark.parametrize(("pattern", "replacement", "message"), ALTERATIONS)
def test_altered_modules_are_refused(
    compiled: tuple[str, WeightStore], pattern: str, replacement: str, message: str
) -> None:
    with pytest.raises(IRError, match=message):
        parse_module(change(compiled[0], pattern, replacement))


def test_values_are_defined_before_they_are_used(compiled: tuple[str, WeightStore]) -> None:
    lines = compiled[0].splitlines()
    first = next(i for i, line in enumerate(lines) if "int.embedding" in line)
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    with pytest.raises(IRError, match="before it is defined"):
        parse_module("\n".join(lines))


def test_levels_do_not_mix(compiled: tuple[str, WeightStore]) -> None:
    with pytest.raises(IRError, match="does not belong to level llm"):
        parse_module(change(compiled[0], 'mqc.level = "int"', 'mqc.level = "llm"'))


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"offset = 64 : i64", "offset = 0 : i64", "lies on"),
        (r"offset = 64 : i64", "offset = 65 : i64", "no place in the arena"),
        (r"offset = 64 : i64", "offset = -64 : i64", "no place in the arena"),
        (r"mqc\.arena = \d+", "mqc.arena = 64", "no place in the arena"),
        (r", mqc\.arena = \d+ : i64", "", "states no mqc.arena"),
    ],
)
def test_memory_plans_that_do_not_hold(
    compiled: tuple[str, WeightStore], pattern: str, replacement: str, message: str
) -> None:
    check_memory_plan(parse_module(compiled[0]))
    with pytest.raises(IRError, match=message):
        check_memory_plan(parse_module(change(compiled[0], pattern, replacement)))


def test_full_verification_reads_the_weights(compiled: tuple[str, WeightStore]) -> None:
    text, weights = compiled
    module = parse_module(text)
    verify_fully(module, weights)
    altered = WeightStore()
    altered.update(weights)
    key, array = next((k, a) for k, a in altered._tensors.items() if a.dtype == np.int32)
    altered._tensors[key] = array + 1
    with pytest.raises(ArtifactError, match="was altered"):
        verify_fully(module, altered)


def _run(text: str, weights: WeightStore, answer: multiprocessing.Queue[str]) -> None:
    try:
        module = parse_module(text)
        engine = backend("cpu").engine(module, weights, threads=2)
        ids = np.arange(1, 20, dtype=np.int32)
        same = (engine.forward(ids) == OracleEngine(module, weights).forward(ids)).all()
        answer.put("equal" if same else "different")
    except MqcError:
        answer.put("refused")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "seed"), [("llama", 0), ("llama", 1), ("glm4_moe", 0), ("gpt_oss", 1), ("minicpm3", 0)]
)
def test_any_altered_number_is_refused_or_computed_as_the_oracle_does(architecture: str, seed: int) -> None:
    """In processes of their own: an access outside memory would end one by a signal. A server forks them,
    since this process has threads of other tests, whose locks a fork would copy as they are."""
    text, weights = compile_for_cpu(architecture)
    rng = random.Random(seed)
    spots = [m.span() for m in re.finditer(r"(?<![\w@.])-?\d+(?![\w.])", text)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    seen = set()
    for _ in range(40):
        begin, end = rng.choice(spots)
        old = int(text[begin:end])
        new = rng.choice([0, 1, -1, 255, 4096, 2**31 - 1, -(2**31), 2**63 - 1, old + 1, old * 2, old - 64])
        answer = context.Queue()
        child = context.Process(target=_run, args=(f"{text[:begin]}{new}{text[end:]}", weights, answer))
        child.start()
        child.join(120)
        assert child.exitcode == 0, f"{old} -> {new} in {text[begin - 80 : end + 20]!r}"
        seen.add(answer.get())
    assert seen == {"equal", "refused"}
