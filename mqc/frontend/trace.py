"""Hugging Face decoder → FX graph of aten ops, with attention as one op."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from mqc.errors import ModelError, UnsupportedOpError
from mqc.frontend.experts import EXPERTS
from mqc.frontend.linear_attention import as_one_op
from mqc.frontend.mapped import Widened, shapes_only
from mqc.frontend.nodes import op_name
from mqc.frontend.source import module_path, source_line

#: Name under which the attention function is registered with transformers.
ATTENTION = "mqc"


@torch.library.custom_op("mqc::attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: int | None,
    scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None,
    chunk: int,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Placeholder for attention in the traced graph; never run.

    Shapes: q `[1, heads, tokens, head_dim]`, k and v `[1, kv_heads, tokens, head_dim]`,
    result `[1, tokens, heads, head_dim]`, sinks `[heads]`. `window`, `softcap` and `chunk` are 0 for none.
    `mask` is there to see that it depends on positions alone.
    """
    raise NotImplementedError("mqc::attention exists in traced graphs only")


@attention.register_fake
def _(q, k, v, layer, scale, window, softcap, sinks, chunk, mask):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])


def _attention_function(  # type: ignore[no-untyped-def]
    module, query, key, value, attention_mask, scaling=None, dropout=0.0,
    sliding_window=None, softcap=None, **kwargs,
):  # fmt: skip
    sinks = kwargs.get("s_aux")
    if sinks is None and getattr(module, "sinks", None) is not None:
        raise UnsupportedOpError(
            f"layer {module.layer_idx}", "attention with sinks that it does not pass on", "has no llm form"
        )
    if kwargs.get("indices") is not None:  # maybe in long sequences only
        raise UnsupportedOpError(
            f"layer {module.layer_idx}", "attention to keys that are chosen by the tokens", "has no llm form"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window, cap = sliding_window or 0, float(softcap or 0)
    chunk = attention_mask.size if isinstance(attention_mask, _Chunks) else 0
    mask = attention_mask if isinstance(attention_mask, torch.Tensor) else None
    result = attention(query, key, value, module.layer_idx, scale, window, cap, sinks, chunk, mask)
    return result, None


AttentionInterface.register(ATTENTION, _attention_function)
AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: _masks.get()(*args, **kwargs))


@dataclass(frozen=True)
class _Chunks:
    """Stands for a mask by which tokens see those of their own chunk, of `size` positions."""

    size: int


def _no_mask(*args: Any, config: Any = None, local_size: int | None = None, **kwargs: Any) -> _Chunks | None:
    """What attention as an op must know of a mask. transformers gives the size of a window or of chunks; that
    of a window comes with the call of attention too."""
    sizes = (getattr(config, name, None) for name in ("attention_chunk_size", "sliding_window"))
    chunk, window = sizes
    return _Chunks(chunk) if chunk is not None and local_size == chunk != window else None


#: What makes masks. Attention as an op needs none; a model's own may do without, or take one.
_masks: ContextVar[Any] = ContextVar("masks", default=_no_mask)


class _LogitsOnly(torch.nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits


def longest_sequence(config: Any) -> int | None:
    """For how many positions a model was made, by its config; None if it does not say."""
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((n for n in named if n), None)


def check_model(model: Any) -> None:
    """Raise `ModelError` unless `model` is a decoder LLM with finite weights."""
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"expected a transformers PreTrainedModel, got {type(model).__name__}; "
            "load one with AutoModelForCausalLM.from_pretrained"
        )
    config, kind = model.config, type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder model; mqc compiles decoder-only LLMs")
    if getattr(config, "vision_config", None) or getattr(config, "audio_config", None):
        wrong = ModelError(f"{kind} takes images or audio, which mqc does not compile")
        wrong.add_note("to compile its language model, save that alone: docs/text-models.md")
        raise wrong
    if getattr(model, "is_quantized", False):
        raise ModelError(
            f"{kind} is quantized by modules of its own: give the folder or id that it was loaded from, "
            "whose integers are read from the files"
        )
    if model.get_output_embeddings() is None:
        wrong = ModelError(f"{kind} has no language-model head, which gives the logits")
        wrong.add_note("load the model with AutoModelForCausalLM")
        wrong.add_note("if that gives a model that takes images or audio: docs/text-models.md")
        raise wrong
    for name, parameter in model.named_parameters():
        values = parameter.stored if isinstance(parameter, Widened) else parameter
        if values.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(values.detach())):
            raise ModelError(f"{kind}: weight {name} holds NaN or infinity")


@contextmanager
def left_as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Modules get back their attributes and buffers, whatever is run inside.

    Some models write to them as they compute (rotary embeddings that depend on the length), and under tracing
    what they write is no real tensor.
    """
    attributes = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    tables = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    contents = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for place, kept in attributes + tables:
            place.clear()
            place.update(kept)
        for buffer, value in contents:
            buffer.copy_(value)


def _without_dynamic_scaling(model: PreTrainedModel) -> None:
    """Keep rotary embeddings from looking at the length, which a traced graph cannot branch on.

    `dynamic` scaling begins behind `max_position_embeddings`, and no program goes that far.
    """
    module: Any
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str) and "dynamic" in kind:
            module.rope_type = "default"
        elif isinstance(kind, dict):
            module.rope_type = {k: "default" if "dynamic" in v else v for k, v in kind.items()}


@contextmanager
def _functions_of_mqc(model: PreTrainedModel) -> Iterator[None]:
    """The model calls what is registered here for attention and for experts."""
    found = (getattr(module, "config", None) for module in model.modules())
    configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}
    names = {"_attn_implementation": ATTENTION, "_experts_implementation": EXPERTS}
    kept = [(config, name, getattr(config, name, None)) for config in configs.values() for name in names]
    try:
        for config, name, _ in kept:
            setattr(config, name, names[name])
        yield
    finally:
        for config, name, previous in kept:
            setattr(config, name, previous)


def _without_masks(program: ExportedProgram) -> None:
    """Take masks out of the graph: what attention must know of them stands in its other arguments.

    Raises `UnsupportedOpError` for a mask that is computed from the tokens: which keys are seen then depends
    on more than positions, maybe in long sequences only.
    """
    for node in program.graph.nodes:
        if node.target is torch.ops.mqc.attention.default and isinstance(node.args[-1], Node):
            if _depends_on_tokens(node.args[-1]):
                what = "attention with a mask that is computed from the tokens"
                raise UnsupportedOpError(module_path(node), what, "has no llm form", source_line(node))
            node.update_arg(len(node.args) - 1, None)


def _depends_on_tokens(node: Node) -> bool:
    """Whether a value follows from token ids, and not from how many there are."""
    found, stack = {node}, [node]
    while stack:
        last = stack.pop()
        if last.name == "input_ids":
            return True
        name = op_name(last.target)
        if name != "sym_size" and not name.startswith("new_") and not name.endswith("_like"):
            fresh = [n for n in last.all_input_nodes if n not in found]
            found.update(fresh)
            stack += fresh
    return False


def _asks(program: ExportedProgram) -> bool:
    """Whether a model called what is registered here for attention."""
    return any(node.target is torch.ops.mqc.attention.default for node in program.graph.nodes)


def _untraceable(model: PreTrainedModel, error: Exception) -> ModelError:
    """What a failure of torch.export says of the model: why, and the module and line where it stopped."""
    if isinstance(error, GuardOnDataDependentSymNode):
        why = "decides by values that it computes from the tokens"
    elif isinstance(error, UserError | ConstraintViolationError):
        why = "does not do the same for every number of tokens"
    else:
        why = "does something that cannot be traced"
    paths = {id(module): path for path, module in model.named_modules()}
    stopped = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = paths.get(id(frame.f_locals.get("self")))
        if path is not None:
            stopped = f": {path or 'the model'}, at {Path(frame.f_code.co_filename).name}:{line}"
    wrong = ModelError(f"{type(model).__name__} cannot be compiled, since its code {why}{stopped}")
    wrong.add_note("what torch.export said is the error's __cause__")
    return wrong


def _exported(wrapped: _LogitsOnly, inputs: tuple[torch.Tensor, ...], length: Any) -> ExportedProgram:
    """The graph for all lengths. What torch.export cannot prove of them is tried, for many."""
    export = partial(
        torch.export.export, wrapped, inputs, dynamic_shapes=tuple({1: length} for _ in inputs), strict=False
    )
    try:
        return export()
    except UserError as error:
        try:
            program: ExportedProgram = export(prefer_deferred_runtime_asserts_over_guards=True)
        except UnsupportedOpError:
            raise
        except Exception:
            raise error from None
        if not all(_holds(condition, length.max) for condition in _conditions(program)):
            raise error
        return program


def _conditions(program: ExportedProgram) -> Iterator[Any]:
    """What must hold of the lengths, by the asserts in a graph."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten._assert_scalar.default:
            value = node.args[0].meta["val"]
            yield value.node.expr if isinstance(value, torch.SymBool) else value


def _holds(condition: Any, longest: int) -> bool:
    """Whether a condition holds for each length up to 256, those around powers of two, and the longest."""
    symbols = getattr(condition, "free_symbols", ())
    around = (2**n + d for n in range(9, longest.bit_length()) for d in (-1, 0, 1))
    lengths = [*range(2, min(longest, 256) + 1), *(n for n in around if n < longest), longest]
    return (
        all(bool(condition.subs(dict.fromkeys(symbols, n))) for n in lengths) if symbols else bool(condition)
    )


def trace(model: PreTrainedModel) -> ExportedProgram:
    """Export `logits(input_ids, position_ids)`, both `[1, tokens]`, with dynamic length.

    The model stays as it was.

    Raises:
        ModelError: the model is not a decoder, or torch.export cannot follow its code.
    """
    check_model(model)
    training = model.training
    model.eval()
    context = longest_sequence(model.config) or 1024
    length = Dim("length", min=2, max=max(context - 1, 3))
    # Two tensors: torch.export takes one passed twice for one input.
    ids, positions = torch.zeros(1, 3, dtype=torch.long), torch.arange(3)[None]
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        wrapped = _LogitsOnly(model)
        tensors = wrapped.state_dict(keep_vars=True)
        export = partial(_exported, wrapped, (ids, positions), length)
        with (
            torch.no_grad(), left_as_it_was(model), shapes_only(model), as_one_op(model),
            warnings.catch_warnings(),
        ):  # fmt: skip
            warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)  # they are put back
            _without_dynamic_scaling(model)
            with _functions_of_mqc(model):
                try:
                    program = export()
                except (TypeError, AttributeError):  # None is no mask for it
                    apart = copy_context()
                    apart.run(_masks.set, eager_mask)
                    program = apart.run(export)
            if not _asks(program) and getattr(model.config, "_attn_implementation", None) not in (
                None,
                "eager",
            ):
                program = export()  # its code may depend on what it is told to use
        _without_masks(program)
        program.state_dict.update({name: tensors[name] for name in program.state_dict})
    except UnsupportedOpError:
        raise
    except Exception as error:
        raise _untraceable(model, error) from error
    finally:
        logger.setLevel(level)
        model.train(training)
    return program
