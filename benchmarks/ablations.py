"""Every preset on every recipe, with the shares of 8-bit activations that the project aims at, on SmolLM2.

Each cell is one `mqc compile` and one `mqc eval`. For some cells only:
`python benchmarks/ablations.py w8a8:0.95:learned w4a8:0.95:none`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from programs import BUILD, command

from mqc.compiler.recipe import PRESETS, Recipe, load_recipe

#: Recipe and least share of multiply-accumulates with 8-bit activations.
ROWS = (("w8a8", 0.95), ("w8a8", 0.75), ("w4a8", 0.95), ("w4a8-g64", 0.95))
#: Methods, from the least to the most; `none` is the recipe without a preset.
METHODS = ("smoothquant", "omniquant", "mobilequant", "none", "learned")


def compiled(recipe: Recipe) -> tuple[str, float]:
    """The program's folder, and the minutes that it took."""
    path, file = BUILD / "ablations.mqc", BUILD / "ablations.toml"
    BUILD.mkdir(parents=True, exist_ok=True)
    file.write_text(recipe.to_toml())
    start = time.perf_counter()
    command("compile", "demo", "-o", str(path), "--recipe", str(file))
    return str(path), (time.perf_counter() - start) / 60


def main() -> None:
    assert set(METHODS) == {"none", *PRESETS}
    cells = sys.argv[1:] or [f"{name}:{share}:{method}" for name, share in ROWS for method in METHODS]
    print("| recipe | preset | perplexity | × float | KL, nats | 8-bit MACs | prefix | compilation |")
    print("|---|---|---|---|---|---|---|---|")
    for cell in cells:
        name, share, method = cell.split(":")
        recipe = load_recipe(name, None if method == "none" else method)
        path, minutes = compiled(replace(recipe, share=float(share)))
        e = command("eval", path)
        print(
            f"| {name} | {method} | {e['int_ppl']:.3f} | {e['int_ratio']:.4f} ± {e['int_ratio_error']:.4f} "
            f"| {e['int_kl']:.4f} | {e['mac_share_8bit']:.1%} | {e['prefix']} | {minutes:.1f} min |",
            flush=True,
        )


if __name__ == "__main__":
    main()
