"""Every preset on every recipe, with the shares of 8-bit activations that the project aims at, on SmolLM2.

Each cell is one `mqc compile` and one `mqc eval`; give names of presets to run those alone.
"""

from __future__ import annotations

import sys
import time

from programs import BUILD, command

from mqc.recipe import PRESETS

#: Recipe and least share of multiply-accumulates with 8-bit activations.
ROWS = (("w8a8", 0.95), ("w8a8", 0.75), ("w4a8", 0.95), ("w4a8-g64", 0.95))


def main() -> None:
    chosen = sys.argv[1:] or ["closed form", *PRESETS]
    print("| recipe | preset | perplexity | × float, same prefix | × float | 8-bit MACs | compilation |")
    print("|---|---|---|---|---|---|---|")
    for recipe, share in ROWS:
        for preset in chosen:
            path = BUILD / "ablations.mqc"
            method = [] if preset == "closed form" else ["--preset", preset]
            start = time.perf_counter()
            command("compile", "demo", "-o", str(path), "--recipe", recipe, "--share", str(share), *method)
            minutes = (time.perf_counter() - start) / 60
            e = command("eval", str(path))
            print(
                f"| {recipe} | {preset} | {e['int_ppl']:.3f} | {e['int_ppl'] / e['float_prefix_ppl']:.4f} "
                f"| {e['int_ppl'] / e['float_ppl']:.4f} | {e['mac_share_8bit']:.1%} | {minutes:.1f} min |",
                flush=True,
            )


if __name__ == "__main__":
    main()
