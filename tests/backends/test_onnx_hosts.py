"""The host programs in C++: compiled with all warnings, they give the tokens that mqc gives.

They need ONNX Runtime's headers (Debian: libonnxruntime-dev) in /usr/include/onnxruntime or MQC_ORT_INCLUDE.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

import mqc
from mqc.compiler.recipe import Recipe
from mqc.runtime.tokenizer import Tokenizer
from tests.compiled import lower_for_npu, lower_for_onnx, quantized
from tests.models import tiny_model
from tests.runtime.conftest import byte_tokenizer

HEADERS = Path(os.environ.get("MQC_ORT_INCLUDE", "/usr/include/onnxruntime"))
PROMPT = [5, 9, 3, 40, 22, 17, 8, 60, 2, 33, 11, 7, 29, 50, 6, 12, 44, 19]

pytestmark = pytest.mark.skipif(
    not (HEADERS / "onnxruntime_cxx_api.h").exists()
    or not Path("/usr/include/nlohmann/json.hpp").exists()
    or shutil.which("g++") is None,
    reason="apt-get install g++ nlohmann-json3-dev libonnxruntime-dev",
)


def program(target: str, recipe: Recipe, ends: object = None) -> mqc.Program:
    ctx, module = quantized(tiny_model("llama"), recipe)
    (lower_for_onnx if target == "onnx-int8" else lower_for_npu)(ctx, module)
    files = {**byte_tokenizer().files, "generation_config.json": json.dumps({"eos_token_id": ends})}
    facts = {"target": target, "recipe": "w8a8", "source": {"kind": "object"}, "mac_share_8bit": 0.8}
    return mqc.Program(module, ctx.weights, Tokenizer(files), facts)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """Compiles a host program that was exported, once for each text; the command that runs it."""
    folder = tmp_path_factory.mktemp("hosts")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)

    def command(source: Path) -> list[str]:
        out = folder / source.stem
        if not out.exists():
            flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-L{folder}", f"-Wl,-rpath,{folder}"]
            subprocess.run(
                ["g++", *flags, source, "-isystem", HEADERS, "-lonnxruntime", "-o", out], check=True
            )
        return [str(out)]

    return command


def tokens(command: list[str], *arguments: object) -> list[int]:
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines() if line.isdigit()]  # QNN writes lines of its own


@pytest.mark.parametrize(
    "recipe, style", [(Recipe(), "qdq"), (Recipe(prefix=(3,)), "qdq"), (Recipe(prefix=(3,)), "integer")]
)
def test_cpu(build: Callable[[Path], list[str]], recipe: Recipe, style: str, tmp_path: Path) -> None:
    made = program("onnx-int8", recipe)
    made.export(tmp_path / "files", style=style)
    command = build(tmp_path / "files" / "host" / "cpu.cpp")
    made.configure(style=style)
    for prompt, most in ((PROMPT, 12), (PROMPT[:1], 1000)):
        want = list(made.generate_tokens(prompt, most if most < 64 else None))
        assert tokens(command, tmp_path / "files", most, *prompt) == want
    for bad, message in ((range(65), b"the prompt must have"), (["The"], b"'The' is not a number")):
        refused = subprocess.run([*command, tmp_path / "files", "4", *map(str, bad)], capture_output=True)
        assert refused.returncode == 1 and message in refused.stderr


def test_end_tokens(build: Callable[[Path], list[str]], tmp_path: Path) -> None:
    found = list(program("onnx-int8", Recipe()).generate_tokens(PROMPT, 20))
    for ends in (found[5], [found[5], 1]):
        folder = tmp_path / str(type(ends).__name__)
        program("onnx-int8", Recipe(), ends).export(folder)
        got = tokens(build(folder / "host" / "cpu.cpp"), folder, 20, *PROMPT)
        assert got == found[: found.index(found[5])]


@pytest.mark.parametrize("recipe, compiled", [(Recipe(), True), (Recipe(prefix=(3,)), False)])
def test_qnn(build: Callable[[Path], list[str]], recipe: Recipe, compiled: bool, tmp_path: Path) -> None:
    """The folder of an NPU program in the simulation of HTP: a padded prompt, a cache that fills up."""
    qnn = pytest.importorskip("onnxruntime_qnn")
    program("npu-int8", recipe).save(tmp_path / "files", htp_binary=compiled)
    folder = tmp_path / "files" / "onnx"
    command = [
        *build(folder / "host" / "ort_qnn.cpp"),
        folder,
        qnn.get_library_path(),
        qnn.get_qnn_htp_path(),
    ]
    mine = program("onnx-int8", recipe)
    mine.configure(style="qdq", runtime="npu", tokens=(16, 1), provider="QNNExecutionProvider")
    for prompt, most in ((PROMPT, 8), (PROMPT[:1], 1000)):
        want = list(mine.generate_tokens(prompt, most if most < 64 else None))
        assert tokens(command, most, *prompt) == want
