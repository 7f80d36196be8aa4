"""Models in GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), their weights as f32 in
temporary files. Names, configs and orders of rows are those of transformers."""

from __future__ import annotations

import copy
import functools
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from accelerate import init_empty_weights
from gguf import GGUFReader, GGUFValueType
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers import modeling_gguf_pytorch_utils as conversion

from mqc.arrays import Array, row_blocks
from mqc.ir.spill import LEAST_BYTES, Spill

_READING = threading.Lock()


class _Reader(GGUFReader):
    """gguf's reader, which makes several mapped arrays of each element of an array: 20 s for the tokens of
    Gemma 3."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        data = memoryview(self.data)  # type: ignore[arg-type]
        element, count = struct.unpack_from("<IQ", data, orig_offs)
        start = orig_offs + 12
        kind = self.gguf_scalar_to_np.get(element)
        parts: list[Any]
        if kind is not None:
            end = start + count * np.dtype(kind).itemsize
            self._check(end)
            parts = list(np.frombuffer(data[start:end], kind).reshape(-1, 1))
        elif element == GGUFValueType.STRING:
            end, parts = start, []
            for _ in range(count):
                (length,) = struct.unpack_from("<Q", data, end)
                end += 8 + length
                self._check(end)
                parts.append(bytes(data[end - length : end]))
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [GGUFValueType.ARRAY, GGUFValueType(element)] if parts else [GGUFValueType.ARRAY]
        return end - orig_offs, parts, list(range(len(parts))), types

    def _check(self, end: int) -> None:
        if end > len(self.data):
            raise ValueError(f"the header goes on behind the end of the file ({len(self.data)} bytes)")


@contextmanager
def read_once() -> Iterator[None]:
    """transformers parses a GGUF file's header for config, weights and tokenizer, and makes the table of
    tensor names for every module: seconds each. In the block it is done once."""
    changed: tuple[tuple[Any, str, Any], ...] = (
        (gguf, "GGUFReader", functools.cache(_Reader)),
        (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        (conversion, "load_gguf_checkpoint", _parsed_once(conversion.load_gguf_checkpoint)),
    )
    with _READING:
        originals = [getattr(module, name) for module, name, _ in changed]
        try:
            for module, name, function in changed:
                setattr(module, name, function)
            yield
        finally:
            for (module, name, _), original in zip(changed, originals, strict=True):
                setattr(module, name, original)


def _parsed_once(load: Any) -> Any:
    header = functools.cache(load)

    @functools.wraps(load)
    def loaded(path: Any, return_tensors: bool = False, **options: Any) -> Any:
        # callers take entries out
        return load(path, return_tensors, **options) if return_tensors else copy.deepcopy(header(path))

    return loaded


def load_gguf(folder: str, file: str, config: Any) -> tuple[Any, dict[str, Any]]:
    """The model in a GGUF file, and what its tensors and the model's have not in common, as transformers'
    `output_loading_info` tells it. Large weights are written to temporary files block by block.

    Raises what its parsers raise for a damaged file.
    """
    path = str(Path(folder, file))
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with suppress(OSError):  # a GGUF file has none, but may stand beside one
        model.generation_config = GenerationConfig.from_pretrained(folder)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = _tensors(path, model)
    wrong = [
        (name, tuple(value.shape), expected[name])
        for name, value in tensors.items()
        if name in expected and tuple(value.shape) != expected[name]
    ]
    for name, _, _ in wrong:
        del tensors[name]
    unexpected = model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    told = {*missing} - {name for name, _, _ in wrong}
    found = {
        "missing_keys": told, "unexpected_keys": unexpected, "mismatched_keys": wrong, "error_msgs": [],
    }  # fmt: skip
    return model, found


def _tensors(path: str, model: Any) -> dict[str, torch.Tensor]:
    """The file's tensors by the model's names."""
    reader = gguf.GGUFReader(path)
    parsed = conversion.load_gguf_checkpoint(path)
    (architecture,) = conversion.read_field(reader, "general.architecture")
    kind: Any = conversion.TENSOR_PROCESSORS.get(architecture, conversion.TensorProcessor)
    processor = kind(parsed["config"])
    names = conversion.get_gguf_hf_weights_map(model, processor)
    # a processor puts tensors there that are made of several
    parsed["tensors"] = {}
    spill = Spill()
    for tensor in reader.tensors:
        values = _values(tensor, spill)
        made = processor.process(
            weights=values, name=tensor.name, tensor_key_mapping=names, parsed_parameters=parsed
        )
        if made.name not in names:
            continue
        result = made.weights
        if result.shape == values.shape and not np.shares_memory(result, values):
            values[...] = result  # in another order: into the file again
            result = values
        parsed["tensors"][names[made.name]] = torch.from_numpy(result)
    return dict(parsed["tensors"])


def _values(tensor: Any, spill: Spill) -> Array:
    """The elements of a tensor as f32."""
    kind, data = tensor.tensor_type, tensor.data
    if tensor.n_elements * 4 < LEAST_BYTES:
        return np.array(gguf.dequantize(data, kind), np.float32)
    shape = tuple(int(size) for size in reversed(tensor.shape))
    rows = data.reshape(-1, data.shape[-1])
    blocks = row_blocks((len(rows), shape[-1]))
    return spill.write(shape, np.dtype(np.float32), (gguf.dequantize(rows[part], kind) for part in blocks))
