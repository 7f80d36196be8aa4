"""The code of the documents runs as it stands, on a tiny model in the place of the embedded one."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import mqc
from mqc import c_kernels
from mqc.analysis.evaluation import evaluate
from mqc.analysis.ir_text import print_module
from mqc.compiler.dump import read_dump
from mqc.compiler.recipe import Recipe
from mqc.frontend import sources
from mqc.frontend.trace import check_model
from mqc.ir.module import mqc_ops
from tests.models import tiny_model
from tests.test_api import tokenizer

DOCS = Path(__file__).parent.parent / "docs"


def run_page(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **config: Any) -> dict[str, Any]:
    """Execute the Python blocks of a page in one module, which is returned."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.S)
    return run_blocks(name, blocks, monkeypatch, folder, **config)


def run_blocks(
    name: str, blocks: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path, **config: Any
) -> dict[str, Any]:
    """Execute Python code in one module, with a tiny model in the place of the embedded one."""
    model = tiny_model("llama", **config)
    source = sources.Source(model, tokenizer(), {"kind": "demo", "id": "tiny"})
    monkeypatch.setattr(sources, "load_source", lambda *_: source)
    monkeypatch.chdir(folder)
    module = type(sys)("tutorial")
    monkeypatch.setitem(sys.modules, "tutorial", module)  # dataclasses look their module up by name
    for number, code in enumerate(blocks, 1):
        exec(compile(code, f"{name}, block {number}", "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.parametrize(
    "name", ["writing-a-pass.md", "adding-an-op.md", "writing-a-backend.md", "debugging.md"]
)
def test_tutorials_import_from_the_public_places_only(name: str) -> None:
    for code in re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.S):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mqc"):
                assert node.module == "mqc.plugin", f"{name} imports {node.module}"


def test_text_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the errors of a model with images lead to compiles, and is its language model."""
    parts = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    ids = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    sizes = {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 6, "max_position_embeddings": 64}
    text = {**parts, **ids, **sizes}
    images = {**parts, "image_size": 8, "patch_size": 4}
    kinds = {"boi_token_index": 61, "eoi_token_index": 62, "image_token_index": 63, "mm_tokens_per_image": 4}
    config = transformers.Gemma3Config(text_config=text, vision_config=images, **kinds)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "google" / "gemma-3-4b-it")
    tokenizer().save_pretrained(tmp_path / "google" / "gemma-3-4b-it")
    for refused in (model, model.model.language_model):
        with pytest.raises(mqc.MqcError) as told:
            check_model(refused)
        assert "docs/text-models.md" in told.value.__notes__[-1]
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "text-models.md").read_text(), re.S)
    exec(code, {})
    alone = sources.load_source("gemma-3-text").model
    some = torch.arange(2, 12)[None]
    with torch.no_grad():
        assert torch.allclose(alone(some).logits, model(some).logits, atol=1e-5)
    check_model(alone)


def test_the_notebook(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every cell; the program with 16-bit attention is nearer to the float model."""
    cells = json.loads((DOCS / "notebook.ipynb").read_text())["cells"]
    assert all(cell["cell_type"] == "markdown" or not cell["outputs"] for cell in cells)
    blocks = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mqc"):
                assert node.module == "mqc.plugin"
    space = run_blocks("notebook.ipynb", blocks, monkeypatch, tmp_path)
    assert space["wide"].manifest["mac_share_8bit"] < space["program"].manifest["mac_share_8bit"]
    assert {"CMakeLists.txt", "include", "model"} <= {path.name for path in Path("model-c").iterdir()}
    told = capsys.readouterr().out
    assert told.count("KL ") == 2 and "channels" in told
    before, after = (float(text) for text in re.findall(r"KL ([\d.]+)", told))
    assert after < before


def test_writing_a_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    space = run_page("writing-a-pass.md", monkeypatch, tmp_path)
    text = (tmp_path / "dump" / "04-use-hard-swish.mlir").read_text()
    assert text.count("acme.hard_swish") == 2 and "llm.silu" not in text
    assert '%layers.0.mlp.act_fn = acme.hard_swish %layers.0.mlp.gate_proj {loc = "' in text
    pinned = {op.value_name: op.results[0].type for op in mqc_ops(space["program"].module)}
    norm = "post_attention_layernorm"
    assert "ui16" in str(pinned[f"layers.1.{norm}"]) and "ui8" in str(pinned[f"layers.0.{norm}"])
    assert "ui8" in str(pinned["layers.1.self_attn.rope_q"])
    program = space["program"]
    ids = list(range(2, 30))
    assert (program.integer_logits(ids) == program.integer_logits(ids, engine="oracle")).all()


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_adding_an_op(activation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(c_kernels, "_registered", dict(c_kernels._registered))
    space = run_page("adding-an-op.md", monkeypatch, tmp_path, hidden_act=activation)
    program = space["program"]
    ids = list(range(2, 60))
    assert (program.integer_logits(ids) == program.integer_logits(ids, engine="oracle")).all()
    # The scale of up_proj moved through the gate: the equivariance was found.
    names = [op.value_name for op in space["gates"]]
    assert names == ["layers.0.mlp.mul", "layers.1.mlp.mul"]


def installed(folder: Path) -> dict[str, str]:
    """Install the package of writing-a-backend.md into a folder; the environment to use it."""
    page = (DOCS / "writing-a-backend.md").read_text()
    files = re.findall(r"`(pyproject\.toml|einsum_backend\.py)`:\n\n```\w+\n(.*?)```", page, re.S)
    source = folder / "source"
    source.mkdir()
    for name, content in files:
        (source / name).write_text(content)
    assert len(files) == 2 and len(dict(files)["einsum_backend.py"].splitlines()) < 150
    return install(source, folder / "site")


def install(source: Path, site: Path) -> dict[str, str]:
    """Install a package into a folder of its own; the environment to use it."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--target", site, source],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return os.environ | {"PYTHONPATH": str(site)}


@pytest.mark.slow
def test_a_backend_outside_the_project(tmp_path: Path) -> None:
    environment = installed(tmp_path)
    listed = subprocess.run(
        [sys.executable, "-m", "mqc", "targets", "--json"], env=environment, capture_output=True, text=True
    )
    assert json.loads(listed.stdout)["targets"]["einsum-int8"]["backend"] == "einsum", listed.stderr
    code = """
import sys, numpy as np, mqc
from tests.models import tiny_model
from tests.test_api import TEXT, tokenizer
program = mqc.compile(tiny_model("mistral"), target="einsum-int8", tokenizer=tokenizer(), calibration=TEXT)
program.save(sys.argv[1])
ids = list(range(2, 40))
again = mqc.load(sys.argv[1])
assert (again.integer_logits(ids) == program.integer_logits(ids, engine="oracle")).all()
assert again.generate("the quick", 6) == program.generate("the quick", 6, engine="oracle")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.mqc"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    compared = subprocess.run(
        [sys.executable, "-m", "mqc", "debug", "compare", tmp_path / "x.mqc"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "values are equal" in compared.stdout, compared.stderr
    # Without the package the target is unknown, and says so.
    with pytest.raises(mqc.MqcError, match="unknown target 'einsum-int8'"):
        mqc.load(tmp_path / "x.mqc").engine()


def test_the_debugging_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mqc.compiler.recipe import Recipe
    from tests.compiled import imported

    ctx, module = imported(tiny_model("llama"))
    from mqc.compiler.dump import Dump

    dump = Dump(tmp_path / "dump")
    dump.start(ctx, module, {})
    Recipe(prefix=(9,)).pipeline("cpu").run(ctx, module, [dump])
    space = run_page("debugging.md", monkeypatch, tmp_path)
    again, weights = read_dump(tmp_path / "dump" / "05-balance-scales.mlir")
    assert print_module(again) == print_module(space["module"])
    assert (space["logits"] == evaluate(again, weights, np.array([1, 2, 3]))).all()


@pytest.mark.slow
def test_passes_and_dialects_of_a_package(tmp_path: Path) -> None:
    """The hard-swish pass by name on the command line, from a package of its own."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "writing-a-pass.md").read_text(), re.S)
    names = re.search(r"```toml\n(.*?)```", (DOCS / "writing-a-pass.md").read_text(), re.S)
    assert names is not None
    source = tmp_path / "source"
    source.mkdir()
    code = [blocks[0], blocks[1], blocks[3].split("\n\npinned =")[0]]
    code.append('from xdsl.ir import Dialect\n\nAcme = Dialect("acme", [HardSwishOp])\n')
    (source / "my_package.py").write_text("\n".join(code))
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "my-package"\nversion = "0.1"\n'
        f'{names[1]}\n[tool.setuptools]\npy-modules = ["my_package"]\n'
    )
    environment = install(source, tmp_path / "site")
    example = re.search(r"```\n(// CHECK.*?)```", (DOCS / "writing-a-pass.md").read_text(), re.S)
    assert example is not None
    (tmp_path / "test.mlir").write_text(example[1])

    def command(*arguments: object) -> str:
        words = [sys.executable, "-m", "mqc", *map(str, arguments)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert {"use-hard-swish", "pin-layer"} <= set(json.loads(command("passes", "--json"))["passes"])
    out = tmp_path / "out.mlir"
    command("opt", tmp_path / "test.mlir", "--random-weights", "--passes", "use-hard-swish", "-o", out)
    assert "%y = acme.hard_swish %x" in out.read_text()
    assert '"ops": 2' in command("ir", "verify", out, "--json")
    assert "acme.hard_swish" in command("ir", "diff", tmp_path / "test.mlir", out)
    assert json.loads(command("ir", "run", out, "--ids", "1,2", "--json"))["level"] == "llm"


@pytest.mark.parametrize("style", ["qdq", "integer"])
@pytest.mark.parametrize("ends", [None, 4, [60, 24]])
def test_onnx_page(style: str, ends: object, tmp_path: Path) -> None:
    """The whole loop, with a prefix and with end tokens, gives the text that the program gives."""
    from mqc.runtime.tokenizer import Tokenizer
    from tests.compiled import lower_for_onnx, quantized
    from tests.runtime.conftest import byte_tokenizer

    ctx, module = quantized(tiny_model("llama"), Recipe(prefix=(3,)))
    lower_for_onnx(ctx, module)
    files = {**byte_tokenizer().files, "generation_config.json": json.dumps({"eos_token_id": ends})}
    program = mqc.Program(module, ctx.weights, Tokenizer(files), {"target": "onnx-int8"})
    program.export(tmp_path / "files", style=style)
    space: dict[str, Any] = {"folder": tmp_path / "files"}
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "onnx.md").read_text(), re.S):
        exec(code, space)
    program.configure(style=style)
    assert space["generate"]("hello", 20) == program.generate("hello", 20)
    # As many tokens as the context has room for.
    assert space["generate"]("hello", 100) == program.generate("hello")
