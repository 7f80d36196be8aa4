"""Checkpoints of SmolLM2 that llm-compressor makes, compiled: perplexity beside that stack's own evaluation.

llm-compressor takes other versions of its libraries than mqc: they go to build/llmcompressor.
What is in build/quantized is not made again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "quantized"
STACK = ROOT / "build" / "llmcompressor"
PACKAGES = (
    "llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "transformers==5.17.0", "auto-round==0.15.1",
    "huggingface_hub>=1.5,<2", "loguru", "nvidia-ml-py", "py-cpuinfo", "threadpoolctl", "httpx", "httpcore",
    "h11", "anyio", "sniffio", "certifi", "idna", "hf-xet", "typer-slim", "shellingham",
)  # fmt: skip
WINDOWS, LENGTH, CALIBRATION = 8, 512, 16

#: What llm-compressor is told, by name; the logits' matrix stays float.
_CHANNELS = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
_STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False, "symmetric": True}
_GROUPS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}
CHECKPOINTS = {
    "W8A8": {"weights": _CHANNELS, "input_activations": _STATIC},
    "W4A16, groups of 64": {"weights": _GROUPS},
}

#: Run with the stack's libraries: makes a checkpoint, or measures one.
_MAKE = """
import sys, json, numpy as np, torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
source, target, ids, scheme = sys.argv[1:]
scheme, ids = json.loads(scheme), np.load(ids)
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(source)
kind = GPTQModifier if scheme["weights"]["num_bits"] == 4 else QuantizationModifier
recipe = kind(config_groups={"all": {"targets": ["Linear"], **scheme}}, ignore=["lm_head"])
data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()})
oneshot(
    model=model, tokenizer=tokenizer, dataset=data, recipe=[recipe], num_calibration_samples=len(ids),
    max_seq_length=ids.shape[1],
)
model.save_pretrained(target, save_compressed=True)
tokenizer.save_pretrained(target)
"""
_MEASURE = """
import sys, numpy as np, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
losses = []
with torch.no_grad():
    for window in np.load(sys.argv[2]):
        ids = torch.from_numpy(window).long()
        chances = torch.log_softmax(model(ids[None]).logits[0, :-1].double(), -1)
        losses.append(-chances.gather(1, ids[1:, None]))
print(float(torch.cat(losses).mean().exp()))
"""


def stack(script: str, *arguments: object) -> str:
    """What a script prints last under the stack's libraries."""
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=BUILD, check=True, text=True,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(STACK)},
    )  # fmt: skip
    return run.stdout.splitlines()[-1] if run.stdout else ""


def prepare() -> None:
    """The float model, windows to calibrate on, and windows to measure on."""
    from mqc.data import text
    from mqc.frontend.sources import load_source
    from mqc.runtime.calibration_text import packaged_calibration
    from mqc.runtime.perplexity import text_windows
    from mqc.runtime.tokenizer import Tokenizer

    BUILD.mkdir(parents=True, exist_ok=True)
    source = load_source("demo")
    source.model.save_pretrained(BUILD / "float")
    source.tokenizer.save_pretrained(BUILD / "float")
    tokenizer = Tokenizer.from_huggingface(source.tokenizer, None)
    calibration = packaged_calibration(tokenizer, source.model.config.vocab_size, LENGTH)
    np.save(BUILD / "calibration.npy", calibration.part(CALIBRATION, LENGTH))
    windows = text_windows(tokenizer.encode(text("test"), start=False), LENGTH, WINDOWS)
    np.save(BUILD / "windows.npy", np.array(windows))


def weights_alone(folder: Path) -> float:
    """Perplexity of the float model with the weights of the program: groups have its steps."""
    from mqc.frontend.float_model import float_logits
    from mqc.frontend.sources import load_source
    from mqc.numerics.products import per_input
    from mqc.numerics.weight_rounding import common_scales, in_other_steps, whole_steps
    from mqc.runtime.perplexity import perplexity

    source = load_source(str(folder))
    assert source.given is not None
    for name, grid in source.given.matrices.items():
        weight = source.model.get_parameter(name).detach().numpy()
        if grid.scale is not None and grid.scale.shape[1] > 1:
            scale, factor = common_scales(grid.scale)
            integers = whole_steps(weight, grid.scale)
            assert integers is not None
            steps = factor * scale[:, None]
            made = in_other_steps(integers, grid.scale, steps, grid.bits)
            weight[:] = made * per_input(steps, weight.shape[1])
    return perplexity(lambda ids: float_logits(source.model, ids), [*np.load(BUILD / "windows.npy")])


def main() -> None:
    import mqc
    from mqc.compiler.recipe import Recipe
    from mqc.data import text

    if not STACK.exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(STACK))
        subprocess.run([*pip, *PACKAGES], check=True)
    if not (BUILD / "windows.npy").exists():
        prepare()
    exact = float(stack(_MEASURE, BUILD / "float", BUILD / "windows.npy"))
    print(
        f"WikiText-2 test, {WINDOWS} windows of {LENGTH} tokens, perplexity; the float model: {exact:.2f}\n"
    )
    print(
        "| checkpoint | the stack's own | the program's weights, float values | the program | of the files |"
    )
    print("|---|---|---|---|---|")
    for name, scheme in CHECKPOINTS.items():
        folder, saved = (BUILD / f"{name.split(',')[0]}{end}" for end in ("", ".mqc"))
        if not folder.exists():
            stack(_MAKE, BUILD / "float", folder, BUILD / "calibration.npy", json.dumps(scheme))
        own = float(stack(_MEASURE, folder, BUILD / "windows.npy"))
        if not saved.exists():
            # Without a prefix, as the stack evaluates.
            mqc.compile(str(folder), recipe=Recipe(prefix=())).save(saved)
        program = mqc.load(saved)
        given = program.manifest["scales"]["given"]
        matrices = sum(line.partition(":")[0].endswith(" weight") for line in given)
        measured = program.perplexity(text("test"), WINDOWS, length=LENGTH)
        print(
            f"| {name} | {own:.2f} | {weights_alone(folder):.2f} | {measured:.2f} | {matrices} matrices, "
            f"{len(given) - matrices} values |",
            flush=True,
        )


if __name__ == "__main__":
    main()
