"""Tiny models in the formats of quantization tools, written here number by number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mqc.arrays import Array
from tests.models import tiny_model
from tests.test_api import tokenizer

#: Order of eight outputs in a word of AWQ's: the first nibble has the first output, the second the third, ….
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class Grid:
    """A matrix `[outputs, inputs]` as integers: `weight ≈ (integers − zeros) · scale`, both `[outputs,
    groups]`."""

    integers: Array
    scale: Array
    zeros: Array

    @property
    def per_input(self) -> tuple[Array, Array]:
        size = self.integers.shape[1] // self.scale.shape[1]
        return np.repeat(self.scale, size, 1), np.repeat(self.zeros, size, 1)

    @property
    def floats(self) -> Array:
        scale, zeros = self.per_input
        return ((self.integers.astype(np.int64) - zeros).astype(np.float32) * scale).astype(np.float32)


def grid_of(weight: Array, bits: int, group: int, symmetric: bool) -> Grid:
    """A matrix rounded to signed integers, with scales that 16-bit floats hold."""
    groups = weight.reshape(len(weight), -1, group or weight.shape[1])
    half = 1 << (bits - 1)
    if symmetric:
        scale = np.abs(groups).max(-1) / (half - 0.5)
        zeros = np.zeros(scale.shape, np.int64)
    else:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scale = (high - low) / (2 * half - 1)
        zeros = np.clip(np.rint(-low / scale) - half, -half, half - 1).astype(np.int64)
    scale = scale.astype(np.float16).astype(np.float32)
    steps, offsets = (np.repeat(x, groups.shape[-1], 1) for x in (scale, zeros))
    integers = np.clip(np.rint(weight / steps) + offsets, -half, half - 1).astype(np.int64)
    return Grid(integers, scale, zeros)


def packed(values: Array, bits: int) -> torch.Tensor:
    """s32 words `[rows, words]` of unsigned integers `[rows, columns]`, each row one number in base 2."""
    words = -(-values.shape[1] * bits // 32)
    rows = []
    for row in values.tolist():
        number = sum(int(value) << (bits * i) for i, value in enumerate(row))
        rows.append([(number >> (32 * w)) & 0xFFFFFFFF for w in range(words)])
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


def products(model: PreTrainedModel, tables: bool = False) -> Iterator[tuple[str, Any]]:
    """The matrices that tools quantize: all but the one that gives the logits. With `tables`, tables too."""
    for name, module in model.named_modules():
        product = isinstance(module, torch.nn.Linear | Conv1D) and name != "lm_head"
        if product or (tables and isinstance(module, torch.nn.Embedding)):
            yield name, module


Writer = Callable[[str, Grid, int], dict[str, torch.Tensor]]


def _halves(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).half()


def int_quantized(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
    found = {
        f"{name}.weight": torch.from_numpy(grid.integers.astype(np.int8)),
        f"{name}.weight_scale": _halves(grid.scale),
    }
    if grid.zeros.any():
        found[f"{name}.weight_zero_point"] = torch.from_numpy(grid.zeros.astype(np.int8))
    return found


def pack_quantized(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
    half = 1 << (bits - 1)
    found = {
        f"{name}.weight_packed": packed(grid.integers + half, bits),
        f"{name}.weight_scale": _halves(grid.scale),
        f"{name}.weight_shape": torch.tensor(grid.integers.shape),
    }
    if grid.zeros.any():
        found[f"{name}.weight_zero_point"] = packed((grid.zeros + half).T, bits).T.contiguous()
    return found


def gptq(
    name: str, grid: Grid, bits: int, less: int = 1, order: Array | None = None
) -> dict[str, torch.Tensor]:
    half, inputs = 1 << (bits - 1), grid.integers.shape[1]
    index = np.arange(inputs) // (inputs // grid.scale.shape[1])
    integers = grid.integers + half
    if order is not None:  # the input of each place
        integers, index = integers[:, order], index[order]
    return {
        f"{name}.qweight": packed(integers, bits).T.contiguous(),
        f"{name}.qzeros": packed((grid.zeros + half - less).T % (2 * half), bits),
        f"{name}.scales": _halves(grid.scale.T),
        f"{name}.g_idx": torch.from_numpy(index.astype(np.int32)),
    }


def awq(name: str, grid: Grid, bits: int) -> dict[str, torch.Tensor]:
    def ordered(values: Array) -> torch.Tensor:
        return packed(values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(len(values), -1), bits)

    return {
        f"{name}.qweight": ordered((grid.integers + 8).T),
        f"{name}.qzeros": ordered((grid.zeros + 8).T),
        f"{name}.scales": _halves(grid.scale.T),
    }


def compressed_config(format: str, bits: int = 8, **group: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int"}, **group},
        },
    }  # fmt: skip


def save(
    folder: Path,
    config: dict[str, Any],
    write: Writer,
    bits: int,
    group: int = 0,
    symmetric: bool = True,
    architecture: str = "llama",
    more: Callable[[str], dict[str, torch.Tensor]] = lambda name: {},
    tables: bool = False,
    **changes: Any,
) -> tuple[PreTrainedModel, dict[str, Grid]]:
    """Write a model whose products are quantized; the float model that it stands for, and the grids by
    module.

    Args:
        write: gives the tensors of a product. more: gives further ones.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 128} if architecture != "gpt2" else {"hidden_size": 64}
    model = tiny_model(architecture, **{**sizes, **changes})
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    grids = {}
    for name, module in products(model, tables):
        turned = isinstance(module, Conv1D)
        weight = module.weight.detach().numpy()
        grids[name] = grid = grid_of(weight.T if turned else weight, bits, group, symmetric)
        del tensors[f"{name}.weight"]
        tensors |= write(name, grid, bits) | more(name)
        floats = torch.from_numpy(grid.floats)
        module.weight.data = floats.T.contiguous() if turned else floats
    model.config.save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "quantization_config": config}))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer().save_pretrained(folder)
    return model, grids
