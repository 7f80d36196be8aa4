"""How each pass grows with the width of a model: seconds at 1,024, 2,048 and 4,096, and the exponent.

    python benchmarks/widths.py [TARGET]    # cpu (the default), npu or onnx

One layer with random weights, for each width in a process of its own. Prints a Markdown table. A pass that
reads every weight once grows with the square of the width. One that multiplies matrices by matrices of
weights grows with the cube, as `rounding=feedback` does.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time

import numpy as np
from xdsl.dialects.builtin import ModuleOp

import mqc
from mqc.analysis.context import CompilerContext
from mqc.compiler.instruments import Instrument

WIDTHS = (1024, 2048, 4096)
VOCABULARY = 4096


class Stopwatch(Instrument):
    """Seconds of each pass, its verification included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def before(self, number: int, p: mqc.Pass, ctx: CompilerContext, module: ModuleOp) -> None:
        self._last = time.perf_counter()

    def after(self, number: int, p: mqc.Pass, ctx: CompilerContext, module: ModuleOp, modified: bool) -> None:
        self.seconds[p.name] = time.perf_counter() - self._last


def compile_width(width: int, target: str) -> dict[str, float]:
    """Compile a layer of `width`; seconds by pass, and the peak bytes of this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mqc.calibration import Calibration
    from mqc.frontend.raising import raise_program
    from mqc.frontend.trace import trace

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=1,
        num_attention_heads=width // 64, num_key_value_heads=width // 256, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    watch = Stopwatch()
    start = time.perf_counter()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (16, 512))
    ctx = CompilerContext(calibration=Calibration(ids))
    module = raise_program(trace(model), ctx.weights, 2048, VOCABULARY)
    seconds = {"tracing": time.perf_counter() - start}
    mqc.pipeline(f"{target}-int8").run(ctx, module, [watch])
    return seconds | watch.seconds | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main(target: str) -> None:
    runs = []
    for width in WIDTHS:
        command = [sys.executable, __file__, target, str(width)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(run.stdout.splitlines()[-1]))
    print("| pass | " + " | ".join(f"{width:,}" for width in WIDTHS) + " | exponent |")
    print("|---|" + "---|" * (len(WIDTHS) + 1))
    for name in (name for name in runs[0] if name != "peak"):
        seconds = [run[name] for run in runs]
        exponent = "" if seconds[-1] < 0.1 else f"{math.log2(seconds[-1] / seconds[-2]):.1f}"
        print(f"| `{name}` | " + " | ".join(f"{s:.2f} s" for s in seconds) + f" | {exponent} |")
    print("| peak memory | " + " | ".join(f"{run['peak'] / 1e9:.2f} GB" for run in runs) + " | |")


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    if len(sys.argv) > 2:
        print(json.dumps(compile_width(int(sys.argv[2]), chosen)))
    else:
        main(chosen)
