"""Perplexity, size and speed of SmolLM2 under every recipe.

Speed stands as a share of what the machine could do at most, measured in the same run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mqc.compiler.recipe import RECIPES

BUILD = Path("build/benchmarks")


def command(*arguments: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "mqc", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def main() -> None:
    print("| recipe | perplexity | float | ratio | KL, nats | 8-bit MACs | size | prefill | decode |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in RECIPES:
        path = str(BUILD / f"{name}.mqc")
        command("compile", "demo", "-o", path, "--recipe", name)
        e, b = command("eval", path), command("bench", path)
        prefill = b["prefill_tok_s"] / b["prefill_limit_tok_s"]
        decode = b["decode_tok_s"] / b["decode_limit_tok_s"]
        print(
            f"| {name} | {e['int_ppl']:.2f} | {e['float_ppl']:.2f} | {e['int_ratio']:.3f} "
            f"| {e['int_kl']:.4f} | {e['mac_share_8bit']:.1%} | {e['size_bytes'] / 1e6:.1f} MB "
            f"| {b['prefill_tok_s']:.0f} tok/s ({prefill:.0%} of the limit) "
            f"| {b['decode_tok_s']:.0f} tok/s ({decode:.0%}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
