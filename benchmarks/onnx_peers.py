"""SmolLM2 in ONNX Runtime: mqc's models beside those of `onnxruntime.quantization`.

The peers are made from the float model as torch.onnx exports it, with a KV cache: `quantize_dynamic`, and
`quantize_static` calibrated on the text that mqc calibrates on. All run in the same process, in turns, on
all cores; speeds are medians of the rounds. Usage: onnx_peers.py PROGRAM, a program for onnx-int8. Needs
`pip install onnxscript onnx onnxruntime`.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from transformers import DynamicCache

import mqc
from mqc.data import text
from mqc.frontend.sources import load_source
from mqc.runtime.perplexity import perplexity, text_windows

BUILD = Path("build/onnx_peers")
WINDOWS, PROMPT, NEW, ROUNDS = 30, 512, 64, 3


class WithCache(torch.nn.Module):
    """`(ids, positions, past keys and values) → (logits, all keys and values)`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.layers = model, model.config.num_hidden_layers

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        for i in range(self.layers):
            cache.update(past[2 * i], past[2 * i + 1], i)
        result = self.model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        rows = [x for layer in result.past_key_values.layers for x in (layer.keys, layer.values)]
        return (result.logits, *rows)


def export(model: Any, path: Path) -> None:
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    count = 2 * config.num_hidden_layers
    past = [torch.zeros(1, config.num_key_value_heads, 5, head) for _ in range(count)]
    ids, positions = torch.randint(0, 1000, (1, 7)), torch.arange(5, 12)[None]
    tokens, seen = torch.export.Dim("tokens", min=1, max=2048), torch.export.Dim("past", min=0, max=2048)
    with torch.no_grad():
        torch.onnx.export(
            WithCache(model), (ids, positions, *past), path, dynamo=True, opset_version=21,
            input_names=["ids", "positions", *(f"past.{i}" for i in range(count))],
            output_names=["logits", *(f"present.{i}" for i in range(count))],
            dynamic_shapes=({1: tokens}, {1: tokens}, tuple({2: seen} for _ in past)),
        )  # fmt: skip


class Windows(CalibrationDataReader):
    """The calibration windows, each with an empty cache."""

    def __init__(self, ids: list[int], empty: dict[str, Any]) -> None:
        picked = np.linspace(0, len(ids) // PROMPT - 1, 16).astype(int)
        self.feeds: Iterator[dict[str, Any]] = iter(
            {
                "ids": np.asarray(ids[i * PROMPT : (i + 1) * PROMPT], np.int64)[None],
                "positions": np.arange(PROMPT)[None],
                **empty,
            }
            for i in picked
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


class Peer:
    """One of the peers' models, its cache handed from output to input without a copy."""

    def __init__(self, path: Path, empty: dict[str, Any]) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.empty = empty
        self.reset()

    def reset(self) -> None:
        self.position = 0
        self.past = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in self.empty.items()}

    def forward(self, ids: Any) -> Any:
        binding = self.session.io_binding()
        binding.bind_cpu_input("ids", np.asarray(ids, np.int64)[None])
        binding.bind_cpu_input("positions", np.arange(self.position, self.position + len(ids))[None])
        for name, value in self.past.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        results = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        self.past = {name: results[name.replace("past", "present")] for name in self.past}
        self.position += len(ids)
        return results["logits"].numpy()[0]


class Ours:
    """A program's engine with the same interface: logits as the graph gives them."""

    def __init__(self, path: Path, **options: Any) -> None:
        program = mqc.load(path).configure(**options)
        self.engine, self.scale = program.engine(), np.float32(program.logit_scale)
        self.engine._integers = lambda logits: logits
        self.reset = self.engine.reset

    def forward(self, ids: Any) -> Any:
        return self.engine.forward(np.asarray(ids, np.int32))

    def real(self, logits: Any) -> Any:
        return logits.astype(np.float32) * self.scale if logits.dtype == np.int32 else logits


def speed(model: Any) -> tuple[float, float]:
    """Tokens per second of one prompt, with the logits of all its tokens, and of decoding behind it."""
    prompt = np.random.default_rng(0).integers(0, 40000, PROMPT)
    model.reset()
    start = time.perf_counter()
    logits = model.forward(prompt)
    middle = time.perf_counter()
    for _ in range(NEW):
        logits = model.forward([int(logits[-1].argmax())])
    return PROMPT / (middle - start), NEW / (time.perf_counter() - middle)


def main() -> None:
    program = Path(sys.argv[1])
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    source = load_source("demo")
    tokenizer = mqc.load(program).tokenizer
    float_path = BUILD / "float.onnx"
    export(source.model, float_path)
    config = source.model.config
    shape = (1, config.num_key_value_heads, 0, config.hidden_size // config.num_attention_heads)
    empty = {f"past.{i}": np.zeros(shape, np.float32) for i in range(2 * config.num_hidden_layers)}
    calibration = tokenizer.encode(text("calibration"), start=False)
    common: dict[str, Any] = {
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": True,
    }
    static: dict[str, Any] = {
        **common, "quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8,
        "calibrate_method": CalibrationMethod.MinMax,
    }  # fmt: skip
    makers: dict[str, Callable[[Path], None]] = {
        "quantize_dynamic": lambda path: quantize_dynamic(float_path, path, **common),
        "quantize_static": lambda path: quantize_static(
            float_path, path, Windows(calibration, empty), **static
        ),
        "quantize_static, products only": lambda path: quantize_static(
            float_path, path, Windows(calibration, empty), **static, op_types_to_quantize=["MatMul", "Gemm"]
        ),
    }
    models: dict[str, tuple[Callable[[], Any], int]] = {
        "float32, torch.onnx": (lambda: Peer(float_path, empty), _bytes(float_path))
    }
    for name, make in makers.items():
        path = BUILD / f"{name.replace(' ', '_').replace(',', '')}.onnx"
        make(path)
        models[name] = (lambda path=path: Peer(path, empty), _bytes(path))
    for style in ("qdq", "integer"):
        folder = BUILD / style
        mqc.load(program).export(folder, style=style)
        files = (folder / "model.onnx", folder / "weights.bin")
        models[f"mqc, {style}"] = (
            lambda style=style: Ours(program, style=style), sum(f.stat().st_size for f in files),
        )  # fmt: skip
    windows = text_windows(tokenizer.encode(text("test"), start=False), 512, WINDOWS)
    print("| model | perplexity | size | prefill | decode |\n|---|---|---|---|---|", flush=True)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    perplexities = {}
    for name, (load, _) in models.items():
        model = load()

        def logits(ids: Any, model: Any = model) -> Any:
            model.reset()
            logits = model.forward(ids)
            return model.real(logits) if isinstance(model, Ours) else logits

        perplexities[name] = perplexity(logits, windows)
    running = {name: load() for name, (load, _) in models.items()}
    for _ in range(ROUNDS):
        for name, model in running.items():
            results[name].append(speed(model))
    for name, (_, size) in models.items():
        prefill, decode = (statistics.median(values) for values in zip(*results[name], strict=True))
        print(
            f"| {name} | {perplexities[name]:.2f} | {size / 1e6:.0f} MB "
            f"| {prefill:.0f} tok/s | {decode:.1f} tok/s |",
            flush=True,
        )


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


if __name__ == "__main__":
    main()
