"""Recipes: how a model is quantized, as data."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mqc.compiler.pass_manager import Pipeline
from mqc.compiler.precision_rules import WEIGHT
from mqc.errors import RecipeError, choices
from mqc.files import read_text
from mqc.registry import backend as find_backend
from mqc.registry import backends, pass_class, pass_names


@dataclass(frozen=True)
class Recipe:
    """Choices that the pipeline leaves to the user.

    name: shown in reports and in the manifest.
    weight_bits: 8 or 4; group: input channels per 4-bit group, 0 for per channel.
    keep8: globs of value names whose weights keep 8 bits; weights8: share of 4-bit weights that get 8 bits
        where it pays most, 0 for none.
    rounding: how weights are rounded, `nearest` or `feedback` (GPTQ), on so many calibration `windows`.
    prefix: prefix tokens; None to find them, empty for none.
    rotate: whether rotations spread outlier channels.
    alpha: share of activation magnitude that `balance-scales` moves into weights.
    ranges: `minmax`, `percentile` or `mse`; outside_ppm: values that `percentile` leaves
        outside, in parts per million.
    precision: rules for `assign-precision` after its default plan, e.g. `%layers.0.*=16`.
    share: least share of multiply-accumulates with 8-bit activations; which values get 16 bits is searched
        for. 0: the default plan, without a search.
    max_loss: what rounding may cost, as a share of the perplexity, measured on calibration text: as many
        values get 8 bits as keep it. 0: no such search.
    learn: options of `learn-ranges` before weights are quantized, as in a pipeline's text; empty for none.
    tune: the same for `learn-ranges` on quantized weights, after.
    """

    name: str = "w8a8"
    weight_bits: int = 8
    group: int = 0
    keep8: tuple[str, ...] = ()
    weights8: float = 0.0
    rounding: str = "feedback"
    windows: int = 16
    prefix: tuple[int, ...] | None = None
    rotate: bool = True
    alpha: float = 0.5
    ranges: str = "mse"
    outside_ppm: float = 1.0
    precision: tuple[str, ...] = field(default=())
    share: float = 0.0
    max_loss: float = 0.0
    learn: str = ""
    tune: str = ""

    def pipeline(self, backend: str) -> Pipeline:
        """The passes of this recipe for a backend."""
        prefix: dict[str, Any] = {}
        if self.prefix is not None:
            prefix = {"tokens": self.prefix} if self.prefix else {"most": 0}
        weights = {"group": self.group, "keep8": self.keep8}
        precision = {"rules": self.precision, "share": self.share}
        if self.weights8:
            if self.weight_bits != 4:
                raise RecipeError("weights8 is a share of 4-bit weights: the recipe needs weight_bits = 4")
            eight = (f"{WEIGHT}%{glob}=8" for glob in self.keep8)
            precision = {
                "rules": (*self.precision, *eight), "share": self.share,
                "weights8": self.weights8, "group": self.group,
            }  # fmt: skip
        if self.max_loss and (self.share or self.learn):
            raise RecipeError(
                "max_loss goes without share, which searches for precision too, and without learn, which "
                "changes the ranges that the search goes by"
            )
        kept = bool(self.tune or self.max_loss)
        rounding = {"rounding": self.rounding, "windows": self.windows, "keep_reference": kept}
        bound = {"loss": self.max_loss, "rules": self.precision}
        steps: list[tuple[str, dict[str, Any]]] = [
            ("fold-constants", {}),
            ("fold-norm", {}),
            *([("rotate-channels", {})] if self.rotate else []),
            ("absorb-prefix", prefix),
            ("balance-scales", {"alpha": self.alpha}),
            ("observe-ranges", {"method": self.ranges, "outside_ppm": self.outside_ppm}),
            ("assign-precision", precision),
            *([("learn-ranges", self._learning())] if self.learn else []),
            ("quantize-weights", {"bits": self.weight_bits, **weights, **rounding}),
            *([("search-precision", bound)] if self.max_loss else []),
            *([("learn-ranges", _options(self.tune))] if self.tune else []),
            ("lower-to-int", {}),
            ("choose-kernels", {"backend": backend}),
            *((name, {}) for name in find_backend(backend).passes),
        ]
        return Pipeline(tuple(pass_class(name)(**options) for name, options in steps))

    def _learning(self) -> dict[str, Any]:
        """Options of `learn-ranges` before weights are quantized; where it clips them, how they will be."""
        options = _options(self.learn)
        if options["lr_clipping"]:
            options |= {"weight_bits": self.weight_bits, "group": self.group, "keep8": self.keep8}
        return options

    def to_toml(self) -> str:
        """The text of a recipe file, every field stated. Inverse of `load_recipe`."""
        lines = []
        for entry in fields(self):
            value = getattr(self, entry.name)
            # JSON's strings, numbers and lists are TOML's too, but for surrogates and DEL.
            if value is not None and entry.name != "name":
                indent = 4 if isinstance(value, tuple) and len(value) > 4 else None
                text = json.dumps(value, indent=indent, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{entry.name} = {text}")
        return "\n".join(lines) + "\n"


def _options(text: str) -> dict[str, Any]:
    """The options of `learn-ranges` that a text gives."""
    (learning,) = Pipeline.parse(f"learn-ranges{{{text}}}")
    return {entry.name: getattr(learning, entry.name) for entry in fields(learning)}


def passes_in_order() -> list[str]:
    """Names of all registered passes: those of the pipelines in the order of running, then the others."""
    ordered: dict[str, None] = {}
    for backend in backends():
        for everything in (Recipe(max_loss=1.0, tune="steps=1"), Recipe(learn="steps=1")):
            ordered |= dict.fromkeys(p.name for p in everything.pipeline(backend))
    return list(ordered | dict.fromkeys(pass_names()))


RECIPES = {
    "w8a8": Recipe(),
    "w4a8": Recipe("w4a8", weight_bits=4, weights8=0.08, windows=32),
    "w4a8-g64": Recipe("w4a8-g64", weight_bits=4, group=64, windows=32),
}

_SMOOTHQUANT: dict[str, Any] = {
    "rotate": False, "alpha": 0.5, "ranges": "minmax", "rounding": "nearest", "learn": "", "tune": "",
}  # fmt: skip

#: Methods by name: the fields of a recipe that they set. Bits, precision and prefix stay the recipe's.
PRESETS: dict[str, dict[str, Any]] = {
    # What compile does, with weights rounded to the nearest.
    "fast": {"rounding": "nearest", "learn": "", "tune": ""},
    # arXiv 2211.10438, with static ranges.
    "smoothquant": _SMOOTHQUANT,
    # arXiv 2308.13137 with its learning rates of transformations and clipping, and static ranges learned too.
    "omniquant": {
        **_SMOOTHQUANT,
        "learn": "method=layer-wise steps=40 lr_scales=0.005 lr_clipping=0.01 lr_ranges=0.001",
    },
    # arXiv 2408.13933 with its learning rates and loss.
    "mobilequant": {
        **_SMOOTHQUANT,
        "learn": "method=end-to-end loss=hidden steps=120 lr_scales=0.001 lr_clipping=0.01 "
        "lr_ranges=1e-06 lr_zeros=1e-06",
    },
    # What compile does, and then everything that rounding decided learned together.
    "learned": {
        "rotate": True,
        "alpha": 0.5,
        "ranges": "mse",
        "rounding": "feedback",
        "learn": "",
        "tune": "method=end-to-end loss=kl steps=240 lr_ranges=0.001 lr_rounding=0.001 "
        "lr_weights=0.0003 lr_biases=0.0003",
    },
}

#: Recipes are small; a larger file is none.
_LIMIT_BYTES = 1 << 20
_TUPLES = {"keep8": str, "prefix": int, "precision": str}


def load_recipe(name: str | Path | Recipe, preset: str | None = None) -> Recipe:
    """A built-in recipe by name, or one from a TOML file with the fields of `Recipe`; its method replaced by
    a preset's, if one is named.

    Raises `RecipeError` for unknown names, fields or types.
    """
    if preset is not None:
        base = load_recipe(name)
        if preset not in PRESETS:
            raise RecipeError(f"there is no preset {preset!r}; {choices(preset, PRESETS)}")
        return replace(base, name=f"{base.name}, {preset}", **PRESETS[preset])
    if isinstance(name, Recipe):
        return name
    if str(name) in RECIPES:
        return RECIPES[str(name)]
    path = Path(name)
    if not os.path.exists(path):
        raise RecipeError(
            f"there is no recipe {str(name)!r}; {choices(str(name), RECIPES)}, or the path of a TOML file"
        )
    try:
        data = tomllib.loads(read_text(path, RecipeError, _LIMIT_BYTES))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    return _from_table(path, data)


def _from_table(path: Path, data: dict[str, Any]) -> Recipe:
    known = {f.name: f for f in fields(Recipe)}
    values: dict[str, Any] = {"name": path.stem}
    for key, value in data.items():
        if key not in known:
            raise RecipeError(f"{path}: unknown field {key!r}; {choices(key, known)}")
        if key in _TUPLES:
            if not isinstance(value, list) or not all(type(v) is _TUPLES[key] for v in value):
                raise RecipeError(f"{path}: {key} must be a list of {_TUPLES[key].__name__}")
            values[key] = tuple(value)
        else:
            kind = type(getattr(Recipe(), key))
            if kind is float and isinstance(value, int):
                value = float(value)
            if type(value) is not kind:
                raise RecipeError(f"{path}: {key} must be a {kind.__name__}, got {value!r}")
            values[key] = value
    return Recipe(**values)
