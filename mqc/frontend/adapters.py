"""LoRA adapters (arXiv 2106.09685), as the PEFT library saves them, merged into the model that they adapt."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

from mqc.arrays import Array, row_blocks
from mqc.errors import ModelError
from mqc.files import check_regular, json_object, read_text
from mqc.frontend.mapped import Widened, widened
from mqc.ir.spill import Spill

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
#: Options of PEFT that change what an adapter computes, and the value at which they do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "arrow_config": (None,),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
}
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|base_layer)"
    r"(?:\.default)?(?:\.weight)?"
)


@dataclass(frozen=True)
class Adapter:
    """A folder with a LoRA adapter.

    base: name of the model that it adapts.
    """

    folder: Path
    base: str
    config: dict[str, Any]

    def rank(self, module: str) -> int:
        return int(self._of("rank_pattern", module, self.config["r"]))

    def scale(self, module: str) -> float:
        """What the product of its matrices is multiplied by: alpha / r, or with `use_rslora` alpha / sqrt(r)
        (arXiv 2312.03732)."""
        alpha = float(self._of("alpha_pattern", module, self.config["lora_alpha"]))
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _of(self, patterns: str, module: str, default: Any) -> Any:
        """The value for a module: of the first pattern that is its name, or the end of it."""
        found = self.config.get(patterns) or {}
        return next((v for key, v in found.items() if f".{module}".endswith(f".{key}")), default)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return os.path.exists(folder / CONFIG) and not os.path.exists(folder / "config.json")


def find_adapter(folder: Path, base: str | None) -> Adapter | None:
    """The adapter in a folder, if it holds one and no model.

    Args:
        base: the model that it adapts; None for the one that its config names.

    Raises `ModelError` for an adapter that is no plain LoRA, or names no model.
    """
    if not is_adapter(folder):
        return None
    path = folder / CONFIG
    try:
        config = json_object(read_text(path, ModelError))
    except ValueError as error:
        raise ModelError(f"{path} is no adapter's config: {error}") from error
    for key, plain in _PLAIN.items():
        if config.get(key, plain[-1]) not in plain:
            raise ModelError(
                f"{path}: {key} = {config[key]!r} is not merged here, only plain LoRA is ({key} = "
                f"{plain[0]!r}); merge the adapter where it was made (merge_and_unload) and save the model"
            )
    _check_numbers(path, config)
    named = base or config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ModelError(f"{path} does not say which model it adapts: give --base MODEL")
    beside = folder / named  # a relative path may be meant from the adapter's folder
    return Adapter(folder, str(beside) if base is None and os.path.isdir(beside) else named, config)


def _check_numbers(path: Path, config: dict[str, Any]) -> None:
    for key in ("r", "lora_alpha"):
        patterns = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]) or {}
        values = [config.get(key), *(patterns.values() if isinstance(patterns, dict) else [None])]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e6 for v in values):
            raise ModelError(f"{path}: {key} and its pattern must be numbers above 0")
        wrong = [name for name in patterns if not re.fullmatch(r"[\w.]+", name)]
        if wrong:
            raise ModelError(f"{path}: pattern {wrong[0]!r} is no name of modules: expressions are not read")


def merge(model: Any, adapter: Adapter) -> None:
    """Add `scale · B · A` to the matrices that an adapter changes. They become f32, in a temporary file.

    Raises `ModelError` if the adapter's tensors are not of this model, or not of the shapes that its config
    says.
    """
    spill = Spill()
    owners: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name)
    for name, a, b, table in _matrices(adapter):
        module = _module(model, name, adapter)
        others = [owner for owner in owners[id(module.weight)] if owner != f"{name}.weight"]
        if others:
            raise ModelError(
                f"{adapter.folder} changes {name}, whose weight is also {', '.join(others)}: untie them in "
                f"{adapter.base} before the adapter is merged"
            )
        weight, scale = module.weight, adapter.scale(name)
        if table is not None and not (table.shape == weight.shape and torch.equal(table, widened(weight))):
            raise ModelError(
                f"{adapter.folder} has a table of {name} beside its matrices, which is not that of "
                f"{adapter.base}; merge the adapter where it was made (merge_and_unload) and save the model"
            )
        # A Conv1D's matrix is [inputs, outputs], an embedding's [tokens, channels].
        left, right = (a.T, b.T) if isinstance(module, Conv1D | torch.nn.Embedding) else (b, a)
        rank = adapter.rank(name)
        if left.shape[1] != rank or right.shape[0] != rank or (len(left), right.shape[1]) != weight.shape:
            raise ModelError(
                f"{adapter.folder}: the matrices of {name} are {list(a.shape)} and {list(b.shape)}; a change "
                f"of {list(weight.shape)} with rank {rank} was expected"
            )
        merged = spill.write(tuple(weight.shape), np.dtype(np.float32), _rows(weight, scale * left, right))
        module.weight = torch.nn.Parameter(torch.from_numpy(merged), requires_grad=False)


def _rows(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> Iterator[Array]:
    """Blocks of rows of `weight + left · right`."""
    stored = weight.stored if isinstance(weight, Widened) else weight.detach()
    for rows in row_blocks(tuple(weight.shape)):
        yield (stored[rows].float() + left[rows] @ right).numpy()


def _matrices(adapter: Adapter) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Names of modules; of each A `[rank, inputs]` and B `[outputs, rank]`, f32; and an embedding's table
    as it was, which PEFT may save beside them."""
    path = adapter.folder / _WEIGHTS
    if not path.exists():
        raise ModelError(f"{adapter.folder} has no {_WEIGHTS}; save the adapter with safe_serialization")
    check_regular(path, ModelError)
    try:
        with safe_open(path, framework="pt") as file:
            names: dict[str, dict[str, str]] = defaultdict(dict)
            for key in file.keys():  # noqa: SIM118
                found = _NAME.fullmatch(key)
                if found is None:
                    raise ModelError(f"{path}: {key} is no matrix of a LoRA adapter")
                names[found["module"]][found["part"].removeprefix("lora_").removeprefix("embedding_")] = key
            for module, parts in sorted(names.items()):
                if not parts.keys() >= {"A", "B"}:
                    raise ModelError(f"{path}: {module} has one matrix, and needs two")
                a, b = (file.get_tensor(parts[part]).float() for part in "AB")
                table = file.get_tensor(parts["base_layer"]).float() if "base_layer" in parts else None
                if a.ndim != 2 or b.ndim != 2 or not (a.isfinite().all() and b.isfinite().all()):
                    raise ModelError(f"{path}: the tensors of {module} are no matrices of finite numbers")
                yield module, a, b, table
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no safetensors file: {error}") from error


def _module(model: Any, name: str, adapter: Adapter) -> Any:
    """The module of a model whose weight an adapter changes. Raises `ModelError`."""
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"{adapter.folder} changes {name}, which {adapter.base} has not: is it the model that was "
            "adapted? --base MODEL names another one"
        ) from error
    if not isinstance(module, torch.nn.Linear | Conv1D | torch.nn.Embedding):
        kind = type(module).__name__
        raise ModelError(f"{adapter.folder} changes {name}, a {kind}, which is not merged here")
    return module
