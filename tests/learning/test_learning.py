"""Learning on tiny models: it helps, it repeats, it resumes, and it is shared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.ir_text import print_module
from mqc.compiler.pass_manager import Pipeline
from mqc.dialects.quant import uniform
from mqc.errors import ArtifactError, RecipeError
from mqc.ir.module import mqc_ops
from mqc.learning.activations import Activations
from mqc.learning.methods import divergence
from mqc.learning.student import FloatModel, Student
from mqc.learning.training import Checkpoint, Processes, Schedule, minimize
from mqc.passes.learn_ranges import LearnRanges
from tests.learning.test_student import CPU, at_quant, logits, relative_error
from tests.models import ARCHITECTURES

SHORT: dict[str, Any] = {"steps": 12, "length": 32, "lr_ranges": 0.01, "lr_scales": 0.01}


def learn(architecture: str = "llama", **options: Any) -> tuple[CompilerContext, ModuleOp]:
    ctx, module = at_quant(architecture)
    LearnRanges(**{**SHORT, **options}).run(ctx, module)
    return ctx, module


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "kl"},
        {"loss": "features"},
        {"loss": "hidden"},
        {"method": "layer-wise"},
        {"lr_clipping": 0.05, "weight_bits": 4},
    ],
    ids=str,
)
def test_the_loss_falls(options: dict[str, Any]) -> None:
    ctx, module = at_quant("llama")
    spoiled = Student(ctx, module, CPU, None)
    with torch.no_grad():
        for step in spoiled.parameters.steps.values():
            step += 0.7
            step.requires_grad_()
    spoiled.fold()
    losses: list[float] = []
    ctx.progress = lambda message, share: losses.extend(  # type: ignore[method-assign]
        float(message.rpartition(" ")[2]) for _ in range("loss" in message and "layer 2" not in message)
    )
    LearnRanges(**{**SHORT, "steps": 40, "lr_ranges": 0.02, **options}).run(ctx, module)
    assert len(losses) == 40
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_learned_integers_lower_the_loss() -> None:
    """With everything else fixed, on the windows that they are learned from."""
    ctx, module = at_quant("llama")
    Pipeline.parse("quantize-weights{bits=4 keep_reference=true}").run(ctx, module)
    assert ctx.calibration is not None
    windows = ctx.calibration.part(4, 32)

    def loss() -> float:
        teacher, student = FloatModel(ctx, module, CPU), Student(ctx, module, CPU)
        with torch.no_grad():
            got, want = (
                torch.cat([m.run_ops(mqc_ops(module), m.arguments(window)) for window in windows])
                for m in (student, teacher)
            )
            return float(divergence(got, want))

    before = loss()
    only = {"lr_ranges": 0.0, "lr_scales": 0.0, "lr_rounding": 0.005}
    LearnRanges(steps=40, samples=4, length=32, batch=4, **only).run(ctx, module)
    assert loss() < 0.9 * before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_learning_preserves_the_float_function(architecture: str) -> None:
    ctx, module = at_quant(architecture)
    before = logits(FloatModel(ctx, module, CPU), module)
    LearnRanges(**SHORT).run(ctx, module)
    assert relative_error(logits(FloatModel(ctx, module, CPU), module), before) < 1e-5


def test_mse_grid_lowers_the_squared_error_of_the_extremes() -> None:
    ctx, module = at_quant("llama")
    assert ctx.calibration is not None
    before = [uniform(op.results[0]) for op in mqc_ops(module)]
    model = FloatModel(ctx, module, CPU)
    with torch.no_grad():
        values = [
            [result for _, result in model.walk(mqc_ops(module), model.arguments(window))]
            for window in ctx.calibration.windows
        ]
    LearnRanges(method="mse-grid").run(ctx, module)
    ratios = []
    for i, (op, old) in enumerate(zip(mqc_ops(module), before, strict=True)):
        new = uniform(op.results[0])
        if new is not None and old is not None and new.bits == 8:
            results = torch.cat([window[i] for window in values])
            errors = [float((kind.fake_quantize(results) - results).square().sum()) for kind in (new, old)]
            ratios.append(errors[0] / errors[1])
    assert max(ratios) < 1.05 and min(ratios) < 0.98


def test_two_runs_are_equal_to_the_bit() -> None:
    assert print_module(learn()[1]) == print_module(learn()[1])
    assert print_module(learn()[1]) != print_module(learn(seed=1)[1])


def test_windows_that_no_step_uses_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, module = learn(method="layer-wise", steps=3)
    assert ctx.calibration is not None and len(ctx.calibration.part(256, SHORT["length"])) > 3
    monkeypatch.setattr(Schedule, "all_windows", lambda self, count: list(range(count)))
    assert print_module(module) == print_module(learn(method="layer-wise", steps=3)[1])


@pytest.mark.parametrize("method", ["end-to-end", "layer-wise"])
def test_memory_bound_changes_nothing(method: str) -> None:
    """Without memory, layers are evaluated twice and caches lie in a file."""
    assert print_module(learn(method=method, memory=0)[1]) == print_module(learn(method=method)[1])


@given(bound=st.integers(0, 2000), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_cached_activations_are_what_was_stored(bound: int, seed: int) -> None:
    values = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed))
    cache = Activations(3, 5, 7, bound)
    assert cache.mapped == (bound < 4 * 3 * 5 * 7)
    for i in (2, 0):
        cache[i] = values[i]
    assert [i in cache for i in range(3)] == [True, False, True]
    assert torch.equal(cache.get(2, CPU), values[2]) and torch.equal(cache.get(0, CPU), values[0])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", ["end-to-end", "layer-wise"])
def test_an_interrupted_run_ends_the_same(method: str, tmp_path: Path) -> None:
    options = {**SHORT, "method": method, "steps": 24}
    want = learn(**options)
    ctx, module = at_quant("llama")
    ctx.checkpoints = tmp_path
    calls = 0

    def interrupt(message: str, share: float) -> None:
        nonlocal calls
        calls += "loss" in message
        if calls == 17:
            raise Interrupted

    ctx.progress = interrupt  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        LearnRanges(**options).run(ctx, module)
    steps = []
    ctx, module = at_quant("llama")
    ctx.checkpoints = tmp_path
    ctx.progress = lambda message, share: steps.append(message)  # type: ignore[method-assign]
    LearnRanges(**options).run(ctx, module)
    assert print_module(module) == print_module(want[1])
    assert len([s for s in steps if "loss" in s]) == (1 if method == "end-to-end" else 2) * 24 - 10


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    ctx, module = at_quant("llama")
    ctx.checkpoints = tmp_path
    LearnRanges(**SHORT).run(ctx, module)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    ctx, module = at_quant("llama")
    ctx.checkpoints = tmp_path
    with pytest.raises(ArtifactError, match="delete it to begin anew"):
        LearnRanges(**SHORT).run(ctx, module)


def test_a_checkpoint_of_another_start_is_not_taken(tmp_path: Path) -> None:
    for seed in (0, 1):
        ctx, module = at_quant("llama")
        ctx.checkpoints = tmp_path
        LearnRanges(**SHORT, seed=seed).run(ctx, module)
    assert len(list(tmp_path.iterdir())) == 2


def test_minimize_reaches_the_minimum() -> None:
    x = torch.zeros(2, requires_grad=True)
    targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    steps = minimize(
        [(0.3, [x])], lambda i: (x - targets[i]).square().sum(), 2,
        Schedule(100, 2, 0), Processes(), Checkpoint(None),
    )  # fmt: skip
    assert [done for done, _ in steps] == list(range(1, 101))
    torch.testing.assert_close(x.detach(), torch.tensor([2.0, 3.0]), atol=0.05, rtol=0)


def test_checkpoints_of_different_steps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes were killed, one before it had written and one after."""
    monkeypatch.setattr(Processes, "gather", lambda self, number: [number, 10])
    x = torch.zeros(2, requires_grad=True)
    steps = minimize(
        [(0.3, [x])], lambda i: x.sum(), 2, Schedule(100, 2, 0), Processes(0, 2), Checkpoint(tmp_path / "a")
    )
    with pytest.raises(ArtifactError, match=r"2 processes beside .*a are of steps \[0, 10\]; delete them"):
        next(steps)


WORKER = """
import sys, torch
from pathlib import Path
from mqc.analysis.ir_text import print_module
from mqc.learning.training import Processes
from tests.learning.test_learning import learn
ctx, module = learn(batch=4, steps=4)
rank = Processes.join(torch.device("cpu")).rank
Path(sys.argv[1], f"{rank}.mlir").write_text(print_module(module))
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    root = Path(__file__).parents[2]
    torchrun = sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"
    started = subprocess.run(
        [*torchrun, script, tmp_path],
        cwd=root, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert started.returncode == 0, started.stderr[-2000:]
    texts = [(tmp_path / f"{rank}.mlir").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have
    _, alone = learn(batch=4, steps=4)
    torch.set_num_threads(threads)
    assert scales(texts[0]) == pytest.approx(scales(print_module(alone)), rel=1e-4)


def scales(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"uniform<u\d+:f32, ([0-9.e-]+):", text)]


def test_more_processes_than_windows_of_a_step_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "join", lambda device: Processes(0, 2))
    with pytest.raises(RecipeError, match=r"2 processes share the windows of a step evenly, .*batch=1"):
        learn()


def test_quantized_weights_need_their_reference() -> None:
    ctx, module = at_quant("llama")
    Pipeline.parse("quantize-weights").run(ctx, module)
    with pytest.raises(RecipeError, match="keep_reference=true"):
        LearnRanges(**SHORT).run(ctx, module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adam"}, "is none of mse-grid"),
        ({"loss": "mae"}, "is none of kl"),
        ({"weight_bits": 3}, "weight_bits 3 is none of 0, 4, 8"),
        ({"steps": 0}, "must be 1 or more"),
        ({"lr_rounding": 0.001}, "lr_rounding has nothing to learn here: it needs weights that quantize"),
        ({"lr_weights": 0.001}, "lr_weights has nothing to learn here"),
        ({"lr_clipping": 0.001}, "lr_clipping has nothing to learn here: it needs float weights"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    ctx, module = at_quant("llama")
    with pytest.raises(RecipeError, match=message):
        LearnRanges(**options).run(ctx, module)


def test_groups_cannot_be_scaled_once_weights_are_rounded() -> None:
    ctx, module = at_quant("llama")
    Pipeline.parse("quantize-weights{keep_reference=true}").run(ctx, module)
    with pytest.raises(RecipeError, match="lr_scales has nothing to learn here: it needs float weights"):
        LearnRanges(**SHORT).run(ctx, module)
