"""Values that were computed elsewhere, from files of tensors, against the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from mqc.backends.onnx.files import write
from mqc.compiler.dump import write_module
from mqc.debugging.compare import compare
from mqc.debugging.tensor_dumps import is_tensor_folder, read_tensors
from mqc.debugging.value_trace import Side, Trace
from mqc.errors import InputError
from mqc.ir.module import ops_by_name, prefix_tokens, returned_value
from mqc.registry import backend
from tests.compiled import lower_for_cpu, lower_for_onnx, quantized
from tests.in_process import mqc
from tests.models import tiny_model

IDS = np.arange(3, 15)
Values = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def side() -> Side:
    ctx, module = quantized(tiny_model("llama"))
    lower_for_cpu(ctx, module)
    return Side("program.mlir", module, ctx.weights)


@pytest.fixture(scope="module")
def computed(side: Side) -> Values:
    values: Values = backend("cpu").values(side.module, side.weights, IDS)
    return values


def _npy(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", array)


def _raw(folder: Path, name: str, array: np.ndarray) -> None:
    (folder / f"_{name.replace('.', '_')}_native.raw").write_bytes(array.tobytes())


def _proto(folder: Path, name: str, array: np.ndarray) -> None:
    proto = numpy_helper.from_array(array[None], name)
    (folder / f"{name.replace('.', '-')}.tensorproto").write_bytes(proto.SerializeToString())


def _padded(folder: Path, name: str, array: np.ndarray) -> None:
    _npy(folder, name, np.concatenate([array, np.zeros((4, array.shape[1]), array.dtype)])[None])


@pytest.mark.parametrize("write_as", [_npy, _raw, _proto, _padded])
def test_stored_integers_in_every_form(
    side: Side, computed: Values, tmp_path: Path, write_as: Callable[[Path, str, np.ndarray], None]
) -> None:
    for name, array in computed.items():
        write_as(tmp_path, name, array)
    _npy(tmp_path, "input_ids", IDS)
    (tmp_path / "notes.txt").write_text("of the device")
    assert is_tensor_folder(tmp_path)
    run = read_tensors(tmp_path, side)
    assert run.unknown == () and run.stored.keys() == computed.keys()
    assert all(np.array_equal(run.stored[name], array) for name, array in computed.items())
    result = compare(side, Side("device", side.module, side.weights, run), [run.ids])
    assert {v.sqnr_db for v in result.values} == {v.local_db for v in result.values} == {np.inf}


@pytest.mark.parametrize("suffix", [".npy", ".raw"])
def test_real_numbers_are_rounded_to_the_types(
    side: Side, computed: Values, tmp_path: Path, suffix: str
) -> None:
    running = Trace(side)
    for name, array in computed.items():
        real = running.real(running.ops[name].results[0], array).astype(np.float32)
        if suffix == ".npy":
            np.save(tmp_path / f"{name}.npy", real)
        else:
            (tmp_path / f"{name}.raw").write_bytes(real.tobytes())
    (tmp_path / "input_ids.raw").write_bytes(IDS.astype(np.int32).tobytes())
    run = read_tensors(tmp_path, side)
    # s32 logits have more digits than f32.
    last = returned_value(side.module).owner
    same = {n: np.array_equal(run.stored[n], a) for n, a in computed.items() if running.ops[n] is not last}
    assert all(same.values()), same


def test_an_op_that_was_wrong_on_the_device_is_named(side: Side, computed: Values, tmp_path: Path) -> None:
    """From a part of the values, without logits, by the command line."""
    name = "layers.0.mlp.down_proj"
    for value, array in computed.items():
        if "layers.0.mlp" in value:
            wrong = array.astype(np.int64) + 9 * (value == name)
            np.save(tmp_path / f"{value}.npy", wrong.clip(0, np.iinfo(array.dtype).max).astype(array.dtype))
    np.save(tmp_path / "embed_tokens_of_another_model.npy", np.zeros(3))
    program = tmp_path / "ir" / "program.mlir"
    program.parent.mkdir()
    write_module(program, side.module, side.weights)
    ids = ",".join(map(str, IDS))
    done = mqc("debug", "compare", program, tmp_path, "--ids", ids, "--threshold", 60, "--json")
    assert done.returncode == 0, done.stderr
    assert "1 files are no value's: embed_tokens_of_another_model.npy" in done.stderr
    found = json.loads(done.stdout)
    assert found["tokens"] == len(IDS) and found["kl"] > 0
    assert [v["name"] for v in found["values"] if v["local_db"] is not None] == [name]
    assert found["first_bad"] == name


def test_what_onnx_runtime_computes_of_the_exported_graph(tmp_path: Path) -> None:
    """By ONNX Runtime alone: the exported file with every tensor of a value as output."""
    ctx, module = quantized(tiny_model("llama"))
    lower_for_onnx(ctx, module)
    path = write(module, ctx.weights, tmp_path, style="integer")[0]
    model = onnx.load(path)
    names = ops_by_name(module)
    there = {output for node in model.graph.node for output in node.output} & set(names)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(there))
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    begin = len(prefix_tokens(module))
    positions = np.arange(begin, begin + len(IDS))
    feeds = {"input_ids": IDS, "position_ids": positions, "logit_rows": np.arange(len(IDS))}
    feeds |= load_file(path.parent / "initial_cache.safetensors")
    dumped = tmp_path / "dumped"
    dumped.mkdir()
    outputs = [output.name for output in session.get_outputs()]
    for name, array in zip(outputs, session.run(outputs, feeds), strict=True):
        np.save(dumped / f"{name.replace('/', '_')}.npy", array)
    np.save(dumped / "input_ids.npy", IDS)
    side = Side("program", module, ctx.weights)
    run = read_tensors(dumped, side)
    assert len(run.stored) >= len(there) > 20
    result = compare(side, Side("ONNX Runtime", module, ctx.weights, run), [run.ids])
    assert {v.local_db for v in result.values} == {np.inf}


def test_options_that_a_run_elsewhere_cannot_take(tmp_path: Path) -> None:
    np.save(tmp_path / "input_ids.npy", IDS)
    done = mqc("debug", "compare", tmp_path / "x.mlir", tmp_path, "--backend", "cpu")
    assert done.returncode == 1 and "whose run is over" in done.stderr
    done = mqc("debug", "compare", tmp_path / "x.mlir", "--ids", "1,2")
    assert done.returncode == 1 and "--ids goes with a folder" in done.stderr


def test_files_that_do_not_fit(side: Side, computed: Values, tmp_path: Path) -> None:
    def refused(text: str, name: str, array: np.ndarray, suffix: str = ".npy") -> None:
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".npy":
            np.save(path, array)
        else:
            path.write_bytes(array.tobytes())
        with pytest.raises(InputError, match=text):
            read_tensors(tmp_path, side, IDS)
        path.unlink()

    name, array = next((n, a) for n, a in computed.items() if a.dtype == np.uint8)
    width = array.shape[1]
    with pytest.raises(InputError, match=r"no input_ids\.npy.*--ids"):
        read_tensors(tmp_path, side)
    refused(r"no file in .* is called as a value .*such as \w+\.npy", "x", array)
    refused("has the shape", name, array[:-1])
    refused("has the shape", name, array[:, :-1])
    refused("has the shape", name, np.zeros((width // 4, len(IDS), 4), np.uint8))
    refused("cannot hold", name, array.astype(np.int32) + 256)
    refused("cannot hold", name, array > 3)
    refused("not finite", name, np.full(array.shape, np.nan))
    refused("cannot read", name, np.array(["a"], object))
    refused("has the shape", name, array[:1], ".raw")
    refused("cannot read", name, array, ".pb")
    np.save(tmp_path / "input_ids.npy", IDS + 0.5)
    with pytest.raises(InputError, match="must hold token ids"):
        read_tensors(tmp_path, side)
    np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / f"{name.replace('.', '_')}.npy", array)
    with pytest.raises(InputError, match="two files of"):
        read_tensors(tmp_path, side, IDS)
