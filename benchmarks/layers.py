"""How compilation grows with the number of layers: time and peak memory, one process each.

Random-weight Llama models of SmolLM2's width. Prints a Markdown table. What a layer adds is about constant
when time and memory are linear.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

LAYERS = (4, 8, 16, 32)


def compile_layers(layers: int) -> dict[str, float]:
    """Compile a model of `layers` layers; seconds and peak bytes of this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import mqc
    from mqc.frontend.sources import load_source

    torch.manual_seed(0)
    tokenizer = load_source("demo").tokenizer
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    start = time.perf_counter()
    mqc.compile(model, tokenizer=tokenizer)
    return {
        "layers": layers,
        "seconds": time.perf_counter() - start,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    print("| layers | seconds | peak memory | seconds a layer more | memory a layer more |")
    print("|---|---|---|---|---|")
    before: dict[str, float] | None = None
    for layers in LAYERS:
        run = subprocess.run(
            [sys.executable, __file__, str(layers)], capture_output=True, text=True, check=True
        )
        row: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
        seconds, peak = row["seconds"], row["peak_rss_bytes"]
        more = " | "
        if before is not None:
            step = layers - before["layers"]
            memory = (peak - before["peak_rss_bytes"]) / step
            more = f"{(seconds - before['seconds']) / step:.2f} | {memory / 1e6:.1f} MB"
        print(f"| {layers} | {seconds:.1f} | {peak / 1e9:.2f} GB | {more} |", flush=True)
        before = row


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(compile_layers(int(sys.argv[1]))))
    else:
        main()
