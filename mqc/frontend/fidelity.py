"""Whether a raised program computes what the model computes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.evaluation import Evaluation
from mqc.errors import ModelError
from mqc.frontend.source import without_base
from mqc.frontend.trace import left_as_it_was
from mqc.ir.module import context_length
from mqc.ir.op import MqcOp
from mqc.ir.weight_store import WeightStore

#: Largest relative error of the logits; and steps of the model's own type, if that is coarser than f32.
TOLERANCE = 1e-4
_STEPS = 8
#: Tokens of the two sequences; the longer one goes past every length at which the model does something else.
_SHORT, _LONG = 7, 24
#: Tokens that are evaluated one by one, behind the others; and together.
_SINGLE, _TOGETHER = 4, 64
#: Tokens whose logits are compared, beside those.
_COMPARED = 60


def check_against_model(model: PreTrainedModel, module: ModuleOp, weights: WeightStore) -> None:
    """Compare the `llm` module with the untouched model on random tokens, of a short and a longer sequence.

    The model is called as transformers' users call it, with token ids, and the places of the logits that are
    wanted: up to 64, spread over the sequence. The module evaluates most tokens at once, the last ones one by
    one. The longer sequence goes past the windows and switches that the config names, if the context does.
    Time: two forward passes over each sequence; linear in its length.

    Raises `ModelError` naming the first module whose output differs, if the logits differ by more than 1e-4
    relative to their norm.
    """
    context = context_length(module)
    parameter = next(model.parameters())
    allowed = max(TOLERANCE, _STEPS * torch.finfo(parameter.dtype).eps)
    longest = max([_LONG, *(n + _SHORT for n in _switches(model.config.to_dict()) if n + _SHORT <= context)])
    generator = torch.Generator().manual_seed(0)
    table: Any = model.get_input_embeddings()
    vocabulary = int(table.weight.shape[0])
    for count in sorted({min(_SHORT, context), min(longest, context)}):
        ids = torch.randint(0, vocabulary, (count,), generator=generator)
        singles = torch.arange(max(count - _SINGLE, 1), count)
        spread = torch.linspace(0, count - 1, _COMPARED).long()
        places = torch.tensor(sorted({*spread.tolist(), *singles.tolist()}))
        with torch.no_grad():
            want = _logits(model, ids, places)
            got = _evaluated(Evaluation(module, weights), ids, places, singles)
        error = _relative(got, want)
        if not error <= allowed:
            first = _first_difference(model, module, weights, ids, allowed)
            raise ModelError(
                f"the float program is not the model: for {count} tokens its logits are off by {error:.1e} "
                f"(allowed {allowed:.0e}); {first}. {type(model).__name__} does something that the front end "
                "does not see, such as other masks or other positions; mqc cannot compile it yet"
            )


def _logits(model: PreTrainedModel, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The model's logits `[places, vocabulary]`; no others are computed where the model can choose."""
    device = next(model.parameters()).device
    chooses = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": places.to(device)} if chooses else {}
    with left_as_it_was(model):
        logits: torch.Tensor = model(input_ids=ids[None].to(device), **options).logits[0]
    return (logits if len(logits) == len(places) else logits[places]).float().cpu()


def _evaluated(
    evaluation: Evaluation, ids: torch.Tensor, places: torch.Tensor, singles: torch.Tensor
) -> torch.Tensor:
    """The program's, of tokens that it is given some together, and `singles` one by one."""
    first = torch.arange(len(ids) - len(singles))
    parts = [*torch.split(first, _TOGETHER), *singles[:, None]]
    return torch.cat([evaluation.run(ids[part], part)[torch.isin(part, places)] for part in parts])


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def _switches(config: Any, name: str = "") -> list[int]:
    """Lengths in a config behind which masks or position tables are others."""
    if isinstance(config, dict):
        return [n for key, value in config.items() for n in _switches(value, str(key))]
    named = any(part in name for part in ("window", "chunk", "original_max_position"))
    return [config] if named and isinstance(config, int) and not isinstance(config, bool) else []


def _first_difference(
    model: PreTrainedModel, module: ModuleOp, weights: WeightStore, ids: torch.Tensor, allowed: float
) -> str:
    """The first op named as a module of the model whose result is not that module's output, in words."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                outputs.setdefault(without_base(path), first.float().cpu())

        return hook

    hooks = [part.register_forward_hook(keep(path)) for path, part in model.named_modules()]
    try:
        with torch.no_grad(), left_as_it_was(model):
            model(input_ids=ids[None].to(next(model.parameters()).device))
    finally:
        for handle in hooks:
            handle.remove()
    found: list[tuple[str, float]] = []

    def look(op: MqcOp, result: torch.Tensor) -> None:
        want = outputs.get(op.value_name)
        if not found and want is not None and want.numel() == result.numel():
            error = _relative(result, want.reshape(result.shape))
            if not error <= allowed:
                found.append((op.value_name, error))

    with torch.no_grad():
        Evaluation(module, weights).run(ids, torch.arange(len(ids)), look)
    if not found:
        return "all modules that could be compared are the same"
    return f"the first module that differs is {found[0][0]} ({found[0][1]:.1e})"
