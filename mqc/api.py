"""`mqc.compile`: from a Hugging Face model to an integer-only program."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqc.analysis.context import CompilerContext
from mqc.analysis.verification import verify_module
from mqc.calibration import window_length
from mqc.compiler.dump import RECIPE, Dump
from mqc.compiler.instruments import Instrument
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe, load_recipe
from mqc.compiler.reproducer import reproducer_folder
from mqc.errors import InputError, MqcError
from mqc.ir.module import experts_not_chosen, mqc_ops, searched_precision
from mqc.ir.spill import check_room, return_freed_memory, temporary_bytes
from mqc.registry import backend_for
from mqc.runtime.calibration_text import Conversation, calibration_from, packaged_calibration
from mqc.runtime.program import Program
from mqc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from mqc.compiler.estimate import Estimate

Progress = Callable[[str, float], None]


class _Context(CompilerContext):
    def __init__(self, report: Progress | None) -> None:
        super().__init__()
        self._report = report

    def progress(self, message: str, share: float) -> None:
        if self._report is not None:
            self._report(message, share)


def pipeline(target: str, recipe: str | Path | Recipe = "w8a8") -> Pipeline:
    """The passes that `compile` runs for a target and a recipe, to edit and pass back."""
    return load_recipe(recipe).pipeline(backend_for(target).name)


def compile(
    model: Any,
    target: str = "cpu-int8",
    recipe: str | Path | Recipe = "w8a8",
    *,
    base: str | None = None,
    encodings: str | Path | None = None,
    tokenizer: Any = None,
    calibration: str | Sequence[Conversation] | None = None,
    passes: Pipeline | str | None = None,
    context: int | None = None,
    checkpoints: str | Path | None = None,
    dump_ir: str | Path | None = None,
    instruments: Iterable[Instrument] = (),
    verify_each: bool = False,
    progress: Progress | None = None,
) -> Program:
    """Compile a decoder LLM to a program that holds no floating-point operation.

    Args:
        model: a transformers model, or a string: `demo`, a folder, a folder with a LoRA adapter, a GGUF file,
            or a Hugging Face id.
        target: what the program is for; `mqc targets` lists them.
        recipe: how to quantize: a name, a TOML file or a `Recipe`.
        base: the model that an adapter adapts, by name; None for the one that the adapter names.
        encodings: a file with AIMET's encodings of a float model that is given by name.
        tokenizer: its transformers tokenizer; loaded with the model if `model` is a string.
        calibration: what to observe ranges on: a text, or conversations, each a list of messages for the
            tokenizer's chat template. None: packaged text, code, and conversations if there is a template.
        passes: a pipeline to run instead of the recipe's, as text or from `mqc.pipeline`.
        context: positions of the KV cache, prefix included; at most what the model was made for, which is
            the default where that is less than 2,048.
        checkpoints: folder where passes that learn keep their state; a run that was interrupted goes on
            from there, if it is the same in all else.
        dump_ir: folder for the IR after each pass; `MQC_DUMP` in the environment does the same.
        instruments: called before and after each pass, e.g. `PrintIR(after_passes="fold-norm")`.
        verify_each: verify weights and accumulators too after each pass.
        progress: called with the step's name and the share of it done, 0 to 1.

    Raises:
        ModelError, UnsupportedOpError: the model cannot be compiled.
        CalibrationError, RecipeError, TargetError, PassError: see `mqc.errors`. If a pass fails, the
            module that it was given is written to the temporary folder, and the error's notes hold
            the command that reproduces the failure.
        StorageError: there is no room for temporary files, which take up to two and a half times the bytes
            of the weights as f32 (`MQC_TMP` names their folder).

    Time grows linearly with the number of layers. Memory peaks at what is alive between two ops in all
    calibration windows; weights are in mapped files, and a model given by name stays in its own, if all of
    its tensors have one float type.
    """
    chosen = load_recipe(recipe)
    steps = _pipeline(target, chosen, passes)
    report = progress or (lambda message, share: None)

    # Here, since they take seconds: what is wrong above is said at once.
    from mqc.frontend.fidelity import check_against_model
    from mqc.frontend.raising import raise_program
    from mqc.frontend.sources import load_source, model_hash
    from mqc.frontend.trace import longest_sequence, trace

    origin: dict[str, Any] = {"kind": "object"}
    given = None
    if isinstance(model, str | Path):
        report("loading the model", 0.0)
        source = load_source(str(model), base, encodings)
        model, tokenizer, origin = source.model, tokenizer or source.tokenizer, dict(source.info)
        given = source.given
        del source
        report("loading the model", 1.0)
    elif encodings is not None:
        raise InputError("encodings are of a model that is given by its name: give the model's folder")
    elif base is not None:
        raise InputError("base is the name of a model that an adapter adapts: give the adapter's folder")
    if tokenizer is None:
        raise InputError("compile needs the model's tokenizer: pass tokenizer=…")

    ctx = _Context(progress)
    ctx.checkpoints = None if checkpoints is None else Path(checkpoints)
    positions = _context(longest_sequence(getattr(model, "config", None)), context)
    generation = getattr(model, "generation_config", None)
    packed = Tokenizer.from_huggingface(tokenizer, None if generation is None else generation.to_diff_dict())
    report("tracing", 0.0)
    exported = trace(model)
    check_room(temporary_bytes(sum(p.numel() for p in model.parameters())), "compiling the model")
    vocabulary = model.get_output_embeddings().weight.shape[0]
    module = raise_program(exported, ctx.weights, positions, vocabulary, given)
    stated = None if given is None else given.state_types(module)
    verify_module(module)
    steps.check(module)
    length = window_length(positions)
    if calibration is None:
        ctx.calibration = packaged_calibration(packed, vocabulary, length)
    else:
        ctx.calibration = calibration_from(packed, calibration, vocabulary, length)
    report("tracing", 1.0)
    del exported
    report("comparing with the model", 0.0)
    check_against_model(model, module, ctx.weights)
    report("comparing with the model", 1.0)
    origin["hash"] = model_hash(model)
    del model, tokenizer  # passes replace weights: what only the model holds is freed
    gc.collect()  # models and exported programs are cycles of objects
    return_freed_memory()

    watching = list(instruments)
    folder = dump_ir or os.environ.get("MQC_DUMP")
    if folder:
        dump = Dump(Path(folder))
        dump.start(ctx, module, {RECIPE: chosen.to_toml(), **packed.files})
        watching.append(dump)
    steps.run(ctx, module, watching, verify_each=verify_each, reproducer=reproducer_folder())
    manifest = {
        "mqc_version": version("mqc"),
        "target": target,
        "recipe": chosen.name if passes is None else f"{chosen.name}, passes given",
        "pipeline": str(steps),
        "source": origin,
        "mac_share_8bit": mac_share_8bit(module),
        "precision": searched_precision(module),
        "control_tokens_not_seen": packed.control_not_in(ctx.calibration.windows),
        "experts_not_chosen": experts_not_chosen(module),
    }
    if given is not None and stated is not None:
        manifest["scales"] = given.report(stated, module)
    return Program(module, ctx.weights, packed, manifest)


def estimate(
    model: str,
    target: str = "cpu-int8",
    recipe: str | Path | Recipe = "w8a8",
    *,
    base: str | None = None,
    passes: Pipeline | str | None = None,
    context: int | None = None,
) -> Estimate:
    """What `compile` will take on this machine: seconds of each step, bytes of memory and on disk.

    From the model's config, as if its tensors had one float type; no weight is read. Two seconds measure how
    fast the machine is. Whether the model can be compiled is not known before it is traced. How far off
    estimates were: docs/measurements.md, sizes.

    Args:
        model, target, recipe, base, passes, context: as `compile` takes them, but the model by name.

    Raises:
        ModelError: there is no such model, or its config is none of a decoder LLM.
        RecipeError, TargetError, InputError: as `compile` does.
    """
    begin = time.perf_counter()
    steps = _pipeline(target, load_recipe(recipe), passes)
    from mqc.compiler.estimate import estimate, measure_machine
    from mqc.frontend import fidelity, raising, trace  # noqa: F401 — what `compile` imports
    from mqc.frontend.size import size_of

    size = size_of(model, base)
    starting = time.perf_counter() - begin
    return estimate(size, steps, measure_machine(size), _context(size.positions, context), starting)


def _pipeline(target: str, recipe: Recipe, passes: Pipeline | str | None) -> Pipeline:
    backend = backend_for(target)
    if passes is None:
        return recipe.pipeline(backend.name)
    return Pipeline.parse(passes) if isinstance(passes, str) else passes


#: Fewer positions hold no prefix and no calibration window.
_LEAST_CONTEXT = 16


def _context(longest: int | None, context: int | None) -> int:
    """Positions of the program. Raises `InputError` for more than the model was made for."""
    if context is None:
        return min(2048, longest or 2048)
    if not _LEAST_CONTEXT <= context <= (longest or context):
        raise InputError(
            f"a context of {context} positions: the least is {_LEAST_CONTEXT}, and "
            + (f"the model was made for {longest}" if longest else "the model states no most")
        )
    return context


def mac_share_8bit(module: ModuleOp) -> float:
    """Share of the multiply-accumulates of matrix products whose activations have 8 bits."""
    from mqc.dialects.constraints import bits
    from mqc.dialects.int_ops import LinearOp

    linears = [op for op in mqc_ops(module) if isinstance(op, LinearOp)]
    total = sum(op.macs() for op in linears)
    if total == 0:
        raise MqcError("the module has no int.linear; run lower-to-int first")
    return sum(op.macs() for op in linears if bits(op.x) == 8) / total
