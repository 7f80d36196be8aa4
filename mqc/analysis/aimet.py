"""AIMET's encodings: how the tensors of a model are quantized, beside it in a JSON file (`.encodings`).

Formats 0.6.1, 1.0.0 and 2.0.0 as AIMET 2.42 writes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

#: Bits of an encoding that is read, and bounds of its scales: f32 holds them and their reciprocals.
_BITS, _SCALES = range(2, 33), (1e-30, 1e30)


@dataclass(frozen=True)
class Encoding:
    """How one tensor is quantized, in ONNX's terms: `real = scale · (stored − zero)`.

    dtype: `uint8`, `uint16`, `int8`, `int4` or `int32`. scale: one, or one per channel of `axis`.
    constant: whether the tensor is a weight or bias.
    """

    name: str
    dtype: str
    scale: tuple[float, ...]
    zero: int
    axis: int | None
    constant: bool

    @property
    def bits(self) -> int:
        return int(self.dtype.lstrip("uint"))

    def version_1(self) -> dict[str, Any]:
        """Entry of format 1.0.0, whose offset is minus the zero point of the unsigned grid."""
        signed = not self.dtype.startswith("u")
        offset = -float(self.zero) - (2 ** (self.bits - 1) if signed else 0)
        return {
            "bw": self.bits,
            "dtype": "INT",
            "enc_type": "PER_TENSOR" if self.axis is None else "PER_CHANNEL",
            "is_sym": signed,
            "name": self.name,
            "offset": [offset + 0.0] * len(self.scale),
            "scale": list(self.scale),
        }

    def version_2(self) -> dict[str, Any]:
        """Entry of format 2.0.0."""
        entry: dict[str, Any] = {} if self.axis is None else {"axis": self.axis}
        entry |= {"name": self.name, "output_dtype": self.dtype}
        entry["y_scale"] = self.scale[0] if self.axis is None else list(self.scale)
        return entry | ({"y_zero_point": self.zero} if self.zero else {})


def document_1(entries: Iterable[Encoding]) -> dict[str, Any]:
    """A file of format 1.0.0."""
    every = list(entries)
    return {
        "activation_encodings": [e.version_1() for e in every if not e.constant],
        "excluded_layers": [],
        "param_encodings": [e.version_1() for e in every if e.constant],
        "producer": _producer(),
        "quantizer_args": {
            "activation_bitwidth": 16, "dtype": "int", "is_symmetric": True, "param_bitwidth": 8,
            "per_channel_quantization": True, "quant_scheme": "min_max",
        },
        "version": "1.0.0",
    }  # fmt: skip


def document_2(entries: Iterable[Encoding]) -> dict[str, Any]:
    """A file of format 2.0.0."""
    return {"encodings": [e.version_2() for e in entries], "producer": _producer(), "version": "2.0.0"}


def _producer() -> dict[str, str]:
    return {"package": "mqc", "version": version("mqc")}


@dataclass(frozen=True)
class Named:
    """An entry of a file. part: `param`, `input` or `output`, of a parameter or of a module `name`. encoding:
    None if it says nothing that a program has, for the reason in `why`."""

    part: str
    name: str
    encoding: Encoding | None
    why: str = ""

    @property
    def words(self) -> str:
        return self.name if self.part == "param" else f"{self.name} {self.part}"


def read_encodings(document: dict[str, Any]) -> list[Named]:
    """The entries of a file of format 0.6.1, whose activations may be by tensor or by module, or 1.0.0.

    All of them are of unsigned storage. Raises `ValueError` for another format, or what is none.
    """
    stated = str(document.get("version"))
    readers = {"0.6.1": _entries_0, "1.0.0": _entries_1}
    if stated not in readers:
        raise ValueError(f"format {stated} is not read, {' and '.join(readers)} are")
    read = readers[stated]
    return [
        *read(document.get("param_encodings"), "param"),
        *read(document.get("activation_encodings"), "output"),
    ]


def _entries_1(part: Any, kind: str) -> Iterator[Named]:
    if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
        raise ValueError(f"the {kind} encodings are no list of objects")
    for entry in part:
        name, form = entry.get("name"), entry.get("enc_type")
        if not isinstance(name, str):
            raise ValueError(f"an entry of the {kind} encodings has no name")
        if str(entry.get("dtype")).upper() != "INT":
            yield Named(kind, name, None, "it stays a float in the file")
        elif form not in ("PER_TENSOR", "PER_CHANNEL"):
            yield Named(kind, name, None, f"enc_type {form} is not read")
        else:
            yield _of_numbers(kind, name, entry.get("bw"), entry.get("scale"), entry.get("offset"))


def _entries_0(part: Any, kind: str) -> Iterator[Named]:
    if not isinstance(part, dict):
        raise ValueError(f"the {kind} encodings are no object")
    for name, entry in part.items():
        if not isinstance(entry, dict):
            yield _of_channels(kind, name, entry)
            continue
        for direction, places in entry.items():  # of a module, each of its inputs and outputs by number
            if direction not in ("input", "output") or not isinstance(places, dict):
                raise ValueError(f"the encodings of {name} are neither a list nor of inputs and outputs")
            for place, one in places.items():
                if str(place) == "0":
                    yield _of_channels(direction, name, [one])
                else:
                    yield Named(
                        direction, f"{name}, {place},", None, "a product has one input and one output"
                    )


def _of_channels(kind: str, name: str, channels: Any) -> Named:
    if not isinstance(channels, list) or not channels or not all(isinstance(c, dict) for c in channels):
        raise ValueError(f"the encodings of {name} are no list of objects")
    if any(str(c.get("dtype", "int")).lower() != "int" for c in channels):
        return Named(kind, name, None, "it stays a float in the file")
    scales, offsets = ([c.get(key) for c in channels] for key in ("scale", "offset"))
    bits = {str(c.get("bitwidth")) for c in channels}
    if len(bits) > 1:
        raise ValueError(f"the channels of {name} have several bitwidths")
    return _of_numbers(kind, name, channels[0].get("bitwidth"), scales, offsets)


def _of_numbers(kind: str, name: str, bits: Any, scales: Any, offsets: Any) -> Named:
    if type(bits) is not int or bits not in _BITS:
        raise ValueError(f"{name} has {bits!r} bits; {_BITS[0]} to {_BITS[-1]} were expected")
    if not all(isinstance(x, list) and x for x in (scales, offsets)) or len(scales) != len(offsets):
        raise ValueError(f"{name} needs as many scales as offsets")
    if not all(_number(x) and _SCALES[0] < x < _SCALES[1] for x in scales):
        raise ValueError(f"a scale of {name} is none between {_SCALES[0]:g} and {_SCALES[1]:g}")
    if not all(_number(x) and x == int(x) and 0 <= -x < 1 << bits for x in offsets):
        raise ValueError(f"an offset of {name} is none of {bits} bits, from {1 - (1 << bits)} to 0")
    if len(set(offsets)) > 1:
        return Named(kind, name, None, "its channels have several offsets")
    axis = 0 if len(scales) > 1 else None
    entry = Encoding(name, f"uint{bits}", tuple(map(float, scales)), -int(offsets[0]), axis, kind == "param")
    return Named(kind, name, entry)


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < math.inf
