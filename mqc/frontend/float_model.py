"""Perplexity of the float model, to stand beside the integer program's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mqc.errors import ModelError
from mqc.frontend.sources import load_source, model_hash
from mqc.runtime.perplexity import Ids, perplexity


def source_model(manifest: dict[str, Any]) -> Any:
    """The model that a program was compiled from, loaded again and checked by its hash.

    Raises `ModelError` if the program was compiled from an object in memory, or the model changed.
    """
    source = manifest.get("source", {})
    if source.get("kind") not in ("demo", "folder", "huggingface"):
        raise ModelError(
            "the program does not say where its float model is (it was compiled from an object); "
            "use --no-float"
        )
    model = load_source(source["id"]).model
    if model_hash(model) != source.get("hash"):
        raise ModelError(f"the model at {source['id']!r} is not the one that was compiled; use --no-float")
    return model


def float_perplexity(
    model: Any,
    windows: Sequence[Ids],
    prefix: tuple[int, ...] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> float:
    """Perplexity of a transformers model, `prefix` in front of each window and not scored."""

    def logits(window: Ids) -> npt.NDArray[np.float32]:
        ids = torch.tensor([[*prefix, *window.tolist()]])
        with torch.no_grad():
            result: npt.NDArray[np.float32] = model(ids).logits[0, len(prefix) :].float().numpy()
        return result

    return perplexity(logits, windows, progress)
