"""What the integer program loses against the `quant` level: perplexity of every level of a dump folder, and
its distance from the level above with the standard error over the windows.

mqc compile demo -o program --dump-ir DUMPS
python benchmarks/levels.py DUMPS [WINDOWS]
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from mqc.analysis.evaluation import evaluate
from mqc.compiler.dump import dump_files, read_dump
from mqc.data import text
from mqc.ir.module import main_level
from mqc.runtime.perplexity import perplexity, text_windows
from mqc.runtime.program import Program
from mqc.runtime.tokenizer import Tokenizer


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30
    tokenizer = Tokenizer.read(folder)
    windows = text_windows(tokenizer.encode(text("test"), start=False), 512, count)
    last = {}
    for path in dump_files(folder):
        last[main_level(read_dump(path)[0])] = path
    print("| level | dump | perplexity | above the one before |")
    print("|---|---|---|---|")
    before = None
    for level, path in last.items():
        module, weights = read_dump(path)
        if level == "int":
            # The backend's numbers are the oracle's, and come sooner.
            logits_of = Program(module, weights, tokenizer, {"target": "cpu-int8"}).logits
        else:
            logits_of = partial(evaluate, module, weights)
        losses = np.log([perplexity(logits_of, [window]) for window in windows])
        above = ""
        if before is not None:
            change = losses - before
            above = f"{change.mean():.2%} ± {change.std(ddof=1) / np.sqrt(count):.2%}"
        print(f"| {level} | {path.stem} | {np.exp(losses.mean()):.3f} | {above} |", flush=True)
        before = losses


if __name__ == "__main__":
    main()
