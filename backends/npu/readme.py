"""README.md of the folder that a person takes to a phone: it says what is there, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xdsl.dialects.builtin import ModuleOp

from mqc.backends.npu.op_list import OpList
from mqc.ir.module import static_functions
from mqc.ir.op import plain

OP_LIST, OP_TEXT, HVX, ONNX = "program.oplist", "program.txt", "hvx", "onnx"

#: Files by pattern, and what they are. A line is written if the folder has such files.
_FILES = {
    f"{ONNX}/prefill_*[0-9].onnx": "graph for prompts: s32 ids and positions in, u16 logits and new rows out",
    f"{ONNX}/decode.onnx": "graph for one token",
    f"{ONNX}/weights.bin": "weights of the graphs",
    f"{ONNX}/*_ctx.onnx": "the same graphs compiled for HTP v73",
    f"{ONNX}/*_qnn.bin": "their context binaries",
    f"{ONNX}/initial_cache.safetensors": "what the KV cache begins with, by the graphs' inputs",
    f"{ONNX}/*.encodings": "AIMET encodings, formats 1.0.0 and 2.0.0, for Qualcomm's converters",
    f"{ONNX}/host/*": "host program for ONNX Runtime with the QNN execution provider, in C++",
    OP_LIST: "op lists for the HVX code; addresses count in `weights.safetensors`",
    OP_TEXT: "the same as text",
    "weights.safetensors": "weights of the HVX code",
    f"{HVX}/*.[ch]": "HVX kernels in C with intrinsics, and `runtime.c`, which carries op lists out",
    f"{HVX}/*.o": "their objects for Hexagon v67",
    "program.mlir": "the program as mqc reads it; a device does not need it",
}

_ONNX_PART = f"""\
## ONNX Runtime with QNN

`{ONNX}/` goes to the phone as it is. Its results are close to the integer program's, not equal to them.
`{ONNX}/host/ort_qnn.cpp` decodes greedily. Its first lines say how to compile it. It needs ONNX Runtime 1.23
or newer, the plug-in of the package onnxruntime-qnn, and the header nlohmann/json. It was run on x86 with the
simulation of HTP that is in onnxruntime-qnn 2.7. It was not run on a phone.

There is no host for the plain QNN API: its headers come with Qualcomm's SDK alone, and it was not at hand.

The rule for the cache:

- The host keeps `context` rows for each input such as `past_key.0`, a row for each position. They begin with
  the rows in `initial_cache.safetensors`, if it has any. The first token's position is the number of those.
- A graph for N tokens takes the first `context − N` rows. It reads those before its first position only.
- It gives N rows, such as `new_key.0`. The host copies those of real tokens to their positions.
- A short prompt is padded at its end. The rows and logits of padding are dropped.
- A graph for N tokens fits as long as the first position is at most `context − N`. Else take `decode`.
- Logits are u16 with one scale for all. The largest integer is the largest logit.
"""

_HVX_PART = f"""\
## HVX code

The numbers are the integer program's, bit for bit. `{HVX}/runtime.c` shows how an op list is carried out. On
a phone, replace its system calls (`{HVX}/system.h`) by FastRPC, and its copies at `wait` by user DMA. Give it
VTCM.
"""

_TOKENIZER_PART = """\
## Tokens

Host programs take token ids and give token ids. `tokenizer.json` is the standard file of Hugging Face's
tokenizers, a library in Rust with bindings. Not every model has the other two: `chat_template.jinja` is the
form of chats, `generation_config.json` has the tokens that end an answer. Python makes ids of a text:

    from tokenizers import Tokenizer
    print(Tokenizer.from_file("tokenizer.json").encode("The capital of France is").ids)
"""


def readme(
    module: ModuleOp, ops: OpList, metadata: Mapping[str, str], folder: Path, missing: Sequence[str]
) -> str:
    """Text of the README, from the files that are in the folder, and what was not written and why."""
    head = (
        f"# Program for a Hexagon NPU\n\nCompiled by mqc {metadata.get('mqc_version')}, recipe "
        f"{metadata.get('recipe')}. Source: {metadata.get('source')}. "
        f"Prefix tokens: {metadata.get('prefix')}.\n"
    )
    absent = "\n".join(f"- {text}" for text in missing or ["nothing"])
    parts = [head, _listed(folder), f"## Not written\n\n{absent}\n"]
    parts += [_ONNX_PART] if (folder / ONNX).is_dir() else []
    parts += [_HVX_PART, _op_lists(module, ops), _TOKENIZER_PART]
    return "\n".join(parts)


def _listed(folder: Path) -> str:
    rows = []
    for pattern, what in _FILES.items():
        names = sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))
        if names:
            shown = ", ".join(f"`{name}`" for name in (names if len(names) < 3 else [pattern]))
            rows.append(f"| {shown} | {what} |")
    return "\n".join(["## Files\n", "| file | what |", "|---|---|", *rows, ""])


def _op_lists(module: ModuleOp, ops: OpList) -> str:
    rows = []
    for i, (name, function) in enumerate(static_functions(module).items()):
        peak = plain(function.attributes["vtcm_peak"])
        rows.append(f"| {i} | {name} | {ops.lists[i].tokens} | {len(ops.lists[i].commands)} | {peak} |")
    text = (
        f"VTCM {ops.vtcm_bytes} bytes, KV cache {ops.cache_bytes} bytes (zero at first), {ops.vocabulary} "
        "logits.\nRun `initialize` once at position 0, where it is listed. Then run prompts by `prefill_N` "
        "and tokens by `decode`,\neach with the position of its first token.\n"
    )
    table = ["| list | function | tokens | commands | VTCM bytes used |", "|---|---|---|---|---|", *rows, ""]
    return "\n".join(["### Op lists\n", text, *table])
