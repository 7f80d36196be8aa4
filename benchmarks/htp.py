"""How far Qualcomm's HTP back end (x86, onnxruntime-qnn) is from the oracle, op by op.

Each op is judged alone: HTP's result against the oracle's for the inputs that HTP had, in steps of the
result. Usage: htp.py PROGRAM, a program for onnx-int8.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np

import mqc
from mqc.data import text
from mqc.debugging.value_trace import Side, Trace
from mqc.ir.module import ops_by_name
from mqc.registry import backend

TOKENS = 32


def main() -> None:
    program = mqc.load(sys.argv[1])
    options = {"runtime": "npu", "provider": "QNNExecutionProvider", "context": 128}
    running = Trace(Side("HTP", program.module, program.weights, backend("onnx"), options))
    running.run(np.asarray(program.tokenizer.encode(text("test"))[:TOKENS], np.int32))
    steps = defaultdict(list)
    for op in ops_by_name(program.module).values():
        value = op.results[0]
        kind = running.type(value)
        if value not in running.native or kind is None:
            continue
        producer = op.operands[0].owner
        name = getattr(producer, "name", "") if op.name == "int.requant" else op.name
        operand = running.type(producer.operands[0] if op.name == "int.requant" else op.operands[0])
        widths = f"u{operand.bits if operand else 'ids'} → u{kind.bits}"
        wanted = running.again(value, running.native)
        steps[f"{name}, {widths}"].append(np.abs(running.native[value].astype(int) - wanted).reshape(-1))
    print("| op | results that differ | mean difference | 99.9 % at most | largest |\n|---|---|---|---|---|")
    for name, parts in sorted(steps.items()):
        d = np.concatenate(parts)
        print(
            f"| {name} | {(d > 0).mean():.1%} | {d.mean():.2f} | {np.quantile(d, 0.999):.0f} | {d.max()} |",
            flush=True,
        )
    ids = program.tokenizer.encode(text("test"))[:TOKENS]
    oracle = program.integer_logits(ids, "oracle").astype(np.float64)
    print()
    for provider in ("QNNExecutionProvider", "CPUExecutionProvider"):
        program.configure(runtime="npu", tokens=(TOKENS, 1), context=128, provider=provider)
        noise = ((program.integer_logits(ids) - oracle) ** 2).sum()
        print(f"- logits, {provider}: SQNR {10 * np.log10((oracle**2).sum() / noise):.1f} dB")


if __name__ == "__main__":
    main()
