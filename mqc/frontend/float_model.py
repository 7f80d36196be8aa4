"""The float model, to stand beside the integer program."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mqc.errors import ModelError
from mqc.frontend.sources import Source, load_source, model_hash
from mqc.runtime.perplexity import Ids


def float_source(manifest: dict[str, Any]) -> Source:
    """The model that a program was compiled from, loaded again and checked by its hash, and its tokenizer.

    Raises `ModelError` if the program was compiled from an object in memory, or the model changed.
    """
    source = manifest.get("source", {})
    if source.get("kind") not in ("demo", "folder", "file", "huggingface"):
        raise ModelError(
            "the program does not say where its float model is (it was compiled from an object); "
            "use --no-float"
        )
    found = load_source(source["id"], source.get("base"), source.get("encodings"))
    if model_hash(found.model) != source.get("hash"):
        raise ModelError(f"the model at {source['id']!r} is not the one that was compiled; use --no-float")
    return found


def float_logits(model: Any, window: Ids, prefix: tuple[int, ...] = ()) -> npt.NDArray[np.float32]:
    """Logits `[tokens, vocabulary]` of a transformers model for a window behind `prefix`."""
    ids = torch.tensor([[*prefix, *window.tolist()]])
    with torch.no_grad():
        result: npt.NDArray[np.float32] = model(ids).logits[0, len(prefix) :].float().numpy()
    return result
