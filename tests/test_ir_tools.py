"""mqc opt, mqc ir …: by their functions and by the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.evaluation import evaluate
from mqc.analysis.ir_text import parse_module, print_module
from mqc.cli.modules import read_module
from mqc.compiler.dump import dump_files, read_dump
from mqc.compiler.instruments import PrintIR
from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.recipe import Recipe
from mqc.debugging.ir_diff import diff, render
from mqc.debugging.ir_graph import graph, select, svg
from mqc.debugging.ir_reduce import reduce_module
from mqc.dialects.llm import LinearOp, RopeOp, SiluOp
from mqc.errors import IRError, PassError
from mqc.ir.module import mqc_ops, weight_refs
from mqc.pass_base import Pass
from tests.compiled import dumped, imported
from tests.in_process import mqc
from tests.models import tiny_model

GOLDEN = Path(__file__).parent / "filecheck" / "passes"


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dumped(tmp_path_factory.mktemp("dumps"))


# ---- opt


def test_opt_continues_a_dump(dumps: Path, tmp_path: Path) -> None:
    """Any dump taken through the rest of the pipeline gives the later dumps, byte for byte."""
    rest = str(Recipe(prefix=(9,)).pipeline("cpu")).split(",observe-ranges")[1]
    out = tmp_path / "out.mlir"
    done = mqc(
        "opt", dumps / "05-balance-scales.mlir", "--verify-each", "-o", out,
        "--passes", f"observe-ranges{rest}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert out.read_text() == (dump_files(dumps)[-1]).read_text()
    module, weights = read_dump(out)
    assert evaluate(module, weights, np.arange(5)).shape == (5, 64)


def test_opt_is_a_filter_for_filecheck() -> None:
    golden = GOLDEN / "fold_norm.mlir"
    done = mqc("opt", "-", "--random-weights", "--passes", "fold-norm", text=golden.read_text())
    assert done.returncode == 0, done.stderr
    check = subprocess.run(
        [sys.executable, "-m", "filecheck", str(golden)], input=done.stdout, text=True, check=False
    )
    assert check.returncode == 0
    missing = mqc("opt", "-", "--passes", "fold-norm", text=golden.read_text())
    assert missing.returncode == 1 and "--random-weights" in missing.stderr


def test_printing_around_passes(dumps: Path) -> None:
    file = dumps / "00-import.mlir"
    passes = ("--passes", "fold-constants,fold-norm")
    every = mqc("opt", file, *passes, "--print-ir-after").stderr
    assert every.index("IR after fold-constants") < every.index("IR after fold-norm")
    one = mqc("opt", file, *passes, "--print-ir-before=fold-norm").stderr
    assert one.count("// -----") == 1 and "IR before fold-norm" in one
    changed = mqc("opt", file, *passes, "--print-ir-after-change").stderr
    assert changed.count("// -----") == 1 and "IR after fold-norm" in changed  # nothing to fold in the first
    body = changed.split("-----\n", 1)[1]
    assert print_module(parse_module(body)).strip() == body.strip()
    with pytest.raises(Exception, match="there is no pass 'nonsense'"):
        PrintIR(after_passes="nonsense")


@dataclass(frozen=True)
class Break(Pass):
    """Leaves a module that does not verify, or crashes."""

    name = "break"
    requires: ClassVar[str] = "llm"
    how: str = "crash"

    def run(self, ctx: CompilerContext, module: ModuleOp) -> bool:
        silu = next(op for op in mqc_ops(module) if isinstance(op, SiluOp))
        if self.how == "crash":
            raise RuntimeError("boom")
        silu.operands[0] = next(op for op in mqc_ops(module) if isinstance(op, LinearOp)).x
        return True


@pytest.mark.parametrize(
    ("how", "message"), [("crash", "RuntimeError: boom"), ("verify", "channels must not")]
)
def test_a_failing_pass_leaves_a_reproducer(how: str, message: str, tmp_path: Path) -> None:
    ctx, module = imported(tiny_model("llama"))
    given = print_module(module)
    with pytest.raises(PassError, match=f"pass 1, break, .*{message}") as caught:
        Pipeline((Break(how=how),)).run(ctx, module, reproducer=tmp_path)
    (note,) = caught.value.__notes__
    spec = shlex.quote(str(Break(how=how).spec()))
    assert note == f"to reproduce: mqc opt {tmp_path}/reproducer.mlir --passes {spec}"
    again, weights = read_dump(tmp_path / "reproducer.mlir")
    assert print_module(again) == given
    assert weights is not None and (tmp_path / "calibration.safetensors").is_file()
    if how == "verify":
        assert "%layers.0.mlp.act_fn" in str(caught.value) and "llm.silu" in str(caught.value)


def test_the_printed_command_fails_again(tmp_path: Path) -> None:
    """With a pass that is registered: factors of a rotary embedding that 16 bits do not hold."""
    ctx, module = imported(tiny_model("llama"))
    Recipe(prefix=()).pipeline("cpu").without("lower-to-int").without("choose-kernels").without(
        "plan-memory"
    ).run(ctx, module)
    op = next(op for op in mqc_ops(module) if isinstance(op, RopeOp))
    op.properties["cos"] = ctx.weights.add("rope.cos", 3 * ctx.weights[op.cos])
    with pytest.raises(Exception, match="16 bits hold less than 2") as caught:
        Pipeline.parse("lower-to-int").run(ctx, module, reproducer=tmp_path)
    words = caught.value.__notes__[0].removeprefix("to reproduce: mqc ").split()
    done = mqc(*(word.strip("'") for word in words))
    assert done.returncode == 1 and "16 bits hold less than 2" in done.stderr
    assert "to reproduce" not in done.stderr  # it is one already


# ---- diff


def test_diff_shows_what_each_pass_changed(dumps: Path) -> None:
    modules = [read_dump(path)[0] for path in dump_files(dumps)]
    assert diff(modules[0], modules[0].clone()) == []
    folded = diff(modules[1], modules[2])
    norms = [c for c in folded if c.op == "llm.rms_norm"]
    assert len(norms) == 5 and all(c.fields[0][0] == "gain" and c.fields[0][2] == "" for c in norms)
    assert {c.op for c in folded} == {"llm.rms_norm", "llm.linear"}
    lowered = diff(modules[7], modules[8])
    added = [c for c in lowered if c.kind == "added"]
    assert all(c.value.rsplit(".", 1)[1] in ("acc", "direction", "rotated", "product") for c in added)
    assert not [c for c in lowered if c.kind == "removed"]
    back = diff(modules[8], modules[7])
    assert [c.value for c in back if c.kind == "removed"] == [c.value for c in added]
    text = render(lowered)
    assert text.endswith(f"{len(added)} added, 0 removed, {len(lowered) - len(added)} changed")


def test_diff_on_the_command_line(dumps: Path) -> None:
    files = dumps / "03-rotate-channels.mlir", dumps / "04-absorb-prefix.mlir"
    assert "~ %layers.0.self_attn.attention  llm.attention" in mqc("ir", "diff", *files).stdout
    changes = json.loads(mqc("ir", "diff", *files, "--values", "module", "--json").stdout)["changes"]
    assert changes[0]["fields"] == [["mqc.prefix", "", "array<i64: 9>"]]


# ---- run, verify


def test_run_evaluates_as_the_library_does(dumps: Path, tmp_path: Path) -> None:
    out = tmp_path / "values.safetensors"
    for stem in ("00-import", "08-quantize-weights", "11-plan-memory"):
        done = mqc(
            "ir",
            "run",
            dumps / f"{stem}.mlir",
            "--ids",
            "3,1,4",
            "--values",
            "*.up_proj",
            "-o",
            out,
            "--json",
        )
        data = json.loads(done.stdout)
        module, weights = read_dump(dumps / f"{stem}.mlir")
        logits = evaluate(module, weights, np.array([3, 1, 4]))
        kept = load_file(out)
        assert (kept["logits"] == logits).all() and set(kept) == {
            "logits", "layers.0.mlp.up_proj", "layers.1.mlp.up_proj"
        }  # fmt: skip
        assert data["next"][0] == int(logits[-1].argmax()) and data["values"]["logits"]["shape"] == [3, 64]
    bad = mqc("ir", "run", dumps / "00-import.mlir", "--ids", "3,99")
    assert bad.returncode == 1 and "token ids in [0, 64)" in bad.stderr


def test_verify_reads_the_weights(dumps: Path, tmp_path: Path) -> None:
    done = mqc("ir", "verify", *dump_files(dumps), "--json")
    assert done.returncode == 0 and len(json.loads(done.stdout)) == len(dump_files(dumps))
    for path in dumps.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "09-lower-to-int.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "09-lower-to-int.safetensors").write_bytes(data)
    bad = mqc("ir", "verify", tmp_path / "09-lower-to-int.mlir")
    assert bad.returncode == 1 and "was altered" in bad.stderr
    assert mqc("ir", "verify", "--text-only", tmp_path / "09-lower-to-int.mlir").returncode == 0


def test_a_folder_stands_for_its_last_dump(dumps: Path, tmp_path: Path) -> None:
    last, weights = read_module(dumps)
    assert print_module(last) == (dump_files(dumps)[-1]).read_text()
    assert all(ref in weights for ref in weight_refs(last))
    with pytest.raises(IRError, match="holds no dumps"):
        read_module(tmp_path)


# ---- graph


def test_graph_of_a_layer(dumps: Path, tmp_path: Path) -> None:
    module, _ = read_dump(dumps / "06-observe-ranges.mlir")
    ops = select(module, "layers.1.*")
    drawn = graph(ops)
    assert drawn.has_edge("layers.1.mlp.up_proj", "layers.1.mlp.mul")
    assert [n for n, d in drawn.nodes(data=True) if not d["inside"]] == ["layers.0.add.add", "positions"]
    root = ElementTree.fromstring(svg(ops))
    boxes = root.findall(".//{http://www.w3.org/2000/svg}rect")
    places = [(float(b.get("x", 0)), float(b.get("y", 0))) for b in boxes]
    assert len(boxes) == len(drawn) == len(set(places))
    for i, (x, y) in enumerate(places):
        for other_x, other_y in places[:i]:
            assert abs(x - other_x) >= 172 or abs(y - other_y) >= 46, "boxes overlap"
    done = mqc("ir", "graph", dump_files(dumps)[-1], "--values", "*", "-o", tmp_path / "g.svg")
    assert done.returncode == 0 and ElementTree.parse(tmp_path / "g.svg")
    none = mqc("ir", "graph", dump_files(dumps)[-1], "--values", "nothing", "-o", tmp_path / "h.svg")
    assert none.returncode == 1 and not (tmp_path / "h.svg").exists()


# ---- reduce


def test_reduce_keeps_what_fails(dumps: Path) -> None:
    module, _ = read_dump(dumps / "06-observe-ranges.mlir")
    runs = 0

    def fails(candidate: ModuleOp) -> bool:
        nonlocal runs
        runs += 1
        return any(op.value_name == "layers.1.mlp.act_fn" for op in mqc_ops(candidate))

    small = reduce_module(module, fails)
    left = [op.value_name for op in mqc_ops(small)]
    assert left == ["embed_tokens", "layers.1.mlp.gate_proj", "layers.1.mlp.act_fn"] and runs < 120
    assert print_module(parse_module(print_module(small))) == print_module(small)
    with pytest.raises(IRError, match="nothing to reduce"):
        reduce_module(module, lambda candidate: False)


def test_reduce_on_the_command_line(dumps: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.mlir"
    command = "! grep -q llm.silu {}"
    done = mqc("ir", "reduce", dumps / "06-observe-ranges.mlir", "--command", command, "-o", out)
    assert done.returncode == 0, done.stderr
    module, weights = read_dump(out)
    assert [op.name for op in mqc_ops(module)][-1] == "llm.silu" and len(list(mqc_ops(module))) == 3
    assert evaluate(module, weights, np.arange(4)).shape[0] == 4
    assert mqc("ir", "reduce", out, "--command", "true {}", "-o", out).returncode == 1
