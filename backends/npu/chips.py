"""Parameters of chips for the cost model, from `chips.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from mqc.errors import InputError
from mqc.files import read_text

CHIPS = Path(__file__).with_name("chips.toml")
#: What a value rests on.
KINDS = ("vendor", "measured", "estimate", "assumption")


def _unit(name: str) -> Any:
    return field(metadata={"unit": name})


@dataclass(frozen=True)
class Chip:
    """An NPU and its memory.

    hvx_cycles_per_packet: between two packets of one context. matrix_tile: rows, and columns, of a
    result that the matrix unit computes at once; fewer cost as much. matrix_macs_8, _8_by_4, _16: of
    8-bit activations by 8- and by 4-bit weights, of 16-bit activations by either. ddr_bytes_per_s:
    what the NPU alone reaches of the peak. pj_per_mac_16: of 16 by 8 bits. static_w: drawn while it runs.
    """

    name: str
    hvx_vector_bytes: float = _unit("B")
    hvx_contexts: float = _unit("context")
    hvx_cycles_per_packet: float = _unit("cycle")
    clock_hz: float = _unit("Hz")
    vtcm_bytes: float = _unit("B")
    vtcm_bytes_per_s: float = _unit("B/s")
    matrix_tile: float = _unit("row")
    matrix_macs_8: float = _unit("MAC/cycle")
    matrix_macs_8_by_4: float = _unit("MAC/cycle")
    matrix_macs_16: float = _unit("MAC/cycle")
    ddr_peak_bytes_per_s: float = _unit("B/s")
    ddr_bytes_per_s: float = _unit("B/s")
    dma_setup_s: float = _unit("s")
    pj_per_ddr_byte: float = _unit("pJ/B")
    pj_per_vtcm_byte: float = _unit("pJ/B")
    pj_per_mac_8: float = _unit("pJ/MAC")
    pj_per_mac_16: float = _unit("pJ/MAC")
    pj_per_packet: float = _unit("pJ")
    static_w: float = _unit("W")

    @property
    def packets_per_s(self) -> float:
        """Of vectors of 128 bytes, on all HVX contexts."""
        per_cycle = self.hvx_contexts / self.hvx_cycles_per_packet
        return self.clock_hz * per_cycle * self.hvx_vector_bytes / 128


UNITS: dict[str, str] = {f.name: f.metadata["unit"] for f in fields(Chip) if f.name != "name"}


@cache
def chips(path: Path = CHIPS) -> dict[str, Chip]:
    """The chips of a file, by name.

    Raises `InputError` naming chip and field for what is missing, unknown or of another type.
    """
    try:
        tables = tomllib.loads(read_text(path, InputError))
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read the chips of {path}: {error}") from error
    common = _values(path, "common", tables.pop("common", {}))
    found = {}
    for name, table in tables.items():
        values = _values(path, name, table)
        if twice := sorted(values.keys() & common.keys()):
            raise InputError(f"{path}: {name}.{twice[0]} is in [common] too")
        values |= common
        if missing := [f for f in UNITS if f not in values]:
            raise InputError(f"{path}: {name} has no {missing[0]}")
        chip = Chip(name, **values)
        if chip.ddr_bytes_per_s > chip.ddr_peak_bytes_per_s:
            raise InputError(f"{path}: {name}.ddr_bytes_per_s is more than the peak")
        found[name] = chip
    return found


def _values(path: Path, name: str, table: Any) -> dict[str, float]:
    """The numbers of a table, each checked with what it states about itself."""
    if not isinstance(table, Mapping):
        raise InputError(f"{path}: {name} must be a table")
    values = {}
    for key, entry in table.items():
        where = f"{path}: {name}.{key}"
        if key not in UNITS:
            raise InputError(f"{where} is unknown; known: {', '.join(UNITS)}")
        if not isinstance(entry, Mapping) or set(entry) != {"value", "unit", "kind", "source"}:
            raise InputError(f"{where} must state value, unit, kind and source, and nothing else")
        value = entry["value"]
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise InputError(f"{where}.value must be a positive number, got {value!r}")
        if entry["unit"] != UNITS[key]:
            raise InputError(f"{where}.unit must be {UNITS[key]!r}, got {entry['unit']!r}")
        if entry["kind"] not in KINDS:
            raise InputError(f"{where}.kind must be one of {', '.join(KINDS)}, got {entry['kind']!r}")
        if not isinstance(entry["source"], str) or not entry["source"].strip():
            raise InputError(f"{where}.source must be a text")
        values[key] = float(value)
    return values
