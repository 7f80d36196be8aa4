"""Programs on disk.

A folder of these files, and what the target's backend adds:

- `manifest.json`: format version, target, recipe, source, and size and SHA-256 of the others
- `program.mlir`: the `int` or `htp` module, kernels chosen and memory planned
- `weights.safetensors`: its tensors, laid out for the target, memory-mapped when loaded
- `tokenizer.json`, and where there are such `tokenizer_config.json`, `chat_template.jinja`,
  `additional_chat_templates/` and `generation_config.json`: as transformers writes them

Nothing in it is executed: the C program is emitted again from the verified IR.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdsl.dialects.builtin import ModuleOp

from mqc.analysis.context import CompilerContext
from mqc.analysis.ir_text import parse_module, print_module
from mqc.analysis.values import check_values
from mqc.backend import check_options
from mqc.errors import ArtifactError, IRError, StorageError
from mqc.files import check_regular, json_object, read_text, replacing_folder
from mqc.ir.module import level, prefix_tokens, weight_refs
from mqc.ir.weight_store import WeightStore
from mqc.registry import backend_for
from mqc.runtime.tokenizer import Tokenizer, is_tokenizer_file

FORMAT_VERSION = 2
_MANIFEST = "manifest.json"
_WEIGHTS = "weights.safetensors"
_FILES = ("program.mlir", _WEIGHTS, "tokenizer.json")
#: Entry of the manifests that `export` writes: its options.
_EXPORT = "export"
#: What the manifest must state besides its version and files.
_FIELDS = {
    "target": (str, "a text"),
    "recipe": (str, "a text"),
    "source": (dict, "an object"),
    "mac_share_8bit": (float, "a fraction"),
}
#: Manifests are small; a larger one is not ours.
_MANIFEST_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Parts:
    """What a program on disk consists of: the module, its weights, the tokenizer and the manifest."""

    module: ModuleOp
    weights: WeightStore
    tokenizer: Tokenizer
    manifest: dict[str, Any]


def write(parts: Parts, path: Path, **options: Any) -> None:
    """Write a program; the folder appears whole or not at all.

    Beside it stands what the target's backend adds (`Backend.accompany`); options are its
    (`save_options`).

    An existing artifact at `path` is replaced; anything else there is left alone and refused.
    Raises `StorageError`.
    """
    backend = backend_for(parts.manifest["target"])
    check_options(parts.manifest["target"], backend.save_options, options)

    def fill(folder: Path) -> None:
        _write(folder / "program.mlir", print_module(parts.module))
        offsets = parts.weights.save(folder / _WEIGHTS, weight_refs(parts.module))
        backend.accompany(parts.module, parts.weights, offsets, folder, _metadata(parts), **options)
        for name, text in parts.tokenizer.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            _write(folder / name, text)

    _write_folder(path, fill, {**parts.manifest, "format_version": FORMAT_VERSION})


def export(parts: Parts, path: Path, facts: dict[str, Any], **options: Any) -> None:
    """Write the files that a user takes to the target, a manifest and the tokenizer, as `write` does.

    facts: what the manifest states besides. Raises `StorageError`; `TargetError` and `InputError` as the
    backend's `export` does.
    """
    backend = backend_for(parts.manifest["target"])
    check_options(parts.manifest["target"], backend.export_options, options)

    def fill(folder: Path) -> None:
        for name, text in parts.tokenizer.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            _write(folder / name, text)
        backend.export(parts.module, parts.weights, folder, metadata=_metadata(parts), **options)

    _write_folder(path, fill, {**parts.manifest, **facts, _EXPORT: options})


def _metadata(parts: Parts) -> dict[str, str]:
    """Where a program comes from, as texts."""
    stated = parts.manifest
    return {
        "mqc_version": str(stated.get("mqc_version")),
        "recipe": str(stated.get("recipe")),
        "pipeline": str(stated.get("pipeline")),
        "source": json.dumps(stated.get("source", {})),
        "prefix": json.dumps(prefix_tokens(parts.module)),
    }


def _write_folder(path: Path, fill: Callable[[Path], None], manifest: dict[str, Any]) -> None:
    """A folder with what `fill` writes and a manifest; it appears whole or not at all."""
    check_replaceable(path, exported=_EXPORT in manifest)
    with replacing_folder(path) as work:
        fill(work)
        files = {str(f.relative_to(work)): _describe(f) for f in sorted(work.rglob("*")) if f.is_file()}
        _write(work / _MANIFEST, json.dumps({**manifest, "files": files}, indent=2) + "\n")


def check_replaceable(path: Path, exported: bool = False) -> None:
    """Raise `StorageError` unless `path` is free, or a program (`exported`: an export) and nothing else."""
    if not os.path.exists(path):
        return
    try:
        manifest = json_object(read_text(path / _MANIFEST, StorageError, _MANIFEST_LIMIT_BYTES))
        ours = set(_FILES) <= set(manifest["files"]) or _EXPORT in manifest
        kind_differs = ours and exported != (_EXPORT in manifest)
        known = {_MANIFEST, *manifest["files"]}
        foreign = sorted({str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - known)
    except (StorageError, OSError, ValueError, KeyError, TypeError):
        ours, foreign, kind_differs = False, [], False
    if not ours:
        raise StorageError(f"{path} exists and is not an mqc program; choose another path")
    if kind_differs:
        held = "a compiled program" if exported else "exported files"
        raise StorageError(f"{path} holds {held}; choose another path")
    if foreign:
        raise StorageError(f"{path} also holds {foreign[0]}, which is not mqc's; move it away first")


def read(folder: Path) -> Parts:
    """Read a program. Needs neither torch nor transformers; weights are memory-mapped.

    Raises `ArtifactError` if a file is missing, truncated or altered, or of another format version.
    """
    manifest = read_manifest(folder)
    tokenizer_files = [name for name in manifest["files"] if is_tokenizer_file(name)]
    stated = {folder / name: manifest["files"].get(name) for name in sorted({*_FILES, *tokenizer_files})}
    for file, facts in stated.items():
        _check_size(file, facts)
    weights_file = folder / _WEIGHTS
    with ThreadPoolExecutor(1) as pool:  # a gigabyte is hashed while the rest is read
        hashed = pool.submit(_check_hash, weights_file, stated.pop(weights_file))
        for file, facts in stated.items():
            _check_hash(file, facts)
        module = _read_module(folder)
        try:
            weights = _read_weights(folder, module)
            tokenizer = Tokenizer.read(folder, tokenizer_files)
        finally:
            hashed.result()  # that a file was altered, rather than what came of it
    return Parts(module, weights, tokenizer, manifest)


def _read_weights(folder: Path, module: ModuleOp) -> WeightStore:
    """The weights of a module, mapped; what its ops say of them holds."""
    weights = WeightStore.load(folder / _WEIGHTS)
    for ref in weight_refs(module):
        weights[ref]
    try:
        check_values(module, weights)
    except IRError as error:
        raise ArtifactError(f"{folder}: {error}") from error
    return weights


def _read_module(folder: Path) -> ModuleOp:
    file = folder / "program.mlir"
    try:
        module = parse_module(read_text(file, ArtifactError), str(file), CompilerContext())
        found = level(module)
    except IRError as error:
        raise ArtifactError(str(error)) from error
    if found not in ("int", "htp"):
        raise ArtifactError(f"{folder}: program.mlir is at level {found}, not int or htp")
    return module


def read_manifest(folder: Path) -> dict[str, Any]:
    """A program's manifest, without a look at its other files. Raises `ArtifactError`."""
    file = folder / _MANIFEST
    if not os.path.isdir(folder):
        raise ArtifactError(
            f"{folder} is not an mqc program: "
            + ("it is no folder" if os.path.lexists(folder) else "there is no such folder")
        )
    if not os.path.exists(file):
        raise ArtifactError(f"{folder} is not an mqc program: it has no {_MANIFEST}")
    try:
        manifest = json_object(read_text(file, ArtifactError, _MANIFEST_LIMIT_BYTES))
    except ValueError as error:
        raise ArtifactError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{file} is not a manifest of mqc")
    if _EXPORT in manifest:
        raise ArtifactError(
            f"{folder} holds the files exported for {manifest.get('target')}; give the folder that "
            "mqc compile wrote"
        )
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format version {version}, this mqc reads {FORMAT_VERSION}; "
            "compile the model again, or use the mqc that wrote it"
        )
    for name, (kind, noun) in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise ArtifactError(f"{file}: {name} is missing or not {noun}")
    return manifest


def _write(file: Path, text: str) -> None:
    with open(file, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def _sha256(file: Path) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _check_size(file: Path, stated: Any) -> None:
    if not isinstance(stated, dict) or not os.path.exists(file):
        raise ArtifactError(f"{file} is missing from the program")
    check_regular(file, ArtifactError)
    size = file.stat().st_size
    if size != stated.get("bytes"):
        raise ArtifactError(f"{file} is truncated or altered: {size} bytes, not {stated.get('bytes')}")


def _check_hash(file: Path, stated: dict[str, Any]) -> None:
    if _sha256(file) != stated.get("sha256"):
        raise ArtifactError(f"{file} was altered: its SHA-256 is not the manifest's")
