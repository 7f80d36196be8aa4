"""Whole models in ONNX, every architecture: the strict form equals the oracle, the QDQ forms come close."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.aimet import Encoding, document_1, document_2
from mqc.analysis.context import CompilerContext
from mqc.backends.onnx import OnnxBackend
from mqc.backends.onnx import engine as onnx_engine
from mqc.backends.onnx.encodings import collect
from mqc.backends.onnx.engine import OnnxEngine
from mqc.backends.onnx.files import DATA_FILE, initial_cache, write
from mqc.backends.onnx.session import exact_products, open_session
from mqc.compiler.recipe import Recipe
from mqc.debugging.value_trace import Side, Trace
from mqc.dialects.int_ops import AttentionOp, CausalConvOp, JoinOp, LinearOp, LutOp, RouteOp
from mqc.errors import InputError, TargetError
from mqc.ir.module import mqc_ops, ops_by_name
from mqc.ir.op import plain
from mqc.runtime.oracle import OracleEngine
from tests.compiled import lower_for_onnx, quantized
from tests.models import ARCHITECTURES, ON_ONNX, VOCABULARY, sqnr, tiny_model

IDS = np.random.default_rng(0).integers(0, VOCABULARY, 30).astype(np.int32)
Compiled = tuple[CompilerContext, ModuleOp]


def compiled(architecture: str, recipe: Recipe | None = None) -> Compiled:
    ctx, module = quantized(tiny_model(architecture), recipe)
    lower_for_onnx(ctx, module)
    return ctx, module


@pytest.fixture(scope="module")
def tiny() -> Compiled:
    return compiled("llama")


def oracle(found: Compiled) -> Any:
    return OracleEngine(found[1], found[0].weights).forward(IDS)


def engine(found: Compiled, **options: Any) -> OnnxEngine:
    return OnnxEngine(found[1], found[0].weights, threads=1, **options)


def one_prompt(path: Path, found: Compiled) -> Any:
    """Logits of a graph of dynamic length for `IDS`, in the module's unit."""
    rows, cache = np.arange(len(IDS)), initial_cache(found[1], found[0].weights)
    session = open_session(path, entries=exact_products())
    start = 0
    for argument in session.get_inputs():
        if argument.name.startswith("past_"):
            cache.setdefault(argument.name, np.zeros((0, *argument.shape[1:]), np.uint8))
            start = len(cache[argument.name])
    feeds = {"input_ids": IDS.astype(np.int64), "position_ids": rows + start, "logit_rows": rows}
    (logits,) = session.run(["logits"], {**feeds, **cache})
    return logits / plain(found[1].attributes["mqc.logit_scale"])


@pytest.mark.parametrize("architecture", ON_ONNX)
def test_architectures(architecture: str) -> None:
    found = compiled(architecture)
    want = oracle(found)
    strict = engine(found, style="integer")
    parts = [strict.forward(IDS[a:b]) for a, b in ((0, 9), (9, 10), (10, 30))]
    assert (np.concatenate(parts) == want).all()
    assert sqnr(engine(found).forward(IDS), want) > 25
    unlike = (
        isinstance(op, RouteOp | JoinOp | CausalConvOp)
        or (isinstance(op, AttentionOp) and not (op.softcap is op.key_bias is None))
        or (isinstance(op, LutOp) and "(" in op.get("function"))
        for op in mqc_ops(found[1])
    )
    if any(unlike):
        with pytest.raises(TargetError, match=r"has no QDQ form \(not for NPUs\); use style \"integer\""):
            engine(found, runtime="npu", tokens=(8, 1))
        return
    assert sqnr(engine(found, runtime="npu", tokens=(8, 1)).forward(IDS), want) > 25


@pytest.mark.parametrize("group", [0, 32])
def test_4_bit_weights(group: int, tmp_path: Path) -> None:
    recipe = Recipe(weight_bits=4, group=group, keep8=("*.down_proj",) if group else ())
    found = compiled("llama", recipe)
    want = oracle(found)
    assert (engine(found, style="integer").forward(IDS) == want).all()
    assert sqnr(engine(found).forward(IDS), want) > 25
    (path,) = write(found[1], found[0].weights, tmp_path)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT4 in kinds
    if group:
        (path,) = write(found[1], found[0].weights, tmp_path, blocked=True)
        blocks = [
            node for node in onnx.load(path).graph.node if "block_size" in {a.name for a in node.attribute}
        ]
        assert len(blocks) > 4
        assert sqnr(one_prompt(path, found), want) > 25
        with pytest.raises(InputError, match="blocked"):
            write(found[1], found[0].weights, tmp_path, "integer", blocked=True)
        with pytest.raises(TargetError, match="groups"):
            engine(found, runtime="npu", tokens=(1,))
    else:
        assert sqnr(engine(found, runtime="npu", tokens=(8, 1)).forward(IDS), want) > 25


@pytest.mark.parametrize("options", [{"style": "integer"}, {}, {"runtime": "npu"}])
def test_fixed_lengths(tiny: Compiled, options: dict[str, Any]) -> None:
    """Padded prompts, a cache that fills up to the last row, and single tokens."""
    want = OracleEngine(tiny[1], tiny[0].weights).forward(IDS)
    fixed = engine(tiny, tokens=(8, 1), context=30 + engine(tiny).prefix_length, **options)
    logits = fixed.forward(IDS)
    assert (logits == want).all() if options.get("style") else sqnr(logits, want) > 25
    assert fixed.position == fixed.context
    with pytest.raises(InputError, match="tokens"):
        fixed.forward(IDS[:1])
    fixed.reset()
    assert (fixed.forward(IDS[:5], rows=2) == logits[3:5]).all()


@pytest.mark.parametrize("options", [{"style": "integer"}, {}])
@pytest.mark.parametrize("architecture", ["lfm2", "mpt"])
def test_what_belongs_to_positions_of_fixed_lengths(architecture: str, options: dict[str, Any]) -> None:
    """Convolutions read earlier rows out of the cache, keys have biases, behind rows that nobody wrote."""
    found = compiled(architecture)
    want = OracleEngine(found[1], found[0].weights).forward(IDS)
    logits = engine(found, tokens=(8, 1), context=36, **options).forward(IDS)
    assert (logits == want).all() if options else sqnr(logits, want) > 25


@pytest.mark.parametrize("entries", [{}, {"session.x64quantprecision": "1"}])
def test_every_product_with_weights_is_an_integer_kernel(
    tiny: Compiled, entries: dict[str, str], tmp_path: Path
) -> None:
    """What stays float in ONNX Runtime's optimized graph has 16-bit values, for which it has no kernels."""
    ctx, module = tiny
    (path,) = write(module, ctx.weights, tmp_path)
    options = ort.SessionOptions()
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    products = sum(isinstance(op, LinearOp) for op in mqc_ops(module))
    scores = probabilities = 2  # one each a layer
    assert nodes["MatMulIntegerToFloat"] + nodes["QLinearMatMul"] == products + scores
    assert nodes["MatMul"] == probabilities and nodes["Gemm"] == 0


def test_values_for_debugging(tiny: Compiled) -> None:
    ctx, module = tiny
    # Without 16-bit types, values of 16 bits stay float and have nothing to compare.
    for options, least in (({"style": "integer"}, None), ({"runtime": "npu"}, 20), ({}, 12)):
        one = Trace(Side("oracle", module, ctx.weights))
        two = Trace(Side("onnx", module, ctx.weights, OnnxBackend(), options))
        one.run(IDS)
        two.run(IDS)
        same = [
            np.array_equal(one.native[value], two.native[value])
            for value in one.native
            if value in two.native
        ]
        assert len(same) > (len(one.native) - 2 if least is None else least)
        assert all(same) == (options.get("style") == "integer")


def test_names_metadata_and_shared_weights(tiny: Compiled, tmp_path: Path) -> None:
    ctx, module = tiny
    paths = write(module, ctx.weights, tmp_path, tokens=(8, 1), context=40, metadata={"recipe": "w8a8"})
    models = [onnx.load(path, load_external_data=False) for path in paths]
    for model in models:
        names = {name for node in model.graph.node for name in node.output}
        assert {"layers.0.self_attn.v_proj", "layers.1.self_attn.attention", "logits"} <= names
        assert all(node.name for node in model.graph.node)
        assert len({node.name for node in model.graph.node}) == len(model.graph.node)
        data = {entry.key: entry.value for entry in model.metadata_props}
        assert data["recipe"] == "w8a8" and len(data["weights_sha256"]) == 64
        assert not {n.domain for n in model.graph.node} - {""}
    first, second = (
        {
            t.name: {e.key: e.value for e in t.external_data}
            for t in model.graph.initializer
            if t.data_location == onnx.TensorProto.EXTERNAL
        }
        for model in models
    )
    assert first == second and {entry["location"] for entry in first.values()} == {DATA_FILE}
    assert paths[0].stat().st_size < 300_000


def test_prefix_rows_stand_in_the_initial_cache(tmp_path: Path) -> None:
    found = compiled("llama", Recipe(prefix=(3, 5)))
    cache = initial_cache(found[1], found[0].weights)
    assert set(cache) == {f"past_{which}.{layer}" for which in ("key", "value") for layer in (0, 1)}
    assert all(rows.shape == (2, 2, 8) for rows in cache.values())
    assert (engine(found, style="integer").forward(IDS) == oracle(found)).all()


# ---- models that are seldom seen


def changed(architecture: str, change: Any) -> Compiled:
    model = tiny_model(architecture)
    with torch.no_grad():
        change(model)
    found = quantized(model)
    lower_for_onnx(*found)
    return found


def large_bias_on_tiny_weights(model: Any) -> None:
    model.transformer.h[0].attn.c_proj.weight[:, 3] *= 1e-6
    model.transformer.h[0].attn.c_proj.bias[3] = 0.7


def zero_weights(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj.weight.zero_()
    model.model.layers[1].mlp.up_proj.weight.zero_()


def equal_weights(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.copy_(layer.mlp.gate_proj.weight)
        layer.self_attn.v_proj.weight.copy_(layer.self_attn.k_proj.weight)


@pytest.mark.parametrize(
    "architecture, change",
    [("gpt2", large_bias_on_tiny_weights), ("llama", zero_weights), ("llama", equal_weights)],
)
def test_unusual_weights(architecture: str, change: Any, tmp_path: Path) -> None:
    found = changed(architecture, change)
    want = oracle(found)
    assert (engine(found, style="integer").forward(IDS) == want).all()
    assert sqnr(engine(found).forward(IDS), want) > 25
    assert sqnr(engine(found, runtime="npu", tokens=(8, 1)).forward(IDS), want) > 25
    (path,) = write(found[1], found[0].weights, tmp_path, "qdq", "npu", tokens=(8,))
    assert collect(path)


def test_long_prompts_of_which_one_row_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the prompt without a wanted row, also where the logits' operand has 16 bits."""
    monkeypatch.setattr(onnx_engine, "CHUNK", 8)
    for recipe in (Recipe(), Recipe(precision=("%norm=16",))):
        found = compiled("llama", recipe)
        want = oracle(found)
        assert (engine(found, style="integer").forward(IDS, rows=1) == want[-1:]).all()
        assert engine(found, style="integer").forward(IDS, rows=0).shape == (0, VOCABULARY)
        assert sqnr(engine(found).forward(IDS, rows=9), want[-9:]) > 25
        values = OnnxBackend().values(found[1], found[0].weights, IDS, style="integer")
        assert all(len(value) == len(IDS) for value in values.values())


# ---- Qualcomm's HTP back end


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_runs_whole_on_htp(architecture: str) -> None:
    """Not one node falls back to the CPU, and the logits are close to the oracle's."""
    pytest.importorskip("onnxruntime_qnn")
    found = compiled(architecture)
    npu = engine(found, runtime="npu", tokens=(8, 1), context=40, provider="QNNExecutionProvider")
    assert sqnr(npu.forward(IDS), oracle(found)) > 25


def test_4_bit_weights_on_htp() -> None:
    pytest.importorskip("onnxruntime_qnn")
    found = compiled("llama", Recipe(weight_bits=4))
    npu = engine(found, runtime="npu", tokens=(8, 1), context=40, provider="QNNExecutionProvider")
    assert sqnr(npu.forward(IDS), oracle(found)) > 25


#: Largest difference to the oracle's op on the same inputs, in steps of the result (docs/onnx.md).
HTP_STEPS = {"int.attention": 8, 8: 1, 16: 4}


def test_ops_on_htp_are_within_the_tabled_tolerance(tiny: Compiled) -> None:
    pytest.importorskip("onnxruntime_qnn")
    ctx, module = tiny
    options = {"runtime": "npu", "context": 40, "provider": "QNNExecutionProvider"}
    running = Trace(Side("htp", module, ctx.weights, OnnxBackend(), options))
    running.run(IDS)
    checked = 0
    for op in ops_by_name(module).values():
        value = op.results[0]
        if value in running.native and value.type != running._returned.type:
            kind = running.type(value)
            assert kind is not None
            steps = np.abs(running.native[value].astype(int) - running.again(value, running.native)).max()
            assert steps <= HTP_STEPS.get(op.name, HTP_STEPS[kind.bits]), (
                f"{op.name} %{op.value_name}: {steps} steps"
            )
            checked += 1
    assert checked > 25


def test_context_binary(tiny: Compiled, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    ctx, module = tiny
    OnnxBackend().export(
        module, ctx.weights, tmp_path, {}, runtime="npu", tokens=(8, 1), context=40, htp_binary=True
    )
    assert {"decode_ctx.onnx", "prefill_8_ctx.onnx"} <= {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.glob("*_ctx.onnx"):
        (node,) = onnx.load(path).graph.node
        assert node.op_type == "EPContext"


# ---- AIMET encodings


def test_every_tensor_has_an_encoding(tiny: Compiled, tmp_path: Path) -> None:
    paths = write(tiny[1], tiny[0].weights, tmp_path, "qdq", "npu", tokens=(8,), context=40)
    entries = {entry.name: entry for entry in collect(paths[0])}
    graph = onnx.load(paths[0]).graph
    assert {i.name for i in graph.input} - set(entries) == {"input_ids", "position_ids"}
    assert entries["past_key.0"] == Encoding(
        "past_key.0", "uint8", entries["new_key.0"].scale, entries["new_key.0"].zero, None, False
    )
    weight = entries["model.layers.0.self_attn.q_proj.weight"]
    assert (weight.dtype, len(weight.scale), weight.axis, weight.constant) == ("int8", 32, 1, True)
    assert entries["logits"].dtype == "uint16"


def test_biases_have_encodings(tmp_path: Path) -> None:
    ctx, module = compiled("gpt2")
    paths = write(module, ctx.weights, tmp_path, "qdq", "npu", tokens=(8,), context=40)
    assert any(entry.dtype == "int32" and entry.constant for entry in collect(paths[0]))


#: One model in both formats as aimet-onnx 2.42 wrote them, lists of channels cut to two.
AIMET_1 = {
    "W": {
        "bw": 8, "dtype": "INT", "enc_type": "PER_CHANNEL", "is_sym": True, "name": "W",
        "offset": [-128.0, -128.0], "scale": [0.004255830310285091, 0.004166360013186932],
    },
    "ad": {
        "bw": 16, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False, "name": "ad",
        "offset": [-30443.0], "scale": [0.0001390721565654624],
    },
    "y": {
        "bw": 16, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False, "name": "y",
        "offset": [0.0], "scale": [1.5259021896696422e-05],
    },
}  # fmt: skip
AIMET_2: list[dict[str, Any]] = [
    {
        "axis": 1, "name": "W", "output_dtype": "int8",
        "y_scale": [0.004255830310285091, 0.004166360013186932],
    },
    {
        "axis": 0, "name": "b", "output_dtype": "int32",
        "y_scale": [2.8377340299812204e-07, 2.778076293452614e-07],
    },
    {"name": "ad", "output_dtype": "uint16", "y_scale": 0.0001390721565654624, "y_zero_point": 30443},
    {"name": "y", "output_dtype": "uint16", "y_scale": 1.5259021896696422e-05},
]  # fmt: skip


def test_encodings_read_as_aimets_do() -> None:
    entries = []
    for entry in AIMET_2:
        scale = entry["y_scale"]
        entries.append(
            Encoding(
                entry["name"], entry["output_dtype"], tuple(scale) if "axis" in entry else (scale,),
                entry.get("y_zero_point", 0), entry.get("axis"), "axis" in entry,
            )
        )  # fmt: skip
    assert json.loads(json.dumps(document_2(entries)))["encodings"] == AIMET_2
    first = json.loads(json.dumps(document_1(entries)))
    assert {"activation_encodings", "param_encodings", "version", "producer", "quantizer_args"} <= set(first)
    written = {e["name"]: e for e in first["activation_encodings"] + first["param_encodings"]}
    assert {name: written[name] for name in AIMET_1} == AIMET_1
    assert [e["name"] for e in first["param_encodings"]] == ["W", "b"]


# ---- what is refused


def test_refusals(tiny: Compiled, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="has no TensorrtExecutionProvider; available"):
        engine(tiny, provider="TensorrtExecutionProvider")
    with pytest.raises(InputError, match="style, runtime"):
        engine(tiny, style="float")
    with pytest.raises(TargetError, match="fixed lengths"):
        engine(tiny, runtime="npu")
    with pytest.raises(InputError, match="a graph for one token"):
        engine(tiny, tokens=(8,))
    with pytest.raises(InputError, match="context"):
        engine(tiny, tokens=(1,), context=65)
    with pytest.raises(InputError, match="do not fit"):
        write(tiny[1], tiny[0].weights, tmp_path, tokens=(64,), context=20)
    with pytest.raises(InputError, match="different numbers"):
        engine(tiny, tokens=(8, 8, 1))
    with pytest.raises(InputError, match="give tokens too"):
        engine(tiny, context=20)
    with pytest.raises(InputError, match="htp_binary needs"):
        OnnxBackend().export(tiny[1], tiny[0].weights, tmp_path, {}, htp_binary=True)
    with pytest.raises(InputError, match="threads"):
        OnnxEngine(tiny[1], tiny[0].weights, threads=0)


def test_a_table_without_a_function_has_the_strict_form_only() -> None:
    found = compiled("llama")
    for op in mqc_ops(found[1]):
        if isinstance(op, LutOp):
            del op.properties["function"]
    with pytest.raises(TargetError, match=r"layers\.0\.mlp\.act_fn.*style"):
        engine(found)
    assert (engine(found, style="integer").forward(IDS) == oracle(found)).all()


def test_a_damaged_model_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(TargetError, match=r"cannot load model\.onnx"):
        open_session(tmp_path / "model.onnx")
