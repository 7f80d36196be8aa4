"""Two files of AIMET encodings, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mqc.analysis.aimet import Encoding, document_1, document_2
from mqc.backends.onnx.encodings import collect
from mqc.backends.onnx.files import write
from tests.compiled import lower_for_onnx, quantized
from tests.in_process import mqc
from tests.models import tiny_model


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Encoding]:
    """Of a program's graph for NPUs."""
    ctx, module = quantized(tiny_model("llama"))
    lower_for_onnx(ctx, module)
    folder = tmp_path_factory.mktemp("graph")
    return collect(write(module, ctx.weights, folder, runtime="npu", tokens=(8, 1), context=40)[0])


def _file(path: Path, entries: list[Encoding]) -> Path:
    path.write_text(json.dumps(document_1(entries)))
    return path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: replace(e, scale=tuple(s * 1.25 for s in e.scale)), {"ratio": 1.25}),
        (lambda e: replace(e, zero=e.zero + 1), {"ratio": 1.0}),
        (lambda e: replace(e, dtype="uint16"), {"bits": [8, 16]}),
    ],
)
def test_what_differs_is_found(
    entries: list[Encoding],
    tmp_path: Path,
    change: Callable[[Encoding], Encoding],
    expected: dict[str, object],
) -> None:
    chosen = next(e for e in entries if e.dtype == "uint8" and not e.constant and e.zero)
    other = [change(e) if e is chosen else e for e in entries]
    # The other tool writes names as QNN does.
    other = [replace(e, name=e.name.replace(".", "_").replace("/", "_")) for e in other]
    one, two = _file(tmp_path / "one", entries), _file(tmp_path / "two", other)
    same = json.loads(mqc("debug", "encodings", one, one, "--json").stdout)
    assert not same["differing"] and same["equal"] > 50
    done = mqc("debug", "encodings", one, two, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (difference,) = found["differing"]
    assert difference["name"] == chosen.name and found["equal"] == same["equal"] - 1
    for key, value in expected.items():
        assert difference[key] == (pytest.approx(value) if key == "ratio" else value)
    assert f"{same['equal'] - 1} tensors are alike, 1 are not" in mqc("debug", "encodings", one, two).stdout


def test_scales_per_channel_and_missing_ones(tmp_path: Path) -> None:
    weight = Encoding("w", "int8", (0.1, 0.2, 0.4), 0, 0, True)
    one = _file(tmp_path / "one", [weight, replace(weight, name="a")])
    two = _file(tmp_path / "two", [replace(weight, scale=(0.1, 0.1, 0.4)), replace(weight, name="b")])
    found = json.loads(mqc("debug", "encodings", one, two, "--json").stdout)
    assert found["only_first"] == ["a"] and found["only_second"] == ["b"]
    assert found["differing"][0]["ratio"] == pytest.approx(0.5)
    few = _file(tmp_path / "few", [replace(weight, scale=(0.2,), axis=None)])
    (difference,) = json.loads(mqc("debug", "encodings", one, few, "--json").stdout)["differing"]
    assert difference["channels"] == [3, 1] and difference["ratio"] == pytest.approx(2.0)
    many = _file(tmp_path / "many", [replace(weight, scale=(0.1, 0.2))])
    (difference,) = json.loads(mqc("debug", "encodings", one, many, "--json").stdout)["differing"]
    assert difference["channels"] == [3, 2] and difference["ratio"] is None


def test_what_is_no_file_of_encodings(tmp_path: Path) -> None:
    good = _file(tmp_path / "good", [])
    for text in ("{", "[]", json.dumps(document_2([])), '{"version": "1.0.0"}'):
        (tmp_path / "bad").write_text(text)
        done = mqc("debug", "encodings", good, tmp_path / "bad")
        assert done.returncode == 1 and "bad holds no encodings that are read" in done.stderr
