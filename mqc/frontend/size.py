"""How large a model is, by its config alone."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from mqc.costs import ModelSize
from mqc.errors import ModelError, MqcError, whole
from mqc.frontend.quantized_model import reader_of
from mqc.frontend.sources import locate, read_config
from mqc.frontend.trace import longest_sequence


def size_of(name: str, base: str | None = None) -> ModelSize:
    """The size of the model that `load_source` would load. No weight is read.

    Raises `ModelError` if there is no such model, or its config is none of a decoder LLM, has experts, or
    says that it is quantized in a way that is not read.
    """
    place = locate(name, base)
    try:
        config = read_config(place)
        reader = reader_of(name, config)
        layers = int(config.get_text_config().num_hidden_layers)
        with init_empty_weights():
            model: Any = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    except MqcError:
        raise
    except Exception as error:  # damaged configs raise whatever their parsers raise
        raise ModelError(
            f"cannot read the config of {name!r} as that of a decoder LLM: {whole(error)}"
        ) from error
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or table is None:
        raise ModelError(
            f"{name!r} has no table of tokens or gives no logits; mqc compiles decoder-only LLMs"
        )
    if any(
        p.ndim == 3 and min(p.shape) > 1 and not isinstance(module, torch.nn.modules.conv._ConvNd)
        for module in model.modules()
        for p in module.parameters(recurse=False)
    ):
        raise ModelError(f"{name!r} is a mixture of experts, whose costs are not known before it is compiled")
    return ModelSize(
        matrices=tuple(
            (rows, columns) if not isinstance(module, Conv1D) else (columns, rows)
            for module in model.modules()
            if module is not head and not isinstance(module, torch.nn.Embedding)
            for rows, columns in (p.shape for p in module.parameters(recurse=False) if p.ndim == 2)
        ),
        layers=layers,
        hidden=int(head.weight.shape[1]),
        vocabulary=int(head.weight.shape[0]),
        parameters=sum(p.numel() for p in model.parameters()),
        tied=head.weight is table.weight,
        positions=longest_sequence(config),
        mapped=place.gguf is None and reader is None,
    )
