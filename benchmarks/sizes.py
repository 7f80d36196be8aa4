"""Time, memory and speed of programs in the shapes of models that people put on phones.

    python benchmarks/sizes.py [SHAPE…]    # all but the 7B, hours; names: see SHAPES

Random weights, written shard by shard in bf16 to MQC_TMP, and a tokenizer trained on the packaged text. Each
shape is compiled in a process of its own. The memory is its largest RssAnon: what the system cannot take
back.
Prints a Markdown table of the shapes, and one of the seconds of each pass, and draws docs/sizes.svg. What was
measured before, with the same commit, is kept in build/sizes.json and shown too.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from mqc.cli.progress import memory
from mqc.ir.spill import folder as temporary

ROOT = Path(__file__).parent.parent
RESULTS, PLOT = ROOT / "build" / "sizes.json", ROOT / "docs" / "sizes.svg"
RECIPE = "w8a8"
_SHARD_BYTES = 1 << 29

#: Configs by name: the model's own numbers.
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-360M": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 960, "intermediate_size": 2560,
        "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
        "tie_word_embeddings": True,
    },
    "Gemma-3-270m": {
        "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "sliding_window": 512, "tie_word_embeddings": True,
    },
    "TinyLlama-1.1B": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-1.5B": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-3B": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "MoE-0.6B": {
        "model_type": "qwen3_moe", "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816,
        "moe_intermediate_size": 704, "num_experts": 32, "num_experts_per_tok": 4, "norm_topk_prob": True,
        "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
        "tie_word_embeddings": False,
    },
    "LFM2-350M": {
        "model_type": "lfm2", "vocab_size": 65536, "hidden_size": 1024, "intermediate_size": 6656,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8,
        "layer_types": [
            "full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)
        ],
        "tie_word_embeddings": True,
    },
    "Llama-2-7B": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def write_model(shape: str, folder: Path) -> None:
    """A folder as transformers writes it: config, tokenizer and shards of random weights in bf16."""
    import torch
    from safetensors.torch import save_file
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    given = dict(SHAPES[shape])
    config = CONFIG_MAPPING[given.pop("model_type")](
        **given,
        max_position_embeddings=2048,
        dtype="bfloat16",
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    left_out = model.all_tied_weights_keys
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    shard: dict[str, Any] = {}

    def write() -> None:
        name = f"model-{len(set(index.values())):05}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for key, tensor in model.state_dict().items():
        if key in left_out:
            continue
        values = torch.empty(tensor.shape, dtype=torch.bfloat16)
        shard[key] = values.fill_(1) if tensor.ndim == 1 else values.normal_(0, 0.02, generator=generator)
        if sum(t.nbytes for t in shard.values()) >= _SHARD_BYTES:
            write()
    write()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from mqc.data import text

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(text("calibration").splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


class PeakMemory(threading.Thread):
    """The largest RssAnon of this process, in bytes, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, memory())
            time.sleep(0.02)


def compile_folder(folder: Path) -> dict[str, Any]:
    """Compile a model; seconds in all and by pass, and the largest RssAnon, in all and by pass."""
    import mqc

    memory = PeakMemory()
    began = {"": time.perf_counter()}
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}
    most = 0

    def note(name: str, share: float) -> None:
        nonlocal most
        name = name.split(":")[0]
        if share == 0:
            most, memory.peak = max(most, memory.peak), 0
            began[name] = time.perf_counter()
        elif share >= 1:
            if name not in seconds:  # passes say it, and the pipeline says it again
                print(f"{name}: {memory.peak / 2**30:.2f} GiB", file=sys.stderr, flush=True)
            seconds[name] = time.perf_counter() - began[name]
            peaks[name] = memory.peak

    program = mqc.compile(str(folder), recipe=RECIPE, progress=note)
    program.save(folder.with_suffix(".mqc"))
    return {
        "seconds": time.perf_counter() - began[""],
        "passes": seconds,
        "peaks": peaks,
        "peak": max(most, memory.peak),
        "bytes": program.size_bytes,
    }


def measure(shape: str) -> dict[str, Any]:
    """Write, compile and run a shape, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=temporary()) as parent:
        folder = Path(parent) / "model"
        printed(__file__, "--write", shape, str(folder))
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 2
        found: dict[str, Any] = json.loads(printed(__file__, "--compile", str(folder)).splitlines()[-1])
        speed = json.loads(printed("-m", "mqc", "bench", str(folder.with_suffix(".mqc")), "--json"))
    return found | {"bench": speed, "weights": weights}


def printed(*arguments: str) -> str:
    """What Python prints, its threads set as the command line of mqc sets them."""
    threads = {"GOMP_SPINCOUNT": "3000", "THP_MEM_ALLOC_ENABLE": "1"}
    command = [sys.executable, *arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | threads)
    return run.stdout


def main(names: list[str]) -> None:
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    results = kept.get(commit, {})
    for name in names:
        results[name] = measure(name)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({commit: results}))
        print(row(name, results[name]), file=sys.stderr, flush=True)
    shown = {name: results[name] for name in SHAPES if name in results}
    print("| shape | weights | compile | peak RssAnon | program | prefill of 512 | decode |")
    print("|---|---|---|---|---|---|---|")
    for name, found in shown.items():
        print(row(name, found))
    print("\n| pass | " + " | ".join(shown) + " |")
    print("|---|" + "---|" * len(shown))
    for step in next(iter(shown.values()))["passes"]:
        cells = (f"{r['passes'][step]:.1f} s, {r['peaks'][step] / 2**30:.2f} GiB" for r in shown.values())
        print(f"| `{step}` | " + " | ".join(cells) + " |")
    PLOT.write_text(plot(shown))


def row(name: str, found: dict[str, Any]) -> str:
    b = found["bench"]
    return (
        f"| {name} | {found['weights'] / 1e6:,.0f} M | {found['seconds']:.0f} s "
        f"| {found['peak'] / 2**30:.2f} GiB | {found['bytes'] / 1e6:.0f} MB "
        f"| {b['prefill_tok_s']:.1f} tok/s ({b['prefill_tok_s'] / b['prefill_limit_tok_s']:.0%}) "
        f"| {b['decode_tok_s']:.1f} tok/s ({b['decode_tok_s'] / b['decode_limit_tok_s']:.0%}) |"
    )


def plot(shown: dict[str, dict[str, Any]]) -> str:
    """Time and memory of compiling over the number of weights, both axes logarithmic, as SVG."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="880" height="400" viewBox="0 0 880 400" '
        'font-family="sans-serif" font-size="12"><rect width="880" height="400" fill="#ffffff"/>'
    ]
    figures = (
        ("compile, s", [(n, f["weights"], f["seconds"]) for n, f in shown.items()]),
        ("peak RssAnon, GiB", [(n, f["weights"], f["peak"] / 2**30) for n, f in shown.items()]),
    )
    for number, (title, points) in enumerate(figures):
        parts += _panel(60 + 440 * number, title, points)
    return "\n".join([*parts, "</svg>\n"])


def _panel(left: int, title: str, points: list[tuple[str, float, float]]) -> list[str]:
    width, top, height = 350, 50, 290
    x_range, y_range = (_decades([p[axis] for p in points]) for axis in (1, 2))

    def x(value: float) -> float:
        return left + width * (math.log10(value) - x_range[0]) / (x_range[-1] - x_range[0])

    def y(value: float) -> float:
        return top + height * (1 - (math.log10(value) - y_range[0]) / (y_range[-1] - y_range[0]))

    parts = [f'<text x="{left}" y="30" font-weight="bold">{title}</text>']
    parts.append(
        f'<text x="{left + width}" y="{top + height + 36}" text-anchor="end">weights, millions</text>'
    )
    for tick in x_range:
        place = x(10**tick)
        parts.append(f'<path d="M{place:.0f},{top} v{height}" stroke="#e5e7eb"/>')
        label = f"{10 ** (tick - 6):,.0f}"
        parts.append(f'<text x="{place:.0f}" y="{top + height + 18}" text-anchor="middle">{label}</text>')
    for tick in y_range:
        place = y(10**tick)
        parts.append(f'<path d="M{left},{place:.0f} h{width}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 8}" y="{place + 4:.0f}" text-anchor="end">{10**tick:g}</text>')
    for name, weights, value in points:
        parts.append(f'<circle cx="{x(weights):.1f}" cy="{y(value):.1f}" r="4" fill="#2563eb"/>')
        parts.append(f'<text x="{x(weights) + 7:.1f}" y="{y(value) + 4:.1f}" font-size="10">{name}</text>')
    return parts


def _decades(values: list[float]) -> range:
    """Exponents of ten around some numbers, two at least."""
    low, high = (round_(math.log10(end(values))) for round_, end in ((math.floor, min), (math.ceil, max)))
    return range(low, max(high, low + 1) + 1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--write", name, path]:
            write_model(name, Path(path))
        case ["--compile", path]:
            print(json.dumps(compile_folder(Path(path))))
        case chosen:
            if unknown := set(chosen) - set(SHAPES):
                raise SystemExit(f"no shape {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
            main(chosen or [name for name in SHAPES if name != "Llama-2-7B"])
