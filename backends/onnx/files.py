"""The ONNX files of a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from safetensors.numpy import save_file
from xdsl.dialects.builtin import ModuleOp

from mqc.arrays import Array
from mqc.backends.onnx.emitter import Emitter, Lengths, past_name
from mqc.backends.onnx.graph import DATA_FILE, DataFile
from mqc.backends.onnx.integer import IntegerForm
from mqc.backends.onnx.qdq import QdqForm
from mqc.backends.onnx.qdq_npu import NpuForm
from mqc.errors import InputError, TargetError
from mqc.files import replacing
from mqc.ir.module import context_length, prefix_tokens, states
from mqc.ir.weight_store import WeightStore

#: Rows of the cache that a sequence starts with, named like the graph inputs.
CACHE_FILE = "initial_cache.safetensors"
FORMS: dict[tuple[str, str], type[Emitter]] = {
    ("qdq", "cpu"): QdqForm,
    ("qdq", "npu"): NpuForm,
    ("integer", "cpu"): IntegerForm,
}


def graph_file(lengths: Lengths) -> str:
    """`model.onnx` takes any number of tokens, `decode.onnx` one, `prefill_N.onnx` N."""
    if lengths.tokens is None:
        return "model.onnx"
    return "decode.onnx" if lengths.tokens == 1 else f"prefill_{lengths.tokens}.onnx"


def all_lengths(module: ModuleOp, tokens: Sequence[int], context: int | None) -> list[Lengths]:
    """Sizes of the graphs for fixed token counts within a context; one dynamic graph for none.

    Raises `InputError` if they do not fit the context that the module was compiled for.
    """
    most = context_length(module)
    room = most if context is None else context
    if not len(prefix_tokens(module)) < room <= most:
        raise InputError(f"context must be in ({len(prefix_tokens(module))}, {most}], got {room}")
    if not tokens:
        if context is not None:
            raise InputError("context is for fixed lengths: give tokens too, e.g. (128, 1)")
        return [Lengths()]
    if len(set(tokens)) < len(tokens) or not all(isinstance(count, int) for count in tokens):
        raise InputError(f"tokens must be different numbers, got {tuple(tokens)}")
    for count in tokens:
        if not 1 <= count <= room - len(prefix_tokens(module)):
            raise InputError(f"{count} tokens do not fit a context of {room} with its prefix")
    return [Lengths(count, room - count) for count in tokens]


def write(
    module: ModuleOp,
    weights: WeightStore,
    folder: Path,
    style: str = "qdq",
    runtime: str = "cpu",
    tokens: Sequence[int] = (),
    context: int | None = None,
    blocked: bool = False,
    metadata: Mapping[str, str] | None = None,
    every_value: bool = False,
) -> list[Path]:
    """Write graphs, their shared weights and the initial cache into `folder`; return the graphs' paths.

    Args:
        style: `qdq` or `integer`.
        runtime: `cpu`, or `npu` for a QDQ form in which every tensor is quantized.
        tokens: fixed token counts, a graph each; none for one graph of dynamic length.
        context: positions of the cache where token counts are fixed; the module's by default.
        blocked: write 4-bit weights in groups as one DequantizeLinear with blocks, for runtimes that have
            kernels for it; otherwise they become 8-bit integers when the model is loaded.
        metadata: entries for the models' metadata.
        every_value: make every value a graph output, for debugging.

    Raises `InputError` for options out of range, `TargetError` for an op without such a form. Memory: the
    weights are written from where they are; time is that of writing them.
    """
    if (style, runtime) not in FORMS:
        known = ", ".join(f'("{s}", "{r}")' for s, r in FORMS)
        raise InputError(f'(style, runtime) must be one of {known}; got ("{style}", "{runtime}")')
    if blocked and (style, runtime) != ("qdq", "cpu"):
        raise InputError('blocked is an option of style "qdq" with runtime "cpu"')
    data, graphs = DataFile(), {}
    for lengths in all_lengths(module, tokens, context):
        form = FORMS[style, runtime](module, weights, data, lengths, blocked)
        graphs[folder / graph_file(lengths)] = form.emit(every_value), form.OPSET
    facts = {**(metadata or {}), "weights_sha256": data.write(folder / DATA_FILE)}
    for path, (graph, opset) in graphs.items():
        model = graph.model(path.stem, opset, facts)
        try:
            onnx.save(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True), path)
            onnx.checker.check_model(path)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise TargetError(f"onnx: {path.name} does not pass ONNX's checks: {error}") from error
    with replacing(folder / CACHE_FILE) as partial:
        save_file(initial_cache(module, weights), partial)
    return list(graphs)


def initial_cache(module: ModuleOp, weights: WeightStore) -> dict[str, Array]:
    """What a sequence begins with, by graph input: of a growing state rows `[prefix, *shape]`."""
    return {
        past_name(state): weights[state.initial].reshape(-1, *state.shape)
        for state in states(module)
        if state.initial is not None
    }
