"""AIMET's encodings beside a float model: they are the program's grids, and what has no place is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mqc
from mqc.analysis.aimet import Encoding, document_1, read_encodings
from mqc.arrays import Array
from mqc.compiler.recipe import Recipe
from mqc.dialects import int_ops
from mqc.dialects.quant import UniformType
from mqc.errors import InputError, ModelError
from mqc.frontend.float_model import float_source
from mqc.frontend.sources import load_source
from mqc.ir.module import mqc_ops
from tests import in_process
from tests.frontend.test_quantized_models import lowered, quantized, raised
from tests.models import tiny_model
from tests.test_api import TEXT, tokenizer

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def folder(path: Path, **changes: Any) -> str:
    tiny_model("llama", **changes).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return str(path)


def of_rows(model: Any, name: str, bits: int) -> Encoding:
    """A symmetric grid of each row of a matrix."""
    weight = model.get_submodule(name).weight.detach().numpy()
    scales = np.abs(weight).max(1) / ((1 << (bits - 1)) - 1)
    return Encoding(f"{name}.weight", f"int{bits}", tuple(map(float, scales)), 0, 0, True)


def version_0(entry: Encoding) -> list[dict[str, Any]]:
    """As AIMET 1 writes an entry of 0.6.1."""
    first = entry.version_1()
    return [
        {
            "bitwidth": first["bw"], "dtype": "int", "is_symmetric": str(first["is_sym"]), "scale": scale,
            "offset": int(offset), "min": scale * offset, "max": scale * (offset + (1 << first["bw"]) - 1),
        }
        for scale, offset in zip(first["scale"], first["offset"], strict=True)
    ]  # fmt: skip


def document_0(params: list[Encoding], values: dict[str, dict[str, Encoding]]) -> dict[str, Any]:
    return {
        "version": "0.6.1",
        "param_encodings": {entry.name: version_0(entry) for entry in params},
        "activation_encodings": {
            module: {part: {"0": version_0(entry)[0]} for part, entry in parts.items()}
            for module, parts in values.items()
        },
    }


def written(path: Path, document: dict[str, Any]) -> str:
    path.write_text(json.dumps(document))
    return str(path)


VALUE = Encoding("", "uint8", (0.05,), 120, None, False)
WIDE = Encoding("", "uint16", (0.001,), 30000, None, False)


def whole(model: Any, version: str) -> tuple[dict[str, Any], list[Encoding]]:
    params = [of_rows(model, Q, 8), of_rows(model, DOWN, 4)]
    if version == "0.6.1":
        # Of a module's input a file of the other format does not tell.
        return document_0(params, {Q: {"output": VALUE}, DOWN: {"output": WIDE}}), params
    values = [Encoding(name, v.dtype, v.scale, v.zero, None, False) for name, v in ((Q, VALUE), (DOWN, WIDE))]
    return document_1([*params, *values]), params


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0"])
def test_grids_are_those_of_the_file(version: str, tmp_path: Path) -> None:
    name = folder(tmp_path / "model")
    document, params = whole(load_source(name).model, version)
    file = written(tmp_path / "x.encodings", document)
    source = load_source(name, encodings=file)
    exact = load_source(name).model
    ctx, module, found, stated = raised(source)
    quantized(ctx, module, Recipe())
    lowered(ctx, module)
    for entry in params:
        key = entry.name.removesuffix(".weight")
        weight = exact.get_submodule(key).weight.detach().numpy()
        scale = np.array(entry.scale, np.float32)[:, None]
        integers: Array = np.clip(
            np.rint(weight / scale), -(1 << (entry.bits - 1)), (1 << (entry.bits - 1)) - 1
        )
        (op,) = (o for o in mqc_ops(module) if o.value_name == f"{key.removeprefix('model.')}.acc")
        assert isinstance(op, int_ops.LinearOp) and op.get("weight_bits") == entry.bits
        assert np.array_equal(ctx.weights[op.weight], integers)
        assert np.array_equal(
            source.model.get_submodule(key).weight.numpy(), integers.astype(np.float32) * scale
        )
    values = {op.value_name: op.attributes.get("represents") for op in mqc_ops(module)}
    assert values["layers.0.self_attn.q_proj"] == UniformType.of(8, 0.05, 120)
    assert values["layers.1.mlp.down_proj"] == UniformType.of(16, 0.001, 30000)
    report = found.report(stated, module)
    assert len(report["given"]) == 4 and report["left"] == [] and report["notes"] == []
    assert f"%layers.0.self_attn.q_proj: {Q} output" in report["given"]


def test_inputs_and_what_has_no_place(tmp_path: Path) -> None:
    name = folder(tmp_path / "model", tie_word_embeddings=True)
    model = load_source(name).model
    document = document_0(
        [
            of_rows(model, DOWN, 8), of_rows(model, "lm_head", 8), of_rows(model, "model.embed_tokens", 8),
            Encoding("other.weight", "int8", (0.1,), 0, None, True),
            Encoding(f"{Q}.weight", "int16", (0.1,), 0, None, True),
        ],
        {DOWN: {"input": VALUE}, "model.norm": {"input": VALUE}, "/layers.0/Mul_output_0": {"output": VALUE}},
    )  # fmt: skip
    document["param_encodings"]["model.norm.weight"] = [{"bitwidth": 16, "dtype": "float"}]
    ctx, module, found, stated = raised(
        load_source(name, encodings=written(tmp_path / "x.encodings", document))
    )
    assert found.notes == (
        "lm_head.weight: the matrix is a table too: rounded here",
        "model.embed_tokens.weight: it is of no matrix of a product: rounded here",
        "other.weight: it is of no matrix of a product: rounded here",
        f"{Q}.weight: a matrix of 16 bits: rounded here",
        "model.norm.weight: it stays a float in the file",
        "model.norm input: it is the input of no matrix product",
    )
    quantized(ctx, module, Recipe())
    lowered(ctx, module)
    report = found.report(stated, module)
    assert report["left"] == ["/layers.0/Mul_output_0 output"]
    assert report["given"] == [
        f"%layers.1.mlp.down_proj weight: {DOWN}.weight",
        f"%layers.1.mlp.mul: {DOWN} input",
    ]


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({"version": "2.0.0"}, r"format 2\.0\.0 is not read, 0\.6\.1 and 1\.0\.0 are"),
        ({"version": "0.6.1", "param_encodings": []}, "no object"),
        ({"version": "1.0.0", "param_encodings": {}}, "no list"),
        ({"version": "1.0.0", "param_encodings": [], "activation_encodings": []}, "none of them is of a"),
        (
            {**document_1([Encoding("x.weight", "int8", (0.1,), 0, None, True)])},
            r"such as x\.weight, and none of them .* such as model\.layers\.0\.self_attn\.q_proj",
        ),
    ],
)  # fmt: skip
def test_files_that_are_none(document: dict[str, Any], match: str, tmp_path: Path) -> None:
    name = folder(tmp_path / "model")
    with pytest.raises(ModelError, match=match):
        load_source(name, encodings=written(tmp_path / "x.encodings", document))


_ENTRY = Encoding("x", "int8", (0.1, 0.2), 0, 0, True).version_1()


@given(
    st.sampled_from(["bw", "scale", "offset", "name", "dtype"]),
    st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.lists(st.floats(), max_size=3)),
)
def test_values_that_make_no_sense(key: str, value: Any) -> None:
    """They are read as numbers that a grid may have, or refused."""
    document = {"version": "1.0.0", "param_encodings": [{**_ENTRY, key: value}], "activation_encodings": []}
    try:
        (found,) = read_encodings(document)
    except ValueError:
        return
    if found.encoding is not None:
        assert all(0 < scale < float("inf") for scale in found.encoding.scale)
        assert 0 <= found.encoding.zero < 1 << found.encoding.bits


def test_what_is_written_is_read() -> None:
    entries = [Encoding("w", "int4", (0.1, 0.2), 0, 0, True), Encoding("x", "uint16", (0.5,), 9, None, False)]
    first, second = (named.encoding for named in read_encodings(document_1(entries)))
    assert first == Encoding("w", "uint4", (0.1, 0.2), 8, 0, True)
    assert second == entries[1]


def test_on_the_command_line(tmp_path: Path) -> None:
    name = folder(tmp_path / "model")
    document, _ = whole(load_source(name).model, "1.0.0")
    file, text, output = tmp_path / "x.encodings", tmp_path / "text.txt", tmp_path / "x.mqc"
    written(file, document)
    text.write_text(TEXT)
    run = in_process.mqc("compile", name, "--encodings", file, "--calibration", text, "-o", output)
    assert run.returncode == 0, run.stderr
    said = " ".join(run.stdout.replace("│", " ").split())
    assert "scales of the model AIMET encodings, x.encodings" in said and "2 matrices, 2 values" in said
    scales = json.loads(in_process.mqc("info", output, "--json").stdout)["scales"]
    assert set(scales) == {"method", "notes", "given", "calibrated", "left"} and len(scales["given"]) == 4
    # The float model beside it is the rounded one.
    program = mqc.load(output)
    assert float_source(program.manifest).given is not None
    with pytest.raises(InputError, match="given by its name"):
        mqc.compile(tiny_model("llama"), tokenizer=tokenizer(), encodings=file)


def test_encodings_of_a_quantized_model(tmp_path: Path) -> None:
    from tests.frontend.test_quantized_models import FORMATS
    from tests.quantized_models import save

    save(tmp_path / "model", *FORMATS["w8"])
    document, _ = whole(tiny_model("llama"), "1.0.0")
    with pytest.raises(ModelError, match="is compressed-tensors, int-quantized already"):
        load_source(str(tmp_path / "model"), encodings=written(tmp_path / "x.encodings", document))


def test_matrices_that_stand_turned_in_the_model(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    name, key = str(tmp_path / "model"), "transformer.h.0.attn.c_proj"
    weight = load_source(name).model.get_submodule(key).weight.detach()
    scales = weight.abs().amax(0) / 127
    entry = Encoding(f"{key}.weight", "int8", tuple(scales.tolist()), 0, 0, True)
    source = load_source(name, encodings=written(tmp_path / "x.encodings", document_1([entry])))
    rounded = source.model.get_submodule(key).weight
    assert torch.allclose(rounded, weight, atol=float(scales.max())) and not torch.equal(rounded, weight)
    assert raised(source)[3].matrices == {"h.0.attn.c_proj": f"{key}.weight"}


@pytest.mark.parametrize(("key", "match"), [("scale", "a scale of x"), ("offset", "an offset of x")])
def test_a_number_that_no_float_holds(key: str, match: str) -> None:
    entry = {"name": "x", "dtype": "INT", "enc_type": "PER_TENSOR", "bw": 8, "scale": [0.1], "offset": [-128]}
    document = {
        "version": "1.0.0",
        "param_encodings": [{**entry, key: [10**400]}],
        "activation_encodings": [],
    }
    with pytest.raises(ValueError, match=match):
        read_encodings(document)
